"""What every agent must do: the same plans in, the same lines out, whatever it is written in."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.agent.native import native_agent, runtime_libraries
from devices.agent.program import build
from devices.agent.tiny import tiny_model as tiny_bytes
from profiles.errors import AgentError
from tests.builders import TinyModel, agent_plan

Events = list[dict[str, Any]]
EXECUTED_BY = {"onnxruntime": "CPUExecutionProvider", "litert": "XNNPACK"}
#: Every event's keys; those of the environment are what the device tells.
KEYS = {
    "hello": {"event", "agent", "runtime", "version"},
    "loaded": {"event", "job", "load_ns", "first_ns", "delegates", "threads"},
    "warmup": {"event", "job", "ns"},
    "samples": {"event", "job", "ns"},
    "done": {"event", "peak_bytes"},
    "error": {"event", "kind", "message"},
}


@dataclass(frozen=True)
class Agent:
    """An agent on this machine, one runtime for it, and a model in that runtime's format."""

    kind: str
    command: tuple[str, ...]
    runtime: str
    library: str | None
    model: dict[str, Any]
    folder: Path

    def job(self, id_: str = "tiny", **changes: Any) -> dict[str, Any]:
        return {**self.model, "id": id_, **changes}

    def plan(self, jobs: Sequence[dict[str, Any]] | None = None, **changes: Any) -> Path:
        given = {"runtime": self.runtime, "library": self.library, "delegate": None, **changes}
        plan = agent_plan([self.job()] if jobs is None else jobs, **given)
        return self.write(json.dumps(plan))

    def write(self, text: str | bytes) -> Path:
        path = self.folder / "plan.json"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        words = [*self.command, *map(str, arguments)]
        return subprocess.Popen(words, cwd=self.folder, stdout=subprocess.PIPE, **options)

    def run(
        self, *arguments: str | Path, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*self.command, *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, **(env or {})},
            capture_output=True,
            timeout=60,
            check=False,
        )

    def measure(self, jobs: Sequence[dict[str, Any]] | None = None, **changes: Any) -> Events:
        done = self.run(self.plan(jobs, **changes))
        assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
        return events_of(done)

    def refuse(self, plan: Path) -> Events:
        """The events of a plan that cannot be carried out: the last one says why."""
        done = self.run(plan)
        events = events_of(done)
        assert done.returncode == 1
        assert events[-1]["event"] == "error"
        assert set(events[-1]) == KEYS["error"]
        assert events[-1]["message"]
        assert "\n" not in events[-1]["message"]
        assert b"Traceback" not in done.stderr
        return events


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...] | str]:
    """By agent: the command that starts it, or why there is none."""
    found: dict[str, tuple[str, ...] | str] = {
        "python": (sys.executable, str(build(tmp_path_factory.mktemp("python") / "agent.pyz")))
    }
    try:
        folder = tmp_path_factory.mktemp("native")
        found["native"] = (str(native_agent(platform.machine(), folder=folder)),)
    except AgentError as error:
        found["native"] = str(error)
    return found


@pytest.fixture(params=[(k, r) for k in ("python", "native") for r in EXECUTED_BY], ids="-".join)
def agent(request, programs, tiny_model: TinyModel, tmp_path: Path) -> Agent:
    kind, runtime = request.param
    return _agent(kind, runtime, programs, tiny_model, tmp_path)


@pytest.fixture(params=["python", "native"])
def ort_agent(request, programs, tiny_model: TinyModel, tmp_path: Path) -> Agent:
    """Where it is the agent alone that matters, one runtime will do."""
    return _agent(request.param, "onnxruntime", programs, tiny_model, tmp_path)


def _agent(kind: str, runtime: str, programs: Any, tiny: TinyModel, folder: Path) -> Agent:
    command = programs[kind]
    if isinstance(command, str):
        pytest.skip(command)
    library = runtime_libraries().get(runtime)
    if kind == "native" and library is None:
        pytest.skip(f"no C library of {runtime} among the packages here")
    model = tiny.plan_job() if runtime == "onnxruntime" else litert_job(folder)
    return Agent(kind, command, runtime, library and str(library), model, folder)


def litert_job(folder: Path) -> dict[str, Any]:
    (folder / "tiny.tflite").write_bytes(tiny_bytes("litert"))
    np.array([[-1, 0, 1, 2]], dtype=np.float32).tofile(folder / "x.bin")
    given = {"path": str(folder / "x.bin"), "shape": [1, 4], "dtype": "float32"}
    return {"path": str(folder / "tiny.tflite"), "inputs": [given]}


