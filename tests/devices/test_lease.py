"""One holder per device, through kills, freezes and many processes at once."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from devices.holder import ask_to_end, holder, holders
from devices.kernel_lock import KernelLock, held, open_shared
from devices.lab import DeviceState, Lab
from devices.lease import Lease, lease, take_away
from profiles.errors import DeviceBusy, DeviceError, LeaseLost, StaleFence
from profiles.store import Store
from tests.builders import run, trial
from tests.processes import alive, eventually

ROOT = Path(__file__).parents[2]
SERIAL = "100000004f2a"
PATIENCE_S = 60.0


@pytest.fixture
def lab(tmp_path) -> Lab:
    return Lab(tmp_path / "lab")


def take(lab: Lab, wait_s: float = 0.0, **options) -> contextlib.AbstractContextManager[Lease]:
    return lease(lab, SERIAL, "pi5", "test", wait_s, **options)


HOLDER = """
import sys, time
from pathlib import Path
from devices.lab import Lab
from devices.lease import lease
from profiles.errors import LeaseLost
folder, serial, term_s = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
with lease(Lab(folder), serial, "pi5", "a long job", term_s=term_s, by_hand=True) as ours:
    print(ours.fence, flush=True)
    sys.stdin.readline()
    try:
        ours.check()
        print("mine", flush=True)
    except LeaseLost as error:
        print(error, flush=True)
"""


class Other:
    """Another process that holds the device; it checks its lease when told, and ends."""

    def __init__(self, lab: Lab, serial: str = SERIAL, term_s: float = 60.0) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(lab.folder), serial, str(term_s)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.fence = int(self.process.stdout.readline())

    def check(self) -> str:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def other(lab: Lab, **options) -> Iterator[Other]:
    started = Other(lab, **options)
    try:
        yield started
    finally:
        started.process.send_signal(signal.SIGCONT)
        started.process.kill()
        started.process.communicate()


# Holding and waiting


def test_one_process_cannot_hold_a_device_twice(lab):
    with take(lab):
        with pytest.raises(DeviceBusy, match=str(os.getpid())), take(lab):
            pass
        seen: list[BaseException] = []

        def other_thread() -> None:
            try:
                with take(lab):
                    pass
            except DeviceBusy as error:
                seen.append(error)

        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
        assert len(seen) == 1
    with take(lab):
        pass


def test_who_is_refused_learns_who_holds_it_since_when_and_what_to_do(lab):
    with other(lab) as first:
        with pytest.raises(DeviceBusy) as caught, take(lab):
            pass
        found = holder(lab, SERIAL)
        assert f"held by process {first.process.pid} ({found.user}@{found.host})" in str(
            caught.value
        )
        assert "'a long job'" in caught.value.message
        assert found.since_utc in caught.value.message
        assert "device-lab devices who" in caught.value.hint
        assert caught.value.device == "pi5"
        assert not caught.value.retryable


def test_who_waits_gets_it_when_it_is_given_back(lab):
    with other(lab) as first:
        threading.Timer(0.2, first.check).start()
        with take(lab, PATIENCE_S) as ours:
            assert ours.fence > first.fence


def test_leases_of_other_devices_do_not_matter_but_for_their_fence(lab):
    """Fences rise over all devices: an id may be another unit tomorrow."""
    with other(lab, serial="another") as first, take(lab) as ours:
        assert ours.fence > first.fence
        assert first.check() == "mine"


def test_fences_go_on_rising_after_the_labs_folder_was_lost(tmp_path, monkeypatch):
    with take(Lab(tmp_path / "before")) as before:
        pass
    now = time.time()
    monkeypatch.setattr("devices.lease.time.time", lambda: now + 1)
    with take(Lab(tmp_path / "after")) as after:
        assert after.fence > before.fence


def test_a_clock_that_was_set_back_does_not_set_fences_back(lab, monkeypatch):
    with take(lab) as before:
        pass
    monkeypatch.setattr("devices.lease.time.time", lambda: 0.0)
    with take(lab) as after:
        assert after.fence == before.fence + 1


@pytest.mark.parametrize(
    "serial", ["", ".", "../../etc", "a/b", "ü" * 300, "a b\n", "10.0.0.1:5555"]
)
def test_a_serial_may_hold_anything(lab, serial):
    with lease(lab, serial, "odd", "test"):
        assert lab.state_of(serial) is DeviceState.LEASED
        assert [path.parent for path in lab.folder.rglob("*") if path.is_file()].count(
            lab.folder / "locks"
        ) == 1


def test_serials_that_look_alike_are_other_devices(lab):
    with lease(lab, "a/b", "one", "test"), lease(lab, "a_b", "two", "test"):
        assert {each.device_id for each in holders(lab)} == {"one", "two"}


# The death of a holder


def test_a_killed_holders_device_is_free_at_once(lab):
    lab.remember("pi5", SERIAL, {})
    with other(lab) as first:
        assert lab.state_of(SERIAL) is DeviceState.LEASED
        first.kill()
        assert lab.state_of(SERIAL) is DeviceState.PREPARING
        assert holder(lab, SERIAL) is None
        with take(lab) as ours:
            assert ours.fence > first.fence


def test_who_leaves_by_an_exception_gives_the_device_back(lab):
    with pytest.raises(KeyError), take(lab):
        raise KeyError
    assert holder(lab, SERIAL) is None
    with take(lab):
        pass


def test_a_release_that_cannot_be_written_down_frees_the_device_all_the_same(lab, monkeypatch):
    monkeypatch.setattr("devices.lab_database.BUSY_TIMEOUT_S", 0.1)
    with contextlib.ExitStack() as stack:
        with take(lab):
            stack.enter_context(lab.transaction())  # somebody writes, and writes
        assert not held(lab.lock_path(SERIAL))
    with take(lab):
        pass


@pytest.mark.parametrize(
    "child",
    ["import os; os.fork(); print(); time.sleep(60)", "import subprocess; subprocess.run(['cat'])"],
    ids=["forked", "another program"],
)
def test_what_the_holder_started_does_not_keep_the_device(lab, child):
    """Data loaders fork, and their workers may outlive us."""
    code = HOLDER.replace("sys.stdin.readline()", child)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(lab.folder), SERIAL, "60"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        try:
            assert process.stdout.readline()
            assert eventually(lambda: len(_group(process.pid)) == 2)
            process.kill()
            process.wait()
            assert eventually(lambda: not held(lab.lock_path(SERIAL)), PATIENCE_S)
            assert len(_group(process.pid)) == 1
            with take(lab):
                pass
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _group(leader: int) -> list[int]:
    """The living processes of a process group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.getpgid(int(entry.name)) == leader and alive(int(entry.name)):
                found.append(int(entry.name))
    return found


