"""Parts of the Python agent that no whole run shows: clocks, the device's state, the sampler."""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.agent import agent, energy, environment, kinds
from devices.agent.bench import Refused
from devices.agent.program import build
from devices.agent.sampler import Sampler, sample
from devices.agent.timing import CoreClocks
from devices.agent.tiny import tiny_model
from tests.builders import agent_plan, write_plan
from tests.devices import fake_runtime
from tests.processes import alive, children, eventually

Events = list[dict[str, Any]]


def one(events: Events, name: str) -> dict[str, Any]:
    (found,) = (event for event in events if event["event"] == name)
    return found


# The clock of the core


@pytest.fixture
def on_one_core() -> Iterator[int]:
    """This thread stays on one core, which is given."""
    before = os.sched_getaffinity(0)
    core = max(before)
    os.sched_setaffinity(0, {core})
    yield core
    os.sched_setaffinity(0, before)


def clock_file(cores: Path, core: int, text: str) -> Path:
    path = cores / f"cpu{core}" / "cpufreq" / "scaling_cur_freq"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_the_clock_is_that_of_the_core_in_use(tmp_path, on_one_core):
    clock_file(tmp_path, on_one_core + 1, "600000\n")
    assert CoreClocks(tmp_path).khz() is None
    clock_file(tmp_path, on_one_core, "1800000\n")
    assert CoreClocks(tmp_path).khz() == 1_800_000


def test_the_clock_is_the_present_one(tmp_path, on_one_core):
    path = clock_file(tmp_path, on_one_core, "1800000\n")
    clocks = CoreClocks(tmp_path)
    for khz in (1_800_000, 600_000):
        path.write_text(f"{khz}\n")
        assert clocks.khz() == khz


@pytest.mark.parametrize("text", ["<unknown>\n", "", "0\n"])
def test_a_clock_that_is_not_told_is_none(tmp_path, on_one_core, text):
    clock_file(tmp_path, on_one_core, text)
    assert CoreClocks(tmp_path).khz() is None


def test_without_clocks_nobody_asks_for_the_core(tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("it was asked for"))
    assert CoreClocks(tmp_path).khz() is None


# The device's state


def test_in_a_container_or_an_emulator_files_are_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_CORES", tmp_path)
    monkeypatch.setattr(environment, "_SELF", tmp_path)
    found = environment.environment("warm")
    assert found["frequencies_khz"] == []
    assert not {"governors", "waited_ms"} & set(found)


def test_what_the_device_tells_is_read(tmp_path, monkeypatch):
    cores, own = tmp_path / "cpu", tmp_path / "self"
    for core, khz, governor in (
        (10, "5", "schedutil"),
        (2, "7", "userspace"),
        (0, "x", "schedutil"),
    ):
        clock_file(cores, core, khz).with_name("scaling_governor").write_text(f"{governor}\n")
    for thread, ran, waited in ((1, 9_000_000, 3_000_000), (2, 4_000_000, 5_500_000)):
        (own / "task" / str(thread)).mkdir(parents=True)
        (own / "task" / str(thread) / "schedstat").write_text(f"{ran} {waited} 17\n")
    monkeypatch.setattr(environment, "_CORES", cores)
    monkeypatch.setattr(environment, "_SELF", own)
    found = environment.environment("before")
    assert found["frequencies_khz"] == [7, 5]  # by number of the core
    assert found["governors"] == ["schedutil", "userspace"]
    assert found["waited_ms"] == 8


def test_own_time_is_that_of_children_too():
    """Who runs a sampler is not to take it for somebody else's load."""
    before = environment.environment("warm")["own_ms"]
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert environment.environment("after")["own_ms"] - before >= 290


def test_memory_that_is_not_told_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_SELF", tmp_path)
    (tmp_path / "status").write_text("Name:\tx\nVmHWM:\t 20 kB\nVmRSS:\t 10 kB\n")
    with pytest.raises(OSError, match="RssFile"):
        environment.memory()
    (tmp_path / "status").write_text("VmHWM:\t 20 kB\nVmRSS:\t 10 kB\nRssFile:\t 4 kB\n")
    assert environment.memory() == {"VmHWM": 20480, "VmRSS": 10240, "RssFile": 4096}


