"""The blocks of a latency table on a scripted device."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.campaign import Subject
from pipeline.search import blocks
from pipeline.stage import Workspace
from pipeline.supernet.base import Block
from profiles.recipe import Search
from profiles.space import SearchSpace, Slot
from profiles.store import Store
from profiles.table import LatencyTable
from tests.pipeline.scripted import Bench, bench, settings, watch


def measure_table(made: Bench, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> LatencyTable:
    """A table of one slot with two choices, whose files are those of the bench."""
    subjects = dict(zip(("call", "a", "b"), made.subjects, strict=True))

    def exported(workspace: Workspace, block: Block, *_: Any) -> Subject:
        workspace.store.put_artifact(subjects[block.signature].artifact)
        return subjects[block.signature]

    monkeypatch.setattr(blocks, "_export", exported)
    network = SimpleNamespace(
        space=SearchSpace((Slot("first", ("a", "b")),)),
        block=lambda slot, choice: SimpleNamespace(signature="ab"[choice]),
    )
    wanted = Search(supernet="a:b", measure=settings(**changes))
    workspace = Workspace.open(made.folder / "work")
    try:
        return blocks.measure_blocks(workspace, network, wanted, made.device, model="m", code="c")
    finally:
        workspace.close()


def test_no_block_goes_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One that varies more than the others would find other caches."""
    made = bench(tmp_path, artifacts=3)
    made.truth(between_runs=[0.0, 0.05])
    watch(made, monkeypatch)
    measure_table(made, monkeypatch, runs=3, max_runs=9)
    assert [len(asked["jobs"]) for asked in made.asked] == [3, 3, 3]
    with Store(made.store) as store:
        assert {trial.plan.max_runs for trial in store.trials()} == {3}


def test_a_table_knows_when_it_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Taken up again it is the same table: nothing was measured since."""
    made = bench(tmp_path, artifacts=3)
    before_ns = time.time_ns()
    watch(made, monkeypatch)
    first = measure_table(made, monkeypatch, runs=3)
    after_ns = time.time_ns()
    assert first.measured_ns is not None
    assert before_ns - 10**6 <= first.measured_ns <= after_ns + 10**6  # stored to milliseconds
    again = measure_table(made, monkeypatch, runs=3)
    assert again.sha256 == first.sha256
    with Store(made.store) as store:
        assert store.measured_ns([]) is None
