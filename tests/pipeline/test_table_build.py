"""Building a table on a scripted device, whose blocks cost less in context than alone."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from devices.inventory import Device
from devices.transport.truth import NAME
from pipeline.campaign import Subject
from pipeline.stage import Workspace
from pipeline.supernet.base import Block
from pipeline.table import build
from pipeline.table.build import Builder, Built
from pipeline.table.spaces import balanced, blocks_of
from profiles.errors import DeviceUnreachable, StageError, UsageError
from profiles.recipe import TableBuild
from profiles.space import SearchSpace, Slot
from tests import builders
from tests.pipeline.scripted import bench, settings, watch

#: Without the call; the later slots share their blocks.
COSTS_NS = {"stem": 50_000, "a": 30_000, "b": 90_000, "c": 60_000}
CALL_NS, IN_CONTEXT = 10_000, 0.8
LATER = (None, "a", "b", "c")
SLOTS = (("stem",), ("a", "b"), LATER, LATER, LATER)
SPACE = SearchSpace(
    tuple(Slot(f"s{i}", tuple(c or "skip" for c in choices)) for i, choices in enumerate(SLOTS))
)


def block(slot: int, choice: int) -> Block | None:
    signature = SLOTS[slot][choice]
    return Block(signature, SimpleNamespace(), (1, 1)) if signature else None


def truth_ns(genome: Any) -> int:
    signatures = (SLOTS[slot][int(choice)] for slot, choice in enumerate(genome))
    return round(CALL_NS + IN_CONTEXT * sum(COSTS_NS[each] for each in signatures if each))


NETWORK: Any = SimpleNamespace(space=SPACE, block=block, extract=lambda genome: genome)


@dataclass
class Made:
    folder: Path
    device: Device

    def build(self, workspace: str = "work", **changes: Any) -> Built:
        asked = TableBuild(**{"minutes": 1, "networks": 24, **changes})
        opened = Workspace.open(self.folder / workspace)
        often = settings(tolerate=("foreign-load", "not-stationary"))
        try:
            return Builder(
                opened, self.device, "onnx", "float32", 1, asked, often, model="m", code="c"
            ).build(NETWORK)
        finally:
            opened.close()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """Blocks and networks that cost nothing to export; the device knows what each takes."""
    truth: dict[str, int] = {}
    home = tmp_path / "home"
    home.mkdir()

    def exported(workspace: Workspace, part: Block, *_: Any, **__: Any) -> Subject:
        path = tmp_path / f"{part.signature}.onnx"
        path.write_bytes(part.signature.encode())
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        alone = CALL_NS + COSTS_NS.get(part.signature, 0)
        truth[sha256] = truth_ns(part.module) if "network" in part.signature else alone
        about = {"truth_ns": truth, "between_runs": [0.0, 0.003], "within": 0.002}
        (home / NAME).write_text(json.dumps(about))
        artifact = builders.artifact(sha256=sha256, path=path, variant=part.signature)
        workspace.store.put_artifact(artifact)
        values = tmp_path / "x.bin"
        np.zeros(8, dtype=np.float32).tofile(values)
        return Subject(artifact, (values,))

    monkeypatch.setattr(build, "subject_of", exported)
    return Made(tmp_path, builders.device(address=f"scripted:{home}"))


def without(monkeypatch: pytest.MonkeyPatch, *signatures: str) -> None:
    """Let some blocks be impossible to export."""
    inner = build.subject_of

    def exported(workspace: Workspace, part: Block, *rest: Any, **more: Any) -> Subject:
        if part.signature in signatures:
            raise StageError(f"no onnx: {part.signature} is not to be had")
        return inner(workspace, part, *rest, **more)

    monkeypatch.setattr(build, "subject_of", exported)


def test_every_distinct_block_is_enumerated_once():
    found = blocks_of(NETWORK)
    assert list(found.distinct) == ["a", "b", "c", "stem"]
    assert sum(signature is None for signature in found.places.values()) == 3
    np.testing.assert_array_equal(
        found.counts(np.array([[0, 1, 2, 0, 1]]), ["a", "b", "c", "stem"]), [[1, 2, 0, 1]]
    )


def test_the_networks_have_each_choice_equally_often():
    genomes = balanced(SPACE, 24, seed=0)
    for column, slot in zip(genomes.T, SPACE.slots, strict=True):
        assert set(np.bincount(column)) == {24 // len(slot.choices)}


def test_a_table_says_what_blocks_cost_in_context(made: Made):
    found = made.build()
    genomes = SPACE.sample(100, np.random.default_rng(7))
    truth = np.array([truth_ns(genome) for genome in genomes])
    np.testing.assert_allclose(found.table.predict_ns(genomes), truth, rtol=0.01)
    assert found.alone_ns["b"] == pytest.approx(CALL_NS + COSTS_NS["b"], rel=0.02)
    assert found.context.scale == pytest.approx(IN_CONTEXT, rel=0.05)
    (validation,) = found.table.validation
    assert "left out" in validation.population
    assert validation.n == len(found.genomes)
    assert validation.mape < 0.01


def test_killed_in_any_run_it_comes_to_the_same_table(made: Made, monkeypatch: pytest.MonkeyPatch):
    undisturbed = made.build("undisturbed").table.sha256
    for round_ in (0, 2):
        assert _killed(made, monkeypatch, lambda plan, at=round_: plan["seed"] % 1000 == at)
    assert made.build().table.sha256 == undisturbed


def _killed(made: Made, monkeypatch: pytest.MonkeyPatch, when: Callable[[Any], bool]) -> bool:
    """Build in a process of its own, and kill -9 it right after such a run; whether it was."""

    def kill(plan: dict[str, Any]) -> None:
        if len(plan["jobs"]) > 1 and plan["iterations"] > build.FEWEST_ITERATIONS and when(plan):
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        watch(bench(made.folder), monkeypatch, trouble=kill)
        try:
            made.build()
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_a_device_that_goes_away_is_gone_on_with(made: Made, monkeypatch: pytest.MonkeyPatch):
    undisturbed = made.build("undisturbed").table.sha256

    def leave(plan: dict[str, Any]) -> None:
        if plan["seed"] % 1000 == 1:
            raise DeviceUnreachable("board does not answer")

    with monkeypatch.context() as gone:
        watch(bench(made.folder), gone, trouble=leave)
        gone.setattr("pipeline.campaign.PAUSES_S", ())
        with pytest.raises(DeviceUnreachable, match="does not answer"):
            made.build()
    assert made.build().table.sha256 == undisturbed


def test_what_cannot_be_exported_is_a_hole_that_is_named(
    made: Made, monkeypatch: pytest.MonkeyPatch
):
    without(monkeypatch, "c")
    found = made.build(networks=40, minutes=1.5)
    assert found.holes == {"c": "no onnx: c is not to be had"}
    place = (2, LATER.index("c"))
    assert np.isnan(found.table.latency_ns[place])
    assert "c" not in {each for genome in found.genomes for each in blocks_of(NETWORK).of(genome)}


def test_too_many_holes_are_all_named(made: Made, monkeypatch: pytest.MonkeyPatch):
    without(monkeypatch, "a", "c")
    with pytest.raises(StageError, match=r"10 are needed.* a: no onnx: .*; c: no onnx: "):
        made.build()


def test_a_budget_that_is_too_small_says_what_is_needed(made: Made):
    with pytest.raises(UsageError, match=r"0.5 minutes are too few for 5 blocks and 24 networks"):
        made.build(minutes=0.5)


def test_a_larger_budget_measures_more_often(made: Made, monkeypatch: pytest.MonkeyPatch):
    watched = bench(made.folder)
    watch(watched, monkeypatch)
    made.build(minutes=0.99)
    few = watched.asked[-1]["iterations"]
    made.build("more", minutes=1.01)
    assert build.FEWEST_ITERATIONS <= few < watched.asked[-1]["iterations"]
