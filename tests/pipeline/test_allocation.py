"""The best choice within a budget; distortions that add up, checked; sparsities from both."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pipeline.compress import allocation
from pipeline.compress.allocation import Choice, Curve, choose, spend
from pipeline.compress.distortion import Distortion, finite_logits
from pipeline.compress.layer_adaptive import sparsities
from pipeline.compress.module import module_of, open_program_of
from pipeline.compress.workbench import Workbench
from pipeline.data import Split
from profiles.compression import Budget
from profiles.errors import StageError

F = nn.functional


def curve(name: str, *options: tuple[float, float]) -> Curve:
    """A curve of (distortion, cost) pairs."""
    distortions, costs = zip(*options, strict=True)
    return Curve(name, tuple(map(float, range(len(options)))), distortions, costs)


figures = st.integers(0, 60).map(float)
instances = st.lists(
    st.lists(st.tuples(figures, figures), min_size=1, max_size=4), min_size=1, max_size=5
).map(lambda layers: [curve(f"layer{i}", *options) for i, options in enumerate(layers)])


def brute(curves: list[Curve], budget: float) -> float | None:
    """The least distortion of all choices within the budget."""
    every = itertools.product(*(range(len(one.levels)) for one in curves))
    sums = [
        (
            sum(one.costs[i] for one, i in zip(curves, chosen, strict=True)),
            sum(one.distortions[i] for one, i in zip(curves, chosen, strict=True)),
        )
        for chosen in every
    ]
    return min((distortion for cost, distortion in sums if cost <= budget), default=None)


@given(instances, st.integers(0, 300))
def test_no_choice_within_the_budget_is_better(curves: list[Curve], budget: int) -> None:
    best = brute(curves, budget)
    if best is None:
        with pytest.raises(StageError) as caught:
            choose(curves, budget)
        nearest = float(str(caught.value).rpartition(" is ")[2])
        assert brute(curves, nearest) is not None
        assert brute(curves, nearest - 1) is None
        return
    choice = choose(curves, budget)
    assert choice.distortion == best
    assert choice.cost <= budget
    # What it says it costs and distorts is what its options do.
    assert choice.cost == sum(one.costs[choice.options[one.name]] for one in curves)
    assert choice.distortion == sum(one.distortions[choice.options[one.name]] for one in curves)
    assert choice.levels == {one.name: one.levels[choice.options[one.name]] for one in curves}


@given(instances, st.integers(0, 300), st.integers(0, 40))
def test_more_budget_never_distorts_more(curves: list[Curve], budget: int, more: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(allocation, "STEPS", 8)  # thinned a lot
        try:
            less = choose(curves, budget)
        except StageError:
            return
        assert choose(curves, budget + more).distortion <= less.distortion


@pytest.fixture(scope="module")
def many() -> list[Curve]:
    """Forty layers with costs that are no round numbers: more sums than anyone could keep."""
    rng = np.random.default_rng(0)
    curves = []
    for number in range(40):
        costs = np.sort(rng.uniform(1, 100, 12))[::-1]
        distortions = np.concatenate([[0], np.sort(rng.exponential(1, 11))])
        curves.append(Curve(f"layer{number}", tuple(range(12)), tuple(distortions), tuple(costs)))
    return curves


def test_rounding_never_exceeds_the_budget_and_costs_next_to_nothing(many: list[Curve]) -> None:
    whole = sum(one.costs[0] for one in many)
    for share in (0.3, 0.6):
        choice = choose(many, share * whole)
        cost = math.fsum(one.costs[choice.options[one.name]] for one in many)
        assert cost <= share * whole
        # Lagrange's bound: no choice at all can distort less than this.
        bound = max(
            sum(
                min(d + price * c for d, c in zip(one.distortions, one.costs, strict=True))
                for one in many
            )
            - price * share * whole
            for price in np.geomspace(1e-4, 10, 400)
        )
        assert bound <= choice.distortion <= bound * 1.02 + 0.02


def test_the_cheapest_choice_survives_thinning(
    many: list[Curve], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(allocation, "STEPS", 4)
    least = sum(min(one.costs) for one in many)
    assert choose(many, least).cost == pytest.approx(least)


def test_what_costs_more_and_distorts_is_never_chosen() -> None:
    """As a factorisation that is slower than the layer that it stands for."""
    slower = curve("layer", (0.0, 10.0), (1.0, 11.0), (2.0, 5.0))
    assert choose([slower], 12).options == {"layer": 0}
    assert choose([slower], 9).options == {"layer": 2}


def test_a_share_counts_what_no_layer_can_change() -> None:
    layers = [curve("a", (0, 40), (1, 10)), curve("b", (0, 40), (3, 10))]
    # 20 of 100 stay in any case.
    choice = spend(layers, 100, Budget(latency=0.7))
    assert choice.levels == {"a": 1.0, "b": 0.0}
    assert choice.cost == 70
    with pytest.raises(StageError, match=r"latency: 0.3 cannot be met: .* nearest .* is 0.4\b"):
        spend(layers, 100, Budget(latency=0.3))
    assert spend(layers, 100, Budget(latency=0.4)).levels == {"a": 1.0, "b": 1.0}


@given(st.floats(1, 1e9), st.floats(0.0, 1e9), st.floats(0.001, 0.999))
def test_the_share_that_an_error_names_can_be_met(cost: float, fixed: float, left: float) -> None:
    layers = [curve("a", (0, cost), (1, cost * left))]
    try:
        spend(layers, cost + fixed, Budget(macs=0.0001))
    except StageError as error:
        nearest = float(str(error).rpartition(" is ")[2].partition(" ")[0])
        assert nearest == 1 or spend(layers, cost + fixed, Budget(macs=nearest)).options["a"] == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_curves_are_finite_and_not_negative(bad: float) -> None:
    with pytest.raises(ValueError, match=r"conv1: .*finite"):
        curve("conv1", (0.0, 1.0), (bad, 0.5))


class Net(nn.Module):
    """A layer that hardly matters, one that does, and one that divides by what it is given."""

    def __init__(self, divide: bool = False) -> None:
        super().__init__()
        self.faint, self.strong = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)
        self.divide = divide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.strong(x) + 0.01 * self.faint(x)).mean((2, 3))
        return self.head(y / (y - y) if self.divide else y)


def images(count: int = 40) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.standard_normal((count, 3, 8, 8)).astype(np.float32)


def graph(net: nn.Module) -> torch.fx.GraphModule:
    return module_of(open_program_of(net.eval(), torch.from_numpy(images(2))))


@pytest.fixture(scope="module")
def net() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    return graph(Net())


def bench(tmp_path, count: int = 40) -> Workbench:
    some = Split(images(), np.zeros(40, np.int64))
    return Workbench(some, some, images(count), tmp_path / "none.pt2", tmp_path / "checkpoint")


def test_a_curve_is_measured_with_the_other_layers_untouched(net: torch.fx.GraphModule) -> None:
    asked = []

    def build(levels):
        asked.append(dict(levels))
        return lambda x: net(x) + sum(levels.values())

    meter = Distortion(net, images())
    curves = meter.curves({"a": (0.0, 1.0), "b": (0.0, 2.0, 3.0)}, build, lambda text: None)
    assert asked == [{"a": 1.0}, {"b": 2.0}, {"b": 3.0}]
    assert curves["a"] == (0.0, pytest.approx(1, rel=1e-5))
    assert curves["b"] == (0.0, pytest.approx(4, rel=1e-5), pytest.approx(9, rel=1e-5))


def test_what_a_batch_norm_takes_back_is_no_distortion() -> None:
    """For training or settling gives it other statistics anyway; those that it has are kept."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    module = graph(nn.Sequential(OrderedDict(body=nn.Sequential(*layers))))
    meter = Distortion(module, images())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        conv = module.get_submodule("body.0")
        conv.weight *= 3
        conv.bias += 7
    assert meter.of(module) < 1e-6
    assert not any(layer.training for layer in module.modules())
    after = module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if "running" in name)
    with torch.no_grad():
        conv.weight[0] = 0
    assert meter.of(module) > 1e-4
    # One sample has no statistics: those that are there count.
    alone = Distortion(module, images()[:1])
    assert alone.of(module) == 0


