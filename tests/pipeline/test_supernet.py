"""The elastic network: what is cut out of it is what was trained in it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.data import Split
from pipeline.supernet.base import RECALIBRATION_IMAGES, recalibrate, train_supernet
from pipeline.supernet.elastic import ElasticConvNet, StagePlan
from profiles.compression import Training
from tests.projects import stripes

SHAPE = (1, 16, 16)


def supernet(seed: int = 0, **changes: object) -> ElasticConvNet:
    torch.manual_seed(seed)
    settings: dict[str, object] = {
        "input_shape": SHAPE,
        "stem_width": 6,
        "stem_stride": 2,
        "stages": (StagePlan(6, depth=2), StagePlan(10, depth=3)),
        "kernels": (3, 5),
        "expands": (1, 2, 3),
        "classes": 3,
    }
    return ElasticConvNet(**{**settings, **changes})


NETWORK = supernet()
genomes = st.tuples(*(st.integers(0, int(high)) for high in NETWORK.space.highest))


def images(count: int = 12) -> torch.Tensor:
    return torch.from_numpy(stripes(count, seed=3)[0])


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@settings(max_examples=15)
@given(genome=genomes)
def test_an_extracted_network_computes_what_the_supernet_does(genome: tuple[int, ...]):
    """Both normalise by the statistics of the same batch here."""
    x, chosen = images(), np.array(genome)
    with torch.no_grad():
        inside = NETWORK.forward_genome(x, chosen)
        outside = NETWORK.extract(chosen).train()(x)
    torch.testing.assert_close(outside, inside, atol=1e-5, rtol=1e-5)


@settings(max_examples=15)
@given(genome=genomes)
def test_recalibrated_it_still_does_on_the_images_it_was_recalibrated_with(
    genome: tuple[int, ...],
):
    x, chosen = images(96), np.array(genome)
    module = recalibrate(NETWORK.extract(chosen), x.numpy())
    assert not any(part.training for part in module.modules())
    with torch.no_grad():
        inside, outside = NETWORK.forward_genome(x, chosen), module(x)
    # Running variances are unbiased, a batch's own are not: that much may differ.
    assert float((outside - inside).abs().max()) < 0.05 * float(inside.abs().max())


def test_without_recalibration_it_does_not():
    x = images()
    chosen = NETWORK.space.highest
    with torch.no_grad():
        inside, outside = NETWORK.forward_genome(x, chosen), NETWORK.extract(chosen).eval()(x)
    assert float((outside - inside).abs().max()) > 0.1 * float(inside.abs().max())


def test_recalibration_uses_the_first_images_only():
    x = np.random.default_rng(0).standard_normal((RECALIBRATION_IMAGES + 50, *SHAPE))
    x = x.astype(np.float32)
    other = x.copy()
    other[RECALIBRATION_IMAGES:] += 100
    chosen = NETWORK.space.highest
    one = recalibrate(NETWORK.extract(chosen), x).state_dict()
    two = recalibrate(NETWORK.extract(chosen), other).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_extracting_copies_and_changes_nothing():
    network = supernet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    module = network.extract(network.space.highest)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7)
    recalibrate(module, images().numpy())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@settings(max_examples=15)
@given(genome=genomes)
def test_no_network_is_smaller_or_larger_than_the_extremes(genome: tuple[int, ...]):
    smallest, largest = NETWORK.extremes()
    counts = [parameters(NETWORK.extract(g)) for g in (smallest, np.array(genome), largest)]
    assert counts[0] <= counts[1] <= counts[2]


def test_a_small_kernel_is_the_centre_and_a_narrow_block_the_first_channels():
    genome = [0] * len(NETWORK.space.slots)
    small = next(m for m in NETWORK.extract(np.array(genome)).modules() if hasattr(m, "filter"))
    full = NETWORK.blocks[0].largest
    torch.testing.assert_close(small.filter.weight, full.filter.weight[:6, :, 1:4, 1:4])
    torch.testing.assert_close(small.project.weight, full.project.weight[:, :6])


def test_the_extremes_are_in_the_space_and_differ():
    smallest, largest = NETWORK.extremes()
    NETWORK.space.check([smallest, largest])
    assert parameters(NETWORK.extract(smallest)) < parameters(NETWORK.extract(largest))


def test_the_space_has_every_kernel_and_expansion_and_later_blocks_may_go():
    names = [slot.name for slot in NETWORK.space.slots]
    assert names == ["stem", "s1b1", "s1b2", "s2b1", "s2b2", "s2b3", "head"]
    sizes = [len(slot.choices) for slot in NETWORK.space.slots]
    assert sizes == [1, 6, 7, 6, 7, 7, 1]
    assert NETWORK.space.size == 6 * 7 * 6 * 7 * 7
    assert NETWORK.space.slots[2].choices[0] == "skip"
    assert "k5e3" in NETWORK.space.slots[1].choices


def every_block() -> dict[tuple[int, int], object]:
    return {
        (slot, choice): NETWORK.block(slot, choice)
        for slot, place in enumerate(NETWORK.space.slots)
        for choice in range(len(place.choices))
    }


def test_skipping_has_no_block_and_everything_else_has():
    for (slot, choice), block in every_block().items():
        skips = NETWORK.space.slots[slot].choices[choice] == "skip"
        assert (block is None) == skips


def test_blocks_of_one_signature_are_the_same_work():
    by_signature: dict[str, list] = {}
    for block in every_block().values():
        if block is not None:
            by_signature.setdefault(block.signature, []).append(block)
    assert any(len(blocks) > 1 for blocks in by_signature.values()), "nothing is shared"
    seen = []
    for blocks in by_signature.values():
        shapes = {
            (block.input_shape, tuple(tuple(p.shape) for p in block.module.parameters()))
            for block in blocks
        }
        assert len(shapes) == 1
        seen.append(next(iter(shapes)))
    assert len(set(seen)) == len(seen), "different signatures, the same work"


@settings(max_examples=15)
@given(genome=genomes)
def test_blocks_put_together_are_the_network(genome: tuple[int, ...]):
    """What the table adds up is what is measured whole: shapes fit, and no work is left out."""
    x = torch.zeros(1, *SHAPE)
    total = 0
    for slot, choice in enumerate(genome):
        block = NETWORK.block(slot, choice)
        if block is None:
            continue
        assert tuple(x.shape) == block.input_shape
        with torch.no_grad():
            x = block.module.eval()(x)
        total += parameters(block.module)
    assert x.shape == (1, 3)
    assert total == parameters(NETWORK.extract(np.array(genome)))


def data() -> Split:
    x, y = stripes(48, seed=0)
    return Split(x, y)


def trained(seed: int = 0) -> tuple[ElasticConvNet, list[float]]:
    network = supernet(seed=1)
    losses: list[float] = []
    train_supernet(
        network,
        data(),
        Training(epochs=6, batch_size=16, learning_rate=0.01, seed=seed),
        lambda text: losses.append(float(text.rpartition(" ")[2])),
    )
    return network, losses


def weights(network: nn.Module) -> bytes:
    from safetensors.torch import save

    return save({name: value.contiguous() for name, value in network.state_dict().items()})


@pytest.fixture(scope="module")
def first() -> tuple[ElasticConvNet, list[float]]:
    return trained()


def test_training_lowers_the_loss(first: tuple[ElasticConvNet, list[float]]):
    _, losses = first
    assert len(losses) == 6
    assert losses[-1] < 0.7 * losses[0]


def test_training_reaches_small_networks_too(first: tuple[ElasticConvNet, list[float]]):
    split = data()
    for genome in first[0].extremes():
        module = recalibrate(first[0].extract(genome), split.x)
        with torch.no_grad():
            found = module(torch.from_numpy(split.x)).argmax(1).numpy()
        assert np.mean(found == split.y) > 0.6


def test_training_is_the_same_for_a_seed(first: tuple[ElasticConvNet, list[float]]):
    torch.manual_seed(99)  # whatever went before must not matter
    again, losses = trained()
    assert weights(again) == weights(first[0])
    assert losses == first[1]
    assert weights(trained(seed=1)[0]) != weights(first[0])


def test_something_that_is_no_module_is_refused():
    with pytest.raises(TypeError, match="torch module"):
        train_supernet(object(), data(), Training(), print)  # type: ignore[arg-type]


def test_a_network_comes_back_from_its_weights(tmp_path: Path):
    buffer = io.BytesIO()
    torch.save(NETWORK.state_dict(), buffer)
    other = supernet(seed=8)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    genome = NETWORK.space.highest
    with torch.no_grad():
        torch.testing.assert_close(
            other.forward_genome(images(), genome), NETWORK.forward_genome(images(), genome)
        )
