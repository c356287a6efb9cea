"""What every agent delivers for energy: stretches of time, and what a sampler read meanwhile."""

from __future__ import annotations

import json
import os
import signal
import stat
import statistics
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.conformance.agents import Agent, Events, environments, kinds, of, samples
from tests.processes import alive, children, eventually

WINDOW_NS = 400_000_000
PERIOD_NS = 20_000_000
ODPM = "t=12345\nCH0(T=12345)[S1M_VDD], 17\nCH1(T=12345)[S2M_VDD], 4\n"


@contextmanager
def counting(path: Path) -> Iterator[list[int]]:
    """A file whose number grows every 50 ms, as a sensor's would; gives all that were in it."""
    over = threading.Event()
    written: list[int] = []

    def count() -> None:
        while not over.wait(0.05 if written else 0):
            number = len(written)
            fresh = path.with_suffix(".new")
            fresh.write_text(f"{number}\n")
            fresh.replace(path)
            written.append(number)

    thread = threading.Thread(target=count)
    path.write_text("0\n")
    thread.start()
    try:
        yield written
    finally:
        over.set()
        thread.join()


def meter(*files: Path | str, period_ns: int = PERIOD_NS, command: list[str] | None = None):
    return {
        "period_ns": period_ns,
        "files": [str(file) for file in files],
        "command": command or [],
    }


def energy_plan(agent: Agent, sampling: dict[str, Any], **changes: Any) -> Path:
    given = {"kind": "energy", "window_ns": WINDOW_NS, "meter": sampling, **changes}
    return agent.plan(**given)


def energy_run(agent: Agent, sampling: dict[str, Any], **changes: Any) -> Events:
    done = agent.run(energy_plan(agent, sampling, **changes))
    assert done.returncode == 0, done.stdout.decode()[-2000:] + done.stderr.decode()
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_energy_run(agent, tmp_path):
    many, none = tmp_path / "energy_value", tmp_path / "none"
    many.write_text(ODPM)
    with counting(tmp_path / "count") as written:
        events = energy_run(agent, meter(tmp_path / "count", many, none, tmp_path))
    assert kinds(events) == [
        *("hello", "environment", "loaded", "warmup", "environment", "warmup", "samples"),
        *("mark", "power", "environment", "done"),
    ]
    stretches_follow_each_other(of(events, "mark"), of(events, "samples"))
    warmed_up_again(of(events, "mark"), of(events, "warmup"))
    (power,) = of(events, "power")
    marks = of(events, "mark")
    readings_cover(power["at_ns"], marks[0]["start_ns"], marks[-1]["end_ns"])
    assert {tuple(reading[1:]) for reading in power["values"]} == {(ODPM, "", "")}
    seen = [int(reading[0]) for reading in power["values"]]
    assert len(seen) == len(power["at_ns"])
    assert seen == sorted(seen)
    assert len(set(seen)) > 0.5 * 5 * WINDOW_NS / 50_000_000
    assert seen[-1] in written


def stretches_follow_each_other(marks: Events, slices: Events) -> None:
    assert [mark["what"] for mark in marks] == ["idle-before", "active", "idle-after"]
    assert all(mark["end_ns"] - mark["start_ns"] >= WINDOW_NS for mark in marks)
    before, active, after = marks
    assert before["end_ns"] <= active["start_ns"]
    # It settles, a window at most.
    assert WINDOW_NS <= after["start_ns"] - active["end_ns"] < 2 * WINDOW_NS
    assert before["calls"] == after["calls"] == 0
    assert active["calls"] == sum(1 + len(event["ns"]) for event in slices) > 20
    assert all(sum(event["ns"]) >= 10_000_000 for event in slices[:-1])
    assert slices[0]["start_ns"] >= active["start_ns"]
    assert slices[-1]["start_ns"] + sum(slices[-1]["ns"]) <= active["end_ns"]
    assert sum(sum(event["ns"]) for event in slices) > 0.2 * WINDOW_NS  # back to back


