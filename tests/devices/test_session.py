"""A visit from lease to raw samples: over real SSH, and with the scripted device."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices import visit as visit_module
from devices.endpoints.sshd import LoopbackServer
from devices.inventory import Device
from devices.lab import DeviceState, Lab
from devices.lease import take_away
from devices.meter.base import Sampling
from devices.recorder import MARKS, RunRecorder
from devices.session import Session
from devices.transport.local import LocalTransport
from devices.visit import identify, serial_of, sign_of_life, visit
from profiles.errors import (
    AgentError,
    AuthenticationError,
    ConnectionLost,
    DeviceBusy,
    DeviceUnreachable,
    EdgeError,
    LeaseLost,
    WrongDevice,
)
from profiles.records import Condition
from tests.builders import device, plan
from tests.devices import fake_runtime
from tests.processes import alive, eventually, kill_connections


def over_ssh(server: LoopbackServer, folder: Path, **entry: Any) -> Device:
    return device(**{**server.inventory_entry("board", str(folder / "root")), **entry})


@pytest.fixture(params=["scripted", "local", pytest.param("ssh", marks=pytest.mark.sshd)])
def board(request: pytest.FixtureRequest, tmp_path: Path) -> Device:
    """The same device, reached in different ways."""
    if request.param == "ssh":
        return over_ssh(request.getfixturevalue("loopback"), tmp_path)
    if request.param == "scripted":
        return device(address=f"scripted:{tmp_path}/home")
    return device(address="local:", root=str(tmp_path / "root"))


def wrapped_python(folder: Path, before: str = "", env: dict[str, str] | None = None) -> str:
    """A device's Python that runs ``before`` in a shell first, and leaves its process id."""
    path = folder / "python"
    exports = "".join(f"export {name}={value!r}\n" for name, value in (env or {}).items())
    path.write_text(
        f'#!/bin/sh\n{exports}echo $$ >> "{folder}/pids"\n{before}\nexec "{sys.executable}" "$@"\n'
    )
    path.chmod(0o755)
    return str(path)


def agent_pids(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "pids").read_text().split()]


class Watched(RunRecorder):
    """Calls back after each line."""

    def __init__(self, jobs: Sequence[str], after: Callable[[], None]) -> None:
        super().__init__(jobs)
        self.after = after

    def line(self, text: str) -> None:
        super().line(text)
        self.after()


def measure(session: Session, jobs, recorder: RunRecorder | None = None, **options: Any):
    recorder = recorder or RunRecorder([job.id for job in jobs])
    given_ = {"condition": Condition(), "plan": plan(), "seed": 0, "deadline_s": 60, **options}
    session.run("onnxruntime", jobs, recorder=recorder, **given_)
    return recorder


# What a visit delivers


def test_a_visit_delivers_raw_samples(board, tiny_model):
    with visit(board) as session:
        version = session.probe(["onnxruntime"])["onnxruntime"]["version"]
        recorder = measure(session, [tiny_model.job()])
    recording = recorder.recordings["tiny"]
    assert recorder.done
    assert recorder.version == version
    assert recording.samples_ns().dtype == np.int64
    assert len(recording.samples_ns()) == 20
    assert recording.samples_ns().min() > 0
    assert len(recording.warmup_ns()) >= 1
    assert recording.load_ns > 0
    assert recording.first_ns > 0
    assert recording.delegates


def test_several_jobs_share_a_process(board, tiny_model):
    with visit(board) as session:
        recorder = measure(session, [tiny_model.job(name) for name in "abc"])
    assert {name: len(r.samples_ns()) for name, r in recorder.recordings.items()} == {
        "a": 20,
        "b": 20,
        "c": 20,
    }


def energy_of(folder: Path) -> dict[str, Any]:
    (folder / "now").write_text("7\n")
    sampling = Sampling(period_ns=10_000_000, window_ns=100_000_000, files=(str(folder / "now"),))
    return {"plan": plan(kind="energy"), "sampling": sampling}