def test_a_forked_child_that_unwinds_our_stack_gives_nothing_back(lab):
    with take(lab) as ours:
        child = os.fork()
        if not child:
            ours.release()
            os._exit(0)
        os.waitpid(child, 0)
        ours.check()
        assert held(lab.lock_path(SERIAL))


KILLED = """
import os, signal, sqlite3, sys
from pathlib import Path
from devices import lab_database
from devices.lab import Lab
from devices.lease import lease

lab, left, connect, parent = Lab(Path(sys.argv[1])), 0, sqlite3.connect, os.getpid()

def count(_):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def counted(*arguments, **options):
    made = connect(*arguments, **options)
    if os.getpid() != parent:
        made.set_trace_callback(count)
    return made

lab_database.sqlite3.connect = counted
for left in range(1, 100):
    child = os.fork()
    if not child:
        with lease(lab, "s", "pi5", "test"):
            pass
        os._exit(7)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with lease(lab, "s", "pi5", "test") as after:
        print(status, after.fence, flush=True)
    if status == 7:
        break
"""


def test_a_kill_at_any_statement_leaves_a_device_that_can_be_leased_at_once(lab):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(lab.folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *killed, finished = [line.split() for line in done.stdout.splitlines()]
    assert len(killed) > 8
    assert {status for status, _ in killed} == {str(-signal.SIGKILL)}
    assert finished[0] == "7"
    fences = [int(fence) for _, fence in [*killed, finished]]
    assert fences == sorted(set(fences))


# A holder that lives and does not run


def test_a_stopped_holder_loses_the_device_and_its_results(lab, tmp_path):
    with other(lab, term_s=1.0) as frozen, Store(tmp_path / "store.sqlite") as store:
        key = store.open_trial(trial(fence=frozen.fence)).key
        frozen.process.send_signal(signal.SIGSTOP)
        with take(lab, PATIENCE_S) as ours:
            assert ours.fence > frozen.fence
            store.open_trial(trial(fence=ours.fence))
            frozen.process.send_signal(signal.SIGCONT)
            assert "taken over" in frozen.check()
            assert frozen.process.wait() == 0
            ours.check()  # its leaving does not give our lease back
            assert lab.state_of(SERIAL) is DeviceState.LEASED
            with pytest.raises(StaleFence):
                store.add_run(key, run(0), fence=frozen.fence)
            store.add_run(key, run(0), fence=ours.fence)


def test_a_lease_that_expired_stays_lost_though_nobody_took_it(lab):
    with take(lab) as ours:
        with lab.transaction() as database:
            database.execute("UPDATE lease SET expires = ?", (time.monotonic() - 3,))
        assert lab.state_of(SERIAL) is not DeviceState.LEASED
        assert not ours.renew(60.0)
        with pytest.raises(LeaseLost, match="expired 3 s ago") as caught:
            ours.check()
        assert (caught.value.device, caught.value.retryable) == ("pi5", False)


def test_a_holder_that_runs_keeps_its_lease_past_its_term(lab):
    with take(lab, term_s=0.6) as ours:
        first = holder(lab, SERIAL).expires
        assert eventually(lambda: time.monotonic() > first + 0.3)
        ours.check()
        with pytest.raises(DeviceBusy), take(lab):
            pass


def test_no_files_pile_up(lab):
    for _ in range(3):
        with other(lab, term_s=0.3) as frozen:
            frozen.process.send_signal(signal.SIGSTOP)
            with take(lab, PATIENCE_S):
                pass
    assert len(list((lab.folder / "locks").iterdir())) == 1


# Another host that sees our lab's folder


def say(lab: Lab, change: str) -> None:
    with lab.transaction() as database:
        database.execute(f"UPDATE lease SET {change}")


ELSEWHERE = "host = 'elsewhere', boot = 'another'"


def test_what_another_host_holds_does_not_expire_here(lab):
    """Its clock began at another time than ours, and its locks need not be seen here."""
    with other(lab) as first:
        first.kill()
    say(lab, f"expires = 0, {ELSEWHERE}")
    assert lab.state_of(SERIAL) is DeviceState.LEASED
    assert [each.host for each in holders(lab)] == ["elsewhere"]
    with pytest.raises(DeviceBusy, match=r"@elsewhere.*EDGELOOP_LAB.*release pi5 --force"):
        take(lab).__enter__()
    with pytest.raises(DeviceBusy, match="a lab belongs to one host"):
        ask_to_end(lab, holder(lab, SERIAL))
    assert take_away(lab, SERIAL, "pi5").host == "elsewhere"
    assert lab.state_of(SERIAL) is DeviceState.ABSENT
    with take(lab) as ours:
        assert ours.fence > first.fence


def test_a_host_of_our_name_that_is_alive_keeps_its_device(lab):
    """Two hosts of one image; where locks are seen over the network, they tell."""
    with other(lab):
        say(lab, "expires = 0, boot = 'another'")
        with pytest.raises(DeviceBusy), take(lab):
            pass


def test_what_another_host_gives_back_is_free(lab):
    with other(lab) as first:
        first.kill()
    say(lab, ELSEWHERE)
    back = threading.Timer(0.2, say, (lab, "released_utc = 'now'"))
    back.start()
    with take(lab, PATIENCE_S):
        pass
    back.join()


def test_a_container_that_died_here_was_no_other_host(lab):
    with other(lab) as first:
        first.kill()
    say(lab, "host = 'f3b1c0ffee'")
    with take(lab):
        pass


def test_what_was_held_when_this_host_went_down_is_free(lab):
    with other(lab) as first:
        first.kill()
    say(lab, f"expires = {time.monotonic() + 1e6}, boot = 'the one before'")
    with take(lab):
        pass


# Fences that this lab has not given out


def test_a_lease_is_raised_above_a_fence_from_a_clock_far_ahead(tmp_path, monkeypatch):
    now = time.time()
    with Store(tmp_path / "store.sqlite") as store, monkeypatch.context() as patch:
        patch.setattr("devices.lease.time.time", lambda: now + 1e9)
        with take(Lab(tmp_path / "lost")) as ahead:
            store.open_trial(trial(fence=ahead.fence))
    lab = Lab(tmp_path / "lab")
    with Store(tmp_path / "store.sqlite") as store, take(lab, term_s=0.6) as ours:
        with pytest.raises(StaleFence) as caught:
            store.open_trial(trial(fence=ours.fence))
        assert caught.value.newer == ahead.fence
        ours.raise_above(caught.value.newer)
        store.open_trial(trial(fence=ours.fence))
        first = holder(lab, SERIAL).expires
        assert eventually(lambda: time.monotonic() > first + 0.3)
        ours.check()  # and is renewed under its new fence
    with take(lab) as after:
        assert after.fence > ours.fence > ahead.fence


def test_a_lease_that_is_over_is_not_raised(lab):
    with take(lab) as ours:
        take_away(lab, SERIAL, "pi5")
        with take(lab) as newer:
            with pytest.raises(LeaseLost):
                ours.raise_above(newer.fence)
            newer.check()


# Ending a lease of somebody else


def test_a_lease_taken_by_hand_ends_when_its_owner_asks(lab):
    with other(lab) as first:
        ask_to_end(lab, holder(lab, SERIAL))
        assert first.process.wait() == -signal.SIGTERM
        assert holder(lab, SERIAL) is None


def test_a_measurement_is_not_asked_to_end(lab):
    with (
        take(lab),  # were it asked, this test would be over
        pytest.raises(DeviceBusy, match=r"held by process.*devices release pi5 --force"),
    ):
        ask_to_end(lab, holder(lab, SERIAL))


@pytest.mark.parametrize("change", ["started = started + 1", "host = 'elsewhere'"])
def test_a_process_that_is_not_the_holder_is_not_signalled(lab, change):
    """Process numbers are used again, and other hosts have theirs."""
    with other(lab) as first:
        with lab.transaction() as database:
            database.execute(f"UPDATE lease SET {change}")
        with pytest.raises(DeviceBusy):
            ask_to_end(lab, holder(lab, SERIAL))
        assert first.check() == "mine"


def test_by_force_a_lease_ends_and_what_its_holder_brings_is_rejected(lab, tmp_path):
    with other(lab) as first, Store(tmp_path / "store.sqlite") as store:
        key = store.open_trial(trial(fence=first.fence)).key
        assert take_away(lab, SERIAL, "pi5").pid == first.process.pid
        assert lab.state_of(SERIAL) is DeviceState.ABSENT
        assert holder(lab, SERIAL) is None
        with take(lab) as ours:
            assert ours.fence > first.fence
            store.open_trial(trial(fence=ours.fence))
        with pytest.raises(StaleFence):
            store.close_trial(key, "accepted", fence=first.fence)
        assert "taken over" in first.check()


def test_taking_away_what_nobody_holds_changes_nothing(lab):
    with take(lab) as before:
        pass
    assert take_away(lab, SERIAL, "pi5") is None
    with take(lab) as after:
        assert after.fence > before.fence


# The kernel's lock


def test_a_lock_is_of_the_file_that_has_the_name(tmp_path):
    path = tmp_path / "lock"
    old = KernelLock.take(path)
    assert KernelLock.take(path) is None
    assert held(path)
    new = KernelLock.replace(path)
    assert new is not None
    old.release()
    assert held(path)
    new.release()
    assert not held(path)


def test_a_file_that_lost_its_name_while_it_was_locked_is_not_the_lock(tmp_path, monkeypatch):
    """Another process has put a new file there between our opening and our locking."""
    path, opened = tmp_path / "lock", []

    def open_and_lose_the_name(name: Path) -> int:
        opened.append(open_shared(name))
        if len(opened) == 1:
            name.unlink()
        return opened[-1]

    monkeypatch.setattr("devices.kernel_lock.open_shared", open_and_lose_the_name)
    lock = KernelLock.take(path)
    assert len(opened) == 2
    assert held(path)
    lock.release()


def test_a_lock_is_let_go_once_though_its_number_is_anothers_now(tmp_path):
    old = KernelLock.take(tmp_path / "old")
    old.release()
    new = KernelLock.take(tmp_path / "new")  # on the descriptor that is free
    old.release()
    assert held(tmp_path / "new")
    new.release()


def test_a_lock_file_that_is_not_ours_says_what_to_do(tmp_path, monkeypatch):
    """As a root shell with our home folder leaves them."""
    path = tmp_path / "lock"

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    for attempt in (KernelLock.take, KernelLock.replace, held):
        with pytest.raises(DeviceError, match=r"lock cannot be used: Permission.*chown the lab"):
            attempt(path)


def test_looking_at_a_lock_does_not_take_it(tmp_path):
    path = tmp_path / "lock"
    assert not held(path)  # and made no file
    assert not path.exists()
    ours = KernelLock.take(path)
    assert all(held(path) for _ in range(3))
    ours.release()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "close", lambda _: None)  # a look that lasts
        assert not held(path)
        again = KernelLock.take(path)
    assert again is not None
    again.release()


