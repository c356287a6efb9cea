"""People hold devices by the command line: what they see, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.holder import holder
from devices.kernel_lock import held
from devices.lab import Lab
from devices.lease import lease
from profiles.errors import UsageError
from tests.projects import DEVICE_LAB, Project, environment, scripted_device
from tools.device_lab.leases import seconds


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    return Project(tmp_path).write_inventory(scripted_device(tmp_path / "device"))


@pytest.fixture
def serial(tmp_path: Path) -> str:
    return f"scripted:{tmp_path / 'device'}"


@contextlib.contextmanager
def holding(inventory: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``devices lease`` in another process, from when it has the device."""
    process = subprocess.Popen(
        [DEVICE_LAB, "devices", "lease", "board", "--inventory", str(inventory), *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert "board is yours" in process.stderr.readline()
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_a_device_that_is_held_is_shown_and_refused_and_ends_when_asked(lab, inventory, serial):
    with holding(inventory, "--for", "30m", "--purpose", "a new fan") as process:
        (row,) = json.loads(lab("devices", "who", "--json").out)
        assert (row["device"], row["serial"], row["state"]) == ("board", serial, "leased")
        assert (row["pid"], row["purpose"]) == (process.pid, "a new fan")
        assert 0 < row["expires_s"] <= 60
        assert row["since_utc"] < row["ends_utc"]
        shown = lab("devices", "who").out
        assert "a new fan" in shown
        assert str(row["fence"]) in shown
        said = lab("devices", "lease", "board", "--inventory", inventory)
        assert said.code == 1
        assert f"board: held by process {process.pid}" in said.problem
        said = lab("devices", "release", "board", "--inventory", inventory)
        assert (said.code, "board is free" in said.out) == (0, True)
        assert process.wait() == 0
    assert not held(Lab().lock_path(serial))
    assert holder(Lab(), serial) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_and_a_closed_terminal_end_a_lease_in_order(inventory, serial, number):
    with holding(inventory) as process:
        process.send_signal(number)
        assert process.wait() == 0
    assert holder(Lab(), serial) is None


def test_a_lease_ends_when_its_time_is_over(inventory, serial):
    with holding(inventory, "--for", "0.3s") as process:
        assert process.wait() == 0
    assert holder(Lab(), serial) is None


def test_a_command_runs_while_the_device_is_held_and_says_how_it_ended(inventory):
    code = "import subprocess, sys; subprocess.run(sys.argv[1:]); sys.exit(7)"
    who = [DEVICE_LAB, "devices", "who", "--json"]
    with holding(inventory, "--", sys.executable, "-c", code, *who) as process:
        out, _ = process.communicate()
    assert process.returncode == 7
    (row,) = json.loads(out)
    assert row["state"] == "leased"


@pytest.mark.parametrize("end", ["time", "asked"])
def test_a_command_ends_with_the_lease(inventory, end):
    arguments = ["--for", "1s"] if end == "time" else []
    with holding(inventory, *arguments, "--", "sh", "-c", "echo $$; exec sleep 600") as process:
        child = int(process.stdout.readline())
        if end == "asked":
            process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
        assert not Path(f"/proc/{child}").exists()


def test_ctrl_c_is_the_commands_own_affair(inventory, serial):
    """A shell takes it and goes on; so does the lease."""
    script = "trap 'echo caught' INT; echo ready; while read line; do echo $line; done; exit 0"
    process = subprocess.Popen(
        [DEVICE_LAB, "devices", "lease", "board", "-i", inventory, "--", "bash", "-c", script],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout.readline() == "ready\n"
            os.killpg(process.pid, signal.SIGINT)
            process.stdin.write("still here\n")
            process.stdin.flush()
            assert {process.stdout.readline(), process.stdout.readline()} == {
                "caught\n",
                "still here\n",
            }
            assert held(Lab().lock_path(serial))
            process.stdin.close()
            assert process.wait() == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_what_is_taken_by_force_its_holder_hears_of(lab, inventory):
    with holding(inventory) as process:
        before = json.loads(lab("devices", "who", "--json").out)[0]["fence"]
        said = lab("devices", "release", "board", "--force", "--inventory", inventory)
        assert (said.code, f"process {process.pid}" in said.out) == (0, True)
        with holding(inventory):
            assert json.loads(lab("devices", "who", "--json").out)[0]["fence"] > before
            _, complaint = process.communicate()
        assert process.returncode == 1
        assert "error: board: the lease has been taken over" in complaint


def test_a_measurement_is_not_ended_without_force(lab, inventory, serial):
    with lease(Lab(), serial, "board", "measure"):
        said = lab("devices", "release", "board", "--inventory", inventory)
        assert said.code == 1
        assert "release board --force" in said.problem


def test_a_stopped_holder_is_shown_as_one_that_can_be_passed_by(lab, serial):
    with lease(Lab(), serial, "board", "measure"):
        with Lab().transaction() as database:
            database.execute("UPDATE lease SET expires = 0")
        (row,) = json.loads(lab("devices", "who", "--json").out)
        assert row["state"] == "absent"
        assert "stopped" in row["reason"]


def test_a_holder_on_another_host_is_shown_without_an_expiry(lab, serial):
    with lease(Lab(), serial, "board", "measure"):
        with Lab().transaction() as database:
            database.execute("UPDATE lease SET host = 'elsewhere', boot = 'another'")
        (row,) = json.loads(lab("devices", "who", "--json").out)
        assert (row["state"], row["expires_s"]) == ("leased", None)
        assert "@elsewhere" in row["holder"]
        assert lab("devices", "who").code == 0


def test_out_of_quarantine(lab, inventory, serial):
    Lab().remember("board", serial, {})
    Lab().quarantine(serial, "it froze three times")
    assert "quarantined" in lab("devices", "who").out
    assert json.loads(lab("devices", "who", "--json").out)[0]["reason"] == "it froze three times"
    said = lab("devices", "lease", "board", "--inventory", inventory)
    assert said.code == 1
    assert "device-lab devices release board --quarantine" in said.problem
    assert lab("devices", "release", "board", "--quarantine", "-i", inventory).code == 0
    assert Lab().state_of(serial) == "preparing"


def test_a_device_may_be_named_without_the_inventory_it_is_from(lab, tmp_path):
    """By an id or a serial that ``who`` shows, whichever project it belongs to."""
    Lab().remember("pi5", "100a", {})
    for name in ("pi5", "100a"):
        said = lab("devices", "release", name, "--inventory", tmp_path / "none.yaml")
        assert (said.code, said.out) == (0, f"{name} is held by nobody\n")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["nope"], "no device 'nope'"),
        (["board", "--for", "soon"], "'soon' is no time span"),
        (["board", "--", "/no/such/program"], "cannot be run"),
    ],
)
def test_wrong_input(lab, inventory, arguments, problem):
    said = lab("devices", "lease", "--inventory", inventory, *arguments)
    assert said.code == 2
    assert problem in said.problem


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_time_spans(text, expected):
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["", "30", "m", "-1m", "1d", "1m30s", "1.m"])
def test_what_is_no_time_span(text):
    with pytest.raises(UsageError, match="write 90s"):
        seconds(text)
