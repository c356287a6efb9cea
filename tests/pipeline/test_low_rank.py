"""Factors are as near to their layers as they can be, ranks meet budgets, and it all exports."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from devices.agent.engines import ENGINES
from pipeline.compress import costs, low_rank, shallow
from pipeline.compress.costs import macs
from pipeline.compress.factors import Factors, factorable, product, ranks_of, replaced, responses
from pipeline.compress.module import module_of, open_program_of, program_of
from pipeline.compress.workbench import Workbench
from pipeline.data import Split
from pipeline.export import write_artifact
from pipeline.programs import load_program, save_program
from profiles.compression import Budget, Distil, LowRank, Shallow, Training
from profiles.errors import StageError, UsageError
from profiles.records import FORMATS, RUNTIME_OF, SUFFIX_OF
from tests.pipeline.networks import image, settled

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:torch",
    "ignore::DeprecationWarning:torch",
)

F = nn.functional


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(32, 32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.layer(x))


class Net(nn.Module):
    """Convolutions, one of them in groups, a block with a shortcut, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.apart = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.deep = nn.Conv2d(32, 32, 3, stride=2, padding=1)
        self.block = Residual()
        self.hidden = nn.Linear(32, 48)
        self.head = nn.Linear(48, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.apart(F.relu(self.norm(self.wide(x))))
        y = self.block(F.relu(self.deep(y))).mean((2, 3))
        return self.head(F.relu(self.hidden(y)))


class Model(nn.Module):
    """Under a name, as the model stage puts every model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.model(input)


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return open_program_of(Model(settled(Net())), torch.from_numpy(image(count=2)))


@pytest.fixture(scope="module")
def bench(program, tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    folder = tmp_path_factory.mktemp("bench")
    save_program(program, folder / "teacher.pt2")
    x = image(count=48, seed=3)
    module = module_of(program)
    with torch.no_grad():
        labels = module(torch.from_numpy(x)).argmax(1).numpy()
    some = Split(x, labels)
    return Workbench(some, some, x, folder / "teacher.pt2", folder / "checkpoint")


@pytest.fixture
def module(bench: Workbench) -> torch.fx.GraphModule:
    return fresh(bench)


def fresh(bench: Workbench) -> torch.fx.GraphModule:
    """The network with weights of its own: modules of one program share them."""
    return module_of(load_program(bench.teacher_program))


def settings(**values) -> LowRank:
    return LowRank(name="small", method="low-rank", **values)


def smooth(count: int, seed: int) -> np.ndarray:
    """Pictures whose pixels are alike, as real ones' are."""
    coarse = torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 3, 4, 4)))
    return F.interpolate(coarse.float(), (16, 16), mode="bilinear").numpy()


def factors_of(layer: nn.Module, x: torch.Tensor) -> Factors:
    holder = nn.Sequential(layer).eval()
    return Factors(layer, responses(holder, {"0": layer}, x.numpy())["0"])


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 10, 3, stride=2, padding=1), (6, 9, 9)),
        (nn.Conv2d(6, 10, (1, 3), dilation=2, padding="same", bias=False), (6, 9, 9)),
        (nn.Conv2d(12, 10, 1), (12, 5, 5)),
        (nn.Conv1d(6, 10, 3), (6, 9)),
        (nn.Linear(12, 10), (7, 12)),
        (nn.Linear(12, 10, bias=False), (12,)),
    ],
    ids=["strided", "dilated", "pointwise", "1d", "tokens", "linear"],
)
def test_factors_of_all_ranks_are_the_layer_itself(layer: nn.Module, shape) -> None:
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((30, *shape)).astype(np.float32))
    with torch.no_grad():
        torch.testing.assert_close(factors_of(layer, x).of_rank(10)(x), layer(x), atol=1e-5, rtol=0)


def test_what_the_layer_is_given_decides_what_is_kept() -> None:
    """A lower error on other inputs than the best approximation of the weights alone has."""
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 16, 3, padding=1)
    pair = factors_of(layer, torch.from_numpy(smooth(40, seed=0))).of_rank(4)
    u, s, v = torch.linalg.svd(layer.weight.detach().flatten(1), full_matrices=False)
    blind = copy.deepcopy(layer)
    blind.weight.data = (u[:, :4] * s[:4] @ v[:4]).view_as(layer.weight)
    x = torch.from_numpy(smooth(40, seed=1))
    with torch.no_grad():
        errors = [float((one(x) - layer(x)).square().mean()) for one in (pair, blind)]
    assert errors[0] < errors[1] / 2


