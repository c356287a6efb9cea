"""The store keeps what was committed, bit for bit, through kills, neighbours and newer versions."""

from __future__ import annotations

import dataclasses
import json
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sqlalchemy import create_engine

from profiles import store as store_module
from profiles.errors import StaleFence, StoreError
from profiles.findings import Memory
from profiles.records import Condition, Plan
from profiles.schema import Base
from profiles.store import Store, trial_key
from tests import builders
from tests.builders import SHA, artifact, parity, plan, run, trial

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "workspace" / "store.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(path) as opened:
        yield opened


def accepted(store: Store, *runs, **changes) -> str:
    """A closed trial with these runs; its key."""
    opened = store.open_trial(trial(**changes))
    for each in runs:
        store.add_run(opened.key, each)
    store.close_trial(opened.key, "accepted")
    return opened.key


# Raw samples


def test_samples_come_back_bit_for_bit(path):
    odd = np.array([1, 2**62, -1, 0, np.iinfo(np.int64).max, np.iinfo(np.int64).min])
    with Store(path) as store:
        key = store.open_trial(trial()).key
        store.add_run(key, run(samples_ns=odd, warmup_ns=np.array([], dtype=np.int64)))
    with Store(path) as store:
        (found,) = store.trials([key])[0].runs
    assert found.samples_ns.dtype == np.int64
    assert found.samples_ns.tobytes() == odd.tobytes()
    assert (len(found.warmup_ns), found.warmup_ns.dtype) == (0, np.int64)


@settings(max_examples=25)
@given(samples=arrays(np.int64, st.integers(0, 50)), warmup=arrays(np.int64, st.integers(0, 9)))
def test_any_samples_come_back_bit_for_bit(samples, warmup):
    with Store(Path(":memory:")) as store:
        key = store.open_trial(trial()).key
        store.add_run(key, run(samples_ns=samples, warmup_ns=warmup))
        (found,) = store.trials()[0].runs
    assert found.samples_ns.tobytes() == samples.tobytes()
    assert found.warmup_ns.tobytes() == warmup.tobytes()


def test_the_memory_layout_of_samples_does_not_matter(store):
    samples = np.arange(20, dtype=np.int64)
    key = store.open_trial(trial()).key
    store.add_run(key, run(0, samples_ns=samples[::2]))
    store.add_run(key, run(1, samples_ns=samples.astype(">i8")))
    store.add_run(key, run(2, samples_ns=samples.reshape(4, 5).T.ravel()))
    one, two, three = store.trials()[0].runs
    assert one.samples_ns.tolist() == list(range(0, 20, 2))
    assert two.samples_ns.tolist() == samples.tolist()
    assert three.samples_ns.tolist() == samples.reshape(4, 5).T.ravel().tolist()


def test_everything_else_of_a_trial_comes_back(path):
    condition = Condition(threads=2, core_mask="3", governor="performance", power_source="mains")
    plan = builders.plan(runs=7, seed=9)
    given_ = trial(
        condition=condition,
        plan_=plan,
        delegates=("XNNPACK", "CPU"),
        emulated=True,
        runtime_version="1.2.3",
    )
    environment = {"before": {"load_1min": 0.25, "frequencies_khz": [1, 2]}, "note": "größe"}
    with Store(path) as store:
        store.open_trial(given_)
        store.add_run(
            given_.key,
            run(
                4,
                complete=False,
                load_ns=2**40,
                first_ns=None,
                environment=environment,
                details={"slices": [[7, 3, None]]},
            ),
        )
    with Store(path) as store:
        (found,) = store.trials([given_.key])
    for name in ("key", "artifact_sha256", "device_id", "transport", "runtime", "condition"):
        assert getattr(found, name) == getattr(given_, name)
    for name in ("plan", "runtime_version", "delegates", "emulated", "reason"):
        assert getattr(found, name) == getattr(given_, name)
    assert found.status == "open"
    (only,) = found.runs
    assert (only.number, only.complete, only.load_ns) == (4, False, 2**40)
    assert only.first_ns is None
    assert only.environment == environment
    assert only.details == {"slices": [[7, 3, None]]}


