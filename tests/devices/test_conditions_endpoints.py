"""Conditions over a real adbd with a recorded phone's commands, and over a real sshd."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from devices.conditions import Gates, applied, preflight, restore
from devices.endpoints.adbd import Phone, serve_phone
from devices.endpoints.phone import SERIAL, install_phone
from devices.endpoints.sshd import LoopbackServer
from devices.transport.adb import AdbTransport
from profiles.errors import NotReady
from profiles.records import Condition
from tests.builders import ssh
from tests.devices.conditions_tree import clock, guards, make_board, snapshot

PINNED = Condition(mode="pinned")


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    pytest.fail("it did not come about within a minute")


class PhoneOverAdb:
    """A recorded phone behind an adbd of its own."""

    def __init__(self, folder: Path, served: Phone) -> None:
        self.state = folder / "state"
        self.adbd = served.adbd
        self.transport = AdbTransport(served.serial, served.server)

    def now(self) -> tuple[bytes, str]:
        script = "settings list global; dumpsys power"
        told = subprocess.run(script, shell=True, env=self.env, capture_output=True, check=True)
        fixed = self.state / "fixed_performance"
        return told.stdout, fixed.read_text() if fixed.exists() else "false\n"

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": f"{self.state.parent / 'bin'}:{os.environ['PATH']}"}


@pytest.fixture
def over_adb(_adbd: None, tmp_path: Path) -> Iterator[PhoneOverAdb]:
    folder = tmp_path / "recorded phone"
    with serve_phone(tmp_path / "adbd", install_phone(folder)) as served:
        phone = PhoneOverAdb(folder, served)
        yield phone
        phone.transport.close()


@pytest.mark.adbd
def test_a_phone_over_adb_is_pinned_and_put_back(over_adb: PhoneOverAdb, tmp_path: Path) -> None:
    transport = over_adb.transport
    assert transport.run(["getprop", "ro.serialno"], deadline_s=30).stdout == f"{SERIAL}\n".encode()
    before = over_adb.now()
    gates = Gates(max_thermal_status=0, battery_percent=(30, 95), screen="off", airplane=True)
    root = str(tmp_path / "root")
    with applied(transport, root, {"system": "android"}, gates, PINNED, patience_s=20) as visit:
        assert visit.readings.battery_percent == 80
        assert (visit.readings.screen_on, visit.readings.airplane) == (False, True)
        assert over_adb.now()[1] == "true\n"
        assert over_adb.now()[0] != before[0]
    assert over_adb.now() == before


@pytest.mark.adbd
def test_a_hot_phone_over_adb_is_refused(over_adb: PhoneOverAdb) -> None:
    (over_adb.state / "temperature.BIG").write_text("83.0\n")
    gates = Gates(max_temperature_mdegc=60_000)
    seen = preflight(over_adb.transport, "android", gates, Condition(core_mask="1"))
    assert [refusal.what for refusal in seen.refusals] == ["the temperature of BIG"]


@pytest.mark.adbd
def test_the_guard_outlives_adbd(over_adb: PhoneOverAdb, tmp_path: Path) -> None:
    before = over_adb.now()
    root = tmp_path / "root"
    gates = Gates(airplane=True)
    visit = applied(
        over_adb.transport, str(root), {"system": "android"}, gates, PINNED, patience_s=2
    )
    visit.__enter__()  # and nobody ever leaves it
    assert over_adb.now() != before
    over_adb.adbd.kill()
    eventually(lambda: over_adb.now() == before and not guards(root))


def test_a_board_over_ssh_is_pinned_and_put_back(loopback: LoopbackServer, tmp_path: Path) -> None:
    tree = make_board(tmp_path / "tree")
    before = snapshot(tree)
    transport = ssh(loopback)
    root = str(tmp_path / "root")
    with applied(
        transport, root, {"system": "linux"}, Gates(), PINNED, patience_s=20, tree=str(tree)
    ):
        assert clock(tree, "policy6") == ("performance", 2_802_000, 2_802_000)
    assert snapshot(tree) == before
    transport.close()


def test_the_guard_outlives_the_link_over_ssh(own_sshd: LoopbackServer, tmp_path: Path) -> None:
    tree = make_board(tmp_path / "tree")
    before = snapshot(tree)
    root = tmp_path / "root"
    transport = ssh(own_sshd)
    visit = applied(
        transport, str(root), {"system": "linux"}, Gates(), PINNED, patience_s=2, tree=str(tree)
    )
    visit.__enter__()  # and nobody ever leaves it
    assert snapshot(tree) != before
    own_sshd.process.kill()
    transport.close()
    eventually(lambda: snapshot(tree) == before and not guards(root))


def test_an_emulated_board_without_cpufreq_refuses_to_be_pinned(
    loopback: LoopbackServer, tmp_path: Path
) -> None:
    if list(Path("/sys/devices/system/cpu").glob("cpufreq/policy*")):
        pytest.skip("this machine has cpufreq, and is not ours to pin")
    transport = ssh(loopback)
    with (
        pytest.raises(NotReady, match="as-shipped"),
        applied(transport, str(tmp_path / "root"), {"system": "linux"}, Gates(), PINNED),
    ):
        pytest.fail("a machine with no clock to set was measured as if pinned")
    restore(transport, str(tmp_path / "root"))
    transport.close()