def test_few_samples_leave_the_weights_their_say() -> None:
    """Two samples span two directions: with nothing else to go by, all others would be lost."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 40)
    pair = factors_of(layer, torch.randn(2, 64)).of_rank(24)
    x = torch.randn(200, 64)
    u, s, v = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    with torch.no_grad():
        best = float((x @ (layer.weight - u[:, :24] * s[:24] @ v[:24]).T).square().mean())
        error = float((pair(x) - layer(x)).square().mean())
    assert error < 1.5 * best


def test_one_scale_fits_all_coordinates() -> None:
    """What lies between the factors is quantized with one scale: no coordinate may dwarf others."""
    torch.manual_seed(0)
    layer = nn.Linear(32, 32)
    x = torch.randn(400, 32) * torch.logspace(0, -3, 32)
    with torch.no_grad():
        between = factors_of(layer, x).of_rank(16)[0](x).std(0)
    assert between.max() < 10 * between.min()


def test_ranks_save_weights_and_are_multiples_of_eight_where_there_is_room() -> None:
    for layer in (
        nn.Linear(256, 100),
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(16, 16, 3),
        nn.Linear(64, 10),
    ):
        ranks = ranks_of(layer)
        assert ranks == tuple(sorted(set(ranks), reverse=True))
        out, into = layer.weight.flatten(1).shape
        assert all(rank * (out + into) < out * into for rank in ranks)
        assert all(rank % (8 if len(ranks) > 3 else 4) == 0 for rank in ranks)
    assert len(ranks_of(nn.Linear(4096, 4096))) == 7
    assert ranks_of(nn.Linear(6, 6)) == ()


def test_groups_and_tiny_layers_are_left_alone(module) -> None:
    found = factorable(module)
    assert list(found) == [
        "model.wide",
        "model.deep",
        "model.block.layer",
        "model.hidden",
        "model.head",
    ]


def weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_macs_are_counted() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(), nn.Linear(8 * 16, 10))
    assert macs(net, torch.zeros(1, 3, 4, 4)) == 16 * 8 * 27 + 8 * 16 * 10


@pytest.mark.parametrize("cost", ["macs", "parameters"])
def test_a_counted_budget_is_met(module, bench: Workbench, cost: str) -> None:
    count: Callable[[nn.Module], int] = {
        "macs": lambda m: macs(m, bench.example),
        "parameters": weights,
    }[cost]
    before = count(module)
    changed, record = low_rank.apply(module, settings(budget=Budget(**{cost: 0.6})), bench)
    assert record["share_found"] == pytest.approx(count(changed) / before)
    assert 0.5 < record["share_found"] <= 0.6
    chosen = {path: one["rank"] for path, one in record["layers"].items() if one["factorised"]}
    assert chosen
    for path, rank in chosen.items():
        assert changed.get_submodule(f"{path}.0").weight.shape[0] == rank
    assert record["additivity"]["choices"] == 9


def test_a_budget_out_of_reach_names_the_nearest_which_is_met(bench: Workbench) -> None:
    with pytest.raises(StageError, match=r"parameters: 0.1 cannot be met: .* nearest") as caught:
        low_rank.apply(fresh(bench), settings(budget=Budget(parameters=0.1)), bench)
    nearest = float(str(caught.value).partition(" can is ")[2].split()[0])
    changed, _ = low_rank.apply(fresh(bench), settings(budget=Budget(parameters=nearest)), bench)
    assert weights(changed) <= nearest * weights(fresh(bench))


def test_a_network_of_tiny_layers_is_refused(bench: Workbench) -> None:
    tiny = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    module = module_of(open_program_of(Model(tiny), torch.from_numpy(image(count=2))))
    with pytest.raises(StageError, match="no convolution or linear layer"):
        low_rank.apply(module, settings(), bench)


class FakeGauge:
    """A device whose figures are a function of a program's MACs, and of its name."""

    def __init__(self, cost: Callable[[str, int], float]) -> None:
        self._cost = cost
        self.asked: list[list[str]] = []

    def measure(self, programs: Mapping[str, torch.export.ExportedProgram]) -> dict[str, float]:
        self.asked.append(list(programs))
        return {
            name: self._cost(name, macs(program.module(), program.example_inputs[0][0]))
            for name, program in programs.items()
        }


def test_a_measured_budget_never_picks_what_is_slower_than_the_layer(
    module, bench: Workbench
) -> None:
    """A device on which two 3x3 and 1x1 convolutions are slower than one: only others change."""

    def cost(name: str, count: int) -> float:
        return count * (3.0 if "kernel_size=(3, 3)" in name and " then " in name else 1.0) + 500

    # The whole network is slow in its linear layers, so that something can be saved.
    gauge = FakeGauge(lambda name, count: 4e3 if name == "whole" else cost(name, count))
    both = {"before": 1000.0, "after": 800.0}
    gauge.measure = (  # type: ignore[method-assign]
        lambda programs, own=gauge.measure: both if "after" in programs else own(programs)
    )
    _, record = low_rank.apply(
        module, settings(budget=Budget(latency=0.8)), bench.with_gauge(gauge)
    )
    factorised = {path for path, one in record["layers"].items() if one["factorised"]}
    assert factorised
    assert not factorised & {"model.wide", "model.deep"}


