"""The lab remembers devices by their hardware, and what each is up to follows rules."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from devices.lab import TRANSITIONS, DeviceState, Lab, lab_folder
from devices.lab_database import SCHEMA
from devices.lease import lease
from profiles.errors import DeviceBusy, DeviceError

ROOT = Path(__file__).parents[2]
SERIAL = "100000004f2a"


@pytest.fixture
def lab(tmp_path) -> Lab:
    return Lab(tmp_path / "lab")


# The folder and its database


def test_the_folder_is_one_that_a_login_and_cron_have_in_common(monkeypatch, tmp_path):
    monkeypatch.delenv("EDGELOOP_LAB")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")  # cron has none
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lab_folder() == tmp_path / ".local" / "state" / "edgeloop"
    monkeypatch.setenv("EDGELOOP_LAB", "/srv/lab")
    assert lab_folder() == Path("/srv/lab")


def modes(folder: Path) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode)
        for path in [folder, *folder.rglob("*")]
    }


def test_a_lab_is_its_users_own(tmp_path):
    lab = Lab(tmp_path / "a" / "lab")
    with lease(lab, SERIAL, "pi5", "test"):
        pass
    found = modes(lab.folder)
    assert found["."] == 0o700
    assert {mode for name, mode in found.items() if name not in (".", "locks")} == {0o600}


def test_a_lab_in_a_groups_folder_is_the_groups_whatever_the_umask(tmp_path):
    folder = tmp_path / "lab"
    folder.mkdir()
    folder.chmod(0o2770)
    before = os.umask(0o077)
    try:
        lab = Lab(folder)
        with lease(lab, SERIAL, "pi5", "test"), lab.reading() as database:
            database.execute("SELECT * FROM lease").fetchall()
            found = modes(folder)
    finally:
        os.umask(before)
    assert (found["."], found["locks"]) == (0o2770, 0o2770)
    assert {mode for name, mode in found.items() if name not in (".", "locks")} == {0o660}
    assert any(name.endswith("-wal") for name in found)


def test_a_lab_of_a_newer_edgeloop_is_refused(lab):
    with lab.transaction() as database:
        database.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    with pytest.raises(DeviceError, match=rf"schema {SCHEMA + 1}, newer.*upgrade edgeloop"):
        Lab(lab.folder)


def test_a_lab_of_an_older_edgeloop_goes_on(lab):
    lab.remember("pi5", SERIAL, {})
    with lease(lab, SERIAL, "pi5", "test") as before, lab.transaction() as database:
        database.execute("ALTER TABLE lease DROP COLUMN boot")
        (table,) = database.execute("SELECT sql FROM sqlite_schema WHERE name = 'lease'").fetchone()
        rows = database.execute("SELECT * FROM lease").fetchall()
        database.execute("DROP TABLE lease")
        database.execute(
            table.replace("released_utc TEXT", "released_utc TEXT, dirty INTEGER NOT NULL")
        )
        for row in rows:
            database.execute(f"INSERT INTO lease VALUES ({'?, ' * len(row)} 1)", tuple(row))
        database.execute("PRAGMA user_version = 1")
    again = Lab(lab.folder)
    assert again.serial_of("pi5") == SERIAL
    with lease(again, SERIAL, "pi5", "test") as after:
        assert after.fence > before.fence


def test_a_database_that_is_not_ours_to_write_says_what_to_do(lab):
    (lab.folder / "lab.db-wal").mkdir()  # as good as one of another user, also for root
    with pytest.raises(DeviceError, match=r"cannot be used.*chown the lab folder"):
        lab.remember("pi5", SERIAL, {})


@pytest.mark.parametrize("content", ["text", "tables"])
def test_another_programs_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "lab.db"
    if content == "text":
        path.write_bytes(b"a shopping list" * 100)
    else:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE bookmarks (url TEXT)")
        other.close()
    before = path.read_bytes()
    with pytest.raises(DeviceError, match="EDGELOOP_LAB"):
        Lab(tmp_path)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DeviceError, match=r"cannot be used.*EDGELOOP_LAB"):
        Lab(tmp_path / "file")


def test_a_database_that_stays_locked_says_what_to_look_for(lab, monkeypatch):
    monkeypatch.setattr("devices.lab_database.BUSY_TIMEOUT_S", 0.1)
    with (
        lab.transaction(),
        pytest.raises(DeviceError, match=r"locked.*stopped in the middle"),
        lab.transaction(),
    ):
        pass


def test_many_processes_make_one_lab(tmp_path):
    code = (
        "import sys; from pathlib import Path; from devices.lab import Lab;"
        "sys.stdin.readline(); lab = Lab(Path(sys.argv[1]));"
        "lab.remember(sys.argv[2], 'serial-' + sys.argv[2], {})"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "lab"), name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in "abcdef"
    ]
    for each in started:
        each.stdin.write(b"go\n")
        each.stdin.flush()
    for each in started:
        _, complaint = each.communicate(timeout=120)
        assert each.returncode == 0, complaint.decode()
    assert [device.id for device in Lab(tmp_path / "lab").devices()] == list("abcdef")


def test_an_error_in_a_transaction_undoes_it(lab):
    with pytest.raises(KeyError), lab.transaction() as database:
        database.execute("INSERT INTO device VALUES ('s', 'x', 'ready', '', '', NULL, '{}')")
        raise KeyError
    assert lab.devices() == []


# Devices


def test_a_device_is_remembered_by_its_hardware(lab):
    assert lab.serial_of("pi5") is None
    lab.remember("pi5", SERIAL, {"model": "Raspberry Pi 5", "cores": 4})
    assert lab.serial_of("pi5") == SERIAL
    (found,) = Lab(lab.folder).devices()
    assert (found.id, found.serial, found.state) == ("pi5", SERIAL, "preparing")
    assert found.facts == {"model": "Raspberry Pi 5", "cores": 4}
    assert found.last_seen_utc


def test_a_device_that_is_renamed_stays_itself(lab):
    lab.remember("pi5", SERIAL, {})
    lab.remember("kitchen", SERIAL, {})
    assert lab.serial_of("pi5") is None
    assert [(device.id, device.serial) for device in lab.devices()] == [("kitchen", SERIAL)]


def test_an_id_names_the_hardware_that_was_seen_last(lab):
    """A board is replaced: its name goes on to the new one, its memory does not."""
    lab.remember("pi5", "old", {})
    lab.quarantine("old", "burnt")
    lab.remember("pi5", "new", {})
    assert lab.serial_of("pi5") == "new"
    assert {d.serial: (d.id, d.state) for d in lab.devices()} == {
        "new": ("pi5", "preparing"),
        "old": (None, "quarantined"),
    }


def test_what_nobody_has_seen_is_absent_and_has_no_state_to_set(lab):
    assert lab.state_of("nobody") is DeviceState.ABSENT
    with pytest.raises(DeviceError, match="no device of this serial"):
        lab.set_state("nobody", DeviceState.READY)


def test_quarantine_is_left_only_by_a_person(lab):
    lab.remember("pi5", SERIAL, {})
    lab.quarantine(SERIAL, "it froze three times")
    with pytest.raises(DeviceError, match="device-lab devices release pi5 --quarantine") as caught:
        lab.set_state(SERIAL, DeviceState.READY)
    assert caught.value.device == "pi5"
    lab.remember("pi5", SERIAL, {})  # to be seen again is not to be trusted again
    assert lab.state_of(SERIAL) is DeviceState.QUARANTINED
    lab.release_quarantine(SERIAL)
    assert lab.state_of(SERIAL) is DeviceState.PREPARING
    with pytest.raises(DeviceError, match="not in quarantine"):
        lab.release_quarantine(SERIAL)


def test_a_device_in_quarantine_is_not_leased(lab):
    lab.remember("pi5", SERIAL, {})
    lab.quarantine(SERIAL, "it froze three times")
    with (
        pytest.raises(DeviceError, match=r"it froze three times.*release pi5 --quarantine") as got,
        lease(lab, SERIAL, "pi5", "test"),
    ):
        pass
    assert not isinstance(got.value, DeviceBusy)
    lab.release_quarantine(SERIAL)
    with lease(lab, SERIAL, "pi5", "test"):
        pass


def test_a_state_that_is_said_again_keeps_its_beginning(lab, monkeypatch):
    lab.remember("pi5", SERIAL, {})
    monkeypatch.setattr("devices.lab.utc_now", lambda: "2026-01-01T00:00:00+00:00")
    lab.set_state(SERIAL, DeviceState.COOLING, "61 C")
    monkeypatch.setattr("devices.lab.utc_now", lambda: "2026-01-01T00:05:00+00:00")
    lab.set_state(SERIAL, DeviceState.COOLING, "52 C")
    (found,) = lab.devices()
    assert (found.reason, found.since_utc) == ("52 C", "2026-01-01T00:00:00+00:00")


def test_every_state_is_reached_and_left(lab):
    stored = set(DeviceState) - {DeviceState.LEASED}
    assert set(TRANSITIONS) == stored
    assert set().union(*TRANSITIONS.values()) == stored
    ways_out = {state: len(after) for state, after in TRANSITIONS.items()}
    assert [state for state, count in ways_out.items() if not count] == [DeviceState.QUARANTINED]
    assert all(DeviceState.QUARANTINED in after for after in list(TRANSITIONS.values())[:-1])


def test_a_device_that_was_away_is_looked_at_before_it_is_ready(lab):
    lab.remember("pi5", SERIAL, {})
    lab.set_state(SERIAL, DeviceState.ABSENT, "no route")
    with pytest.raises(DeviceError, match=r"absent cannot become ready.*doctor pi5"):
        lab.set_state(SERIAL, DeviceState.READY)
    lab.remember("pi5", SERIAL, {})
    lab.set_state(SERIAL, DeviceState.READY)


class LabMachine(RuleBasedStateMachine):
    """Any order of what happens to a device against a model of what it should be."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.lab = Lab(Path(self.folder.name))
        self.stored: DeviceState | None = None
        self.holding = contextlib.ExitStack()
        self.held = False
        self.fence = 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.holding.close()
            self.folder.cleanup()

    @rule()
    def seen(self) -> None:
        self.lab.remember("pi5", SERIAL, {})
        if self.stored in (None, DeviceState.ABSENT):
            self.stored = DeviceState.PREPARING

    @rule(state=st.sampled_from(DeviceState))
    def told(self, state: DeviceState) -> None:
        allowed = self.stored is not None and (
            state is self.stored or state in TRANSITIONS[self.stored]
        )
        if allowed:
            self.lab.set_state(SERIAL, state)
            self.stored = state
        else:
            with pytest.raises((DeviceError, ValueError)):
                self.lab.set_state(SERIAL, state)

    @rule()
    def let_back(self) -> None:
        if self.stored is DeviceState.QUARANTINED:
            self.lab.release_quarantine(SERIAL)
            self.stored = DeviceState.PREPARING
        else:
            with pytest.raises(DeviceError):
                self.lab.release_quarantine(SERIAL)

    @rule()
    def taken(self) -> None:
        attempt = lease(self.lab, SERIAL, "pi5", "test")
        if self.held or self.stored is DeviceState.QUARANTINED:
            with pytest.raises(DeviceError):
                attempt.__enter__()
            return
        ours = self.holding.enter_context(attempt)
        assert ours.fence > self.fence
        ours.check()
        self.fence, self.held, self.lease = ours.fence, True, ours

    @rule()
    def given_back(self) -> None:
        self.holding.close()
        self.held = False

    @rule()
    def holder_dies(self) -> None:
        """As the kernel does it: the lock is gone, and nobody wrote anything."""
        if self.held:
            self.lease._lock.release()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(self.lease, "_process", -1)  # a dead holder does not release
                self.holding.close()
            self.held = False

    @invariant()
    def its_state_is_what_it_should_be(self) -> None:
        if hasattr(self, "lab"):
            expected = DeviceState.LEASED if self.held else self.stored or DeviceState.ABSENT
            assert self.lab.state_of(SERIAL) is expected


LabMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, print_blob=True
)
TestStates = LabMachine.TestCase
