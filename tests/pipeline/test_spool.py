"""What a killed process left of its run is stored once, and never thrown away unstored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.spool import Spool
from profiles.errors import StoreError
from profiles.store import Store
from tests import builders

HELLO = '{"event":"hello","runtime":"litert","version":"1","agent":"python","build":null}'


def samples(key: str, *ns: int) -> str:
    return f'{{"event":"samples","job":"{key}","ns":{list(ns)},"start_ns":{ns[0]},"khz":null}}'


@pytest.fixture
def store(tmp_path: Path):
    with Store(tmp_path / "store.db") as opened:
        yield opened


def left_behind(path: Path, number: int = 0, fence: int = 0, lines: tuple[str, ...] = ()) -> str:
    """A spool whose process was killed; the key of its trial."""
    key = builders.trial().key
    spool = Spool(path)
    spool.begin({key: number}, fence, {"load": 0.1})
    for line in (HELLO, samples(key, 10, 20), samples(key, 30), *lines):
        spool.line(line)
    spool._stream.close()  # as the kernel does for a process that was killed
    return key


def test_what_was_delivered_is_an_interrupted_run(tmp_path, store):
    store.open_trial(builders.trial())
    key = left_behind(tmp_path / "spool")
    Spool(tmp_path / "spool").recover(store)
    (run,) = store.trials([key])[0].runs
    assert run.samples_ns.tolist() == [10, 20, 30]
    assert run.details == {"slices": [[10, 2, None], [30, 1, None]]}
    assert run.environment["runtime_build"] == "unknown"
    assert not run.complete
    assert run.environment["preflight"] == {"load": 0.1}
    assert not (tmp_path / "spool").exists()


def test_what_a_kind_of_trial_is_for_is_stored_too(tmp_path, store):
    store.open_trial(builders.trial())
    key = builders.trial().key
    sizes = {"base_bytes": 1, "loaded_bytes": 2, "peak_bytes": 3, "file_bytes": 4}
    mark = {"what": "active", "start_ns": 1, "end_ns": 2, "calls": 3}
    power = {"at_ns": [1], "values": [["7\n"]]}
    said = [
        {"event": "memory", "job": key, **sizes},
        {"event": "operators", "job": key, "trace": [{"name": "x"}]},
        {"event": "mark", **mark},
        {"event": "power", **power},
    ]
    left_behind(tmp_path / "spool", lines=tuple(map(json.dumps, said)))
    Spool(tmp_path / "spool").recover(store)
    (run,) = store.trials([key])[0].runs
    assert {name: value for name, value in run.details.items() if name != "slices"} == {
        "memory": sizes,
        "operators": [{"name": "x"}],
        "marks": [mark],
        "power": power,
    }


def test_a_run_that_was_stored_before_the_kill_is_not_stored_twice(tmp_path, store):
    store.open_trial(builders.trial())
    key = left_behind(tmp_path / "spool")
    store.add_run(key, builders.run(0))
    Spool(tmp_path / "spool").recover(store)
    assert len(store.trials([key])[0].runs) == 1


def test_a_run_under_a_lease_that_is_over_is_dropped(tmp_path, store):
    store.open_trial(builders.trial(fence=7))
    key = left_behind(tmp_path / "spool", fence=6)
    Spool(tmp_path / "spool").recover(store)
    assert store.trials([key])[0].runs == ()
    assert not (tmp_path / "spool").exists()


def test_a_store_that_cannot_be_written_costs_nothing(tmp_path, store, monkeypatch):
    """A full disk is a likely reason for the kill."""
    store.open_trial(builders.trial())
    key = left_behind(tmp_path / "spool")

    def full(*_: object, **__: object) -> None:
        raise StoreError("disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(store, "add_run", full)
        with pytest.raises(StoreError):
            Spool(tmp_path / "spool").recover(store)
    Spool(tmp_path / "spool").recover(store)
    assert [len(run.samples_ns) for run in store.trials([key])[0].runs] == [3]


@given(cut=st.integers(0, 500))
def test_wherever_it_was_cut_off_whole_lines_count(tmp_path_factory, cut: int):
    folder = tmp_path_factory.mktemp("cut")
    with Store(folder / "store.db") as store:
        store.open_trial(builders.trial())
        key = left_behind(folder / "spool")
        content = (folder / "spool").read_bytes()[:cut]
        (folder / "spool").write_bytes(content)
        Spool(folder / "spool").recover(store)
        runs = store.trials([key])[0].runs
        lines = content.decode().split("\n")
        expected = [10, 20] * (samples(key, 10, 20) in lines) + [30] * (samples(key, 30) in lines)
        assert [run.samples_ns.tolist() for run in runs] == [expected] * bool(expected)