def test_an_energy_run_brings_marks_and_readings(tmp_path, tiny_model):
    """Its windows are as long as the sensor needs them, and its calls as many as that allows."""
    with visit(device(root=str(tmp_path / "root"))) as session:
        recorder = measure(session, [tiny_model.job()], **energy_of(tmp_path))
    details = recorder.details("tiny")
    before, active, after = details["marks"]
    assert [before["what"], active["what"], after["what"]] == [*MARKS]
    assert active["end_ns"] - active["start_ns"] >= 100_000_000
    # Each slice begins with a call that is not timed.
    timed = len(recorder.recordings["tiny"].samples_ns())
    assert active["calls"] == timed + len(details["slices"]) > 20
    assert sum(calls for _, calls, _ in details["slices"]) == timed
    assert details["power"]["values"] == [["7\n"]] * len(details["power"]["at_ns"])
    assert len(details["power"]["at_ns"]) > 10


def test_a_memory_run_brings_sizes(tmp_path, tiny_model):
    with visit(device(root=str(tmp_path / "root"))) as session:
        recorder = measure(session, [tiny_model.job()], plan=plan(kind="memory"))
    found = recorder.details("tiny")["memory"]
    assert set(found) == {"base_bytes", "loaded_bytes", "peak_bytes", "file_bytes"}
    assert recorder.build != "unknown"


def test_a_run_without_what_its_kind_is_for_is_none(tmp_path, tiny_model):
    class Forgetful(RunRecorder):
        def line(self, text: str) -> None:
            if '"power"' not in text:
                super().line(text)

    with (
        visit(device(root=str(tmp_path / "root"))) as session,
        pytest.raises(AgentError, match="delivered no energy"),
    ):
        measure(session, [tiny_model.job()], Forgetful(["tiny"]), **energy_of(tmp_path))


def test_progress_is_told_after_each_line(board, tiny_model):
    counts: list[int] = []
    with visit(board) as session:
        recorder = Watched(
            ["tiny"], lambda: counts.append(len(recorder.recordings["tiny"].samples))
        )
        measure(session, [tiny_model.job()], recorder, plan=plan(iterations=120))
    assert counts == sorted(counts)
    assert counts[-1] == 120


def test_what_the_device_says_of_itself(tmp_path, tiny_model):
    with visit(device(root=str(tmp_path / "root"))) as session:
        recorder = measure(session, [tiny_model.job()])
        condition = session.condition(Condition(threads=2, core_mask="3"))
    assert session.facts["machine"] == os.uname().machine
    assert set(recorder.environment) == {"before", "warm", "after"}
    assert recorder.environment["before"]["load_1min"] >= 0
    assert (condition.threads, condition.core_mask) == (2, "3")
    assert condition.governor == session.facts["governor"]
    assert condition.power_source == session.facts["power_source"]


def test_the_scripted_device_gives_the_same_answer_every_time(tmp_path, tiny_model):
    def samples(seed: int) -> list[int]:
        with visit(device(address=f"scripted:{tmp_path}/home")) as session:
            recorder = measure(session, [tiny_model.job()], seed=seed)
        return recorder.recordings["tiny"].samples

    assert samples(1) == samples(1) != samples(2)


def test_runs_leave_nothing_more_on_the_device(tmp_path, tiny_model):
    """A lab measures for months: what one run needs must not add up."""

    def files() -> set[Path]:
        return set((tmp_path / "root").rglob("*"))

    with visit(device(root=str(tmp_path / "root"))) as session:
        measure(session, [tiny_model.job()], seed=0)
        before = files()
        for seed in (0, 1):
            measure(session, [tiny_model.job()], seed=seed)
        assert files() == before


def test_a_run_that_delivers_too_little_is_none(tmp_path, tiny_model):
    """The agent says that all is well, and a line of its samples is missing."""

    class Forgetful(RunRecorder):
        def line(self, text: str) -> None:
            if '"samples"' not in text or len(self.recordings["tiny"].samples) < 50:
                super().line(text)

    with (
        visit(device(root=str(tmp_path / "root"))) as session,
        pytest.raises(AgentError, match="delivered 50 of 120 samples"),
    ):
        measure(session, [tiny_model.job()], Forgetful(["tiny"]), plan=plan(iterations=120))