def joint(levels: np.ndarray, together) -> dict:
    """The check of additivity for layers whose joint distortion is a function of their own."""
    net = lambda x: x.new_zeros(len(x), 2)  # noqa: E731
    meter = Distortion(nn.Flatten(), np.zeros((4, 2, 1, 1), np.float32))
    curves = [
        Curve(f"l{i}", tuple(map(float, range(len(row)))), tuple(row), tuple(row[::-1]))
        for i, row in enumerate(levels)
    ]
    middle = {one.name: len(one.levels) // 2 for one in curves}
    choice = Choice(middle, {name: float(i) for name, i in middle.items()}, 1.0, 1.0)

    def build(asked):
        own = [one.distortions[int(asked[one.name])] for one in curves]
        return lambda x: net(x) + together(np.array(own)) ** 0.5

    return meter.additivity(curves, choice, build)


def test_additivity_is_checked_on_joint_choices() -> None:
    rng = np.random.default_rng(1)
    levels = np.cumsum(rng.uniform(0.1, 1, (6, 5)), 1)
    good = joint(levels, np.sum)
    assert good["correlation"] > 0.99
    assert good["ratio"] == pytest.approx(1, rel=0.01)
    assert "warning" not in good
    twentyfold = joint(levels, lambda own: 20 * own.sum())
    assert twentyfold["ratio"] == pytest.approx(20, rel=0.01)
    assert "do not add up" in twentyfold["warning"]
    other = joint(levels, lambda own: 1 + own.sum() ** -3)
    assert other["correlation"] < 0
    assert "do not add up" in other["warning"]


def test_nothing_compressed_is_no_reason_to_warn() -> None:
    assert "warning" not in joint(np.zeros((3, 4)), np.sum)


def test_values_that_are_not_finite_name_their_layer() -> None:
    with pytest.raises(StageError, match=r"^div gives values that are not finite .* sample 0"):
        Distortion(graph(Net(divide=True)), images())
    broken = graph(Net())
    with torch.no_grad():
        broken.get_submodule("faint").weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(StageError, match=r"^faint gives values"):
        Distortion(broken, images())


def test_the_sample_that_fails_is_named(net: torch.fx.GraphModule) -> None:
    samples = images(6)
    samples[4, 0, 0, 0] = np.inf
    with pytest.raises(StageError, match="calibration sample 4"):
        finite_logits(net, samples)


def test_a_network_that_is_destroyed_is_the_worst_choice_not_an_error(net) -> None:
    meter = Distortion(net, images())
    assert meter.of(lambda x: net(x) * float("nan")) > 1e200


def test_the_layer_that_hardly_matters_becomes_sparse(net, tmp_path) -> None:
    found, record = sparsities(net, 0.6, bench(tmp_path))
    assert found["faint"] > 0.9
    assert found["strong"] < 0.5
    weights = {path: net.get_submodule(path).weight.numel() for path in found}
    reached = sum(found[path] * weights[path] for path in found) / sum(weights.values())
    assert 0.595 <= reached < 0.63
    assert record["sparsity_allocated"] == pytest.approx(reached, abs=0.005)
    assert record["layers"]["strong"]["curve"][0] == [0.0, 0.0]
    assert "samples_warning" not in record
    # The network itself is left as it was.
    assert all(bool((net.get_submodule(path).weight != 0).all()) for path in found)


def test_too_much_sparsity_and_too_few_samples_are_told(net, tmp_path) -> None:
    with pytest.raises(StageError, match=r"sparsity: 0.999 cannot be met: .* is 0.99"):
        sparsities(net, 0.999, bench(tmp_path))
    _, record = sparsities(net, 0.5, bench(tmp_path, 5))
    assert "only 5 calibration samples to decide by: 32 were enough" in record["samples_warning"]


def test_a_network_without_weights_is_refused(tmp_path) -> None:
    class Bare(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3))

    with pytest.raises(StageError, match="nothing to prune"):
        sparsities(graph(Bare()), 0.5, bench(tmp_path))