def warmed_up_again(marks: Events, warmups: Events) -> None:
    """Clocks fall while a device idles: calls that do not count come before those that do."""
    before, active, _ = marks
    first, again = warmups
    assert len(first["ns"]) == 3
    assert len(again["ns"]) >= 2
    assert sum(again["ns"]) <= active["start_ns"] - before["end_ns"]


def readings_cover(at_ns: list[int], start_ns: int, end_ns: int) -> None:
    steps = [later - earlier for earlier, later in pairwise(at_ns)]
    assert min(steps) > 0
    assert 0.5 < statistics.median(steps) / PERIOD_NS < 2
    assert at_ns[0] < start_ns
    assert at_ns[-1] >= end_ns


def test_a_command_that_is_read_for_energy(ort_agent, tmp_path):
    (tmp_path / "count").write_text("")
    script = f"echo >> {tmp_path}/count; wc -l < {tmp_path}/count; echo noise >&2; exit 3"
    events = energy_run(
        ort_agent, meter("/proc/uptime", command=["sh", "-c", script]), window_ns=100_000_000
    )
    (power,) = of(events, "power")
    assert len(power["values"]) > 10
    assert power["values"] == [[f"{i + 1}\n"] for i in range(len(power["values"]))]


def test_a_command_that_does_not_exist_says_nothing(ort_agent):
    """All iterations are made all the same, however short the window."""
    sampling = meter(command=["/nowhere/vcgencmd"])
    events = energy_run(ort_agent, sampling, window_ns=1, iterations=30)
    (power,) = of(events, "power")
    assert power["values"]
    assert {tuple(reading) for reading in power["values"]} == {("",)}
    assert len(samples(events)) == 30
    assert of(events, "mark")[1]["calls"] == 30 + len(of(events, "samples"))


def test_warm_up_after_idling_lasts_a_window_at_most(ort_agent):
    given = {"warmup_ns": 200_000_000, "settle_iterations": 0}
    events = energy_run(ort_agent, meter("/proc/uptime"), window_ns=100_000_000, **given)
    first, again = (sum(event["ns"]) for event in of(events, "warmup"))
    assert first >= 200_000_000
    assert 100_000_000 <= again < first
    before, active, _ = of(events, "mark")
    assert active["start_ns"] - before["end_ns"] >= again


def test_what_warms_up_by_nothing_does_not_after_idling(ort_agent):
    given = {"warmup_iterations": 0, "window_ns": 1}
    (first,) = of(energy_run(ort_agent, meter("/proc/uptime"), **given), "warmup")
    assert first["ns"] == []


def test_commands_that_hang_do_not_pile_up(ort_agent, tmp_path):
    """Neither they nor what they have started outlives its reading."""
    script = f"sleep 600 & echo $! $$ >> {tmp_path}/pids; wait"
    sampling = meter(command=["sh", "-c", script])
    (power,) = of(energy_run(ort_agent, sampling, window_ns=1), "power")
    assert {tuple(reading) for reading in power["values"]} == {("",)}
    assert len(power["values"]) >= 2
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2 * len(power["values"])
    assert eventually(lambda: not any(alive(pid) for pid in pids))


def idling(agent: Agent, **changes: Any) -> subprocess.Popen[bytes]:
    """An agent in its first idle stretch, which lasts a minute."""
    given = {"window_ns": 60 * 10**9, "deadline_s": 60, **changes}
    plan = energy_plan(agent, meter("/proc/uptime"), **given)
    return agent.start(plan, stderr=subprocess.DEVNULL)


def test_the_deadline_covers_idle_stretches(ort_agent):
    with idling(ort_agent, deadline_s=2) as process:
        lines = process.stdout.read().splitlines()
    assert process.returncode == 1
    assert json.loads(lines[-1])["kind"] == "deadline"


def test_an_agent_that_is_killed_leaves_no_sampler_behind(ort_agent):
    """Nor does the sampler hold the pipe that tells the host of the agent's end."""
    with idling(ort_agent) as process:
        while json.loads(process.stdout.readline())["event"] != "warmup":
            pass
        (sampler,) = children(process.pid)
        event_pipe = os.fstat(process.stdout.fileno()).st_ino
        assert event_pipe not in inodes(sampler)
        os.kill(process.pid, signal.SIGKILL)
        assert process.stdout.read().count(b"power") == 0  # and ends
        assert eventually(lambda: not alive(sampler))