def test_an_agent_that_talks_nonsense_is_gone_before_the_next_begins(
    loopback, tmp_path, tiny_model
):
    """Nobody listens to it any more; it must not measure on beside the next."""
    env = {**fake_runtime.install(tmp_path / "fake"), "FAKE_CALL_S": "0.05"}
    python = wrapped_python(tmp_path, env=env)

    class Shocked(RunRecorder):
        def line(self, text: str) -> None:
            super().line(text)
            if '"loaded"' in text:
                super().line("Segmentation fault")

    with visit(over_ssh(loopback, tmp_path, python=python)) as session:
        with pytest.raises(AgentError, match="Segmentation fault"):
            measure(session, [tiny_model.job()], Shocked(["tiny"]), plan=plan(iterations=1000))
        (pid,) = agent_pids(tmp_path)
        assert not alive(pid)


# What goes wrong on the device


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_an_agent_that_dies_leaves_what_it_delivered(loopback, tmp_path, tiny_model, end):
    env = {**fake_runtime.install(tmp_path / "fake"), "FAKE_CALL_S": "0.002"}
    python = wrapped_python(tmp_path, env=env)

    def kill_after_two_slices() -> None:
        if len(recorder.recordings["tiny"].samples) == 100:
            os.kill(agent_pids(tmp_path)[-1], end)

    recorder = Watched(["tiny"], kill_after_two_slices)

    with (
        visit(over_ssh(loopback, tmp_path, python=python)) as session,
        pytest.raises(AgentError, match=r"ended without a result: (?!.*samples)"),
    ):
        measure(
            session,
            [tiny_model.job()],
            recorder,
            plan=plan(iterations=5000),
        )
    recording = recorder.recordings["tiny"]
    assert not recorder.done
    assert 100 <= len(recording.samples_ns()) < 5000
    assert recording.samples_ns().min() >= 2_000_000
    assert recording.load_ns > 0
    assert len(agent_pids(tmp_path)) == 1  # a measurement is never repeated behind one's back


def test_a_run_that_breaks_off_after_the_device_was_taken_is_known_for_taken(tmp_path, tiny_model):
    board = device(root=str(tmp_path / "root"))

    def take_and_break() -> None:
        take_away(Lab(), serial_of(board), board.id)
        raise ConnectionLost("the link is down")

    with pytest.raises(LeaseLost, match="taken over"), visit(board) as session:
        measure(session, [tiny_model.job()], Watched(["tiny"], take_and_break))


def test_a_lost_connection_leaves_what_was_delivered_and_no_agent(own_sshd, tmp_path, tiny_model):
    env = {**fake_runtime.install(tmp_path / "fake"), "FAKE_CALL_S": "0.002"}
    python = wrapped_python(tmp_path, env=env)

    def pull_the_plug() -> None:
        if len(recorder.recordings["tiny"].samples) == 50:
            kill_connections(own_sshd)

    recorder = Watched(["tiny"], pull_the_plug)

    with (
        pytest.raises(ConnectionLost) as caught,
        visit(over_ssh(own_sshd, tmp_path, python=python)) as session,
    ):
        measure(
            session,
            [tiny_model.job()],
            recorder,
            plan=plan(iterations=100_000),
        )
    assert caught.value.device == "board"
    assert len(recorder.recordings["tiny"].samples) >= 50
    assert not recorder.done
    (pid,) = agent_pids(tmp_path)
    assert eventually(lambda: not alive(pid)), "the agent goes on measuring for nobody"


def test_a_login_that_greets_is_not_taken_for_a_measurement(tmp_path, tiny_model):
    python = wrapped_python(tmp_path, before="echo Welcome to the board")
    with visit(device(root=str(tmp_path / "root"), python=python)) as session:
        with pytest.raises(AgentError, match="Welcome to the board"):
            measure(session, [tiny_model.job()])
        found = session.probe(["onnxruntime"])["onnxruntime"]
    assert "Welcome to the board" in found["missing"]


