"""Structured pruning: what leaves together, that nothing else changes, and what budgets come to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from pipeline.compress.batch_norms import settle
from pipeline.compress.groups import Structure
from pipeline.compress.module import module_of, open_program_of, program_of
from pipeline.compress.narrowing import Narrowing
from pipeline.compress.saliency import magnitude, taylor
from pipeline.compress.slim import check, slim, zeroed
from pipeline.compress.structured import apply
from pipeline.compress.workbench import Workbench
from pipeline.data import Split
from pipeline.examples.resnet20 import BasicBlock, ResNet20
from pipeline.programs import save_program
from pipeline.training import torch_threads
from profiles.compression import Structured, Training
from profiles.errors import StageError
from tests.pipeline.networks import Inverted, VitLike, image, settled

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:torch", "ignore::FutureWarning:copyreg"
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Beside other tests, more threads wait for each other most of the time."""
    with torch_threads(1):
        yield


class Residual(nn.Module):
    """The stages of ResNet-20 with one block each: their shortcuts pad channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.layer1, self.layer2 = BasicBlock(8, 16), BasicBlock(16, 32)
        self.linear = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer2(self.layer1(self.bn1(self.conv1(x)).relu()))
        return self.linear(x.mean((2, 3)))


class Plain(nn.Module):
    """Three convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.c, self.last = nn.Conv2d(32, 32, 3, 2, 1), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.c(self.b(self.a(x).relu()).relu()).relu().mean((2, 3)))


class Mobile(nn.Module):
    """Depthwise convolutions, with and without squeeze and excitation, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.gated, self.plain = Inverted(16, 32, 16, 1, True), Inverted(16, 48, 24, 2, False)
        self.head = nn.Sequential(nn.Linear(24, 32), nn.Hardswish(), nn.Linear(32, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.plain(self.gated(self.stem(x)))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Encoder(nn.Module):
    """PyTorch's own transformer layer: one matrix for queries, keys and values, heads in views."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head(self.layer(x).mean(1))


