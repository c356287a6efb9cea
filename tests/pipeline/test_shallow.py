"""Blocks that add next to nothing are found and removed, and what is left is a whole network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compress import shallow
from pipeline.compress.batch_norms import settle
from pipeline.compress.module import module_of, open_program_of
from pipeline.compress.shallow import blocks, similarities
from pipeline.compress.workbench import Workbench
from pipeline.data import Split
from pipeline.examples.resnet20 import ResNet20
from pipeline.programs import load_program, save_program
from profiles.compression import Distil, Shallow, Training
from profiles.errors import StageError
from tests.pipeline.networks import MobileLike, VitLike, image, settled

RESNET = ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]


class Model(nn.Module):
    """Under a name, as the model stage puts every model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.model(input)


def opened(net: nn.Module) -> torch.export.ExportedProgram:
    return open_program_of(Model(settled(net)), torch.from_numpy(image(count=2)))


@pytest.fixture(scope="module")
def vit() -> VitLike:
    """Its middle block adds next to nothing."""
    torch.manual_seed(0)
    net = settled(VitLike(width=16))
    with torch.no_grad():
        for layer in (net.blocks[1].attention.out, net.blocks[1].mlp[2]):
            layer.weight *= 1e-3
            layer.bias *= 1e-3
    return net


@pytest.fixture(scope="module")
def program(vit: VitLike) -> torch.export.ExportedProgram:
    return opened(vit)


@pytest.fixture(scope="module")
def bench(program, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("bench")
    save_program(program, folder / "teacher.pt2")
    x = image(count=40, seed=3)
    some = Split(x, np.arange(40) % 10)
    return Workbench(some, some, x, folder / "teacher.pt2", folder / "checkpoint")


def fresh(bench: Workbench) -> torch.fx.GraphModule:
    """The network with weights of its own: modules of one program share them."""
    return module_of(load_program(bench.teacher_program))


def settings(**values) -> Shallow:
    return Shallow(name="short", method="remove-layers", **values)


def paths(module: torch.fx.GraphModule) -> list[str]:
    return [block.path.removeprefix("model.") for block in blocks(module)]


def test_blocks_that_can_go_are_those_that_add_to_what_they_are_given() -> None:
    """Not those that change the shape, nor a branch inside a block, nor a layer alone."""
    assert paths(module_of(opened(ResNet20()))) == RESNET
    assert paths(module_of(opened(VitLike()))) == ["blocks.0", "blocks.1", "blocks.2"]
    # Adding in place, and a shortcut only where the shape stays.
    assert paths(module_of(opened(MobileLike()))) == ["features.1", "features.3", "features.4"]


class Plain(nn.Module):
    """No shortcut at all."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*[nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x).mean((2, 3))


class PostNorm(nn.Module):
    """As BERT: what is added is normalised, on the way around the layers, too."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(PostNormStep() for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(2).mean(2)
        for step in self.steps:
            x = step(x)
        return x


class PostNormStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)
        self.drop = nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.drop(self.layer(x)) + x)


def test_networks_without_shortcuts_have_none_that_can_go(bench: Workbench) -> None:
    with pytest.raises(StageError, match=r"remove: 1 blocks cannot be removed: 0 can \(none\)"):
        shallow.apply(module_of(opened(Plain())), settings(), bench)


def test_a_normalised_sum_can_go() -> None:
    assert paths(module_of(opened(PostNorm()))) == ["steps.0", "steps.1"]


def test_more_than_there_are_tells_how_many_there_are(bench: Workbench) -> None:
    with pytest.raises(StageError, match=r"remove: 4 .* 3 can \(model.blocks.0, .*blocks.2\)"):
        shallow.apply(fresh(bench), settings(remove=4), bench)


def test_what_adds_next_to_nothing_goes_first(vit: VitLike, bench: Workbench) -> None:
    module = fresh(bench)
    before = {name for name, _ in module.named_parameters()}
    changed, record = shallow.apply(module, settings(), bench)
    assert record["removed"] == ["model.blocks.1"]
    (similar,) = record["similarities"]
    assert similar["model.blocks.1"] == max(similar.values()) > 0.999
    # The same as the network without it, and nothing else is lost.
    short = VitLike(width=16)
    short.load_state_dict(vit.state_dict())
    del short.blocks[1]
    x = torch.from_numpy(image(count=3, seed=5))
    with torch.no_grad():
        torch.testing.assert_close(changed(x), short.eval()(x), atol=1e-5, rtol=1e-5)
    left = {name for name, _ in changed.named_parameters()}
    assert left == {name for name in before if not name.startswith("model.blocks.1.")}