@pytest.mark.parametrize("python", ["/nowhere/python3", "true", "false"])
def test_a_python_that_is_none_is_a_missing_runtime_with_a_hint(tmp_path, tiny_model, python):
    with visit(device(root=str(tmp_path / "root"), python=python)) as session:
        found = session.probe(["onnxruntime"])["onnxruntime"]
        assert python in found["missing"]
        assert "python" in found["hint"]
        with pytest.raises(AgentError):
            measure(session, [tiny_model.job()])


def test_a_missing_runtime_is_found_before_measuring(loopback, tmp_path):
    python = wrapped_python(tmp_path, env=fake_runtime.install_broken(tmp_path / "fake"))
    with visit(over_ssh(loopback, tmp_path, python=python)) as session:
        found = session.probe(["onnxruntime"])["onnxruntime"]
    assert "libgomp" in found["missing"]
    assert "pip install onnxruntime" in found["hint"]


def test_a_runtime_that_goes_missing_after_the_probe_fails_the_run(tmp_path, tiny_model):
    python = wrapped_python(tmp_path, env=fake_runtime.install_broken(tmp_path / "fake"))
    with (
        visit(device(root=str(tmp_path / "root"), python=python)) as session,
        pytest.raises(AgentError, match=r"libgomp.*pip install onnxruntime"),
    ):
        measure(session, [tiny_model.job()])


def test_what_the_agent_reports_reaches_the_user(tmp_path, tiny_model):
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    job = tiny_model.job()
    job = type(job)(job.id, tmp_path / "broken.onnx", job.io, job.input_files)
    with (
        visit(device(root=str(tmp_path / "root"))) as session,
        pytest.raises(AgentError, match="onnxruntime: InvalidProtobuf"),
    ):
        measure(session, [job])


# Leases


HOLDER = """
import sys, time
from devices.lab import Lab
from devices.lease import lease
with lease(Lab(), sys.argv[1], "board", "a test"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextlib.contextmanager
def held_by_another_process(serial: str, seconds: float = 60) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, serial, str(seconds)], stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_device_has_one_holder_and_is_free_when_it_is_killed(tmp_path):
    board = device(root=str(tmp_path / "root"))
    with held_by_another_process(serial_of(board)) as process:
        with pytest.raises(DeviceBusy, match=str(process.pid)) as caught, visit(board):
            pytest.fail("two visitors at once")
        assert caught.value.device == "board"
        assert not caught.value.retryable
        process.kill()
        process.wait()
        with visit(board):  # no stale lock to be removed by hand
            pass


def test_waiting_for_a_device_to_be_free(tmp_path):
    board = device(root=str(tmp_path / "root"))
    with held_by_another_process(serial_of(board), seconds=0.5), visit(board, wait_s=30):
        pass


def test_two_names_of_one_board_are_one_device(tmp_path):
    """The lease goes by the hardware: whoever calls it something else still has to wait."""
    one, other = device(root=str(tmp_path / "a")), device(id="alias", root=str(tmp_path / "b"))
    with visit(one), pytest.raises(DeviceBusy, match=str(os.getpid())), visit(other):
        pass


def test_another_board_is_noticed_where_the_first_one_was(tmp_path, monkeypatch):
    """At the same address it is refused, by whoever looks; at a new one it is the new device."""
    board, lab = device(root=str(tmp_path / "root")), Lab()
    first = identify(board, lab)
    monkeypatch.setattr(visit_module, "look", lambda _transport: {"serial": "BOARD-B"})
    with pytest.raises(WrongDevice, match="BOARD-B"), visit(board):
        pass
    with pytest.raises(WrongDevice, match="BOARD-B"):
        sign_of_life(board, lab)
    assert identify(board, lab) == first
    moved = board.model_copy(update={"address": "local:elsewhere"})
    assert identify(moved, lab) == "BOARD-B"


def test_who_cannot_reach_a_device_does_not_disturb_who_holds_it(tmp_path, monkeypatch):
    board, lab = device(root=str(tmp_path / "root")), Lab()
    with visit(board) as session:
        line = Line(monkeypatch, [DeviceUnreachable("no route")] * 9)
        with pytest.raises(DeviceUnreachable):
            sign_of_life(board, lab)
        assert line.attempts == 3
        session._note(DeviceState.COOLING, "warm")
    with pytest.raises(DeviceUnreachable):
        sign_of_life(board, lab)
    assert lab.state_of(session.lease.serial) is DeviceState.ABSENT


def test_another_board_at_the_address_is_refused(tmp_path):
    board = device(root=str(tmp_path / "root"), serial="some-other-board")
    refusal = r"board: .* where some-other-board was"
    with pytest.raises(WrongDevice, match=refusal) as caught, visit(board):
        pass
    assert f"serial: {serial_of(device())}" in caught.value.hint


def test_other_devices_are_not_affected(tmp_path):
    with held_by_another_process("other"), visit(device(root=str(tmp_path / "root"))):
        pass


def test_a_device_is_free_after_a_failed_visit(tmp_path):
    board = device(root=str(tmp_path / "root"))
    with pytest.raises(KeyError), visit(board):
        raise KeyError("in the visit")
    with visit(board):
        pass


# Connecting


class Line:
    """A device's connection that fails as told, then works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, errors: list[EdgeError]) -> None:
        self.attempts = 0
        self.errors = errors
        self.open = 0
        monkeypatch.setattr(Device, "connect", lambda _device: self.connect())

    def connect(self) -> LocalTransport:
        self.attempts += 1
        if self.errors:
            raise self.errors.pop(0)
        self.open += 1
        line = self

        class Counted(LocalTransport):
            def close(self) -> None:
                line.open -= 1

        return Counted()