def events_of(done: subprocess.CompletedProcess[bytes]) -> Events:
    """Every line is one JSON object, or this raises."""
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def kinds(events: Events) -> list[str]:
    """Names of the events in order, repetitions folded."""
    return [kind for kind, _ in groupby(event["event"] for event in events)]


def samples(events: Events, job: str = "tiny", kind: str = "samples") -> list[int]:
    mine = [event for event in events if event["event"] == kind and event["job"] == job]
    return [ns for event in mine for ns in event["ns"]]


# One whole model


def test_the_events_of_one_run(agent: Agent):
    events = agent.measure()
    assert kinds(events) == [
        *("hello", "environment", "loaded", "warmup", "samples", "environment", "done")
    ]
    for event in events:
        if event["event"] != "environment":
            assert set(event) == KEYS[event["event"]]
    hello, before, loaded, *_, after, done = events
    assert (hello["agent"], hello["runtime"]) == (agent.kind, agent.runtime)
    assert hello["version"]
    assert (before["when"], after["when"]) == ("before", "after")
    assert set(before) >= {"frequencies_khz", "temperatures_mdegc", "clock"}
    assert loaded["job"] == "tiny"
    assert loaded["delegates"] == [EXECUTED_BY[agent.runtime]]
    assert loaded["threads"] == 1
    assert loaded["load_ns"] > 0
    assert loaded["first_ns"] > 0
    assert done["peak_bytes"] > 5_000_000


@pytest.mark.parametrize(
    ("iterations", "size", "slices"), [(20, 8, [8, 8, 4]), (5, 50, [5]), (6, 3, [3, 3]), (0, 1, [])]
)
def test_every_iteration_is_delivered_slice_by_slice(ort_agent, iterations, size, slices):
    events = ort_agent.measure(iterations=iterations, slice_iterations=size)
    parts = [event["ns"] for event in events if event["event"] == "samples"]
    assert [len(part) for part in parts] == slices
    assert all(isinstance(ns, int) and ns > 0 for part in parts for ns in part)


def test_warm_up_by_count(ort_agent):
    events = ort_agent.measure(warmup_iterations=7, warmup_ns=0)
    assert len(samples(events, kind="warmup")) == 7


def test_warm_up_by_time(ort_agent):
    events = ort_agent.measure(warmup_iterations=2, warmup_ns=5_000_000)
    warmup = samples(events, kind="warmup")
    assert len(warmup) > 2
    assert len(warmup) % 2 == 0
    assert sum(warmup) >= 5_000_000
    assert sum(warmup[:-2]) < 5_000_000
    assert len(samples(events)) == 20  # none of it counts as a sample


def test_no_warm_up(ort_agent):
    events = ort_agent.measure(warmup_iterations=0, warmup_ns=0)
    assert "warmup" in kinds(events)
    assert samples(events, kind="warmup") == []
    assert len(samples(events)) == 20


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
    assert events[-1] == {"event": "done", "peak_bytes": None}


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


# What goes wrong


def broken(job: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**job, "inputs": [{**job["inputs"][0], **changes}]}


def without(plan: Path, key: str) -> None:
    plan.write_text(json.dumps({k: v for k, v in json.loads(plan.read_text()).items() if k != key}))