# Keys


def test_a_key_depends_on_all_that_makes_a_measurement():
    base = {
        "artifact_sha256": SHA,
        "place": "pi5",
        "runtime": "onnxruntime",
        "condition": Condition(),
        "plan": Plan(),
    }
    changes = [
        {"artifact_sha256": "b" * 64},
        {"place": "pi4"},
        {"runtime": "litert"},
        {"condition": Condition(threads=2)},
        {"condition": Condition(core_mask="1")},
        {"condition": Condition(mode="pinned")},
        {"plan": Plan(runs=6)},
        {"plan": Plan(iterations=1)},
        {"plan": Plan(warmup_iterations=1)},
        {"plan": Plan(warmup_ns=1)},
        {"plan": Plan(seed=1)},
        {"plan": Plan(kind="app")},
        {"plan": Plan(max_runs=16)},
        {"plan": Plan(target=0.01)},
        {"plan": Plan(window_ns=1)},
        {"plan": Plan(period_ns=1)},
        {"plan": Plan(meter="another")},
    ]
    keys = [trial_key(**base), *(trial_key(**{**base, **change}) for change in changes)]
    assert len(set(keys)) == len(keys)


def test_a_key_can_be_made_before_the_device_was_looked_at():
    found = Condition(governor="performance", power_source="battery")
    before = trial_key(SHA, "pi5", "litert", Condition(), Plan())
    assert trial_key(SHA, "pi5", "litert", found, Plan()) == before


# A trial's life


def test_a_run_is_added_once(store):
    key = store.open_trial(trial()).key
    store.add_run(key, run(0, (1, 2, 3)))
    with pytest.raises(StoreError, match="already has run 0"):
        store.add_run(key, run(0, (7, 8, 9)))
    (only,) = store.trials()[0].runs
    assert only.samples_ns.tolist() == [1, 2, 3]


@pytest.mark.parametrize("status", ["accepted", "refused", "failed"])
def test_a_closed_trial_takes_no_more_runs(store, status):
    key = store.open_trial(trial()).key
    store.add_run(key, run(0))
    store.close_trial(key, status, "so")
    with pytest.raises(StoreError, match="not open"):
        store.add_run(key, run(1))
    (found,) = store.trials()
    assert (found.status, found.reason, len(found.runs)) == (status, "so", 1)


def test_a_trial_that_was_never_begun(store):
    with pytest.raises(StoreError, match="not open"):
        store.add_run("0" * 64, run())
    with pytest.raises(StoreError, match="no trial"):
        store.close_trial("0" * 64, "accepted")
    assert store.trials() == []


def test_an_open_trial_is_taken_up_where_it_was_left(path):
    with Store(path) as store:
        store.open_trial(trial())
        store.add_run(trial().key, run(0, (5, 6)))
    with Store(path) as store:
        again = store.open_trial(trial())
        assert again.status == "open"
        assert [each.samples_ns.tolist() for each in again.runs] == [[5, 6]]
        store.add_run(again.key, run(1))
        assert len(store.trials()) == 1


def test_a_failed_trial_may_be_taken_up_again(store):
    key = store.open_trial(trial()).key
    store.add_run(key, run(0))
    store.close_trial(key, "failed", "the board went away")
    again = store.open_trial(trial(runtime_version="2.0"))
    assert (again.status, again.reason, again.runtime_version) == ("open", "", "2.0")
    assert [each.number for each in again.runs] == [0]
    store.add_run(key, run(1))
    store.close_trial(key, "accepted")
    assert store.trials()[0].status == "accepted"