def test_connecting_is_tried_again(tmp_path, monkeypatch):
    line = Line(monkeypatch, [DeviceUnreachable("no"), DeviceUnreachable("still no")])
    with visit(device(root=str(tmp_path / "root"))) as session:
        assert session.transport.run(["true"], deadline_s=10).exit_code == 0
    # One more, after the device has said who it is, to hold it.
    assert (line.attempts, line.open) == (4, 0)


def test_an_unreachable_device_is_named(tmp_path, monkeypatch):
    line = Line(monkeypatch, [DeviceUnreachable("no route")] * 9)
    with (
        pytest.raises(DeviceUnreachable, match="board: no route"),
        visit(device(root=str(tmp_path / "root"))),
    ):
        pass
    assert line.attempts == 3


def test_what_will_not_pass_is_not_tried_again(tmp_path, monkeypatch):
    line = Line(monkeypatch, [AuthenticationError("no such key")])
    with pytest.raises(AuthenticationError), visit(device(root=str(tmp_path / "root"))):
        pass
    assert line.attempts == 1


@pytest.mark.parametrize("end", ["normal", "error"])
def test_the_connection_is_closed_on_any_way_out(tmp_path, monkeypatch, end):
    line = Line(monkeypatch, [])
    with contextlib.suppress(KeyError), visit(device(root=str(tmp_path / "root"))):
        assert line.open == 1
        if end == "error":
            raise KeyError
    assert line.open == 0


def test_the_connection_is_closed_if_the_agent_cannot_be_put_there(tmp_path, monkeypatch):
    line = Line(monkeypatch, [])
    (tmp_path / "in-the-way").touch()
    board = device(root=str(tmp_path / "in-the-way"))
    with pytest.raises(EdgeError), visit(board) as session:
        session.probe(["onnxruntime"])
    assert line.open == 0


def test_copying_is_repeated_over_a_new_connection(own_sshd, tmp_path, tiny_model):
    """The link is cut between two runs; files are copied again, measurements are not."""
    with visit(over_ssh(own_sshd, tmp_path)) as session:
        kill_connections(own_sshd)
        recorder = measure(session, [tiny_model.job()])
    assert recorder.done
