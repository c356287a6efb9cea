"""Masks and their schedules: how much is zero when, what may come back, and what may not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.compress import masks as masking
from pipeline.compress.masks import Masks, Weights
from pipeline.compress.schedules import (
    FROZEN,
    Adaptive,
    Cyclical,
    Gradual,
    Held,
    adapting_steps,
    risen,
)
from pipeline.training import Callback, torch_threads

STEPS = 200
SPARSITY = 0.75


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with torch_threads(1):  # tensors this small only wait for a second one
        yield


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(4, 8, 3)
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        self.twin = nn.Linear(8, 16)
        self.twin.weight = self.body[0].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.conv(x).mean((2, 3)))


def overall(weights: Weights, share: float) -> Masks:
    return masking.overall(weights, SPARSITY * share)


def sparsity(weights: Weights) -> float:
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    return zeros / sum(weight.numel() for weight in weights.values())


def train(
    module: nn.Module, callback: Callback, look: Callable[[int], None] = lambda step: None
) -> None:
    """The training loop's calls in their order; ``look`` is called where a forward pass would be.

    Momentum and weight decay are large: both would bring masked weights back.
    """
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        callback.begin(step, STEPS)
        optimiser.zero_grad()
        module(torch.randn(8, 4, 5, 5, generator=generator)).square().mean().backward()
        look(step)
        callback.update(step, STEPS)
        optimiser.step()
        callback.finish(step, STEPS)


# -- schedules


def test_gradual_is_the_cubic_of_zhu_and_gupta():
    adapting = adapting_steps(STEPS)
    assert adapting == STEPS * (1 - FROZEN) == 150
    assert risen("gradual", 0, STEPS) == 0
    for step in (15, 75, 149):
        expected = 1 + (0 - 1) * (1 - step / adapting) ** 3
        assert risen("gradual", step, STEPS) == pytest.approx(expected)


@given(steps=st.integers(1, 500))
def test_gradual_never_falls_and_all_of_it_holds_in_the_frozen_part(steps: int):
    values = [risen("gradual", step, steps) for step in range(steps)]
    assert values == sorted(values)
    assert all(0 <= value <= 1 for value in values)
    assert set(values[adapting_steps(steps) :]) == {1.0}
    assert values[-1] == 1.0


@given(cycles=st.integers(1, 6), period=st.integers(3, 40))
def test_cyclical_begins_anew_with_each_cycle_and_ends_in_all_of_it(cycles: int, period: int):
    adapting = cycles * period
    steps = adapting * 4 // 3
    if adapting_steps(steps) != adapting:
        return
    values = [risen("cyclical", step, steps, cycles) for step in range(steps)]
    first = values[:period]
    assert first[0] == 0
    assert all(before < after for before, after in pairwise(first))
    for cycle in range(cycles):
        assert values[cycle * period : (cycle + 1) * period] == pytest.approx(first)
    assert set(values[adapting:]) == {1.0}


def test_one_cycle_is_gradual():
    for step in range(STEPS):
        assert risen("cyclical", step, STEPS, 1) == risen("gradual", step, STEPS)


# -- masks


def test_convolutions_and_linear_layers_are_prunable_and_a_shared_weight_counts_once():
    module = Small()
    assert list(masking.prunable(module)) == ["conv", "body.0", "body.2"]
    assert masking.prunable(module)["conv"] is module.conv.weight


@given(share=st.floats(0, 1), seed=st.integers(0, 5))
def test_local_takes_the_smallest_of_each_layer_that_is_named(share: float, seed: int):
    weights = {
        "a": torch.randn(5, 7, generator=torch.Generator().manual_seed(seed)),
        "b": torch.ones(6, 3),
        "other": torch.randn(4),
    }
    masks = masking.local(weights, {"a": share, "b": share})
    for path in ("a", "b"):
        weight, mask = weights[path], masks[path]
        expected = min(round(weight.numel() * share), weight.numel() - 1)
        assert int((~mask).sum()) == expected  # ties and all: exactly so many
        if expected:
            assert weight[~mask].abs().max() <= weight[mask].abs().min()
    assert masks["other"].all()


def test_overall_ranks_all_layers_by_magnitude_over_their_norm():
    small, large = torch.tensor([[0.1, 0.2], [0.3, 0.4]]), torch.tensor([[1.0, 20.0], [30.0, 40.0]])
    masks = masking.overall({"small": small, "large": large}, 3 / 8)
    # 1 / 53.9 and 0.1 / 0.548, then 20 / 53.9 before 0.2 / 0.548.
    assert masks["large"].tolist() == [[False, True], [True, True]]
    assert masks["small"].tolist() == [[False, False], [True, True]]


def test_a_layer_of_zeros_is_ranked_last_and_not_by_nan():
    masks = masking.overall({"zeros": torch.zeros(4), "ones": torch.ones(4)}, 0.5)
    assert not masks["zeros"].any()
    assert masks["ones"].all()


@settings(max_examples=30)
@given(
    pattern=st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8), (3, 5)]),
    groups=st.integers(1, 3),
    kernel=st.sampled_from([(), (3,), (3, 3)]),
    seed=st.integers(0, 9),
)
def test_n_of_m_keeps_the_largest_of_neighbouring_inputs(
    pattern: tuple[int, int], groups: int, kernel: tuple[int, ...], seed: int
):
    kept, of = pattern
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(3, groups * of, *kernel, generator=generator)
    mask = masking.n_of_m({"w": weight}, kept, of)["w"]
    flat = weight.reshape(3, groups, of, -1)
    chosen = mask.reshape(3, groups, of, -1)
    assert set(chosen.sum(2).flatten().tolist()) == {kept}
    for row in range(3):
        for group in range(groups):
            for place in range(flat.shape[-1]):
                values, stay = flat[row, group, :, place].abs(), chosen[row, group, :, place]
                assert values[stay].min() > values[~stay].max()
    masking.apply({"w": weight}, {"w": mask})
    assert masking.keeps_pattern(weight, kept, of)


def test_one_weight_too_many_breaks_a_pattern():
    weight = torch.tensor([[1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 3.0, 4.0]])
    assert masking.keeps_pattern(weight, 2, 4)
    weight[0, 2] = 1e-20
    assert not masking.keeps_pattern(weight, 2, 4)


def test_layers_that_no_group_fits_are_named_with_the_reason():
    weights = {
        "stem": torch.ones(8, 3, 3, 3),
        "deep": torch.ones(8, 1, 3, 3),
        "fit": torch.ones(4, 8),
    }
    assert masking.misfits(weights, 4) == {
        "stem": "3 input channels are no multiple of 4",
        "deep": "1 input channels are no multiple of 4",
    }


def test_masked_weights_are_plain_zeros_whatever_they_were():
    weight = nn.Parameter(torch.tensor([-1.0, float("inf"), 2.0]))
    masking.apply({"w": weight}, {"w": torch.tensor([False, False, True])})
    assert weight.tolist() == [0.0, 0.0, 2.0]
    assert not torch.signbit(weight).any()


# -- in training


def test_held_zeros_stay_under_momentum_and_decay():
    module = Small()
    weights = masking.prunable(module)
    masks = masking.overall(weights, SPARSITY)
    masking.apply(weights, masks)
    before = {path: weight.detach().clone() for path, weight in weights.items()}
    train(module, Held(weights, masks))
    for path, weight in weights.items():
        assert not weight[~masks[path]].any()
        assert (weight[masks[path]] != before[path][masks[path]]).all()  # the others learned


def test_gradual_takes_weights_step_by_step_and_none_comes_back():
    module = Small()
    weights = masking.prunable(module)
    seen: list[float] = []
    gone = {path: torch.zeros_like(weight, dtype=torch.bool) for path, weight in weights.items()}

    def look(step: int) -> None:
        seen.append(sparsity(weights))
        for path, weight in weights.items():
            assert not weight[gone[path]].any()
            gone[path] |= weight == 0

    train(module, Gradual(weights, overall), look)
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert seen[40] == pytest.approx(SPARSITY * risen("gradual", 40, STEPS), abs=0.01)
    assert {round(value, 2) for value in seen[150:]} == {SPARSITY}
    assert sparsity(weights) == pytest.approx(SPARSITY, abs=0.01)


def test_cyclical_lets_weights_learn_again_with_each_cycle():
    module = Small()
    weights = masking.prunable(module)
    seen: list[float] = []
    masked: list[torch.Tensor] = []

    def look(step: int) -> None:
        seen.append(sparsity(weights))
        masked.append(torch.cat([(weight == 0).flatten() for weight in weights.values()]))

    train(module, Cyclical(weights, overall, 3), look)
    # All but those without a gradient, which are behind a ReLU that is shut.
    assert max(seen[step] for step in (0, 50, 100)) < 0.1
    assert min(seen[49], seen[99]) > 0.7
    assert {round(value, 2) for value in seen[150:]} == {SPARSITY}
    assert all(torch.equal(mask, masked[150]) for mask in masked[150:])
    assert sparsity(weights) == pytest.approx(SPARSITY, abs=0.01)


@pytest.mark.parametrize("kind", ["gradual", "cyclical"])
def test_what_was_taken_wrongly_returns_in_cycles_alone(kind: str):
    """The answer is three times the first input, whose weight is the smallest to begin with."""
    module = nn.Linear(4, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[0.01, 1.0, 1.1, 1.2]]))
    weights = {"": module.weight}
    callback = Gradual(weights, overall) if kind == "gradual" else Cyclical(weights, overall, 3)
    optimiser = torch.optim.AdamW(module.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(0)
    for step in range(STEPS):
        callback.begin(step, STEPS)
        optimiser.zero_grad()
        x = torch.randn(32, 4, generator=generator)
        (module(x)[:, 0] - 3 * x[:, 0]).square().mean().backward()
        callback.update(step, STEPS)
        optimiser.step()
        callback.finish(step, STEPS)
    assert int((module.weight != 0).sum()) == 1
    assert bool(module.weight[0, 0]) == (kind == "cyclical")


def test_dense_weights_learn_under_the_mask():
    module = Small()
    weights = masking.prunable(module)
    before = module.conv.weight.detach().clone()
    callback = Adaptive(weights, overall, 0.0)
    callback.begin(0, STEPS)
    masked = module.conv.weight == 0
    assert masked.any()
    module(torch.randn(8, 4, 5, 5)).square().mean().backward()
    callback.update(0, STEPS)
    assert torch.equal(module.conv.weight, before)
    assert module.conv.weight.grad is not None
    assert module.conv.weight.grad[masked].any()


def test_decay_of_masked_weights_rises_and_settles():
    module = Small()
    weights = {"conv": module.conv.weight}
    choose = lambda weights, share: masking.n_of_m(weights, 2, 4)  # noqa: E731
    pulls = []
    for step in (0, 30, 75, 140):
        callback = Adaptive(weights, choose, 0.5)
        callback.begin(0, STEPS)
        module.conv.weight.grad = torch.zeros_like(module.conv.weight)
        masked = module.conv.weight == 0
        callback.update(step, STEPS)
        grad, dense = module.conv.weight.grad, module.conv.weight.detach()
        assert not grad[~masked].any()
        pulls.append(float((grad[masked] / dense[masked]).mean()))
    assert pulls == pytest.approx([0, 0.2, 0.5, 0.5])


@pytest.mark.parametrize("kind", ["gradual", "cyclical", "adaptive"])
def test_a_callback_goes_on_from_its_state_as_if_nothing_had_happened(kind: str):
    def callback(weights: Weights) -> Callback:
        if kind == "gradual":
            return Gradual(weights, overall)
        return (
            Cyclical(weights, overall, 2) if kind == "cyclical" else Adaptive(weights, overall, 0.1)
        )

    def run(first: int, last: int, module: nn.Module, its: Callback) -> None:
        for step in range(first, last):
            its.begin(step, STEPS)
            module.zero_grad()
            x = torch.randn(8, 4, 5, 5, generator=torch.Generator().manual_seed(step))
            module(x).square().mean().backward()
            its.update(step, STEPS)
            with torch.no_grad():
                for parameter in module.parameters():
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad, alpha=0.05)
            its.finish(step, STEPS)

    whole, parted, resumed = Small(), Small(), Small()
    run(0, STEPS, whole, callback(masking.prunable(whole)))
    # Not a step at which masks are chosen: what was chosen before must be in the state.
    for stop in (33, 173):
        begun = callback(masking.prunable(parted))
        run(0, stop, parted, begun)
        resumed.load_state_dict(parted.state_dict())
        other = callback(masking.prunable(resumed))
        other.restore(begun.state())
        run(stop, STEPS, resumed, other)
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value)
        parted = Small()


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_the_shortest_training_ends_with_the_asked_sparsity(steps: int):
    for kind in ("gradual", "cyclical"):
        module = Small()
        weights = masking.prunable(module)
        callback: Callback = Gradual(weights, overall)
        if kind == "cyclical":
            callback = Cyclical(weights, overall, 3)
        optimiser = torch.optim.AdamW(module.parameters(), lr=0.01)
        for step in range(steps):
            callback.begin(step, steps)
            optimiser.zero_grad()
            module(torch.ones(2, 4, 5, 5)).mean().backward()
            callback.update(step, steps)
            optimiser.step()
            callback.finish(step, steps)
        assert sparsity(weights) == pytest.approx(SPARSITY, abs=0.01)