def test_alike_layers_are_measured_once_and_the_whole_network_at_the_end(
    bench: Workbench,
) -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(F.relu(self.a(x[:, 0, :2].flatten(1))))

    twins = module_of(open_program_of(Model(Twins()), torch.from_numpy(image(count=2))))
    gauge = FakeGauge(lambda name, count: float(count))
    _, record = low_rank.apply(twins, settings(budget=Budget(latency=0.7)), bench.with_gauge(gauge))
    first, *others = gauge.asked
    assert len(first) == 1 + 1 + len(ranks_of(nn.Linear(64, 64)))
    assert others == [["before", "after"]]
    assert record["share_found"] <= 0.7
    assert record["rounds"][0]["predicted"] == pytest.approx(record["rounds"][0]["measured"])


def test_a_network_slower_than_its_layers_promise_is_made_smaller_still(
    bench: Workbench,
) -> None:
    overhead = FakeGauge(lambda name, n: n + (1e6 if name in ("before", "after") else 0.0))
    _, record = low_rank.apply(
        fresh(bench), settings(budget=Budget(latency=0.55)), bench.with_gauge(overhead)
    )
    assert len(record["rounds"]) > 1
    assert record["rounds"][0]["measured"] > 0.55 * (1 + costs.TOLERANCE)
    assert record["share_found"] <= 0.55 * (1 + costs.TOLERANCE)
    hopeless = FakeGauge(lambda name, n: 1e9 if name in ("before", "after") else float(n))
    with pytest.raises(StageError, match=r"latency: 0.55 cannot be met: .* came to 1.000"):
        low_rank.apply(
            fresh(bench), settings(budget=Budget(latency=0.55)), bench.with_gauge(hopeless)
        )


def test_a_measured_budget_needs_a_device(module, bench: Workbench) -> None:
    with pytest.raises(UsageError, match="no device"):
        low_rank.apply(module, settings(budget=Budget(energy=0.7)), bench)


def test_perturbation_keeps_factors_near_the_weights(bench: Workbench) -> None:
    originals = {
        path: layer.weight.detach().flatten(1) for path, layer in factorable(fresh(bench)).items()
    }
    training = Training(epochs=3, batch_size=16, learning_rate=0.03, weight_decay=0)
    distil = Distil(features=1.0, at=("model.deep",))

    def distance(**values) -> float:
        asked = settings(budget=Budget(parameters=0.6), **values)
        own = replace(bench, checkpoint=bench.checkpoint.with_name(f"perturb-{len(values)}"))
        changed, record = low_rank.apply(fresh(bench), asked, own)
        assert ("validation_accuracy" in record) == bool(values)
        return sum(
            float((product(changed.get_submodule(path)) - originals[path]).detach().norm())
            for path, one in record["layers"].items()
            if one["factorised"]
        )

    untrained = distance()
    free = distance(train=training, distil=distil)
    held = distance(train=training, distil=distil, perturb=100.0)
    assert held - untrained < 0.3 * (free - untrained)


def test_layers_return_after_a_trial(module) -> None:
    own = module.get_submodule("model.deep")
    with pytest.raises(RuntimeError), replaced(module, {"model.deep": nn.Identity()}):
        raise RuntimeError
    assert module.get_submodule("model.deep") is own


@pytest.fixture(scope="module")
def small(bench: Workbench) -> nn.Module:
    """A network whose one block was removed, and whose layers were factorised then."""
    removal = Shallow(name="short", method="remove-layers")
    short, record = shallow.apply(fresh(bench), removal, bench)
    assert record["removed"] == ["model.block"]
    again = module_of(open_program_of(short, bench.example))
    module, _ = low_rank.apply(again, settings(budget=Budget(macs=0.5)), bench)
    return module


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("batch", [1, 4])
def test_every_format_computes_what_the_factors_do(
    small: nn.Module, tmp_path: Path, format_: str, batch: int
) -> None:
    x = image(count=batch, seed=7)
    path = tmp_path / f"small{SUFFIX_OF[format_]}"
    write_artifact(program_of(small, torch.from_numpy(x)), format_, path)
    with torch.no_grad():
        expected = small(torch.from_numpy(x)).numpy()
    engine = ENGINES[RUNTIME_OF[format_]](str(path), 1)
    engine.feed([x])
    engine.prepare()
    engine.call()
    np.testing.assert_allclose(engine.outputs()[0], expected, atol=1e-4)


def test_a_chain_goes_on_from_factors(small: nn.Module) -> None:
    x = torch.from_numpy(image(count=3, seed=8))
    again = module_of(open_program_of(small, x))
    with torch.no_grad():
        torch.testing.assert_close(again(x), small(x), atol=1e-5, rtol=1e-5)
    names = {name for name, _ in again.named_parameters()}
    assert names == {name for name, _ in small.named_parameters()}
    assert {"model.deep.0.weight", "model.deep.1.bias"} <= names
    assert not any(name.startswith("model.block.") for name in names)
