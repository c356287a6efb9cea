"""A search demands a table that holds: what it refuses, and what the recipe overrules."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.search import loop
from profiles.errors import TableError
from profiles.recipe import Search
from profiles.table import LatencyTable
from tests.profiles.test_table import wide

DAY_NS = 86_400 * 10**9
TABLE, GENOMES = wide()


class Lab:
    """A search of which only the loop is real: its rounds find given networks, ``times`` as slow.

    ``asked`` are the rounds that were begun.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, table: LatencyTable) -> None:
        self.asked: list[int] = []
        self.times = [1.0, 1.0, 1.0]
        self.seen = SimpleNamespace(runtime_version="1.31.1", device_build="unknown")
        trials = SimpleNamespace(trials=lambda keys: [self.seen for _ in keys])
        self.workspace: Any = SimpleNamespace(store=trials)
        parts = {
            "supernet_stage": lambda *_: SimpleNamespace(folder=None),
            "_load_supernet": lambda *_: SimpleNamespace(space=table.space),
            "table_of": lambda *_: table,
            "table_path": lambda *_, **__: tmp_path / "table.json",
            "_round": lambda ground, table, number, *_: self.asked.append(number),
            "verify": self.verify,
        }
        for name, part in parts.items():
            monkeypatch.setattr(loop, name, part)

    def verify(self, _ground: Any, _table: Any, number: int, *_: Any) -> Any:
        chosen = GENOMES[12 * (number - 1) : 12 * number]
        measured = self.times[number - 1] * TABLE.sum_ns(chosen)
        found = [
            SimpleNamespace(genome=tuple(genome), measured_ns=ns, trial="t")
            for genome, ns in zip(chosen, measured, strict=True)
        ]
        return found, []

    def search(self, **changes: Any) -> Any:
        settings = Search(supernet="a:b", rounds=3, **changes)
        recipe: Any = SimpleNamespace(search=settings, name="r")
        return loop.search(self.workspace, recipe, None, None)  # type: ignore[arg-type]


@pytest.fixture
def old() -> LatencyTable:
    return replace(TABLE, measured_ns=time.time_ns() - 91 * DAY_NS)


def test_a_table_that_holds_is_searched_to_the_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    fresh = replace(TABLE, measured_ns=time.time_ns() - 80 * DAY_NS)
    lab = Lab(monkeypatch, tmp_path, fresh)
    assert [found.n for found in lab.search().agreement] == [12, 12, 12]
    assert lab.asked == [1, 2, 3]


def test_an_old_table_is_refused_before_the_first_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, old: LatencyTable
):
    lab = Lab(monkeypatch, tmp_path, old)
    with pytest.raises(TableError, match=r"91 days old.*trust_table"):
        lab.search()
    assert lab.asked == []


def test_a_device_that_was_updated_since_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Any):
    lab = Lab(monkeypatch, tmp_path, TABLE)
    lab.seen.runtime_version = "1.32.0"
    with pytest.raises(TableError, match=r"is 1\.31\.1, the device's is 1\.32\.0"):
        lab.search()
    assert lab.asked == [1]


def test_what_calibration_mends_is_not_held_against_a_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    lab = Lab(monkeypatch, tmp_path, TABLE)
    lab.times = [1.5, 1.5, 1.5]
    found = lab.search().agreement
    assert found[0].mape > 0.3
    assert found[-1].mape < 0.1


def test_a_table_that_fails_once_calibrated_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
):
    lab = Lab(monkeypatch, tmp_path, TABLE)
    lab.times = [1.0, 2.0, 1.0]
    with pytest.raises(TableError, match=r"MAPE .* search candidates, round 2"):
        lab.search()
    assert lab.asked == [1, 2]


def test_the_recipe_may_trust_it_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, old: LatencyTable
):
    lab = Lab(monkeypatch, tmp_path, old)
    lab.seen.runtime_version, lab.times = "2", [1.0, 2.0, 1.0]
    assert len(lab.search(trust_table=True).candidates) == 36
    assert np.isfinite(LatencyTable.load(tmp_path / "table.json").sum_ns(GENOMES)).all()