BAD_JOBS = {
    "no such model": lambda job: {**job, "path": "missing"},
    "no model": lambda job: {**job, "path": __file__},
    "no such input": lambda job: broken(job, path="missing.bin"),
    "wrong shape": lambda job: broken(job, shape=[1, 9]),
    "wrong size for the model": lambda job: broken(
        job, shape=[2, job["inputs"][0]["shape"][1] // 2]
    ),
    "wrong type": lambda job: broken(job, dtype="int32"),
    "no such type": lambda job: broken(job, dtype="float7"),
    "too few inputs": lambda job: {**job, "inputs": []},
    "too many inputs": lambda job: {**job, "inputs": job["inputs"] * 2},
}


@pytest.mark.parametrize("name", BAD_JOBS)
def test_a_bad_job_is_an_error_event(agent, name):
    events = agent.refuse(agent.plan([BAD_JOBS[name](agent.job())]))
    assert events[-1]["kind"] == "failed"
    assert "samples" not in kinds(events)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_truncated_artifact_is_an_error_event(agent, part):
    whole = Path(agent.model["path"]).read_bytes()
    short = agent.folder / f"short{Path(agent.model['path']).suffix}"
    short.write_bytes(whole[: int(len(whole) * part)])
    assert agent.refuse(agent.plan([agent.job(path=str(short))]))[-1]["kind"] == "failed"


BAD_SETTINGS: dict[str, dict[str, Any]] = {
    "newer format": {"format": 99},
    "older format": {"format": 1},
    "slices of nothing": {"slice_iterations": 0},
    "no such core": {"core_mask": f"{1 << 900:x}"},
    "a core that is not there": {"core_mask": f"{(1 << 900) + 1:x}"},
    "a mask that is no number": {"core_mask": "all"},
    "iterations that are no number": {"iterations": "many"},
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_bad_setting_is_an_error_event(ort_agent, name):
    assert ort_agent.refuse(ort_agent.plan(**BAD_SETTINGS[name]))[-1]["kind"] == "failed"


@pytest.mark.parametrize("key", ["format", "runtime", "threads", "iterations", "seed", "jobs"])
def test_a_plan_without_a_key_is_an_error_event(ort_agent, key):
    plan = ort_agent.plan()
    without(plan, key)
    assert ort_agent.refuse(plan)[-1]["kind"] == "failed"


def test_two_jobs_of_one_name_are_an_error_event(ort_agent):
    assert ort_agent.refuse(ort_agent.plan([ort_agent.job(), ort_agent.job()]))


@pytest.mark.parametrize(
    "text",
    [None, "", "not json", '{"format": 1', "null", "[]", "[1]", '"plan"', b"\xff\xfe", "{}x"],
)
def test_a_plan_that_cannot_be_read_is_an_error_event(ort_agent, text):
    plan = ort_agent.folder / "plan.json" if text is None else ort_agent.write(text)
    assert [event["kind"] for event in ort_agent.refuse(plan)] == ["failed"]


def test_a_runtime_nobody_knows_is_missing(ort_agent):
    events = ort_agent.refuse(ort_agent.plan(runtime="abacus"))
    assert [event["kind"] for event in events] == ["runtime-missing"]
    assert "abacus" in events[-1]["message"]


# What was asked for must take part


def fallback_of(agent: Agent, **changes: Any) -> str:
    job = agent.job(expect=changes.pop("expect", []))
    events = agent.refuse(agent.plan([job], **changes))
    assert events[-1]["kind"] == "fallback"
    assert "warmup" not in kinds(events)
    assert "samples" not in kinds(events)
    return str(events[-1]["message"])


def test_what_is_expected_and_takes_part_is_measured(agent):
    expected = EXECUTED_BY[agent.runtime]
    events = agent.measure([agent.job(expect=[expected])], delegate=expected)
    assert len(samples(events)) == 20


def test_a_delegate_that_this_build_does_not_have_is_refused(agent):
    assert "NoSuchDelegate" in fallback_of(agent, delegate="NoSuchDelegate")


def test_a_delegate_that_is_expected_and_takes_no_part_is_refused(agent):
    message = fallback_of(agent, expect=[EXECUTED_BY[agent.runtime], "NoSuchDelegate"])
    assert "NoSuchDelegate" in message
    assert EXECUTED_BY[agent.runtime] in message  # what did take part


def test_a_provider_that_is_registered_and_runs_nothing_is_refused(ort_agent):
    """The runtime lists it among a session's providers, and the CPU does all the work."""
    import onnxruntime

    idle = "AzureExecutionProvider"
    if idle not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {idle}")
    message = fallback_of(ort_agent, delegate=idle)
    assert idle in message
    assert "CPUExecutionProvider" in message


def test_the_runtime_can_be_told_to_use_its_own_kernels(agent):
    if agent.runtime != "litert":
        pytest.skip("LiteRT's matter")
    loaded = next(e for e in agent.measure(delegate="builtin") if e["event"] == "loaded")
    assert loaded["delegates"] == ["builtin"]
    assert "XNNPACK" in fallback_of(agent, delegate="builtin", expect=["XNNPACK"])


def test_delegates_are_told_of_the_model_they_execute(agent, tmp_path):
    """Nothing takes part in models without operators; the next one's delegate is not theirs."""
    if agent.runtime != "litert":
        pytest.skip("LiteRT's matter")
    empty = tmp_path / "empty.tflite"
    empty.write_bytes(without_operators(Path(agent.model["path"])))
    jobs = [agent.job("a", path=str(empty)), agent.job("b", path=str(empty)), agent.job("whole")]
    events = agent.measure(jobs)
    found = {e["job"]: e["delegates"] for e in events if e["event"] == "loaded"}
    assert found["whole"] == ["XNNPACK"]
    assert "XNNPACK" not in found["a"] + found["b"]


def without_operators(model: Path) -> bytes:
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    whole = schema.ModelT.InitFromPackedBuf(model.read_bytes(), 0)
    (graph,) = whole.subgraphs
    graph.operators, graph.outputs = [], graph.inputs
    builder = flatbuffers.Builder(256)
    builder.Finish(whole.Pack(builder), b"TFL3")
    return bytes(builder.Output())


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
    assert kinds(whole) == ["hello", "environment", "loaded", "warmup", "samples"]
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
