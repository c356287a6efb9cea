"""What every agent must do: the same plans in, the same lines out, whatever it is written in."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.agents import (
    EXECUTED_BY,
    KEYS,
    MAY_BE_TOLD,
    TOLD,
    Agent,
    Events,
    environments,
    events_of,
    kinds,
    samples,
    warmups,
)

# One whole model


def test_the_events_of_one_run(agent: Agent):
    events = agent.measure()
    assert kinds(events) == [
        *("hello", "environment", "loaded", "warmup", "environment"),
        *("warmup", "samples", "environment", "done"),
    ]
    for event in events:
        if event["event"] != "environment":
            assert set(event) == KEYS[event["event"]]
    hello, _, loaded, *_ = events
    assert (hello["agent"], hello["runtime"]) == (agent.kind, agent.runtime)
    assert hello["version"]
    assert loaded["job"] == "tiny"
    assert loaded["delegates"] == [EXECUTED_BY[agent.runtime]]
    assert loaded["threads"] == 1
    assert loaded["load_ns"] > 0
    assert loaded["first_ns"] > 0


def test_the_build_of_the_runtime(agent):
    """ONNX Runtime's library tells it; LiteRT's does not."""
    build = agent.measure()[0]["build"]
    assert (build is None) == (agent.runtime == "litert")
    if build:
        assert "git-commit-id" in build
        assert "\n" not in build


@pytest.mark.parametrize(
    ("iterations", "size", "slices"),
    [(20, 8, [8, 8, 4]), (5, 50, [5]), (6, 3, [3, 3]), (1, 1, [1])],
)
def test_every_iteration_is_delivered_slice_by_slice(ort_agent, iterations, size, slices):
    events = ort_agent.measure(iterations=iterations, slice_iterations=size)
    parts = [event["ns"] for event in events if event["event"] == "samples"]
    assert [len(part) for part in parts] == slices
    assert all(isinstance(ns, int) and ns > 0 for part in parts for ns in part)


def test_a_slice_has_the_time_it_began_and_the_clock_of_its_core(ort_agent):
    """All of it on one clock: a slice ends before the next one begins."""
    events = ort_agent.measure(iterations=4000, slice_iterations=1000)
    slices = [event for event in events if event["event"] == "samples"]
    ends = [event["start_ns"] + sum(event["ns"]) for event in slices]
    assert all(end <= later["start_ns"] for end, later in zip(ends, slices[1:], strict=False))
    _, warm, after = (event["at_ns"] for event in environments(events))
    assert warm <= slices[0]["start_ns"]
    assert ends[-1] <= after
    told = any(Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    for event in slices:
        assert event["khz"] > 0 if told else event["khz"] is None


def test_warm_up_by_count(ort_agent):
    events = ort_agent.measure(warmup_iterations=7, warmup_ns=0)
    assert [len(event["ns"]) for event in warmups(events)] == [7, 2]


def test_warm_up_by_time(ort_agent):
    events = ort_agent.measure(warmup_iterations=2, warmup_ns=5_000_000)
    warmup = warmups(events)[0]["ns"]
    assert len(warmup) > 2
    assert len(warmup) % 2 == 0
    assert sum(warmup) >= 5_000_000
    assert sum(warmup[:-2]) < 5_000_000
    assert len(samples(events)) == 20  # none of it counts as a sample


def test_warm_again_after_a_look_at_the_device(ort_agent):
    """Looking takes time, in which clocks may fall; warm-up goes on for as long."""
    events = ort_agent.measure(warmup_iterations=1, warmup_ns=2 * 10**8, settle_iterations=2)
    again = warmups(events)[1]["ns"]
    assert kinds(events)[4:6] == ["environment", "warmup"]
    assert 1 <= len(again) < len(warmups(events)[0]["ns"])


def test_no_warm_up(ort_agent):
    events = ort_agent.measure(warmup_iterations=0, warmup_ns=0)
    assert [event["ns"] for event in warmups(events)] == [[]]
    assert len(samples(events)) == 20


@pytest.mark.parametrize("kind", ["latency", "sustained"])
def test_slices_go_on_until_the_window_is_over(ort_agent, kind):
    """The last one begins within it; one that would begin later does not."""
    window_ns = 300_000_000
    events = ort_agent.measure(kind=kind, iterations=5, slice_iterations=20, window_ns=window_ns)
    slices = [event for event in events if event["event"] == "samples"]
    sizes = [len(event["ns"]) for event in slices]
    if kind == "latency":
        assert sizes == [5] + [20] * (len(slices) - 1)
    else:  # of as many pieces as last 10 ms; the window ends the last one
        assert {size % 20 for size in sizes} <= {0, 5}
        assert all(sum(event["ns"]) >= 10_000_000 for event in slices[:-1])
        assert 2 <= len(slices) <= 31
    lasted = slices[-1]["start_ns"] + sum(slices[-1]["ns"]) - slices[0]["start_ns"]
    assert 0.9 < lasted / window_ns < 5
    assert (slices[-1]["start_ns"] - slices[0]["start_ns"]) / window_ns < 1.5


def test_sustained_iterations_are_exactly_made(ort_agent):
    events = ort_agent.measure(kind="sustained", iterations=5000, slice_iterations=3)
    assert len(samples(events)) == 5000
    assert len([event for event in events if event["event"] == "samples"]) < 500


def test_iterations_are_made_however_short_the_window(ort_agent):
    assert len(samples(ort_agent.measure(iterations=20, window_ns=1))) == 20


def test_threads_are_those_of_the_plan(agent):
    loaded = next(e for e in agent.measure(threads=2) if e["event"] == "loaded")
    assert loaded["threads"] == 2


def test_names_are_any_text(ort_agent):
    name = 'ä "quoted" \\ \n 😀'
    events = ort_agent.measure([ort_agent.job(name)])
    assert len(samples(events, name)) == 20


def test_a_mask_of_cores_is_taken(ort_agent):
    core = max(os.sched_getaffinity(0))
    assert samples(ort_agent.measure(core_mask=f"{1 << core:x}"))


# The device's state


def test_the_environment_before_warm_and_after(agent):
    events = agent.measure()
    found = environments(events)
    assert [event["when"] for event in found] == ["before", "warm", "after"]
    for event in found:
        assert set(event) - MAY_BE_TOLD == TOLD
        # Sums of time are read before the slow looking begins, as their order says.
        assert list(event).index("at_ns") < list(event).index("own_ms")
        assert list(event).index("busy_ms") < list(event).index("frequencies_khz")
    before, warm, after = found
    assert before["at_ns"] < warm["at_ns"] < after["at_ns"]
    order = kinds(events)
    assert order.index("environment") < order.index("loaded")
    assert order[-2:] == ["environment", "done"]


def test_processor_time_of_all_and_of_the_agent(ort_agent):
    """What others take is the difference of the two."""
    found = environments(ort_agent.measure(window_ns=500_000_000))
    assert all(type(e[name]) is int for e in found for name in e if name.endswith("_ms"))
    _, warm, after = found
    elapsed_ms = (after["at_ns"] - warm["at_ns"]) / 1e6
    own_ms, busy_ms = (after[name] - warm[name] for name in ("own_ms", "busy_ms"))
    assert 0.05 < own_ms / elapsed_ms < 1.5  # others may have the processor, too
    assert busy_ms > 0.5 * own_ms - 30  # it is counted in ticks
    assert busy_ms / elapsed_ms < 1.5 * (os.cpu_count() or 1)
    assert 0 <= after["stolen_ms"] - warm["stolen_ms"] < elapsed_ms * (os.cpu_count() or 1)


def test_what_the_device_does_not_tell_is_left_out(ort_agent):
    found = environments(ort_agent.measure())
    governors = any(Path("/sys/devices/system/cpu").glob("cpu*/cpufreq/scaling_governor"))
    waits = Path(f"/proc/self/task/{os.getpid()}/schedstat").exists()
    assert all(
        ("governors" in event, "waited_ms" in event) == (governors, waits) for event in found
    )


# Several models in turns


def turns(events: Events) -> list[str]:
    return [event["job"] for event in events if event["event"] == "samples"]


def test_jobs_take_turns_and_all_get_all_iterations(agent):
    jobs = [agent.job(name) for name in "abc"]
    events = agent.measure(jobs, iterations=20, slice_iterations=8, settle_iterations=2)
    for job in "abc":
        assert len(samples(events, job)) == 20
        assert len(samples(events, job, "warmup")) == 3 + 3 * 2  # and settling before each slice
    order = turns(events)
    rounds = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert [sorted(each) for each in rounds] == [["a", "b", "c"]] * 3
    assert events[-1] == {"event": "done"}
    assert kinds(events).count("environment") == 3


def test_all_take_their_turns_until_the_window_is_over(ort_agent):
    jobs = [ort_agent.job(name) for name in "ab"]
    events = ort_agent.measure(jobs, iterations=8, window_ns=200_000_000)
    counts = {job: len(samples(events, job)) for job in "ab"}
    assert counts["a"] == counts["b"] > 8


def test_a_turn_is_settling_then_its_slice(ort_agent):
    events = ort_agent.measure([ort_agent.job(name) for name in "ab"], iterations=16)
    first = next(i for i, event in enumerate(events) if event["event"] == "samples")
    last = max(i for i, event in enumerate(events) if event["event"] == "samples")
    steps = [(event["event"], event["job"]) for event in events[first - 1 : last + 1]]
    assert steps == [(kind, job) for job in turns(events) for kind in ("warmup", "samples")]


def test_the_order_of_turns_comes_from_the_seed(ort_agent):
    jobs = [ort_agent.job(name) for name in "abcd"]
    orders = [
        turns(ort_agent.measure(jobs, iterations=10, slice_iterations=1, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert len({tuple(orders[0][i : i + 4]) for i in range(0, 40, 4)}) > 1  # new each round


# Ends


def endless(agent: Agent, **changes: Any) -> Path:
    return agent.plan(iterations=900_000_000, slice_iterations=10, **changes)


def test_an_agent_ends_by_its_own_deadline_and_says_so(agent):
    process = agent.start(endless(agent, deadline_s=2), stderr=subprocess.DEVNULL)
    with process:
        events = [json.loads(line) for line in process.stdout.read().splitlines()]
    assert process.returncode == 1
    assert (events[-1]["event"], events[-1]["kind"]) == ("error", "deadline")
    assert len(samples(events)) % 10 == 0
    assert samples(events)


def test_an_agent_nobody_listens_to_ends(agent):
    process = agent.start(endless(agent, deadline_s=60), stderr=subprocess.DEVNULL)
    with process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(20) == -signal.SIGPIPE


def test_an_agent_that_is_not_listened_to_any_more_ends_by_its_deadline(ort_agent):
    """The pipe is full and the host reads no further: not even the error can be said."""
    process = ort_agent.start(endless(ort_agent, deadline_s=1), stderr=subprocess.DEVNULL)
    with process:
        assert process.wait(30) != 0
        process.stdout.close()


def test_killed_in_mid_run_what_was_said_stays_valid(ort_agent):
    process = ort_agent.start(endless(ort_agent, deadline_s=60), stderr=subprocess.DEVNULL)
    with process:
        lines = [process.stdout.readline() for _ in range(8)]
        process.kill()
        lines += process.stdout.read().splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith(b"\n")]
    assert kinds(whole) == [
        *("hello", "environment", "loaded", "warmup", "environment", "warmup", "samples")
    ]
    assert len(lines) - len(whole) <= 1


# Looking at the device


def test_probe(agent):
    done = agent.run("--probe", f"{agent.runtime}={agent.library}", "abacus")
    (event,) = events_of(done)
    assert done.returncode == 0
    assert set(event) == {"event", "agent", "runtimes"}
    assert (event["event"], event["agent"]) == ("probe", agent.kind)
    assert set(event["runtimes"]) == {agent.runtime, "abacus"}
    found = event["runtimes"][agent.runtime]
    assert set(found) == {"version", "delegates"}
    assert EXECUTED_BY[agent.runtime] in found["delegates"]
    assert set(event["runtimes"]["abacus"]) == {"missing", "hint"}
    hello = agent.measure()[0]
    assert found["version"] == hello["version"]


def test_a_probe_leaves_nothing_behind(agent):
    env = {"TMPDIR": str(agent.folder / "scratch")}
    Path(env["TMPDIR"]).mkdir()
    agent.run("--probe", f"{agent.runtime}={agent.library}", env=env)
    agent.run(agent.plan(delegate="AzureExecutionProvider"), env=env)
    assert list(Path(env["TMPDIR"]).iterdir()) == []
