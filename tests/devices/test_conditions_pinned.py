"""What pinning changes is put back in every way out, by the host or by the device itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.conditions import Gates, applied, restore, still_applied
from devices.conditions.journal import Change, change
from devices.transport.local import LocalTransport
from profiles.errors import ConnectionLost, DeviceError, NotReady
from profiles.records import Condition
from tests.devices.conditions_device import PATIENCE_S, Device, Dying, eventually, make_device
from tests.devices.conditions_tree import SHELLS, clock, guards, put_shell_first, snapshot


@pytest.fixture(params=["linux", "android"])
def device(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Device:
    return make_device(tmp_path, request.param, monkeypatch)


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return make_device(tmp_path, "linux", monkeypatch)


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return make_device(tmp_path, "android", monkeypatch)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("system", ["linux", "android"])
def test_pinned_is_set_and_put_back_by_every_kind_of_shell(
    shell: str, system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_shell_first(shell, tmp_path / "shell", monkeypatch)
    device = make_device(tmp_path, system, monkeypatch)
    with device.pinned() as visit:
        assert not device.is_as_it_was()
        assert device.journal.exists()
        if system == "linux":
            assert visit.readings.governor == "performance"
        else:
            assert (visit.readings.screen_on, visit.readings.airplane) == (False, True)
        eventually(lambda: bool(guards(device.root)))
    assert device.is_as_it_was()
    eventually(lambda: not guards(device.root))


def test_every_cluster_is_pinned_to_its_highest_clock(board: Device) -> None:
    with board.pinned():
        assert clock(board.tree, "policy0") == ("performance", 1_803_000, 1_803_000)
        assert clock(board.tree, "policy6") == ("performance", 2_802_000, 2_802_000)
    assert clock(board.tree, "policy6") == ("schedutil", 500_000, 2_802_000)


def test_only_the_clusters_of_the_core_mask_are_pinned_to_what_they_reach(board: Device) -> None:
    board.gates = Gates(pinned_khz=2_300_000)
    with applied(
        LocalTransport(board.home),
        str(board.root),
        {"system": "linux"},
        board.gates,
        Condition(mode="pinned", core_mask="f0"),
        patience_s=PATIENCE_S,
        tree=str(board.tree),
    ):
        assert clock(board.tree, "policy0") == ("schedutil", 300_000, 1_803_000)
        assert clock(board.tree, "policy4") == ("performance", 2_253_000, 2_253_000)
        assert clock(board.tree, "policy6") == ("performance", 2_300_000, 2_300_000)
    assert board.is_as_it_was()


def test_a_lit_phone_that_is_to_stay_lit(recorded: Device) -> None:
    recorded.gates = Gates(screen="on")
    LocalTransport(recorded.home).run(["input", "keyevent", "223"], deadline_s=10)
    recorded.before = recorded.now()
    with recorded.pinned() as visit:
        assert visit.readings.screen_on is True
        assert "mStayOn=true" in recorded.now()["phone"]
        assert recorded.now()["phone"].endswith("true\n")  # fixed performance mode
    assert recorded.is_as_it_was()


def test_as_shipped_changes_nothing_and_writes_nothing(device: Device) -> None:
    before = snapshot(device.home)
    with applied(
        LocalTransport(device.home),
        str(device.root),
        {"system": device.system},
        Gates(),
        Condition(),
        tree=str(device.tree),
    ) as visit:
        assert visit.environment()["waited_s"] == pytest.approx(0, abs=60)
        assert snapshot(device.home) == before


def test_what_a_failing_visit_changed_is_put_back(device: Device) -> None:
    for failure in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(failure), device.pinned():
            raise failure
        assert device.is_as_it_was()


def commands_of_a_visit(device: Device) -> int:
    counter = Dying(LocalTransport(device.home), at=1_000, done=False)
    with device.pinned(counter) as visit:
        still_applied(counter, str(device.root), visit.token)
    return counter.count


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_link_cut_at_any_command_is_mended_by_the_next_visit(device: Device, done: bool) -> None:
    commands = commands_of_a_visit(device)
    assert commands == 6  # put back, look, set, look, keep alive, put back
    for at in range(1, commands + 1):
        dying = Dying(LocalTransport(device.home), at, done)
        with pytest.raises(ConnectionLost), device.pinned(dying) as visit:
            still_applied(dying, str(device.root), visit.token)
        restore(LocalTransport(device.home), str(device.root))
        assert device.is_as_it_was(), f"cut at command {at}"


def test_a_link_cut_in_a_visit_is_mended_over_a_new_one(device: Device) -> None:
    dying = Dying(LocalTransport(device.home), at=5, done=False)
    with (
        pytest.raises(ConnectionLost) as lost,
        device.pinned(dying, again=lambda: LocalTransport(device.home)) as visit,
    ):
        still_applied(dying, str(device.root), visit.token)
    assert device.is_as_it_was()
    assert not hasattr(lost.value, "__notes__")


def test_the_first_failure_is_told_and_the_second_beside_it(board: Device) -> None:
    dying = Dying(LocalTransport(board.home), at=5, done=False)
    with pytest.raises(ValueError, match="the first") as failed, board.pinned(dying):
        raise ValueError("the first")
    assert any("the link is cut" in note for note in failed.value.__notes__)
    restore(LocalTransport(board.home), str(board.root))


@settings(
    max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(st.lists(st.tuples(st.integers(1, 8), st.booleans()), min_size=1, max_size=4))
def test_visits_that_crash_one_upon_another_never_lose_the_way_back(
    board: Device, crashes: list[tuple[int, bool]]
) -> None:
    for at, done in crashes:
        dying = Dying(LocalTransport(board.home), at, done)
        try:
            with board.pinned(dying) as visit:
                still_applied(dying, str(board.root), visit.token)
        except ConnectionLost:
            pass
    with board.pinned():
        assert clock(board.tree, "policy0")[0] == "performance"
    assert board.is_as_it_was()


@pytest.mark.parametrize("program", ["sync", "mv", "setsid"])
@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_a_device_that_stops_in_mid_change_is_put_back(
    program: str, late: bool, board: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    traps = board.home / "traps"
    traps.mkdir()
    real = subprocess.run(["which", program], capture_output=True, text=True, check=True)
    steps = [f'{real.stdout.strip()} "$@"', "kill -9 $PPID"]
    (traps / program).write_text("#!/bin/sh\n" + "\n".join(steps if late else steps[1:]))
    (traps / program).chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setenv("PATH", str(traps), prepend=":")
        with pytest.raises(DeviceError), board.pinned():
            pytest.fail("the device stopped, and was measured")
    restore(LocalTransport(board.home), str(board.root))
    assert board.is_as_it_was()


def test_the_guard_puts_the_device_back_when_nobody_comes(device: Device) -> None:
    dying = Dying(LocalTransport(device.home), at=5, done=False)
    with pytest.raises(ConnectionLost), device.pinned(dying, patience_s=1) as visit:
        still_applied(dying, str(device.root), visit.token)
    eventually(device.is_as_it_was)
    eventually(lambda: not guards(device.root))


def test_the_guard_lets_a_visit_be_that_gives_signs_of_life(board: Device) -> None:
    transport = LocalTransport(board.home)
    with board.pinned(transport, patience_s=3) as visit:
        for _ in range(6):
            time.sleep(1)
            still_applied(transport, str(board.root), visit.token)
        assert board.journal.exists()
        assert clock(board.tree, "policy0")[0] == "performance"


def test_a_later_visit_s_guard_takes_over(board: Device) -> None:
    for _ in range(3):  # all within one look of the guards
        with board.pinned(patience_s=100):
            pass
    with board.pinned(patience_s=100):
        eventually(lambda: len(guards(board.root)) == 1)
    eventually(lambda: not guards(board.root))


def test_the_way_back_is_never_written_over(board: Device) -> None:
    transport = LocalTransport(board.home)
    path = str(board.home / "a file")
    there, back = [[Change("file", path, value)] for value in ("new", "old")]
    change(transport, str(board.root), there, back, patience_s=PATIENCE_S)
    journal = board.journal.read_text()
    with pytest.raises(DeviceError, match="an earlier visit has not been put back"):
        change(transport, str(board.root), there, there, patience_s=PATIENCE_S)
    assert board.journal.read_text() == journal
    restore(transport, str(board.root))
    assert Path(path).read_text() == "old\n"


def test_what_cannot_be_put_back_is_said_and_tried_again(board: Device) -> None:
    governor = board.tree / "sys/devices/system/cpu/cpufreq/policy4/scaling_governor"
    said = "policy4/scaling_governor stays unknown, not schedutil"
    with pytest.raises(DeviceError, match=said), board.pinned():
        governor.unlink()
        governor.mkdir()
    assert board.journal.exists()
    assert clock(board.tree, "policy6") == ("schedutil", 500_000, 2_802_000)
    with pytest.raises(DeviceError, match="not as it was"), board.pinned():
        pytest.fail("a device that is not as it was is measured")
    governor.rmdir()
    governor.touch()
    restore(LocalTransport(board.home), str(board.root))
    assert board.is_as_it_was()


def test_a_phone_without_fixed_performance_mode_is_refused_and_put_back(recorded: Device) -> None:
    (recorded.state / "broken.cmd.power").write_text("Failed to set FIXED_PERFORMANCE mode\nmore\n")
    with (
        pytest.raises(NotReady, match="Failed to set FIXED_PERFORMANCE mode") as refused,
        recorded.pinned(),
    ):
        pytest.fail("it was measured as if pinned")
    assert "as-shipped" in refused.value.hint
    (recorded.state / "broken.cmd.power").unlink()
    restore(LocalTransport(recorded.home), str(recorded.root))
    assert recorded.is_as_it_was()


def test_a_phone_that_hides_what_would_have_to_be_put_back_is_refused(recorded: Device) -> None:
    (recorded.state / "broken.settings").write_text("java.lang.SecurityException: denied\n")
    (recorded.state / "dumpsys.power").write_text("nothing of a screen\n")
    recorded.gates = Gates(screen="on", airplane=True)
    with pytest.raises(NotReady) as refused, recorded.pinned():
        pytest.fail("it was measured as if pinned")
    assert [reason.split(" is ")[0] for reason in refused.value.reasons] == [
        "the screen",
        "staying awake",
        "airplane mode",
    ]
    assert not recorded.journal.exists()


def test_a_phone_that_does_not_let_its_settings_be_changed_is_refused(recorded: Device) -> None:
    # HyperOS lets adb read them, and asks for a permission to change them.
    (recorded.state / "readonly.settings").write_text("java.lang.SecurityException: denied\n")
    recorded.gates = Gates(screen="on")
    with (
        pytest.raises(NotReady, match="the setting stay_on_while_plugged_in stays 0, not 7"),
        recorded.pinned(),
    ):
        pytest.fail("it was measured as if pinned")
    assert recorded.is_as_it_was()


def test_a_folder_that_cannot_be_written_changes_nothing(board: Device) -> None:
    (board.home / "a root").write_text("a file")
    with pytest.raises(DeviceError, match="cannot be written down"), board.pinned():
        pytest.fail("the device was changed with no way back")
    assert board.now() == board.before


VISIT = """
import os, signal, sys, time
from devices.conditions import Gates, applied
from devices.transport.local import LocalTransport
from pathlib import Path
from profiles.records import Condition
home, root, tree = sys.argv[1:]
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever this test was started by
def twice(number):
    def again():
        os.kill(os.getpid(), number)
        return LocalTransport(Path(home))
    return again
with applied(LocalTransport(Path(home)), root, {"system": "linux"}, Gates(),
             Condition(mode="pinned"), patience_s=PATIENCE, tree=tree, again=AGAIN):
    print("pinned", flush=True)
    while True:
        time.sleep(0.1)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_a_host_process_that_is_ended_leaves_the_device_as_it_was(
    number: signal.Signals, board: Device
) -> None:
    # Only who kills it leaves the work to the guard; who asks it to end may ask twice.
    killed = number == signal.SIGKILL
    again = f"twice({number:d})" if number in {signal.SIGTERM, signal.SIGHUP} else "None"
    visit = VISIT.replace("AGAIN", again).replace("PATIENCE", "2" if killed else "600")
    host = subprocess.Popen(
        [sys.executable, "-c", visit, board.home, board.root, board.tree],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert host.stdout
    try:
        assert host.stdout.readline() == b"pinned\n"
        assert clock(board.tree, "policy0")[0] == "performance"
        host.send_signal(number)
        host.wait(60)
    finally:
        host.kill()
        host.stdout.close()
        host.wait()
    if killed:
        eventually(board.is_as_it_was)
    assert board.is_as_it_was()
