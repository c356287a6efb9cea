"""What every agent delivers for the kinds of trials beside the latency of back-to-back calls."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.conformance.agents import Events, kinds, of, samples

WEIGHTS_BYTES = 40 << 20


# A plain application


def begins(events: Events) -> list[int]:
    assert all(len(event["ns"]) == 1 for event in of(events, "samples"))
    return [event["start_ns"] for event in of(events, "samples")]


def test_calls_of_an_application_begin_on_the_grid(agent):
    period_ns = 50_000_000
    events = agent.measure(kind="app", period_ns=period_ns, iterations=10, slice_iterations=1)
    begun = begins(events)
    assert len(begun) == 10
    steps = [later - earlier for earlier, later in pairwise(begun)]
    assert 0.9 < statistics.median(steps) / period_ns < 1.3
    assert 0.95 < (begun[-1] - begun[0]) / (9 * period_ns) < 1.5


def test_an_application_that_is_late_goes_on_at_once(ort_agent):
    events = ort_agent.measure(kind="app", period_ns=1, iterations=12, slice_iterations=5)
    assert [len(event["ns"]) for event in of(events, "samples")] == [5, 5, 2]


def test_other_work_lies_between_the_calls_of_an_application(ort_agent):
    """Each walks through 16 MiB, which no machine does in the time of one tiny call."""
    events = ort_agent.measure(kind="app", period_ns=1, iterations=10, slice_iterations=1)
    steps = [later - earlier for earlier, later in pairwise(begins(events))]
    assert statistics.median(steps) > 10 * 20_000 + statistics.median(samples(events))


def test_an_application_warms_up_by_count_alone(ort_agent):
    events = ort_agent.measure(kind="app", warmup_iterations=4, warmup_ns=10**15, iterations=3)
    assert kinds(events) == [
        *("hello", "environment", "loaded", "warmup", "environment", "samples", "environment"),
        "done",
    ]
    assert len(samples(events, kind="warmup")) == 4


# Memory


@pytest.fixture(scope="module")
def heavy_model(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A model of 40 MB of weights, all different."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path_factory.mktemp("heavy")
    width = WEIGHTS_BYTES // 4 // 8
    weights = np.random.default_rng(0).standard_normal((8, width), dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "heavy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        folder / "heavy.onnx",
    )
    np.ones((1, 8), dtype=np.float32).tofile(folder / "x.bin")
    given = {"path": str(folder / "x.bin"), "shape": [1, 8], "dtype": "float32"}
    return {"id": "heavy", "path": str(folder / "heavy.onnx"), "inputs": [given]}


def test_the_memory_of_a_model_is_that_of_its_weights(ort_agent, heavy_model):
    (found,) = of(ort_agent.measure([heavy_model], kind="memory"), "memory")
    assert found["job"] == "heavy"
    took = found["loaded_bytes"] - found["base_bytes"]
    assert 0.9 < took / WEIGHTS_BYTES < 4
    assert found["peak_bytes"] > 0.95 * found["loaded_bytes"]  # the kernel counts in batches
    assert found["base_bytes"] > 1_000_000
    assert 0 < found["file_bytes"] < found["peak_bytes"]


@pytest.mark.parametrize(("kind", "calls"), [("latency", 2), ("memory", 1)])
def test_a_slice_begins_with_a_call_that_is_not_timed(ort_agent, heavy_model, kind, calls):
    """It brings the caches back after talking.  The model takes long: what else lies between two
    slices does not show."""
    events = ort_agent.measure([heavy_model], kind=kind, iterations=40, slice_iterations=1)
    # The least of each: others may have the processor while an event is taken.
    step = min(later - before for before, later in pairwise(begins(events)))
    assert calls - 0.4 < step / min(samples(events, "heavy")) < calls + 0.5


def test_the_events_of_a_memory_run(agent):
    events = agent.measure(kind="memory", iterations=20, slice_iterations=8)
    assert kinds(events) == [
        *("hello", "environment", "loaded", "environment", "samples", "memory", "environment"),
        "done",
    ]
    assert len(samples(events)) == 20
    (found,) = of(events, "memory")
    assert found["peak_bytes"] > 0.9 * max(found["base_bytes"], found["loaded_bytes"])


# The runtime's own profile


def test_the_profile_of_operators_is_the_runtimes_own(ort_agent):
    scratch = ort_agent.folder / "scratch"
    scratch.mkdir()
    plan = ort_agent.plan(kind="operators", iterations=7, warmup_iterations=2, slice_iterations=3)
    done = ort_agent.run(plan, env={"TMPDIR": str(scratch)})
    assert done.returncode == 0, done.stderr.decode()
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert kinds(events) == [
        *("hello", "environment", "loaded", "warmup", "environment", "samples", "operators"),
        *("environment", "done"),
    ]
    assert len(samples(events)) == 7
    (found,) = of(events, "operators")
    names = [event["name"] for event in found["trace"]]
    assert names.count("model_run") == 1 + 2 + 7  # the first, warm-up, and the timed ones
    kernels = [event for event in found["trace"] if event["name"].endswith("_kernel_time")]
    assert {event["args"]["op_name"] for event in kernels} >= {"MatMul"}
    assert all(event["dur"] >= 0 for event in kernels)
    assert list(scratch.iterdir()) == []


def test_a_profile_of_operators_leaves_nothing_behind_however_it_ends(ort_agent):
    scratch = ort_agent.folder / "scratch"
    scratch.mkdir()
    plan = ort_agent.plan(kind="operators", iterations=10**9, slice_iterations=10)
    process = ort_agent.start(
        plan, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(scratch)}
    )
    with process:
        while json.loads(process.stdout.readline())["event"] != "samples":
            pass
        process.kill()
    assert list(scratch.iterdir()) == []


def test_a_runtime_without_a_profile_of_operators_says_so(agent):
    if agent.runtime == "onnxruntime":
        pytest.skip("it has one")
    events = agent.refuse(agent.plan(kind="operators"))
    assert events[-1]["kind"] == "failed"
    assert events[-1]["message"] == "LiteRT has no profile of operators"
