"""A pin is known to be lost when it is, is not taken away by others, and never locks a device."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest

from devices.conditions import Gates, journal, restore, settle, still_applied
from devices.conditions.scripts import JOURNAL_HEAD, PUT, SET
from devices.transport.local import LocalTransport
from profiles.errors import ConnectionLost, DeviceBusy, DeviceError, NotReady
from tests.devices.conditions_device import PINNED, Device, eventually, make_device
from tests.devices.conditions_tree import SHELLS, clock, guards, heat, put_shell_first, write

POLICY = "sys/devices/system/cpu/cpufreq/policy4"


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return make_device(tmp_path, "linux", monkeypatch)


@pytest.fixture(params=SHELLS)
def any_board(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Device:
    put_shell_first(request.param, tmp_path / "shell", monkeypatch)
    return make_device(tmp_path, "linux", monkeypatch)


def local(device: Device) -> LocalTransport:
    return LocalTransport(device.home)


def boot_again(device: Device) -> None:
    """What the journal says is of another boot than this one."""
    text = device.journal.read_text()
    other, found = re.subn(r"^(# [0-9a-f]{16}) \S+ ", r"\1 another-boot ", text, flags=re.MULTILINE)
    assert found == 1
    device.journal.write_text(other)


def restart(device: Device) -> None:
    """As a power cut does: no guard any more, another boot, and clocks as they come up."""
    eventually(lambda: (device.root / "guard").read_text().count(" ") == 2)
    for process in guards(device.root):
        os.kill(process, signal.SIGKILL)
    eventually(lambda: not guards(device.root))
    boot_again(device)
    for name, content in device.before.items():
        (device.tree / name).write_text(content)


def test_a_pin_that_is_in_force_is_known_to_be(any_board: Device) -> None:
    with any_board.pinned() as visit:
        for _ in range(2):
            alive = (any_board.root / "alive").read_text()
            still_applied(local(any_board), str(any_board.root), visit.token)
            assert (any_board.root / "alive").read_text() != alive


def test_a_device_that_was_restarted_is_not_measured_on(any_board: Device) -> None:
    with any_board.pinned() as visit:
        restart(any_board)
        with pytest.raises(ConnectionLost, match="restarted") as lost:
            still_applied(local(any_board), str(any_board.root), visit.token)
        assert lost.value.retryable
    assert any_board.is_as_it_was()


def test_a_device_that_its_guard_has_put_back_is_not_measured_on(any_board: Device) -> None:
    with any_board.pinned(patience_s=1) as visit:
        eventually(any_board.is_as_it_was)
        with pytest.raises(ConnectionLost, match="guard"):
            still_applied(local(any_board), str(any_board.root), visit.token)


def test_a_later_visit_s_pin_is_not_the_earlier_one_s(board: Device) -> None:
    with board.pinned() as earlier:
        pass
    with board.pinned(), pytest.raises(ConnectionLost):
        still_applied(local(board), str(board.root), earlier.token)


def test_as_shipped_there_is_nothing_to_make_sure_of(board: Device) -> None:
    still_applied(local(board), str(board.root), "")
    assert not board.root.exists()


def test_waiting_for_a_device_to_cool_is_a_sign_of_life(board: Device) -> None:
    with board.pinned(patience_s=3) as visit:
        heat(board.tree, 70_000)
        seen = settle(
            local(board),
            "linux",
            Gates(max_temperature_mdegc=60_000, settle_s=7),
            PINNED,
            on_state=lambda *_: still_applied(local(board), str(board.root), visit.token),
            poll_s=1,
            tree=str(board.tree),
        )
        assert seen.refusals
        assert clock(board.tree, "policy0")[0] == "performance"


def test_the_guard_tries_until_it_works_and_is_over_for_others(board: Device) -> None:
    governor = board.tree / POLICY / "scaling_governor"
    with board.pinned(patience_s=1, holder="the one") as visit:
        governor.unlink()
        governor.mkdir()
        eventually(lambda: (board.root / "guard").read_text().endswith(" over\n"))
        with pytest.raises(ConnectionLost):  # part of it is back, whatever the journal says
            still_applied(local(board), str(board.root), visit.token)
        with pytest.raises(DeviceError, match="stays unknown") as said:
            restore(local(board), str(board.root), "another")
        assert f"{board.journal}" in said.value.hint
        governor.rmdir()
        eventually(board.is_as_it_was)
        eventually(lambda: not guards(board.root))


def test_another_host_leaves_a_pin_alone(any_board: Device) -> None:
    with any_board.pinned(holder="the-one"):
        eventually(lambda: (any_board.root / "guard").read_text().count(" ") == 2)
        with pytest.raises(DeviceBusy, match="another host"):
            restore(local(any_board), str(any_board.root), "another")
        with pytest.raises(DeviceBusy), any_board.pinned(holder="another"):
            pytest.fail("two hosts have pinned one device")
        assert clock(any_board.tree, "policy0")[0] == "performance"
    assert any_board.is_as_it_was()


def test_a_host_that_comes_back_does_not_wait_for_itself(any_board: Device) -> None:
    any_board.abandoned(holder="the-one")
    restore(local(any_board), str(any_board.root), "the-one")
    assert any_board.is_as_it_was()


@pytest.mark.parametrize("gone", ["patience", "guard", "restart"])
def test_another_host_has_it_once_the_first_is_gone(gone: str, any_board: Device) -> None:
    any_board.abandoned(holder="the-one", patience_s=2 if gone == "patience" else 600)
    eventually(lambda: (any_board.root / "guard").read_text().count(" ") == 2)
    if gone == "guard":
        for process in guards(any_board.root):
            os.kill(process, signal.SIGKILL)
        eventually(lambda: not guards(any_board.root))
    elif gone == "restart":
        restart(any_board)
    else:
        eventually(lambda: not any_board.journal.exists())
    restore(local(any_board), str(any_board.root), "another")
    assert any_board.is_as_it_was()


def test_a_restart_into_another_kernel_does_not_lock_the_device(any_board: Device) -> None:
    any_board.abandoned()
    restart(any_board)
    shutil.rmtree(any_board.tree / POLICY)
    restore(local(any_board), str(any_board.root))
    assert not any_board.journal.exists()


def test_a_restart_does_not_undo_a_phone_s_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = make_device(tmp_path, "android", monkeypatch)
    phone.abandoned()
    boot_again(phone)
    restore(local(phone), str(phone.root))
    assert phone.is_as_it_was()


# As a kernel since 5.4: what is asked for is kept in .asked, what is read is at most .cooled, and
# the first two looks after a write show what was before.
KERNEL = r"""
lift() {
  written=yes held= looks=0
  { read -r line < "$1"; read -r held < "$1.cooled"; read -r looks < "$1.looks"; } 2>/dev/null
  [ "$line" = "$2" ] && return
  echo "$2" > "$1.asked"
  if [ -n "$held" ] && [ "$held" -lt "$2" ]; then set -- "$1" "$held"; fi
  [ "$line" = "$2" ] && return
  echo $((looks + 1)) > "$1.looks"
  [ "$looks" -lt 2 ] || { echo 0 > "$1.looks"; echo "$2" > "$1"; line=$2; }
}
"""


@pytest.fixture
def real_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "SET", SET.replace(PUT, PUT + KERNEL))
    monkeypatch.setattr(journal, "JOURNAL_HEAD", JOURNAL_HEAD.replace(PUT, PUT + KERNEL))


def cool(device: Device, state: int) -> None:
    cooling = "sys/class/thermal/cooling_device1"
    write(device.tree, {f"{cooling}/type": "cpufreq-cpu4", f"{cooling}/cur_state": state})


@pytest.mark.usefixtures("real_kernel")
def test_a_kernel_that_shows_a_bound_late_is_waited_for(any_board: Device) -> None:
    any_board.gates = Gates(pinned_khz=1_000_000)
    with any_board.pinned():
        assert clock(any_board.tree, "policy4") == ("performance", 1_000_000, 1_000_000)
    assert clock(any_board.tree, "policy4") == ("schedutil", 400_000, 2_253_000)


@pytest.mark.usefixtures("real_kernel")
@pytest.mark.parametrize("cooling", [True, False])
def test_a_device_that_became_hot_gets_its_bounds_back(any_board: Device, cooling: bool) -> None:
    bound = any_board.tree / POLICY / "scaling_max_freq"
    any_board.abandoned()
    cool(any_board, 3 if cooling else 0)
    write(any_board.tree, {f"{POLICY}/scaling_max_freq": 1_500_000})
    Path(f"{bound}.cooled").write_text("1500000\n")
    if cooling:
        restore(local(any_board), str(any_board.root))
        assert not any_board.journal.exists()
    else:
        with pytest.raises(DeviceError, match="stays 1500000, not 2253000"):
            restore(local(any_board), str(any_board.root))
    assert Path(f"{bound}.asked").read_text() == "2253000\n"
    assert clock(any_board.tree, "policy6") == ("schedutil", 500_000, 2_802_000)


def test_a_throttled_bound_is_not_taken_for_the_user_s(board: Device) -> None:
    write(board.tree, {f"{POLICY}/scaling_max_freq": 1_500_000})
    with board.pinned():  # the user's own: nothing cools
        pass
    cool(board, 2)
    with pytest.raises(NotReady, match="held at 1500000 kHz"), board.pinned():
        pytest.fail("a throttled device was pinned")
    assert clock(board.tree, "policy4") == ("schedutil", 400_000, 1_500_000)


def test_a_throttled_device_is_waited_for(board: Device) -> None:
    cool(board, 2)
    write(board.tree, {f"{POLICY}/scaling_max_freq": 1_500_000})

    def recover(state: str, why: str) -> None:
        assert "policy4" in why
        cool(board, 0)
        write(board.tree, {f"{POLICY}/scaling_max_freq": 2_253_000})

    board.gates = Gates(settle_s=600)
    with board.pinned(on_state=recover, poll_s=0.01):
        assert clock(board.tree, "policy4") == ("performance", 2_253_000, 2_253_000)


def test_a_device_pinned_low_may_cool(board: Device) -> None:
    board.gates = Gates(pinned_khz=1_000_000)
    with board.pinned():
        cool(board, 1)
        seen = settle(local(board), "linux", board.gates, PINNED, tree=str(board.tree))
        assert not seen.refusals