def test_an_accepted_trial_is_not_opened_again(store):
    key = accepted(store, run(0))
    again = store.open_trial(trial())
    assert again.status == "accepted"
    with pytest.raises(StoreError, match="not open"):
        store.add_run(key, run(1))


def test_trials_that_are_set_aside_begin_again_and_keep_their_runs(store):
    first = accepted(store, run(0), run(1))
    second = store.open_trial(trial(device_id="two")).key
    store.add_run(second, run(0))
    store.close_trial(second, "failed", "it broke")
    other = store.open_trial(trial(device_id="other")).key
    store.add_run(other, run(0))
    store.set_aside([first, second, "0" * 64])
    found = {t.key: t for t in store.trials()}
    assert [(found[key].status, found[key].reason) for key in (first, second)] == [("open", "")] * 2
    assert [each.complete for each in found[first].runs] == [False, False]
    assert [each.complete for each in found[second].runs] == [False]
    assert found[other].runs[0].complete
    store.add_run(first, run(2))


def test_trials_by_key(store):
    first = store.open_trial(trial(device_id="one")).key
    second = store.open_trial(trial(device_id="two")).key
    assert [t.key for t in store.trials([second])] == [second]
    assert {t.key for t in store.trials()} == {first, second}
    assert store.trials([]) == []
    assert store.trials(["0" * 64]) == []


def test_runs_come_in_the_order_of_their_numbers(store):
    key = store.open_trial(trial()).key
    for number in (2, 0, 1):
        store.add_run(key, run(number))
    assert [each.number for each in store.trials()[0].runs] == [0, 1, 2]


# Measurements


def test_a_measurement_is_the_summary_of_complete_runs(store):
    store.put_artifact(artifact(), parity())
    accepted(
        store,
        run(0, (100, 110, 120), load_ns=10, first_ns=200),
        run(1, (200, 210, 220), load_ns=30, first_ns=None),
        run(2, (300, 310, 320), load_ns=20, first_ns=400),
    )
    (found,) = store.measurements()
    assert (found.model, found.variant, found.format) == ("tiny", "fp32", "onnx")
    assert (found.device, found.runtime, found.transport) == ("board", "onnxruntime", "ssh")
    assert (found.status, found.n, found.runs) == ("accepted", 9, 3)
    assert found.median_ns == pytest.approx((110 * 210 * 310) ** (1 / 3))
    assert found.ci95_ns[0] < 210 < found.ci95_ns[1]
    assert (found.load_ns, found.first_ns) == (20, 300)
    assert (found.size_bytes, found.parity) == (1000, parity())


def test_other_kinds_of_trials_stand_beside_the_latency(store):
    store.put_artifact(artifact(), parity())
    accepted(store, run(0))
    sizes = {"base_bytes": 1, "loaded_bytes": 2, "peak_bytes": 4, "file_bytes": 3}
    memory = store.open_trial(trial(plan_=plan(kind="memory", runs=1)))
    store.add_run(memory.key, run(0, details={"memory": sizes}))
    store.close_trial(memory.key, "accepted")
    (found,) = store.measurements()
    assert (found.trial, found.runs) == (trial().key, 1)
    assert found.memory == Memory(**sizes, runs=1)
    assert store.measurements([memory.key]) == []
    (alone,) = store.measurements([found.trial])
    assert alone.memory is None


def test_interrupted_runs_are_kept_and_never_averaged(store):
    store.put_artifact(artifact(), parity())
    key = accepted(
        store,
        run(0, (100, 100, 100)),
        run(1, (9000,), complete=False, load_ns=10**9),
        run(2, (100, 100, 100)),
        run(3, (), complete=False),
    )
    (found,) = store.measurements()
    assert found.median_ns == pytest.approx(100)
    assert (found.n, found.runs) == (6, 2)
    assert found.load_ns == 1000
    assert [len(each.samples_ns) for each in store.trials([key])[0].runs] == [3, 1, 3, 0]


