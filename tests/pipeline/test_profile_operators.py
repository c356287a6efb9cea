"""ONNX Runtime's profile: a recorded one, loops, garbage; and operators found again in blocks."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.export import write_artifact
from pipeline.model import trace
from pipeline.profile.cut import cut
from pipeline.profile.operators import operators_of, understand
from pipeline.profile.record import OperatorProfile
from profiles.errors import StageError
from tests.pipeline.networks import MobileLike, image, settled

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:torch",
    "ignore::FutureWarning:copyreg",
    "ignore::DeprecationWarning:torch",
)

GOLDEN = Path(__file__).parents[1] / "golden" / "operators" / "onnxruntime-1.31.1-digits.json"
CALLS = 5


@pytest.fixture
def recorded() -> list[dict[str, Any]]:
    """Five calls of the digits network, as the runtime wrote them down."""
    return json.loads(GOLDEN.read_text())


def call(start: int, length: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": length, "args": {}}


def node(name: str, start: int, length: int, type_: str = "Conv") -> dict[str, Any]:
    arguments = {"op_name": type_, "provider": "CPUExecutionProvider", "node_index": "0"}
    return {
        "cat": "Node",
        "name": f"{name}_kernel_time",
        "ts": start,
        "dur": length,
        "args": arguments,
    }


def test_a_recorded_profile(recorded):
    found = understand(recorded, CALLS)
    types = [operator.type for operator in found.operators]
    assert types.count("Conv") == 6
    assert types[-1] == "Gemm"
    assert {operator.provider for operator in found.operators} == {"CPUExecutionProvider"}
    runs = [event["dur"] for event in recorded if event["name"] == "model_run"]
    assert found.whole_ns == 1000 * median(runs)
    first = found.operators[0]
    durations = [e["dur"] for e in recorded if e["name"] == f"{first.name}_kernel_time"]
    assert len(durations) == CALLS
    assert first.latency_ns == 1000 * median(durations)
    assert 0 < found.sum_ns < found.whole_ns
    assert found.gap_ns == found.whole_ns - found.sum_ns
    nodes = [event["dur"] for event in recorded if event["cat"] == "Node"]
    assert understand(recorded, 1).sum_ns == 1000 * sum(nodes[-len(types) :])


def test_calls_that_warmed_up_do_not_count(recorded):
    quick = copy.deepcopy(recorded)
    first = next(event for event in quick if event["name"] == "model_run")
    for event in quick:
        if first["ts"] <= event["ts"] <= first["ts"] + first["dur"] and event["cat"] == "Node":
            event["dur"] = 0
    assert understand(recorded, 4).sum_ns == understand(quick, 4).sum_ns
    assert understand(recorded, 5).sum_ns != understand(quick, 5).sum_ns


def test_an_operator_is_summed_over_a_call_and_the_median_taken_over_the_calls():
    trace_ = []
    for start, length in ((0, 10), (1000, 20), (2000, 90)):
        trace_ += [node("a", start + 1, length), node("b", start + 200, 5)]
        trace_ += [node("a", start + 300, 1), call(start, 400)]
    found = understand(trace_, 3)
    assert [(o.name, o.latency_ns) for o in found.operators] == [("a", 21_000), ("b", 5_000)]
    assert (found.sum_ns, found.whole_ns, found.calls) == (26_000, 400_000, 3)


def test_what_is_inside_a_loop_is_not_counted_twice():
    inner = [node("body", 10, 20), node("body", 30, 30)]
    found = understand([*inner, node("loop", 5, 60, "Loop"), node("last", 65, 4), call(0, 100)], 1)
    assert [(o.name, o.latency_ns) for o in found.operators] == [("loop", 60_000), ("last", 4_000)]


def test_operators_outside_of_calls_do_not_count():
    found = understand([node("a", 5, 10), node("a", 500, 10), call(0, 100)], 1)
    assert found.sum_ns == 10_000


@pytest.mark.parametrize(
    ("trace_", "calls", "what"),
    [
        ([call(0, 5)], 1, "no operators"),
        ([node("a", 0, 1)], 1, "has 0 calls"),
        ([call(0, 5), node("a", 0, 1)], 2, "has 1 calls, not 2"),
        ([call(0, 5), node("a", 0, 1)], 0, "calls, not 0"),
        (None, 1, "not understood"),
        ({}, 1, "not understood"),
        ([1], 1, "not understood"),
        ([{**node("a", 0, 1), "dur": -1}, call(0, 5)], 1, "not understood"),
        ([{**node("a", 0, 1), "ts": 1.5}, call(0, 5)], 1, "not understood"),
        ([{**node("a", 0, 1), "args": {}}, call(0, 5)], 1, "not understood"),
    ],
)
def test_what_is_no_profile_is_refused(trace_, calls, what):
    with pytest.raises(StageError, match=what):
        understand(trace_, calls)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
keys = {
    "cat": st.sampled_from(["Node", "Session"]) | plain,
    "name": st.sampled_from(["model_run", "a_kernel_time", "b_kernel_time"]) | plain,
    "ts": st.integers(-5, 1000) | plain,
    "dur": st.integers(-5, 1000) | plain,
    "args": st.just({"op_name": "Conv"}) | plain,
}


@given(st.lists(st.fixed_dictionaries({}, optional=keys) | plain, max_size=12) | plain)
@example([call(0, 5), node("a", 0, 1)])
def test_garbage_is_refused_or_understood_but_never_more(trace_):
    try:
        found = understand(trace_, 1)
    except StageError:
        return
    assert found.sum_ns == sum(operator.latency_ns for operator in found.operators)
    assert all(operator.latency_ns >= 0 for operator in found.operators)


@pytest.fixture(scope="module")
def observed(tmp_path_factory) -> tuple[OperatorProfile, list[str]]:
    """The operators of a network with gates and shortcuts, from a real session, and its blocks."""
    folder = tmp_path_factory.mktemp("observed")
    program = trace(settled(MobileLike()), torch.from_numpy(image()))
    blocks = {b.name: b.operators for b in cut(program, (torch.from_numpy(image()),)).blocks}
    path = folder / "model.onnx"
    write_artifact(program, "onnx", path)
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(3):
        session.run(None, {session.get_inputs()[0].name: image()})
    events = json.loads(Path(session.end_profiling()).read_text())
    return operators_of(events, 2, path, blocks), list(blocks)


def test_operators_are_found_in_their_blocks(observed):
    profile, blocks = observed
    convolutions = [o.block for o in profile.operators if o.type in ("Conv", "FusedConv")]
    count = {block: convolutions.count(block) for block in dict.fromkeys(convolutions)}
    assert count == {
        "features.0": 1,
        "features.1": 5,  # three, and two of the gate
        "features.2": 3,
        "features.3": 5,
        "features.4": 5,
        "features.5": 1,
    }
    gemms = [o.block for o in profile.operators if o.type in ("Gemm", "FusedGemm")]
    assert gemms == ["classifier.0", "classifier.3"]
    order = [blocks.index(o.block) for o in profile.operators if o.block is not None]
    assert order == sorted(order)


def test_few_operators_belong_to_no_block(observed):
    profile, _ = observed
    lost = [operator.type for operator in profile.operators if operator.block is None]
    assert not {"Conv", "FusedConv", "Gemm"} & set(lost)
    assert len(lost) < len(profile.operators) / 4, lost
