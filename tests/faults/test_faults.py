"""Two hundred faults in a seeded schedule, over SSH and over ADB, with real servers.

Whatever happens: nothing that the device delivered is lost, nothing is stored twice, the device is
free and as it was, no call is late, and the user is told in one line.  ``EDGELOOP_FAULT_SEED=N``
replays one schedule.
"""

from __future__ import annotations

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
from devices.lab import Lab
from pipeline.campaign import Subject
from profiles.canonical import file_sha256
from profiles.records import Io, TensorSpec, Trial
from profiles.store import Store
from tests.builders import artifact, device
from tests.faults.lab import Victim, board, phone
from tests.faults.schedule import FAILED, MEASURE, Log, carry_out, schedule
from tests.processes import eventually

FAULTS = 5
SEEDS = (
    [int(os.environ["EDGELOOP_FAULT_SEED"])] if "EDGELOOP_FAULT_SEED" in os.environ else range(20)
)
SIZE = 1000
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


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("which", ["hurt_board", "hurt_phone"])
def test_a_schedule_of_faults(request: pytest.FixtureRequest, tmp_path: Path, which, seed):
    victim: Victim = request.getfixturevalue(which)
    faults = schedule(seed, victim.faults, FAULTS)
    print(f"seed {seed} on {which}: {'; '.join(f'{f.kind} ({f.moment})' for f in faults)}")
    libraries = {"onnxruntime": str(runtime_libraries()["onnxruntime"])}
    measured = device(**{**victim.entry, "libraries": libraries})
    log, workspace = Log(tmp_path / "log"), tmp_path / "work"
    log.write("seed", seed)
    settings = victim.settings()
    subjects: list[Subject] = []
    left = faults
    for life in range(LIVES):
        if not subjects or (ended(log)[-1] == 0 and left):
            subjects.append(subject(tmp_path, seed, life))
        left = carry_out(victim, measured, workspace, subjects, left, log)
        if ended(log)[-1] == 0 and not left:
            break
    check(log, workspace, subjects)
    assert not held(Lab().lock_path(Lab().serial_of(measured.id) or "")), "the device is free"
    assert eventually(lambda: not victim.agents()), "an agent goes on for nobody"
    assert victim.settings() == settings, "the device is as it was"
    assert not list(victim.root.glob("incoming/*")), "half a file is left"
    assert not (victim.root / "restore.sh").exists()


def ended(log: Log) -> list[int]:
    return [value for kind, value in log.read() if kind == "ended"]


def check(log: Log, workspace: Path, subjects: list[Subject]) -> None:
    entries = list(log.read())
    assert [value for kind, value in entries if kind == "crash"] == []
    assert [value for kind, value in entries if kind == "late"] == []
    ends = [value for kind, value in entries if kind == "ended"]
    assert ends[-1] == 0, f"never done: {ends}"
    assert set(ends) <= {0, FAILED, -9}
    for text in (value for kind, value in entries if kind == "status"):
        assert text.strip() and "\n" not in text and "Traceback" not in text
    with Store(workspace / "store.db") as store:
        trials = {trial.key: trial for trial in store.trials()}
    assert len(trials) == len(subjects)
    for trial in trials.values():
        assert trial.status == "accepted"
        assert [run.number for run in trial.runs] == list(range(len(trial.runs)))
        assert sum(run.complete for run in trial.runs) == MEASURE.runs
    assert stored(trials) == delivered(entries)


def stored(trials: dict[str, Trial]) -> dict[str, list[list[int]]]:
    """All samples of each trial, run by run."""
    return {
        key: [run.samples_ns.tolist() for run in trial.runs if len(run.samples_ns)]
        for key, trial in trials.items()
    }


def delivered(entries: list[tuple[str, Any]]) -> dict[str, list[list[int]]]:
    """What came out of the agents, but for runs during which the device was taken away."""
    runs: list[dict[str, list[int]]] = []
    for kind, value in entries:
        if kind == "line" and '"hello"' in value:
            runs.append({})
        if kind == "line" and value.startswith("{"):
            event = json.loads(value)
            if event["event"] == "samples":
                runs[-1].setdefault(event["job"], []).extend(event["ns"])
        if kind == "fault" and value == "take lease" and runs:
            runs[-1]["taken"] = []
    found: dict[str, list[list[int]]] = {}
    for run in runs:
        for key, samples in run.items():
            if "taken" not in run:
                found.setdefault(key, []).append(samples)
    return found


def subject(folder: Path, seed: int, number: int) -> Subject:
    """A model of 4 MB that nobody has measured yet."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng([seed, number]).standard_normal((SIZE, SIZE), np.float32)
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIZE]) for name in ("x", "y")
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        tensors[:1],
        tensors[1:],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path, values = folder / f"{number}.onnx", folder / "x.bin"
    onnx.save(model, path)
    np.ones((1, SIZE), np.float32).tofile(values)
    made = artifact(sha256=file_sha256(path), path=path, size_bytes=path.stat().st_size, io=IO)
    return Subject(made, (values,))
