"""A whole aarch64 board whose link is bad, or gone, and which restarts or freezes in mid work.

For the nightly: it takes minutes.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.endpoints.board import ARM_BOARD, Board, flaky_link, serve
from devices.inventory import Device
from devices.push import RemoteStore
from devices.recorder import RunRecorder
from devices.transport.base import Completed, LineSink, Transport
from devices.visit import visit
from profiles.canonical import file_sha256
from profiles.errors import ConnectionLost, DeadlineExceeded, DeviceError
from profiles.records import Condition
from tests.builders import device, plan
from tests.emulated.conftest import Measure, board_image_of, built_rootfs, tiny_job

pytestmark = [pytest.mark.board, pytest.mark.root]

_ROOT = ".cache/edgeloop"
#: What a call may take beyond its deadline on a machine that does other things too.
_GRACE_S = 10


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with serve(board_image_of(ARM_BOARD), tmp_path_factory.mktemp("whole-board")) as board:
        yield board


@pytest.fixture
def whole(running: Board) -> Iterator[Board]:
    """The board, given back with a good link and awake."""
    yield running
    running.freeze(False)
    running.set_link(True)
    running.await_ssh()
    say(entry(running), flaky_link())


def entry(board: Board) -> Device:
    """The board as the inventory has it, measured without Python: that is slow to start there."""
    libraries = {name: str(path) for name, path in built_rootfs().libraries().items()}
    return device(**board.inventory_entry("whole-board"), libraries=libraries)


def say(board: Device, argv: list[str]) -> Completed:
    """Run a command over a connection of its own."""
    transport = board.connect()
    try:
        done = transport.run(argv, deadline_s=60)
    finally:
        transport.close()
    assert done.exit_code == 0, done.stderr
    return done


class Impatient:
    """A transport whose calls end early, and which knows where pushes began."""

    def __init__(self, inner: Transport, limit_s: float) -> None:
        self.inner, self.limit_s, self.name = inner, limit_s, inner.name
        self.offsets: list[int] = []

    def run(
        self, argv, *, deadline_s: float, on_line: LineSink | None = None
    ) -> Completed:  # fmt: skip
        return self.inner.run(argv, deadline_s=min(deadline_s, self.limit_s), on_line=on_line)

    def push(self, source: Path, target: str, *, deadline_s: float, offset: int = 0) -> None:
        self.offsets.append(offset)
        deadline_s = min(deadline_s, self.limit_s)
        self.inner.push(source, target, deadline_s=deadline_s, offset=offset)

    def pull(self, source: str, target: Path, *, deadline_s: float) -> None:
        self.inner.pull(source, target, deadline_s=deadline_s)

    def probe(self, *, deadline_s: float) -> float:
        return self.inner.probe(deadline_s=deadline_s)

    def close(self) -> None:
        self.inner.close()


def test_it_is_a_machine_of_its_own(whole):
    with visit(entry(whole)) as session:
        assert session.facts["machine"] == "aarch64"
        assert session.facts["kernel"] != os.uname().release
    assert entry(whole).is_emulated


def test_it_is_measured_over_a_bad_link(whole, measure: Measure):
    say(entry(whole), flaky_link("delay", "20ms", "5ms", "loss", "1%", "rate", "20mbit"))
    with visit(entry(whole)) as session:
        recorder = measure(session, "litert")
    assert recorder.done
    assert len(recorder.recordings["tiny"].samples) == 10


def test_a_push_goes_on_after_the_link_was_gone(whole, tmp_path):
    board = entry(whole)
    big = tmp_path / "big.bin"
    big.write_bytes(random.Random(0).randbytes(16_000_000))
    say(board, flaky_link("delay", "20ms", "loss", "1%", "rate", "16mbit"))  # 8 s at least
    first = Impatient(board.connect(), limit_s=20)
    unplug = threading.Timer(4, whole.set_link, [False])
    unplug.start()
    try:
        with pytest.raises((ConnectionLost, DeadlineExceeded)):
            RemoteStore(first, _ROOT).ensure([big])
    finally:
        unplug.join()
        first.close()
    whole.set_link(True)
    say(board, flaky_link())
    second = Impatient(board.connect(), limit_s=60)
    remote = RemoteStore(second, _ROOT).ensure([big])[big]
    hashed = second.run(["sha256sum", remote], deadline_s=60).stdout.split()[0].decode()
    second.close()
    assert hashed == file_sha256(big)
    assert first.offsets == [0]
    assert 0 < second.offsets[0] < big.stat().st_size


@pytest.mark.parametrize("fault", ["link", "frozen"])
def test_calls_keep_their_deadline_and_the_device_comes_back(whole, fault, measure: Measure):
    board = entry(whole)
    transport = board.connect()
    transport.run(["true"], deadline_s=60)
    begun = time.monotonic()
    if fault == "link":
        whole.set_link(False)
    else:
        whole.freeze(True)
    with pytest.raises((ConnectionLost, DeadlineExceeded)):
        transport.run(["true"], deadline_s=4)
    transport.close()
    with pytest.raises(DeviceError):
        board.connect()
    # Connecting has a deadline of its own.
    assert time.monotonic() - begun < 4 + 60 + _GRACE_S
    whole.freeze(False)
    whole.set_link(True)
    with visit(board) as session:
        assert measure(session, "litert").done


def test_it_restarts_in_mid_run_and_is_measured_again(whole, measure: Measure, tmp_path):
    board = entry(whole)
    restarted = threading.Event()

    class Restarting(RunRecorder):
        def line(self, text: str) -> None:
            super().line(text)
            if self.recordings["tiny"].samples and not restarted.is_set():
                restarted.set()
                whole.restart()

    recorder = Restarting(["tiny"])
    begun = time.monotonic()
    with pytest.raises((ConnectionLost, DeadlineExceeded)), visit(board) as session:
        session.run(
            "litert",
            [tiny_job(tmp_path, "litert")],
            condition=Condition(),
            plan=plan(iterations=50_000_000),
            seed=0,
            deadline_s=40,
            recorder=recorder,
        )
    assert restarted.is_set()
    assert time.monotonic() - begun < 300
    assert not recorder.done
    assert recorder.recordings["tiny"].samples
    whole.await_ssh()
    with visit(board) as session:
        assert measure(session, "litert").done
