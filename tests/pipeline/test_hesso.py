"""HESSO: what is redundant is exactly zero at the end, and can leave without a trace."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compress.groups import Structure
from pipeline.compress.hesso import Hesso
from pipeline.compress.module import module_of, open_program_of
from pipeline.compress.narrowing import Kept
from pipeline.compress.saliency import Scores, tensors
from pipeline.compress.slim import slim
from pipeline.compress.structured import apply
from pipeline.compress.workbench import Workbench
from pipeline.data import Split
from pipeline.programs import save_program
from pipeline.training import torch_threads
from profiles.compression import Structured, Training
from tests.pipeline.networks import image, settled

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:torch", "ignore::FutureWarning:copyreg"
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Beside other tests, more threads wait for each other most of the time."""
    with torch_threads(1):
        yield


class Network(nn.Module):
    """A gate gives one half for zeros: what is read of it has to be zero, too."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.two = nn.Conv2d(16, 24, 3, 2, 1)
        self.last = nn.Linear(24, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.one(x)).relu()
        return self.last(self.two(y).sigmoid().mean((2, 3)))


def made() -> torch.fx.GraphModule:
    torch.manual_seed(0)
    return module_of(open_program_of(settled(Network()), torch.from_numpy(image())))


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Workbench:
    """Pictures of two kinds, bright above or below."""
    folder = tmp_path_factory.mktemp("bench")
    save_program(open_program_of(made(), torch.from_numpy(image())), folder / "teacher.pt2")
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 160).astype(np.int64)
    x = rng.standard_normal((160, 3, 32, 32)).astype(np.float32)
    for number, kind in enumerate(y):
        x[number, kind] += 1
    train, validation = Split(x[:128], y[:128]), Split(x[128:], y[128:])
    return Workbench(train, validation, x[:16], folder / "teacher.pt2", folder / "checkpoint")


TRAIN = Training(epochs=4, batch_size=16, learning_rate=0.01)
STEPS = 4 * 128 // 16


class Interrupted(Exception):
    """Of a training."""


class Watched(Hesso):
    """Keeps the largest weight of each unit after each step."""

    def __init__(self, structure: Structure, kept: Kept) -> None:
        self.scores: list[Scores] = []
        super().__init__(structure, lambda scores: self._told(scores, kept))
        self.seen: list[dict[str, np.ndarray]] = []
        self.breaks_at = STEPS

    def _told(self, scores: Scores, kept: Kept) -> tuple[Kept, Scores, dict[str, Any]]:
        self.scores.append({name: value.copy() for name, value in scores.items()})
        self._structure.module.eval()  # as all do that measure or export it
        order = {name: np.arange(len(value), dtype=float) for name, value in scores.items()}
        return kept, order, {"why": "told"}

    def finish(self, step: int, steps: int) -> None:
        super().finish(step, steps)
        self.seen.append({name: largest(self._structure, name) for name in ("one", "two")})
        if step == self.breaks_at:
            raise Interrupted


def largest(structure: Structure, name: str) -> np.ndarray:
    group = structure.groups[name]
    found = np.zeros(group.width)
    for member in structure.members(group):
        for values, dim in tensors(structure, member):
            each = (
                values.detach().abs().movedim(dim, 0).reshape(values.shape[dim], -1).amax(1).numpy()
            )
            np.maximum.at(found, member.units, each[member.places])
    return found


def zero_from(seen: Sequence[dict[str, np.ndarray]], name: str, unit: int) -> int:
    """The first step after which a unit was zero for good."""
    values = [float(step[name][unit]) for step in seen]
    first = max((n for n, value in enumerate(values) if value), default=-1) + 1
    assert not any(values[first:])
    return first


def test_redundant_units_shrink_to_zero_in_periods_and_stay_there(bench):
    module = made()
    structure = Structure(module, bench.example)
    kept = {"one": [*range(10, 16)], "two": [*range(12, 24)]}
    hesso = Watched(structure, kept)
    bench.fine_tune(module, TRAIN, None, "hesso", callbacks=[hesso], stage="periods")
    assert len(hesso.seen) == STEPS and hesso.kept() == kept
    assert hesso.scores[0]["one"].min() > 0, "the warm-up's gradients were taken"
    # After a warm-up of 3 steps 22 units leave in 5 periods of 2 steps, by their scores.
    ends = [zero_from(hesso.seen, "one", unit) for unit in range(10)]
    assert ends == [4, 4, 4, 6, 6, 8, 8, 10, 10, 12]
    for unit in range(10, 16):
        assert hesso.seen[-1]["one"][unit] > 0
    before, halfway, gone = (hesso.seen[step]["one"][9] for step in (10, 11, 12))
    assert 0 == gone < halfway < 0.8 * before, "it shrinks, and is not cut off"


def test_a_unit_is_left_alone_until_its_own_period(bench):
    structure = Structure(made(), bench.example)
    hesso = Watched(structure, {"one": [*range(10, 16)], "two": [*range(12, 24)]})
    whole = largest(structure, "one")[9]
    for step in range(STEPS // 10, 13):
        hesso.begin(step, STEPS)
        hesso.finish(step, STEPS)
    assert [step["one"][9] / whole for step in hesso.seen] == [1] * 8 + [0.5, 0]


@pytest.mark.parametrize("training", [False, True])
def test_what_decides_does_not_change_how_batch_norms_go_on(bench, training):
    module = made().train(training)
    hesso = Watched(Structure(module, bench.example), {})
    module.train(training)
    hesso.begin(STEPS // 10, STEPS)
    assert hesso.scores and {part.training for part in module.modules()} == {training}


def test_removing_what_is_redundant_does_not_change_the_function(bench):
    module = made()
    structure = Structure(module, bench.example)
    kept = {"one": [0, 5, 7], "two": [1, 2, 3, 23]}
    hesso = Watched(structure, kept)
    bench.fine_tune(module, TRAIN, None, "hesso", callbacks=[hesso], stage="removing")
    small = slim(structure, structure.gone(hesso.kept()))
    x = torch.from_numpy(image(count=4, seed=3))
    with torch.no_grad():
        torch.testing.assert_close(small(x), module(x), atol=1e-6, rtol=1e-5)
    assert small.get_submodule("two").weight.shape[:2] == (4, 3)
    for parameter, of_small in zip(module.parameters(), small.parameters(), strict=True):
        assert torch.count_nonzero(parameter) <= of_small.numel()


def test_an_interrupted_training_goes_on_with_what_it_had_decided(bench):
    kept = {"one": [*range(10, 16)], "two": [*range(12, 24)]}
    found = []
    for broken in (False, True):
        for attempt in range(1 + broken):
            module = made()
            hesso = Watched(Structure(module, bench.example), kept)
            hesso.breaks_at = STEPS // 2 + 3 if broken and not attempt else STEPS
            train = functools.partial(bench.fine_tune, module, TRAIN, None, "x")
            with pytest.raises(Interrupted) if hesso.breaks_at < STEPS else nullcontext():
                train(callbacks=[hesso], stage=f"resumed-{broken}")
        assert len(hesso.scores) == (0 if broken else 1), "decided once, before it was interrupted"
        assert hesso.kept() == kept and hesso.record == {"why": "told"}
        found.append(module.state_dict())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_an_interrupted_warm_up_is_not_forgotten(bench):
    """What it has learnt goes on to add up."""
    structure = Structure(made(), bench.example)
    hesso, again = (Watched(structure, {}) for _ in range(2))
    hesso._taylor.scores["one"] += np.arange(16)
    again.restore(hesso.state())
    again.begin(STEPS // 10, STEPS)
    assert again.scores[0]["one"].tolist() == list(range(16))
    assert not again.scores[0]["two"].any()


@pytest.mark.parametrize("saliency", ["magnitude", "taylor"])
def test_one_training_prunes_to_the_budget_and_learns(bench, saliency):
    asked = Structured(
        name="once",
        method="structured",
        how="hesso",
        budget={"macs": 0.4},
        saliency=saliency,
        round_to=2,
        train=TRAIN,
    )
    bench = replace(bench, checkpoint=bench.checkpoint.with_name(saliency))
    small, record = apply(made(), asked, bench)
    before, after = record["macs"]
    assert 0.3 * before < after <= 0.4 * before
    assert small.get_submodule("one").out_channels == record["widths"]["one"][1] < 16
    assert record["validation_accuracy"] == bench.accuracy(small) > 0.8
    assert record["budget"]["share_found"] <= 0.4
