"""What no agent measures: a plan that cannot be carried out ends with an event that says why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.agents import EXECUTED_BY, Agent, kinds, samples

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
    "no iterations": {"iterations": 0},
    "no threads": {"threads": 0},
    "no time": {"deadline_s": 0},
    "more time than there is": {"deadline_s": 10**12},
    "a window before now": {"window_ns": -1},
    "a window beyond all time": {"window_ns": 10**18},
    "a window that is no whole number": {"window_ns": 1.5},
    "a period that runs backwards": {"kind": "app", "period_ns": -1},
    "less than no warm-up": {"warmup_iterations": -1},
    "warm-up for less than no time": {"warmup_ns": -1},
    "less than no settling": {"settle_iterations": -1},
    "a yes for a number": {"iterations": True},
    "a seed that is too long": {"seed": 2**63},
    "no jobs": {"jobs": []},
    "no such core": {"core_mask": f"{1 << 900:x}"},
    "a core that is not there": {"core_mask": f"{(1 << 900) + 1:x}"},
    "a mask that is no number": {"core_mask": "all"},
    "iterations that are no number": {"iterations": "many"},
    "no such kind": {"kind": "speed"},
    "energy without a meter": {"kind": "energy"},
    "a meter that reads nothing": {
        "kind": "energy",
        "meter": {"period_ns": 10**7, "files": [], "command": []},
    },
    "a meter without a period": {
        "kind": "energy",
        "meter": {"period_ns": 0, "files": ["/proc/uptime"], "command": []},
    },
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_a_bad_setting_is_an_error_event(ort_agent, name):
    events = ort_agent.refuse(ort_agent.plan(**BAD_SETTINGS[name]))
    assert events[-1]["kind"] == "failed"
    assert "samples" not in kinds(events)


OUT_OF_RANGE = sorted(name for name in BAD_SETTINGS if "core" not in name and "mask" not in name)


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_a_plan_that_contradicts_itself_is_refused_before_anything_is_done(ort_agent, name):
    assert kinds(ort_agent.refuse(ort_agent.plan(**BAD_SETTINGS[name]))) == ["error"]


NEEDED = ["format", "runtime", "threads", "iterations", "seed", "jobs"]
NEEDED += ["kind", "window_ns", "period_ns", "meter"]


@pytest.mark.parametrize("key", NEEDED)
def test_a_plan_without_a_key_is_an_error_event(ort_agent, key):
    plan = ort_agent.plan()
    without(plan, key)
    assert ort_agent.refuse(plan)[-1]["kind"] == "failed"


def test_two_jobs_of_one_name_are_an_error_event(ort_agent):
    assert ort_agent.refuse(ort_agent.plan([ort_agent.job(), ort_agent.job()]))


@pytest.mark.parametrize("kind", ["sustained", "app", "memory", "operators"])
def test_what_is_for_one_model_takes_one(ort_agent, kind):
    jobs = [ort_agent.job("a"), ort_agent.job("b")]
    assert ort_agent.refuse(ort_agent.plan(jobs, kind=kind))[-1]["kind"] == "failed"


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