# Everything at once

STORM = """
import json, os, random, signal, sys, time
from pathlib import Path
from devices.holder import holders
from devices.lab import Lab
from devices.lease import lease
from profiles.errors import DeviceBusy, LeaseLost, StaleFence, StoreError
from profiles.store import Store
from tests.builders import run, trial

folder, seed, enough = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
SERIALS, TERM_S, WORKERS = ("a", "b"), 0.4, 8
lab = Lab(folder / "lab")
Store(folder / "store.sqlite").close()
log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)

def note(what, serial, fence, **more):
    line = json.dumps({"what": what, "serial": serial, "fence": fence, **more})
    os.write(log, line.encode() + b"\\n")

def store_result(store, serial, fence):
    try:
        opened = store.open_trial(trial(device_id=serial, fence=fence))
        store.add_run(opened.key, run(len(opened.runs), (fence,) * 3), fence=fence)
    except StaleFence:
        note("stale", serial, fence)
    except StoreError:
        note("second", serial, fence)  # another has stored this number since

def hold(store, chance):
    serial, asked = chance.choice(SERIALS), time.monotonic()
    try:
        with lease(lab, serial, serial, "storm", chance.choice([0, 1]), term_s=TERM_S) as ours:
            note("taken", serial, ours.fence, asked=asked, at=time.monotonic())
            ends = time.monotonic() + chance.random() * 0.15
            while time.monotonic() < ends:
                asked = time.monotonic()
                ours.check()
                note("valid", serial, ours.fence, at=asked)
                time.sleep(0.01)
            store_result(store, serial, ours.fence)
    except DeviceBusy:
        pass
    except Exception as error:
        note(type(error).__name__, "", 0, text=str(error))

def worker(number):
    chance = random.Random(number)
    with Store(folder / "store.sqlite") as store:
        while True:
            hold(store, chance)
            time.sleep(chance.random() * 0.03)

def start(number):
    child = os.fork()
    if child:
        return child
    try:
        worker(number)
    finally:
        os._exit(1)

chance, started, frozen = random.Random(seed), WORKERS, {}
workers = [start(seed * 1000 + each) for each in range(WORKERS)]
while (folder / "log").read_bytes().count(b'"taken"') < enough:
    time.sleep(chance.random() * 0.2)
    for pid in [pid for pid, thaws in frozen.items() if time.monotonic() > thaws]:
        os.kill(pid, signal.SIGCONT)
        del frozen[pid]
    holding = [each.pid for each in holders(lab) if each.pid in workers]
    victim = chance.choice(holding if holding and chance.random() < 0.7 else workers)
    if chance.random() < 0.5:
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        frozen.pop(victim, None)
        workers[workers.index(victim)] = start(seed * 1000 + started)
        started += 1
    elif victim not in frozen and len(frozen) < 3:
        os.kill(victim, signal.SIGSTOP)
        frozen[victim] = time.monotonic() + TERM_S + chance.random()
for pid in workers:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
for serial in SERIALS:
    assert lab.state_of(serial) == "absent"
    with lease(lab, serial, serial, "after the storm") as ours:
        note("last", serial, ours.fence)
"""


