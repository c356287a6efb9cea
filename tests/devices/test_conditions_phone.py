"""The recorded phone answers as a phone does, and keeps what is set."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from devices.endpoints.phone import COMMANDS, SERIAL, install_phone

SHELLS = [
    pytest.param(
        shell, marks=pytest.mark.skipif(not shutil.which(shell[0]), reason="no such shell")
    )
    for shell in (["dash"], ["busybox", "sh"], ["mksh"])
]


class Phone:
    """The programs, run by one shell in particular."""

    def __init__(self, folder: Path, shell: list[str], serial: str = SERIAL) -> None:
        self.state = folder / "state"
        self.programs = install_phone(folder, serial)
        self._shell = shell

    def __call__(self, command: str, *, check: bool = True) -> str:
        name, *rest = command.split(" ")
        program = self.programs / name
        done = subprocess.run(
            [*self._shell, program, *rest], capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) is check, done.stderr
        return (done.stdout if check else done.stderr).rstrip("\n")


@pytest.fixture(params=SHELLS)
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> Phone:
    return Phone(tmp_path / "a phone", request.param)


def test_every_command_is_found_on_the_path(tmp_path: Path) -> None:
    programs = install_phone(tmp_path)
    path = f"{programs}:{os.environ['PATH']}"
    for name in COMMANDS:
        assert shutil.which(name, path=path) == str(programs / name)
    done = subprocess.run(
        ["getprop", "ro.serialno"],
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{SERIAL}\n"


def test_nobody_can_mistake_it_for_a_phone(recorded: Phone) -> None:
    assert recorded("getprop ro.serialno") == recorded("getprop ro.boot.serialno") == SERIAL
    assert "recorded" in recorded("getprop ro.product.model")
    assert f"[ro.serialno]: [{SERIAL}]" in recorded("getprop").splitlines()


def test_a_second_phone_has_its_own_serial_and_state(tmp_path: Path) -> None:
    one = Phone(tmp_path / "one", ["sh"])
    two = Phone(tmp_path / "two", ["sh"], serial="EMULATEDPHONE2")
    one("settings put global airplane_mode_on 1")
    assert two("getprop ro.serialno") == "EMULATEDPHONE2"
    assert two("settings get global airplane_mode_on") == "0"


def test_an_unknown_property_is_empty_or_the_default(recorded: Phone) -> None:
    assert recorded("getprop no.such") == ""
    assert recorded("getprop no.such other") == "other"


def test_a_setting_is_kept_and_can_be_deleted(recorded: Phone) -> None:
    assert recorded("settings get global no_such") == "null"
    recorded("settings put global no_such 7")
    assert recorded("settings get global no_such") == "7"
    assert "no_such=7" in recorded("settings list global").splitlines()
    assert recorded("settings delete global no_such") == "Deleted 1 rows"
    assert recorded("settings get global no_such") == "null"
    recorded("settings put global airplane_mode_on 1")
    assert recorded("settings get global airplane_mode_on") == "1"


def test_the_battery_can_be_faked_and_reset(recorded: Phone) -> None:
    before = recorded("dumpsys battery")
    recorded("dumpsys battery unplug")
    recorded("dumpsys battery set level 7")
    faked = recorded("dumpsys battery")
    assert "UPDATES STOPPED" in faked
    assert "  level: 7\n" in faked
    assert "  USB powered: false\n" in faked
    recorded("dumpsys battery reset")
    assert recorded("dumpsys battery") == before


def test_the_thermal_status_can_be_overridden_and_reset(recorded: Phone) -> None:
    before = recorded("dumpsys thermalservice")
    recorded("cmd thermalservice override-status 3")
    overridden = recorded("dumpsys thermalservice")
    assert "IsStatusOverride: true\n" in overridden
    assert "\nThermal Status: 3\n" in overridden
    recorded("cmd thermalservice reset")
    assert recorded("dumpsys thermalservice") == before


def test_a_sensor_shows_what_a_test_writes(recorded: Phone) -> None:
    (recorded.state / "temperature.VIRTUAL-SKIN").write_text("48.5\n")
    shown = recorded("dumpsys thermalservice")
    assert shown.count("{mValue=48.5, mType=3, mName=VIRTUAL-SKIN, mStatus=0}") == 2
    assert "{mValue=24.83324, mType=-1, mName=VIRTUAL-SKIN-CHARGE, mStatus=0}" in shown


def test_the_screen_sleeps_and_wakes(recorded: Phone) -> None:
    assert "  mWakefulness=Awake\n" in recorded("dumpsys power")
    recorded("input keyevent KEYCODE_SLEEP")
    assert "  mWakefulness=Asleep\n" in recorded("dumpsys power")
    recorded("input keyevent 224")
    assert "  mWakefulness=Awake\n" in recorded("dumpsys power")


def test_airplane_mode_is_one_state_by_both_names(recorded: Phone) -> None:
    recorded("cmd connectivity airplane-mode enable")
    assert recorded("settings get global airplane_mode_on") == "1"
    recorded("settings put global airplane_mode_on 0")
    assert recorded("cmd connectivity airplane-mode") == "disabled"


def test_a_command_can_be_made_to_fail(recorded: Phone) -> None:
    (recorded.state / "broken.cmd.power").write_text("Failed to set FIXED_PERFORMANCE mode\n")
    said = recorded("cmd power set-fixed-performance-mode-enabled true", check=False)
    assert said == "Failed to set FIXED_PERFORMANCE mode"
    assert (
        recorded("cmd no-such-service", check=False) == "cmd: Can't find service: no-such-service"
    )