# Memory


class Model:
    """Stands for an engine that is loaded once more to tell its delegates."""

    def __init__(self, *_: Any) -> None:
        self.threads = 1

    def feed(self, inputs: Any) -> None: ...
    def prepare(self) -> None: ...
    def call(self) -> None: ...

    def delegates(self) -> list[str]:
        return ["CPU"] if len(b"x" * (300 << 20)) else []


def test_telling_the_delegates_does_not_count_as_the_models_memory(tiny_model, monkeypatch):
    monkeypatch.setitem(kinds.ENGINES, "onnxruntime", Model)
    events: Events = []
    agent.measure(agent_plan([tiny_model.plan_job()], kind="memory"), events.append)
    found = one(events, "memory")
    assert found["peak_bytes"] - found["base_bytes"] < 150 << 20
    assert one(events, "loaded")["delegates"] == ["CPU"]


def test_importing_the_runtime_does_not_count_as_the_models_peak(tmp_path, tiny_model):
    env = {**fake_runtime.install(tmp_path / "fake"), "FAKE_IMPORT_MB": "300"}
    plan = write_plan(tmp_path, [tiny_model.plan_job()], kind="memory")
    found = one(run_agent(tmp_path, plan, env), "memory")
    assert found["peak_bytes"] < 200 << 20


@pytest.mark.parametrize(
    ("reset", "grown", "peak"),
    [(100, 100, 100), (105, 105, 105), (106, 106, None), (106, 107, 107)],
)
def test_a_peak_that_may_be_older_than_the_model_is_unknown(reset, grown, peak):
    base = {"VmRSS": 100, "VmHWM": reset, "RssFile": 1}
    assert environment.peak_bytes(base, {**base, "VmHWM": grown}) == peak


def test_a_peak_that_cannot_be_reset_is_unknown(tiny_model, monkeypatch):
    monkeypatch.setattr(kinds, "forget_peak", lambda: len(b"x" * (300 << 20)))
    events: Events = []
    agent.measure(agent_plan([tiny_model.plan_job()], kind="memory"), events.append)
    assert one(events, "memory")["peak_bytes"] is None