def test_the_command_of_an_agent_that_is_killed_goes_with_it(ort_agent):
    """With all that it has started: what still measures would hold a sensor, or a port."""
    sampling = meter(command=["sh", "-c", "sleep 600 & wait"], period_ns=600 * 10**9)
    plan = energy_plan(ort_agent, sampling, window_ns=60 * 10**9)
    with ort_agent.start(plan, stderr=subprocess.PIPE) as process:
        assert eventually(lambda: len(children(process.pid)) >= 3)
        (sampler, *_) = started = children(process.pid)
        standard = {str(Path(f"/proc/{sampler}/fd/{number}").readlink()) for number in range(3)}
        assert standard == {"/dev/null"}  # a host may listen to its agent's errors, too
        os.kill(process.pid, signal.SIGKILL)
        process.stdout.read()
    assert eventually(lambda: not any(alive(pid) for pid in started))


def test_odd_files_are_read_without_harm(ort_agent, tmp_path):
    """A pipe nobody writes to would block, and some files have no end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "much").write_text("0123456789" * 20_000)
    (tmp_path / "endless").symlink_to("/dev/zero")
    files = [tmp_path / name for name in ("pipe", "much", "endless", "none")]
    events = energy_run(ort_agent, meter(*files), window_ns=1)
    (power,) = of(events, "power")
    assert len(power["values"]) >= 2
    for pipe, much, endless, none in power["values"]:
        assert pipe == none == ""
        assert much == ("0123456789" * 7_000)[:65_536]
        assert len(endless) <= 65_536


def test_a_command_that_only_talks_is_ended(ort_agent, tmp_path):
    """Of what it says there is enough at some time, and that is kept."""
    script = f"echo $$ >> {tmp_path}/pids; exec yes"
    events = energy_run(ort_agent, meter(command=["sh", "-c", script]), window_ns=100_000_000)
    (power,) = of(events, "power")
    assert {text for (text,) in power["values"]} == {"y\n" * 32_768}
    assert len(power["values"]) >= 4  # it is not waited for
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert eventually(lambda: not any(alive(pid) for pid in pids))


BUSY = ["sh", "-c", "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done"]


def test_what_the_sampler_took_before_it_was_warm_is_not_of_the_timed_part(ort_agent):
    given = {"warmup_ns": 1_500_000_000, "window_ns": 1, "settle_iterations": 0}
    sampling = meter(command=BUSY, period_ns=1_000_000)
    _, warm, after = environments(energy_run(ort_agent, sampling, **given))
    lasted_ms = (after["at_ns"] - warm["at_ns"]) / 1e6
    assert after["own_ms"] - warm["own_ms"] < 2.2 * lasted_ms + 60


def test_what_the_sampler_took_since_is(ort_agent):
    """The agent itself has worked at most as long as it made calls."""
    sampling = meter(command=BUSY, period_ns=1_000_000)
    events = energy_run(ort_agent, sampling, window_ns=300_000_000)
    _, warm, after = environments(events)
    before, active, _ = of(events, "mark")
    called_ms = (active["end_ns"] - before["end_ns"]) / 1e6
    assert after["own_ms"] - warm["own_ms"] > called_ms + 100


def inodes(pid: int) -> set[int]:
    """Of the pipes that a process has open."""
    found = [file.stat() for file in Path(f"/proc/{pid}/fd").iterdir()]
    return {each.st_ino for each in found if stat.S_ISFIFO(each.st_mode)}


def test_a_sampler_that_is_killed_is_an_error(ort_agent):
    with idling(ort_agent, window_ns=WINDOW_NS) as process:
        while json.loads(process.stdout.readline())["event"] != "warmup":
            pass
        (sampler,) = children(process.pid)
        os.kill(sampler, signal.SIGKILL)
        last = json.loads(process.stdout.read().splitlines()[-1])
    assert (last["event"], last["kind"]) == ("error", "failed")
    assert "sampler" in last["message"]