class Separate(nn.Module):
    """Queries, keys and values of layers of their own, in PyTorch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 24, 8, 8)
        self.q, self.k, self.v = (nn.Linear(24, 48) for _ in range(3))
        self.out = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = (one(x).unflatten(-1, (6, 8)).transpose(1, 2) for one in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2).mean(1))


class Pieces(nn.Module):
    """Concatenation, chunks, a slice, a grouped convolution, and a view with its width in it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, 2, 1)
        self.b = nn.Conv2d(3, 8, 3, 2, 1)
        self.grouped = nn.Conv2d(24, 48, 3, 2, 1, groups=6)
        self.norm = nn.BatchNorm2d(48)
        self.left = nn.Conv2d(24, 12, 1)
        self.last = nn.Linear(20 * 16, 10)
        self.right = nn.Conv2d(24, 12, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([self.a(x), self.b(x)], 1).relu()
        one, two = self.norm(self.grouped(y)).relu().chunk(2, 1)
        z = torch.cat([self.left(one), self.right(two)[:, 2:10]], 1)
        z = nn.functional.avg_pool2d(z, 2)
        return self.last(z.view(z.shape[0], 20 * 16))


class Shuffled(nn.Module):
    """Channels that change places between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 12, 3, 2, 1)
        self.two = nn.Conv2d(12, 8, 1)
        self.last = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.one(x)
        b, _, h, w = y.shape
        y = y.view(b, 3, 4, h, w).transpose(1, 2).reshape(b, 12, h, w)
        return self.last(self.two(y).relu().mean((2, 3)))


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "mobile": Mobile,
    "vit": lambda: VitLike(depth=1),
    "encoder": Encoder,
    "separate": Separate,
    "pieces": Pieces,
}


def made(network: Callable[[], nn.Module]) -> GraphModule:
    torch.manual_seed(0)
    module = settled(network())
    return module_of(open_program_of(module, torch.from_numpy(image())))


@pytest.fixture(scope="module", params=NETWORKS)
def structure(request) -> Structure:
    return Structure(made(NETWORKS[request.param]), torch.from_numpy(image()))


@pytest.fixture(scope="module")
def structures() -> Callable[[str], Structure]:
    found: dict[str, Structure] = {}

    def of(name: str) -> Structure:
        if name not in found:
            found[name] = Structure(made(NETWORKS[name]), torch.from_numpy(image()))
        return found[name]

    return of


def some(structure: Structure, seed: int = 0) -> dict[str, list[int]]:
    """Units of every group, chosen at random, of each another number."""
    rng = np.random.default_rng(seed)
    return {
        name: sorted(rng.permutation(group.width)[: rng.integers(1, group.width)].tolist())
        for name, group in structure.groups.items()
    }


def test_the_smaller_network_computes_what_the_whole_one_does_with_zeros(structure):
    """After being captured again too, for any batch, and with as many parameters as counted."""
    before = {name: value.clone() for name, value in structure.module.state_dict().items()}
    x = torch.from_numpy(image(count=5, seed=4))
    for seed in range(3):
        gone = structure.gone(some(structure, seed))
        small = slim(structure, gone)
        with torch.no_grad():
            wanted = zeroed(structure, gone)(x)
            torch.testing.assert_close(small(x), wanted, atol=1e-5, rtol=1e-5)
        assert sum(p.numel() for p in small.parameters()) == structure.parameters(gone)
        assert structure.parameters(gone) < structure.parameters(structure.gone({}))
    again = module_of(open_program_of(small, x))
    with torch.no_grad():
        torch.testing.assert_close(again(x), wanted, atol=1e-5, rtol=1e-5)
    counted = Structure(again, x)
    assert counted.macs(counted.gone({})) == structure.macs(gone)
    after = structure.module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def silenced(structure: Structure, kept: Mapping[str, list[int]]) -> nn.Module:
    """The whole network with what is gone made to be zero, but read all the same."""
    gone, module = structure.gone(kept), made(Residual)
    with torch.no_grad():
        for path, layer in structure.trace.layers.items():
            here: Any = module.get_submodule(path)
            made_gone = torch.from_numpy(gone[layer.makes.numpy()])
            here.weight[made_gone] = 0
            if here.bias is not None:
                here.bias[made_gone] = 0
    return module


def test_channels_that_give_zeros_change_nothing_by_leaving(structures):
    """Nothing is taken away on the side of those who read them."""
    structure, kept = structures("residual"), some(structures("residual"))
    x = torch.from_numpy(image(count=3, seed=2))
    with torch.no_grad():
        small = slim(structure, structure.gone(kept))(x)
        torch.testing.assert_close(small, silenced(structure, kept)(x), atol=1e-5, rtol=1e-5)


def test_option_a_shortcuts_pad_less_where_channels_left(structures):
    structure = structures("residual")
    widths = {name: group.width for name, group in structure.groups.items()}
    assert (widths["conv1"], widths["layer1.conv2"], widths["layer2.conv2"]) == (8, 8, 16)
    kept = {"layer1.conv2": list(range(3, 8)), "layer2.conv2": [0, 9, 15]}
    small = slim(structure, structure.gone(kept))
    pads = [n.args[1][4:] for n in small.graph.nodes if "pad" in str(n.target)]
    assert pads == [[1, 4], [1, 2]]
    assert structure.fixed == {"linear": "it is the network's output"}


def test_whole_heads_leave_whichever_way_they_are_laid_out(structures):
    for name, layer, width, heads in (
        ("vit", "blocks.0.attention.qkv", 96, 4),
        ("encoder", "layer.self_attn.in_proj", 96, 4),
        ("separate", "q", 48, 6),
    ):
        structure = structures(name)
        group = structure.groups[layer]
        assert (group.width, group.channels) == (heads, 8)
        small = slim(structure, structure.gone({layer: [1, heads - 1]}))
        weight = small.get_submodule(layer).weight
        assert len(weight) == width * 2 // heads
        third = structure.module.get_submodule(layer).weight[
            : width // (1 if name == "separate" else 3)
        ]
        assert torch.equal(weight[:8], third[8:16]), "the second head's queries come first now"
        assert torch.equal(weight[8:16], third[-8:])


def test_what_cannot_be_pruned_is_named_with_its_constraint(structures):
    assert "normalises over all of it" in structures("vit").fixed["patch"]
    shuffled = Structure(made(Shuffled), torch.from_numpy(image()))
    assert shuffled.fixed["one"] == "view lays it out as [3, 4, 16, 16], where it is no whole place"
    assert set(shuffled.groups) == {"two"}


def test_a_layer_that_only_torch_pruning_finds_is_a_reason_to_leave_all_as_it_is(monkeypatch):
    from pipeline.compress import groups

    found = {"layer1.conv1": {"layer1.conv1", "layer1.conv2", "layer2.conv2"}}
    monkeypatch.setattr(groups, "coupled_layers", lambda *_: found)
    structure = Structure(made(Residual), torch.from_numpy(image()))
    assert "layer1.conv1" not in structure.groups and "layer2.conv1" in structure.groups
    assert "layer2.conv2 hangs on it" in structure.fixed["layer1.conv1"]


def test_torch_pruning_agrees_on_all_networks_without_slices_of_channels(structure):
    assert structure.remarks == []
    differs = [path for path, why in structure.fixed.items() if "Torch-Pruning" in why]
    assert differs == (["left"] if "left" in structure.fixed else [])


def test_a_network_that_computes_something_else_is_refused(structures):
    structure = structures("mobile")
    gone = structure.gone(some(structure))
    small = slim(structure, gone)
    x = torch.from_numpy(image(count=2))
    check(structure, gone, small, x)
    with torch.no_grad():
        small.get_submodule("head.0").weight.mul_(2)
    with pytest.raises(StageError, match="would change more than it removes"):
        check(structure, gone, small, x)


# --- what goes, and how much -------------------------------------------------------------------


def test_magnitude_ranks_a_unit_by_all_weights_that_go_with_it(structures):
    structure = structures("mobile")
    name = "plain.block.0"
    group = structure.groups[name]
    scores = magnitude(structure)[name]
    first, norms = (structure.module.get_submodule(f"plain.block.{n}") for n in (0, 1))
    inner, last = (structure.module.get_submodule(f"plain.block.{n}") for n in (3, 6))
    second = structure.module.get_submodule("plain.block.4")
    parts = [first.weight, norms.weight, norms.bias, inner.weight, second.weight, second.bias]
    squares = sum(
        p.detach().flatten(1).square().sum(1) if p.ndim > 1 else p.detach() ** 2 for p in parts
    )
    squares = squares + last.weight.detach()[:, :, 0, 0].square().sum(0)
    wanted = squares.sqrt().double().numpy()
    np.testing.assert_allclose(scores, wanted / wanted.mean(), rtol=1e-5)
    assert len(scores) == group.width == 48


def test_taylor_ranks_last_what_the_loss_does_not_feel(structures, bench):
    structure = structures("residual")
    weight = structure.module.get_submodule("layer1.conv2").weight
    before = weight.detach().clone()
    with torch.no_grad():
        weight[:, 5] = 0
    scores = taylor(structure, bench.train)["layer1.conv1"]
    with torch.no_grad():
        weight.copy_(before)
    assert scores.argmin() == 5 and scores[5] < 1e-6 * np.median(scores)
    assert all(p.grad is None for p in structure.module.parameters())


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("round_to", [1, 8])
def test_widths_are_multiples_and_as_large_as_the_budget_allows(structures, allocation, round_to):
    structure = structures("residual")
    narrowing = Narrowing(structure, magnitude(structure), round_to, allocation)
    whole = structure.macs(structure.gone({}))
    widths = narrowing.within(0.5 * whole, structure.macs)
    assert widths is not None
    share = structure.macs(narrowing.gone(widths)) / whole
    assert 0.5 * (0.85 if round_to == 1 else 0.5) < share <= 0.5
    for path, width in structure.widths(narrowing.gone(widths)).items():
        assert path == "linear" or width % round_to == 0
    if allocation == "uniform" and round_to == 1:
        kept = [width / structure.groups[name].width for name, width in widths.items()]
        assert max(kept) - min(kept) <= 1 / 8
    kept_units = narrowing.kept(widths)["conv1"]
    scores = narrowing.scores["conv1"]
    gone_units = sorted(set(range(8)) - set(kept_units))
    assert not gone_units or scores[kept_units].min() >= scores[gone_units].max()


# --- the method --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Workbench:
    """Pictures of two kinds, bright above or below, and a network that has not learnt them."""
    folder = tmp_path_factory.mktemp("bench")
    save_program(open_program_of(made(Residual), torch.from_numpy(image())), folder / "t.pt2")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 128).astype(np.int64)
    x = rng.standard_normal((128, 3, 32, 32)).astype(np.float32)
    for number, kind in enumerate(y):
        x[number, :, 16 * kind : 16 * kind + 16] += 1
    return Workbench(
        Split(x[:96], y[:96]),
        Split(x[96:], y[96:]),
        x[:16],
        folder / "t.pt2",
        folder / "checkpoint",
    )


def settings(**entries: Any) -> Structured:
    return Structured(name="narrow", method="structured", **entries)


def test_half_the_macs_of_resnet20_and_a_record_of_it(bench):
    train = Training(epochs=1, batch_size=32)
    small, record = apply(made(ResNet20), settings(budget={"macs": 0.5}, train=train), bench)
    before, after = record["macs"]
    assert before == 40_551_040 and 0.45 * before < after <= 0.5 * before
    assert record["budget"] == {"macs": 0.5, "share_found": round(after / before, 4)}
    assert sum(p.numel() for p in small.parameters()) == record["parameters"][1]
    assert record["widths"]["layer1.0.conv1"][0] == 16
    assert (
        small.get_submodule("layer3.1.conv1").out_channels == record["widths"]["layer3.1.conv1"][1]
    )
    assert record["round_to"] == {"multiple": 8, "why": "the recipe says so"}
    assert record["not_pruned"] == {"linear": "it is the network's output"}
    assert {"train", "validation_accuracy", "validation_accuracy_before_training"} <= set(record)


def test_parameters_are_a_budget_too(bench):
    asked = settings(budget={"parameters": 0.7}, round_to=1, allocation="uniform")
    small, record = apply(made(lambda: VitLike(depth=1)), asked, bench)
    before, after = record["parameters"]
    assert 0.65 * before < after <= 0.7 * before
    assert sum(p.numel() for p in small.parameters()) == after


def test_a_budget_that_cannot_be_met_names_the_nearest_that_can(bench):
    with pytest.raises(StageError, match=r"macs: 0.01 cannot be met: the nearest that can is") as e:
        apply(made(Residual), settings(budget={"macs": 0.01}), bench)
    nearest = float(e.value.message.split()[-1])
    _, record = apply(made(Residual), settings(budget={"macs": nearest}), bench)
    assert record["budget"]["share_found"] <= nearest
    assert "linear: it is the network's output" in (e.value.hint or "")


def test_a_network_that_nothing_can_leave_says_why(bench):
    class Rigid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.only = nn.Linear(3 * 32 * 32, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.only(x.flatten(1))

    with pytest.raises(StageError, match=r"no layer can be pruned: only: it is the network's outp"):
        apply(made(Rigid), settings(), bench)


class FakeGauge:
    """A device on which a call takes a while, and each weight of a convolution as long."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def measure(self, programs: Mapping[str, Any]) -> Mapping[str, float]:
        self.asked.append(len(programs))
        return {name: self.cost(program) for name, program in programs.items()} | {"call": 300.0}

    def cost(self, program: Any) -> float:
        return 300.0 + sum(w.numel() for w in program.state_dict.values() if w.ndim == 4)


def test_a_measured_budget_is_met_by_what_the_device_says(bench):
    gauge = FakeGauge()
    asked = settings(budget={"latency": 0.6}, round_to=2)
    small, record = apply(made(Plain), asked, bench.with_gauge(gauge))
    costs = [gauge.cost(program_of(one, bench.example)) for one in (small, made(Plain))]
    assert record["budget"]["share_found"] == round(costs[0] / costs[1], 4)
    assert 0.53 < record["budget"]["share_found"] <= 0.6
    assert (
        record["budget"]["shares_of"] == "macs" and len(record["budget"]["measured_by_share"]) > 6
    )
    assert len(gauge.asked) == 2, "two questions"
    with pytest.raises(StageError, match=r"energy: 0\.01 cannot be met: .* is 0\.115"):
        apply(made(Plain), settings(budget={"energy": 0.01}), bench.with_gauge(gauge))


class Drifting(FakeGauge):
    """Small networks cost more when it is asked again."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def measure(self, programs: Mapping[str, Any]) -> Mapping[str, float]:
        found = super().measure(programs)
        again = self.factor if len(self.asked) > 1 else 1.0
        return {name: cost * (1 if name == "whole" else again) for name, cost in found.items()}


def test_a_budget_is_exceeded_by_no_more_than_the_named_tolerance(bench):
    """The narrowest network was inside once, and in the next turns it is not."""
    structure = Structure(made(Plain), bench.example)
    narrowing = Narrowing(structure, magnitude(structure), 8, "global")
    small = slim(structure, narrowing.gone(narrowing.at(1.0)))
    gauge = FakeGauge()
    costs = [gauge.cost(program_of(one, bench.example)) for one in (small, made(Plain))]
    asked = settings(budget={"latency": 1.005 * costs[0] / costs[1]})
    _, record = apply(made(Plain), asked, bench.with_gauge(Drifting(1.02)))
    found = record["budget"]
    assert found["latency"] < found["share_found"] < found["latency"] * (1 + found["tolerance"])
    nearest = f"{np.ceil(1.05 * costs[0] / costs[1] * 1000) / 1000:g}"
    with pytest.raises(StageError, match=f"cannot be met: the nearest that can is {nearest} "):
        apply(made(Plain), asked, bench.with_gauge(Drifting(1.05)))


class Grouped(nn.Module):
    """Its second convolution, in groups, computes most."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv2d(3, 12, 2, 2)
        self.grouped, self.last = nn.Conv2d(12, 48, 3, 1, 1, groups=3), nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.grouped(self.before(x)).relu().mean((2, 3)))