def test_similarities_are_measured_again_after_each_removal(bench: Workbench) -> None:
    _, record = shallow.apply(fresh(bench), settings(remove=2), bench)
    first, second = record["similarities"]
    assert set(second) == set(first) - {"model.blocks.1"}
    assert record["removed"][1] == max(second, key=second.get)


def test_linear_cka_is_one_for_the_same_and_nothing_for_what_has_nothing_in_common() -> None:
    """Even with many more features than examples, where the plain estimate is near 1."""
    rng = np.random.default_rng(0)
    one, other = (torch.from_numpy(rng.standard_normal((40, 400))) for _ in range(2))
    turn = torch.linalg.qr(torch.from_numpy(rng.standard_normal((400, 400)))).Q

    def cka(a: torch.Tensor, b: torch.Tensor) -> float:
        return shallow._alignment(shallow._gram(a), shallow._gram(b))

    assert cka(one, 3 * one @ turn + 5) == pytest.approx(1, abs=1e-6)
    assert abs(cka(one, other)) < 0.1
    assert 0.3 < cka(one, one + other) < 0.95
    assert cka(one, torch.zeros_like(one)) == 0


def test_values_that_are_written_over_later_are_compared_as_they_were() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.steps = nn.ModuleList(Step() for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 1.0
            for step in self.steps:
                x = step(x)
            return x.mean((2, 3))

    class Step(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x += self.layer(x)
            return x

    torch.manual_seed(0)
    net = InPlace()
    net.steps[0].layer.weight.data *= 30
    net.steps[1].layer.weight.data *= 0
    module = module_of(opened(net))
    found = similarities(module, blocks(module), image(count=20))
    assert found["model.steps.1"] == pytest.approx(1)
    assert found["model.steps.0"] < 0.99


def test_batch_norms_learn_what_they_are_given_now() -> None:
    net = Model(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4096, 2))
    )
    module = module_of(open_program_of(net.eval(), torch.from_numpy(image(count=2))))
    norm = module.get_submodule("model.1")
    momentum = norm.momentum
    x = image(count=70) + 3
    settle(module, x)
    with torch.no_grad():
        given = module.get_submodule("model.0")(torch.from_numpy(x))
    torch.testing.assert_close(norm.running_mean, given.mean((0, 2, 3)), atol=0.02, rtol=0)
    assert not any(layer.training for layer in module.modules())
    assert norm.momentum == momentum


@pytest.mark.parametrize("count", [33, 65])
def test_a_last_image_alone_has_no_variance_and_stays_with_the_others(count: int) -> None:
    """Where a batch norm is given one value per channel and image."""
    net = nn.Sequential(nn.Conv2d(3, 4, 32), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    module = module_of(open_program_of(Model(net.eval()), torch.from_numpy(image(count=2))))
    x = image(count=count)
    assert settle(module, x)
    with torch.no_grad():
        given = module.get_submodule("model.0")(torch.from_numpy(x))
    norm = module.get_submodule("model.1")
    torch.testing.assert_close(norm.running_mean, given.mean((0, 2, 3)), atol=0.02, rtol=0)


def test_one_image_and_networks_without_batch_norms_settle_nothing() -> None:
    norm = nn.BatchNorm2d(3)
    assert not settle(norm, image(count=1))
    assert (norm.running_mean == 0).all()
    assert not settle(nn.Conv2d(3, 4, 3), image(count=4))


def test_what_is_left_is_fine_tuned_with_the_whole_network_as_teacher(
    bench: Workbench,
) -> None:
    distil = Distil(features=0.5, at=("model.blocks.2.mlp.2",))
    asked = settings(train=Training(epochs=1, batch_size=20), distil=distil)
    changed, record = shallow.apply(fresh(bench), asked, bench)
    assert {"validation_accuracy", "validation_accuracy_untrained", "train"} <= set(record)
    moved = (
        changed.get_submodule("model.head").weight
        - bench.teacher.get_submodule("model.head").weight
    )
    assert moved.abs().max() > 0


def test_too_few_samples_to_compare_are_refused(bench: Workbench) -> None:
    few = replace(bench, calibration=image(count=3))
    with pytest.raises(StageError, match="3 calibration samples: at least 4"):
        shallow.apply(fresh(bench), settings(), few)
    some = replace(bench, calibration=image(count=8))
    _, record = shallow.apply(fresh(bench), settings(), some)
    assert "only 8 calibration samples" in record["samples_warning"]


def test_a_network_that_gives_nan_is_refused(bench: Workbench) -> None:
    module = fresh(bench)
    with torch.no_grad():
        module.get_submodule("model.blocks.1.norm1").weight[0] = float("nan")
    with pytest.raises(StageError, match=r"^model.blocks.1.norm1 gives values"):
        shallow.apply(module, settings(), bench)