@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm_of_processes_that_take_crash_and_freeze(tmp_path, seed):
    done = subprocess.run(
        [sys.executable, "-c", STORM, str(tmp_path), str(seed), "50"],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,  # every lease is synced to a disk that an installation may keep busy
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {line["what"] for line in lines} <= {
        *("taken", "valid", "stale", "second", "last", "LeaseLost"),
    }, [line for line in lines if "text" in line]
    by_serial = defaultdict(list)
    for line in lines:
        by_serial[line["serial"]].append(line)
    for serial in ("a", "b"):
        _check_serial(by_serial[serial])
    taken = [line["fence"] for line in lines if line["what"] == "taken"]
    assert len(set(taken)) == len(taken) >= 50
    with Store(tmp_path / "store.sqlite") as store:
        for each in store.trials():
            fences = [int(kept.samples_ns[0]) for kept in each.runs]
            assert fences == sorted(fences)
            assert [kept.number for kept in each.runs] == list(range(len(fences)))
    assert len(list((tmp_path / "lab" / "locks").iterdir())) == 2


def _check_serial(lines: list[dict]) -> None:
    """One device: fences rise, and no two are valid at once.

    A process may be stopped between an event and its line: ``asked`` is before the device was
    taken, ``at`` is after.
    """
    taken = sorted((e for e in lines if e["what"] == "taken"), key=lambda each: each["fence"])
    for older, newer in itertools.combinations(taken, 2):
        assert older["asked"] < newer["at"], "a later lease got a smaller fence"
    for line in lines:
        if line["what"] == "valid":
            assert not [t for t in taken if t["fence"] > line["fence"] and t["at"] < line["at"]]
    (last,) = [line["fence"] for line in lines if line["what"] == "last"]
    assert last > taken[-1]["fence"]