def run_agent(folder: Path, plan: Path, env: dict[str, str]) -> Events:
    program = build(folder / "agent.pyz")
    done = subprocess.run(
        [sys.executable, str(program), str(plan)],
        env={**os.environ, **env},
        capture_output=True,
        timeout=60,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


# Energy


@pytest.mark.parametrize(("iterations", "kept"), [(20, 100), (150, 150)])
def test_of_many_calls_for_energy_not_all_latencies_are_kept(
    tiny_model, monkeypatch, iterations, kept
):
    """All count; what the plan asked for is there."""
    monkeypatch.setattr(energy, "KEPT_CALLS", 100)
    sampling = {"period_ns": 10_000_000, "files": ["/proc/uptime"], "command": []}
    plan = agent_plan(
        [tiny_model.plan_job()],
        **{"kind": "energy", "window_ns": 30_000_000, "iterations": iterations, "meter": sampling},
    )
    events: Events = []
    agent.measure(plan, events.append, Sampler(sampling))
    assert sum(len(event["ns"]) for event in events if event["event"] == "samples") == kept
    (active,) = (event for event in events if event.get("what") == "active")
    assert active["calls"] > 2 * kept


# ExecuTorch, which has no native agent


@pytest.fixture
def executorch_job(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "tiny.pte").write_bytes(tiny_model("executorch"))
    np.array([[-1, 0, 1, 2]], dtype=np.float32).tofile(tmp_path / "x.bin")
    given = {"path": str(tmp_path / "x.bin"), "shape": [1, 4], "dtype": "float32"}
    return {"id": "tiny", "path": str(tmp_path / "tiny.pte"), "inputs": [given]}


@pytest.mark.parametrize("kind", ["sustained", "app", "memory"])
def test_executorch_is_measured_in_every_way(executorch_job, kind):
    events: Events = []
    plan = agent_plan([executorch_job], kind=kind, runtime="executorch", iterations=8)
    agent.measure(plan, events.append)
    assert one(events, "samples")["ns"]
    assert len(one(events, "hello")["build"]) > len("git 1234567")
    assert one(events, "done")


def test_executorch_has_no_profile_of_operators(executorch_job):
    plan = agent_plan([executorch_job], kind="operators", runtime="executorch")
    with pytest.raises(Refused, match="ExecuTorch has no profile of operators"):
        agent.measure(plan, lambda event: None)


# The sampler


def sampled(read: Callable[[], tuple[str, ...]], period_ns: int, readings: int) -> dict[str, Any]:
    """So many readings: it is over in the last but one, and one more is made."""
    over, end = os.pipe()
    left = iter(range(readings - 2))

    def counted() -> tuple[str, ...]:
        if next(left, None) is None:
            os.write(end, b"x")
        return read()

    try:
        return sample(counted, period_ns, over)
    finally:
        os.close(over)
        os.close(end)


def test_readings_begin_on_a_grid_and_late_ones_are_left_out():
    begun: list[int] = []

    def slow() -> tuple[str, ...]:
        begun.append(time.monotonic_ns())
        time.sleep(0.05)
        return ("",)

    period_ns = 20_000_000
    found = sampled(slow, period_ns, 8)
    steps = [later - earlier for earlier, later in pairwise(begun[:-1])]
    assert 2.8 < statistics.median(steps) / period_ns < 4
    middles = [(at - start) / 50_000_000 for at, start in zip(found["at_ns"], begun, strict=True)]
    assert 0.4 < statistics.median(middles) < 0.8


def test_a_last_reading_is_made_when_it_is_over():
    texts = iter("abcdefgh")
    found = sampled(lambda: (next(texts),), 1, 5)
    assert found["values"] == [(letter,) for letter in "abcde"]


def test_readings_that_repeat_take_no_memory_of_their_own():
    number = iter(range(10**9))

    def read() -> tuple[str, ...]:
        count = next(number)
        return (f"{count}", f"{count // 1000}" * 500, "ab" * (500 + count // 1000))

    tracemalloc.start()
    try:
        sampled(read, 1, 10_000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak / 10_000 < 250


def meter(**changes: Any) -> dict[str, Any]:
    return {"period_ns": 10_000_000, "files": ["/proc/uptime"], "command": [], **changes}


def test_a_sampler_reads_until_it_is_asked():
    sampler = Sampler(meter())
    time.sleep(0.1)
    asked_ns = time.monotonic_ns()
    found = sampler.readings()
    assert found["at_ns"] == sorted(set(found["at_ns"]))
    assert found["at_ns"][-1] > asked_ns
    assert len(found["values"]) == len(found["at_ns"]) > 3
    assert float(found["values"][0][0].split()[0]) > 0
    assert not alive(sampler.pid)


def test_a_sampler_that_has_died_is_an_error():
    sampler = Sampler(meter(files=[None]))  # whatever it fails of
    with pytest.raises(ChildProcessError, match="sampler"):
        sampler.readings()


def test_a_text_that_is_none_is_no_reason_to_die(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff7\n")
    sampler = Sampler(meter(files=[str(tmp_path / "bytes"), "\0", str(tmp_path)]))
    time.sleep(0.03)
    assert sampler.readings()["values"][0] == ["\ufffd7\n", "", ""]


def test_the_sampler_is_there_before_the_runtime(tmp_path, tiny_model):
    """A runtime has threads, of which a fork would copy the locks."""
    env = {**fake_runtime.install(tmp_path / "fake"), "FAKE_IMPORT_S": "60"}
    plan = write_plan(tmp_path, [tiny_model.plan_job()], kind="energy", meter=meter())
    process = subprocess.Popen(
        [sys.executable, str(build(tmp_path / "agent.pyz")), str(plan)],
        env={**os.environ, **env},
        stdout=subprocess.DEVNULL,
    )
    with process:
        there = eventually(lambda: bool(children(process.pid)))
        (sampler,) = children(process.pid)
        process.kill()
    assert there
    assert eventually(lambda: not alive(sampler))