class Telling(FakeGauge):
    """Tells rounds, too."""

    def rounds(self, programs: Mapping[str, Any]) -> dict[str, dict[tuple[int, int], float]]:
        found = self.measure(programs)
        return {name: {(1, n): ns for n in range(3)} for name, ns in found.items()}


def test_no_grouped_convolution_is_asked_which_widths_are_liked(bench):
    asked = settings(round_to="device", budget={"macs": 0.8})
    _, record = apply(made(Grouped), asked, bench.with_gauge(Telling()))
    assert record["widths"]["grouped"][1] < 48, "it is pruned all the same"
    assert (record["round_to"]["layer"], record["round_to"]["multiple"]) == ("before", 1)


def test_layer_adaptive_widths_distort_less_than_uniform_ones_of_the_same_macs(bench):
    whole = made(Residual)
    settle(whole, bench.calibration)  # as what comes of it is
    found = {}
    for allocation in ("uniform", "layer-adaptive"):
        asked = settings(budget={"macs": 0.6}, allocation=allocation, round_to=4)
        module = made(Residual)
        small, record = apply(module, asked, bench)
        assert record["budget"]["share_found"] <= 0.6
        with torch.no_grad():
            x = torch.from_numpy(bench.calibration)
            found[allocation] = float((small(x) - whole(x)).square().mean())
    assert found["layer-adaptive"] < 0.8 * found["uniform"]
    assert "correlation" in record["additivity"] and record["distortions"]["conv1"]["8"] == 0


def test_layer_adaptive_widths_against_what_layers_take(bench):
    gauge = FakeGauge()
    asked = settings(budget={"latency": 0.6}, allocation="layer-adaptive", round_to=8)
    _, record = apply(made(Plain), asked, bench.with_gauge(gauge))
    assert 0.4 < record["budget"]["share_found"] <= 0.6
    assert gauge.asked[0] > 10, "layers at their widths"
    assert record["budget"]["shares_of"] == "latency of all layers, one by one"
    assert len(gauge.asked) == 3
