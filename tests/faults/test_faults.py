"""Two hundred faults in a seeded schedule, over SSH and over ADB, with real servers.

Whatever happens: nothing that the device delivered is lost, nothing is stored twice, the device is
free and as it was, no call is late, and the user is told in one line.

A test that fails shows its seed, which replays its schedule::

    EDGELOOP_FAULT_SEED=3 python -m pytest -x -s tests/faults -k hurt_board
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.agent.native import runtime_libraries
from devices.endpoints.sshd import find_sshd
from devices.kernel_lock import held
from devices.lab import DeviceState, Lab
from pipeline.campaign import Subject
from profiles.canonical import file_sha256
from profiles.records import Io, TensorSpec, Trial
from profiles.store import Store
from tests.builders import artifact, device, matrix_product
from tests.faults.lab import Victim, board, kinds, phone
from tests.faults.schedule import FAILED, MEASURE, TAKEN, Lives, Log, possible, schedule
from tests.processes import eventually

FAULTS = 5
SEEDS = range(20)
#: A model of 4.8 MB: the device hashes it while it still arrives.
SIZE = 1100
IO = Io(
    (TensorSpec("x", (1, SIZE), "float32"),),
    (TensorSpec("y", (1, SIZE), "float32"),),
)
LIVES = 40


@pytest.fixture(scope="module")
def hurt_board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    if find_sshd() is None:
        pytest.skip("no OpenSSH server on this machine (apt-get install openssh-server)")
    with board(tmp_path_factory.mktemp("board")) as victim:
        yield victim


@pytest.fixture(scope="module")
def hurt_phone(_adbd: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with phone(tmp_path_factory.mktemp("phone")) as victim:
        yield victim


@pytest.mark.parametrize("disk", [True, False])
@pytest.mark.parametrize("name", ["board", "phone"])
def test_the_schedules_have_two_hundred_faults_and_all_there_are(name, disk):
    done = [fault for seed in SEEDS for fault in schedule(seed, kinds(name, disk), FAULTS)]
    assert 2 * len(done) >= 200
    assert {(fault.kind, fault.moment) for fault in done} == set(possible(kinds(name, disk)))
    assert schedule(7, kinds(name, disk), FAULTS) == done[7 * FAULTS : 8 * FAULTS]


def seeds() -> list[int]:
    """All of them, or the one that is to be replayed."""
    only = os.environ.get("EDGELOOP_FAULT_SEED")
    return list(SEEDS) if only is None else [int(only)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", seeds())
@pytest.mark.parametrize(
    "which",
    [
        pytest.param("hurt_board", marks=pytest.mark.sshd),
        pytest.param("hurt_phone", marks=pytest.mark.adbd),
    ],
)
def test_a_schedule_of_faults(request: pytest.FixtureRequest, tmp_path: Path, which, seed):
    victim: Victim = request.getfixturevalue(which)
    faults = schedule(seed, victim.faults, FAULTS)
    print(f"EDGELOOP_FAULT_SEED={seed} on {which}:")
    print("; ".join(f"{fault.kind} ({fault.moment} {fault.count})" for fault in faults))
    libraries = {"onnxruntime": str(runtime_libraries()["onnxruntime"])}
    measured = device(**{**victim.entry, "libraries": libraries})
    log, workspace = Log(tmp_path / "log"), tmp_path / "work"
    settings = victim.settings()
    lives, subjects = Lives(victim, measured, workspace, faults, log), [subject(tmp_path, seed, 0)]
    for _ in range(LIVES):
        code = lives.live(subjects)
        if code == 0 and not lives.left:
            break
        if code == 0:
            subjects.append(subject(tmp_path, seed, len(subjects)))
    check(log, workspace, subjects, victim.mode)
    serial = Lab().serial_of(measured.id) or ""
    assert not held(Lab().lock_path(serial)), "the device is free"
    assert Lab().state_of(serial) is DeviceState.READY
    assert eventually(lambda: not victim.agents()), "an agent goes on for nobody"
    assert victim.settings() == settings, "the device is as it was"
    assert not list(victim.root.glob("incoming/*")), "half a file is left"
    assert victim.false_files([subject.artifact.sha256 for subject in subjects]) == []
    assert not (victim.root / "restore.sh").exists()


def check(log: Log, workspace: Path, subjects: list[Subject], mode: str) -> None:
    entries = list(log.read())
    assert [value for kind, value in entries if kind == "crash"] == []
    assert [value for kind, value in entries if kind == "late"] == []
    ends = [value for kind, value in entries if kind == "ended"]
    assert ends[-1] == 0, f"never done: {ends}"
    assert set(ends) <= {0, FAILED, -9}
    for text in (value for kind, value in entries if kind == "status"):
        assert text.strip() and "\n" not in text and "Traceback" not in text
        assert '"event"' not in text, "the agent's own language is no status"
    with Store(workspace / "store.db") as store:
        trials = {trial.key: trial for trial in store.trials()}
    assert len(trials) == len(subjects)
    for trial in trials.values():
        assert trial.status == "accepted"
        assert trial.condition.mode == mode
        assert [run.number for run in trial.runs] == list(range(len(trial.runs)))
        assert sum(run.complete for run in trial.runs) == MEASURE.runs
        assert all(len(run.samples_ns) == MEASURE.iterations for run in trial.runs if run.complete)
    assert stored(trials) == delivered(entries)


def stored(trials: dict[str, Trial]) -> dict[str, list[list[int]]]:
    """All samples of each trial, run by run."""
    return {
        key: [run.samples_ns.tolist() for run in trial.runs if len(run.samples_ns)]
        for key, trial in trials.items()
    }


def delivered(entries: list[tuple[str, Any]]) -> dict[str, list[list[int]]]:
    """What came out of the agents while the device was ours, run by run."""
    runs: list[dict[str, list[int]]] = []
    ours = True
    for kind, value in entries:
        if kind == "leased":
            ours = True
        elif kind == "fault" and value[0] in TAKEN:
            if ours and value[1] == "line":  # in the middle of a run
                runs.pop()
            ours = False
        elif kind == "line" and ours:
            with contextlib.suppress(ValueError):  # the last line before a break may be cut off
                event = json.loads(value)
                if event["event"] == "hello":
                    runs.append({})
                if event["event"] == "samples":
                    runs[-1].setdefault(event["job"], []).extend(event["ns"])
    found: dict[str, list[list[int]]] = {}
    for run in runs:
        for key, samples in run.items():
            found.setdefault(key, []).append(samples)
    return found


def subject(folder: Path, seed: int, number: int) -> Subject:
    """A model that nobody has measured yet."""
    weights = np.random.default_rng([seed, number]).standard_normal((SIZE, SIZE), np.float32)
    path = matrix_product(folder / f"{number}.onnx", weights)
    values = folder / "x.bin"
    np.ones((1, SIZE), np.float32).tofile(values)
    made = artifact(sha256=file_sha256(path), path=path, size_bytes=path.stat().st_size, io=IO)
    return Subject(made, (values,))