def assert_nothing_is_claimed(found) -> None:
    assert (found.n, found.runs) == (0, 0)
    assert found.median_ns is found.ci95_ns is found.p90_ns is None
    assert found.load_ns is found.first_ns is found.app_ns is found.memory is None


def test_an_artifact_that_failed_parity_is_refused_without_a_latency(store):
    failed = parity(passed=False, reason="cosine 0.2 is below 0.99")
    store.put_artifact(artifact(), failed)
    (found,) = store.measurements()
    assert (found.status, found.parity, found.size_bytes) == ("refused", failed, 1000)
    assert "cosine 0.2" in found.reason
    assert_nothing_is_claimed(found)


@pytest.mark.parametrize("status", ["failed", "refused", "open"])
def test_a_trial_that_was_not_accepted_claims_nothing(store, status):
    store.put_artifact(artifact(), parity())
    key = store.open_trial(trial()).key
    store.add_run(key, run(0))
    if status != "open":
        store.close_trial(key, status, "throttled")
    (found,) = store.measurements()
    assert found.status == status
    assert found.reason == ("" if status == "open" else "throttled")
    assert_nothing_is_claimed(found)


def test_an_accepted_trial_without_complete_runs_claims_nothing(store):
    store.put_artifact(artifact(), parity())
    accepted(store, run(0, complete=False))
    (found,) = store.measurements()
    assert_nothing_is_claimed(found)


def test_artifacts_nobody_asked_to_measure_are_not_listed(store):
    store.put_artifact(artifact(), parity())
    store.put_artifact(artifact(sha256="c" * 64, variant="unchecked"))
    assert store.measurements() == []


def test_measurements_of_some_trials(store):
    store.put_artifact(artifact(), parity())
    store.put_artifact(artifact(sha256="c" * 64, variant="bad"), parity(passed=False, reason="no"))
    one = accepted(store, run(0), device_id="one")
    accepted(store, run(0), device_id="two")
    assert [m.device for m in store.measurements([one])] == ["one"]
    assert sorted(m.device for m in store.measurements()) == ["", "one", "two"]
    assert store.measurements([]) == []


def test_two_variants_of_the_same_bytes_are_both_listed(store):
    store.put_artifact(artifact(variant="fp32"), parity())
    store.put_artifact(artifact(variant="pruned-0"), parity())
    accepted(store, run(0))
    assert [m.variant for m in store.measurements()] == ["fp32", "pruned-0"]


def test_an_artifact_recorded_again_is_replaced(store):
    store.put_artifact(artifact(), parity(passed=False, reason="x"))
    store.put_artifact(artifact(size_bytes=5), parity())
    accepted(store, run(0))
    (found,) = store.measurements()
    assert (found.size_bytes, found.parity.passed) == (5, True)


# The file


def test_the_migrations_build_exactly_the_schema(store, path):
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_committed_rows_are_on_the_disk(store, path):
    """Write-ahead with a full sync on commit: a power cut loses nothing that was reported."""
    reader = sqlite3.connect(path)
    assert reader.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    reader.close()
    with store._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


def test_a_store_of_a_newer_edgeloop_is_refused_with_its_name(store, path):
    store.close()
    with sqlite3.connect(path) as raw:
        raw.execute("UPDATE alembic_version SET version_num = '0999'")
    raw.close()
    with pytest.raises(StoreError, match="0999") as caught:
        Store(path)
    assert str(path) in str(caught.value)
    assert "upgrade edgeloop" in caught.value.hint
    with sqlite3.connect(path) as raw:  # and nothing was done to it
        assert raw.execute("SELECT version_num FROM alembic_version").fetchone() == ("0999",)
    raw.close()


@pytest.mark.parametrize("content", [b"not a database " * 100, b"x" * 600, b"\x00" * 5000])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"store\.sqlite cannot be opened"):
        Store(path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_the_database_of_another_program_is_refused_and_left_alone(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as raw:
        raw.execute("CREATE TABLE bookmarks (url TEXT)")
    raw.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="bookmarks"):
        Store(path)
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_store(path):
    path.parent.mkdir()
    path.touch()
    with Store(path) as store:
        assert store.trials() == []


@pytest.mark.parametrize("place", ["folder in the way", "file in the way"])
def test_a_path_that_cannot_hold_a_store(tmp_path, place):
    if place == "folder in the way":
        path = tmp_path / "store.sqlite"
        path.mkdir()
    else:
        (tmp_path / "workspace").touch()
        path = tmp_path / "workspace" / "store.sqlite"
    with pytest.raises(StoreError, match=r"store\.sqlite"):
        Store(path)


@pytest.mark.parametrize("name", ["what?x=1", "50%25", "a b#c", "größe", "a&b=c;d", "file:x"])
def test_odd_folder_names(tmp_path, name):
    path = tmp_path / name / "store.sqlite"
    with Store(path) as store:
        store.put_artifact(artifact())
    assert path.is_file()
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_opening_is_repeatable(path):
    for _ in range(3):
        with Store(path) as store:
            store.put_artifact(artifact(), parity())


# Neighbours


WRITER = """
import sys
from pathlib import Path
from profiles.store import Store
from tests.builders import artifact, parity, run, trial
path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
with Store(path) as store:
    store.put_artifact(artifact(variant=name), parity())
    key = store.open_trial(trial(device_id=name)).key
    for number in range(count):
        store.add_run(key, run(number, range(number * 1000 + 1, number * 1000 + 501)))
        print(number, flush=True)
    store.close_trial(key, "accepted")
"""


def writer(path: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    """A process that writes runs and says after each commit which; it waits for a line to start."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"ready\n"
    return process


def expected_samples(number: int) -> list[int]:
    return list(range(number * 1000 + 1, number * 1000 + 501))


@pytest.mark.parametrize("exists", [True, False], ids=["existing store", "new store"])
def test_several_processes_write_at_once(path, exists):
    """Also where all of them find no store and each wants to make it."""
    if exists:
        Store(path).close()
    names = ["a", "b", "c"]
    processes = [writer(path, name, 15) for name in names]
    for process in processes:
        process.stdin.write(b"go\n")
        process.stdin.flush()
    for process in processes:
        _, complaint = process.communicate(timeout=60)
        assert process.returncode == 0, complaint.decode()
    with Store(path) as store:
        found = {t.device_id: t for t in store.trials()}
        assert sorted(found) == names
        for each in found.values():
            assert each.status == "accepted"
            assert [r.number for r in each.runs] == list(range(15))
            assert all(r.samples_ns.tolist() == expected_samples(r.number) for r in each.runs)
        assert sorted({m.variant for m in store.measurements()}) == names


def test_two_writers_of_one_trial_never_both_add_the_same_run(path):
    """One of them is told so by a StoreError; no run is lost and none is there twice."""
    Store(path).close()
    with Store(path) as store:
        key = store.open_trial(trial()).key
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def add(number: int) -> None:
        with Store(path) as mine:
            for each in range(10):
                barrier.wait()
                try:
                    mine.add_run(key, run(each, (number + 1,) * 3))
                    outcomes.append("added")
                except StoreError as error:
                    outcomes.append("refused" if "already has run" in str(error) else str(error))
                except Exception as error:
                    outcomes.append(repr(error))

    threads = [threading.Thread(target=add, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["added"] * 10 + ["refused"] * 30
    with Store(path) as store:
        assert [each.number for each in store.trials([key])[0].runs] == list(range(10))


def test_a_reader_is_not_held_up_by_a_writer(store, path):
    accepted(store, run(0))
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with Store(path) as reader:
        assert len(reader.trials()) == 1
        assert reader.measurements() == []
    blocker.execute("ROLLBACK")
    blocker.close()


# Kills


@pytest.mark.parametrize("attempt", range(4))
def test_a_kill_leaves_committed_rows_and_nothing_else(path, attempt):
    Store(path).close()
    process = writer(path, "killed", 100_000)
    process.stdin.write(b"go\n")
    process.stdin.flush()
    lines = [process.stdout.readline() for _ in range(3)]
    time.sleep(random.Random(attempt).random() * 0.1)
    process.send_signal(signal.SIGKILL)
    lines += process.communicate()[0].splitlines()
    with Store(path) as store:
        (found,) = store.trials()
        assert found.status == "open"
        # What was reported is there; one more may have been committed and not yet reported.
        assert len(found.runs) in (len(lines), len(lines) + 1)
        assert [each.number for each in found.runs] == list(range(len(found.runs)))
        for each in found.runs:
            assert each.samples_ns.tolist() == expected_samples(each.number)
        store.add_run(found.key, run(len(found.runs)))  # and it goes on
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    check.close()


KILLED_MIGRATIONS = """
import os, signal, sys
from pathlib import Path
import alembic.command  # once, not in every child
from sqlalchemy import event
from sqlalchemy.engine import Engine
from profiles.store import Store

left = 0

@event.listens_for(Engine, "after_cursor_execute")
def count(*_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

for left in range(1, 100):
    child = os.fork()
    if not child:
        Store(Path(sys.argv[1]) / str(left) / "store.sqlite")
        os._exit(7)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(left, status, flush=True)
    if status == 7:
        break
"""


def test_a_store_that_was_killed_while_it_was_made_opens(tmp_path):
    """After every single statement that makes it."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED_MIGRATIONS, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *killed, finished = [line.split() for line in done.stdout.splitlines()]
    assert len(killed) > 10
    assert finished[1] == "7"
    for statements, status in killed:
        assert int(status) == -signal.SIGKILL, done.stderr
        with Store(tmp_path / statements / "store.sqlite") as store:
            store.put_artifact(artifact())
            assert store.trials() == []


def test_an_error_in_the_middle_of_a_write_leaves_what_was_there(store):
    key = store.open_trial(trial()).key
    with pytest.raises(OverflowError):
        store.add_run(key, run(0, load_ns=2**70))
    store.add_run(key, run(0))
    assert [each.number for each in store.trials()[0].runs] == [0]


def test_a_store_that_stays_locked_is_a_store_error(path, monkeypatch):
    monkeypatch.setattr(store_module, "BUSY_TIMEOUT_S", 0.1)
    with Store(path) as store:
        blocker = sqlite3.connect(path, isolation_level=None)
        blocker.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="locked"):
            store.open_trial(trial())
        blocker.execute("ROLLBACK")
        blocker.close()
        store.open_trial(trial())


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_closing_gives_the_file_back(path):
    before, closed = open_files(), []
    for _ in range(5):
        with Store(path) as store:
            store.trials()
        closed.append(store)
    assert open_files() <= before + 1


@pytest.mark.parametrize("content", ["not a database", "another program", "newer"])
def test_a_refused_file_is_given_back(path, content):
    path.parent.mkdir()
    if content == "not a database":
        path.write_bytes(b"not a database" * 100)
    else:
        table = "alembic_version" if content == "newer" else "bookmarks"
        with sqlite3.connect(path) as raw:
            raw.execute(f"CREATE TABLE {table} (version_num TEXT)")
            raw.execute(f"INSERT INTO {table} VALUES ('0999')")
        raw.close()
    before, errors = open_files(), []
    for _ in range(5):
        with pytest.raises(StoreError) as caught:
            Store(path)
        errors.append(caught)  # an error that is kept keeps what is in its traceback
    assert open_files() <= before + 1


def test_runs_of_another_runtime_version_no_longer_count(store):
    old = trial(runtime_version="1.0")
    store.open_trial(old)
    store.add_run(old.key, run(0))
    resumed = store.open_trial(dataclasses.replace(old, runtime_version="2.0"))
    assert [kept.complete for kept in resumed.runs] == [False]
    assert len(resumed.runs[0].samples_ns) == len(run(0).samples_ns)
    assert [kept.complete for kept in store.open_trial(old).runs] == [False]


def test_what_fails_parity_has_no_latency_even_if_it_was_measured_before(store):
    """Tolerances may be tightened after a measurement: the verdict on the bytes comes first."""
    key = accepted(store, run(0), run(1), run(2))
    store.put_artifact(artifact(), dataclasses.replace(parity(), passed=False, reason="cosine"))
    (found,) = store.measurements([key])
    assert (found.status, found.reason) == ("refused", "parity: cosine")
    assert found.median_ns is None


def test_an_unknown_version_does_not_undo_runs(store):
    """A runtime that is missing on one visit says nothing of what was measured before."""
    old = trial(runtime_version="1.0")
    store.open_trial(old)
    store.add_run(old.key, run(0))
    resumed = store.open_trial(dataclasses.replace(old, runtime_version="unknown"))
    assert [kept.complete for kept in resumed.runs] == [True]


# Leases


def test_who_measured_comes_back(path):
    who = {"device_serial": "100a", "device_build": "TQ3A.230805", "agent": "native", "fence": 7}
    with Store(path) as store:
        store.open_trial(trial(**who))
    with Store(path) as store:
        (found,) = store.trials()
    assert {name: getattr(found, name) for name in who} == who


def test_a_newer_lease_takes_a_trial_over_and_the_older_one_is_rejected(store):
    """The older holder was frozen and woke up, say; nothing it brings may be kept."""
    key = store.open_trial(trial(fence=5)).key
    store.add_run(key, run(0), fence=5)
    assert len(store.open_trial(trial(fence=6)).runs) == 1
    with pytest.raises(StaleFence, match=r"newer lease.*6, this one is 5"):
        store.add_run(key, run(1), fence=5)
    with pytest.raises(StaleFence):
        store.close_trial(key, "failed", "the link broke", fence=5)
    with pytest.raises(StaleFence) as caught:
        store.open_trial(trial(fence=5, runtime_version="2.0"))
    assert caught.value.device == "board"
    (kept,) = store.trials()
    assert (kept.fence, kept.status, kept.runtime_version) == (6, "open", "1.0")
    assert [(each.number, each.complete) for each in kept.runs] == [(0, True)]
    store.add_run(key, run(1), fence=6)
    store.close_trial(key, "accepted", fence=6)


def test_a_stale_writer_hears_that_it_is_stale_even_when_the_trial_is_closed(store):
    key = store.open_trial(trial(fence=6)).key
    store.close_trial(key, "accepted", fence=6)
    with pytest.raises(StaleFence):
        store.add_run(key, run(0), fence=5)
    with pytest.raises(StaleFence):
        store.close_trial(key, "failed", "late", fence=5)
    assert store.trials()[0].status == "accepted"


FENCED_WRITER = """
import sys
from pathlib import Path
from profiles.errors import StaleFence, StoreError
from profiles.store import Store
from tests.builders import run, trial
path, fence = Path(sys.argv[1]), int(sys.argv[2])
with Store(path) as store:
    try:
        opened = store.open_trial(trial(fence=fence))
        for number in range(len(opened.runs), len(opened.runs) + 10):
            try:
                store.add_run(opened.key, run(number, (fence,) * 3), fence=fence)
            except StaleFence:
                raise
            except StoreError:
                pass  # the run before it came from another writer
        print("finished")
    except StaleFence:
        print("stale")
"""


def test_runs_of_many_leases_stand_in_the_order_of_their_fences(path):
    """Whichever of many writers comes when: no older result lands behind a newer one."""
    Store(path).close()
    writers = {
        fence: subprocess.Popen(
            [sys.executable, "-c", FENCED_WRITER, str(path), str(fence)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for fence in (3, 1, 4, 2)
    }
    said = {fence: each.communicate()[0].strip() for fence, each in writers.items()}
    assert set(said.values()) <= {"finished", "stale"}
    assert said[4] == "finished"
    with Store(path) as store:
        (found,) = store.trials()
    fences = [int(each.samples_ns[0]) for each in found.runs]
    assert fences == sorted(fences)
    assert fences.count(4) > 0


@pytest.mark.parametrize("changed", ["device_serial", "device_build", "agent"])
def test_runs_of_another_unit_build_or_agent_no_longer_count(store, changed):
    first = trial(device_serial="100a", device_build="one", agent="python")
    store.open_trial(first)
    store.add_run(first.key, run(0))
    assert [r.complete for r in store.open_trial(first).runs] == [True]
    other = store.open_trial(dataclasses.replace(first, **{changed: "other"}))
    assert [r.complete for r in other.runs] == [False]


@pytest.mark.parametrize("changed", ["device_serial", "device_build"])
def test_a_visit_that_could_not_tell_does_not_hide_a_change(store, changed):
    first = trial(**{changed: "one"})
    store.open_trial(first)
    store.add_run(first.key, run(0))
    unsure = store.open_trial(dataclasses.replace(first, **{changed: "unknown"}))
    assert [r.complete for r in unsure.runs] == [True]
    other = store.open_trial(dataclasses.replace(first, **{changed: "other"}))
    assert [r.complete for r in other.runs] == [False]


# Older stores


def store_of_revision(path: Path, revision: str) -> None:
    """A store as an earlier edgeloop left it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", "profiles:migrations")
    config.set_main_option("path_separator", "os")
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.commit()
    engine.dispose()


def insert_trial(raw: sqlite3.Connection, key: str, transport: str) -> None:
    made = trial()
    raw.execute(
        "INSERT INTO trial VALUES (?, ?, ?, ?, 'onnxruntime', '1.0', '[]', 0, ?, ?, 'open', '', ?)",
        (
            key,
            SHA,
            made.device_id,
            transport,
            json.dumps(dataclasses.asdict(made.condition)),
            json.dumps(dataclasses.asdict(made.plan)),
            "2026-01-01",
        ),
    )
    raw.execute(
        "INSERT INTO run (trial_key, number, complete, warmup_ns, samples_ns, load_ns, first_ns,"
        " environment, finished_utc) VALUES (?, 0, 1, x'', ?, 5, 4, '{}', '2026-01-01')",
        (key, np.array([1, 2, 3], dtype="<i8").tobytes()),
    )


def test_a_store_of_the_first_schema_is_brought_up_to_date_with_its_rows(path):
    store_of_revision(path, "0001")
    with sqlite3.connect(path) as raw:
        insert_trial(raw, "real", "ssh")
        insert_trial(raw, "played", "scripted")
    raw.close()
    with Store(path) as store:
        old = {each.key: each for each in store.trials()}
        assert old["real"].runs[0].samples_ns.tolist() == [1, 2, 3]
        assert (old["real"].device_serial, old["real"].device_build) == ("unknown", "unknown")
        # There was one agent for real devices; what played a scripted one nobody knows.
        assert (old["real"].agent, old["played"].agent) == ("python", "unknown")
        opened = store.open_trial(trial(key="real", device_serial="100a", fence=9))
        assert [each.complete for each in opened.runs] == [True]
        store.add_run("real", run(1), fence=9)
        with pytest.raises(StaleFence):
            store.close_trial("real", "accepted")


def test_another_agent_does_not_go_on_with_the_runs_of_an_older_store(path):
    store_of_revision(path, "0001")
    with sqlite3.connect(path) as raw:
        insert_trial(raw, "real", "ssh")
    raw.close()
    with Store(path) as store:
        opened = store.open_trial(trial(key="real", agent="native"))
        assert [each.complete for each in opened.runs] == [False]
