"""What an agent says is taken as it comes, or not at all."""

from __future__ import annotations

import contextlib
import json
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from devices.recorder import MARKS, RunRecorder
from profiles.errors import AgentError
from tests.builders import plan

Event = dict[str, Any]
#: One of each kind that an agent may say.
VALID: dict[str, Event] = {
    "hello": {"runtime": "litert", "version": "2", "agent": "native", "build": "git 1"},
    "environment": {"when": "warm", "at_ns": 5, "own_ms": 3},
    "loaded": {"job": "a", "load_ns": 7, "first_ns": 8, "delegates": ["x"], "threads": 2},
    "warmup": {"job": "a", "ns": [5]},
    "samples": {"job": "a", "ns": [30, 40], "start_ns": 100, "khz": 1_200_000},
    "memory": {"job": "a", "base_bytes": 1, "loaded_bytes": 2, "peak_bytes": 3, "file_bytes": 0},
    "operators": {"job": "a", "trace": [{"name": "model_run"}]},
    "mark": {"what": "active", "start_ns": 1, "end_ns": 2, "calls": 3},
    "power": {"at_ns": [1, 2], "values": [["3", ""], ["4", ""]]},
    "done": {},
    "error": {"kind": "failed", "message": "no"},
}


def say(recorder: RunRecorder, event: str, **changes: Any) -> None:
    recorder.line(json.dumps({"event": event, **VALID[event], **changes}))


def recorder_with_samples() -> RunRecorder:
    recorder = RunRecorder(["a"])
    say(recorder, "hello", version="1", agent="python", build=None)
    say(recorder, "samples", ns=[10, 20], start_ns=9, khz=None)
    return recorder


def state(recorder: RunRecorder) -> dict[str, Any]:
    found = {name: value for name, value in vars(recorder).items() if name != "recordings"}
    recordings = {job: asdict(one) for job, one in recorder.recordings.items()}
    return deepcopy({**found, "_keep": None, "recordings": recordings})


@pytest.mark.parametrize("event", VALID)
def test_what_an_agent_says_is_taken(event):
    recorder = recorder_with_samples()
    before = state(recorder)
    say(recorder, event)
    assert state(recorder) != before


def test_what_was_said_is_found_again():
    recorder = recorder_with_samples()
    for event in VALID:
        say(recorder, event)
    say(recorder, "samples", ns=[50], start_ns=200, khz=None)
    assert (recorder.version, recorder.agent, recorder.build) == ("2", "native", "git 1")
    assert recorder.environment == {"warm": {"at_ns": 5, "own_ms": 3}}
    assert recorder.recordings["a"].samples_ns().tolist() == [10, 20, 30, 40, 50]
    assert recorder.recordings["a"].warmup_ns().tolist() == [5]
    assert recorder.details("a") == {
        "slices": [[9, 2, None], [100, 2, 1_200_000], [200, 1, None]],
        "memory": {"base_bytes": 1, "loaded_bytes": 2, "peak_bytes": 3, "file_bytes": 0},
        "operators": [{"name": "model_run"}],
        "marks": [{"what": "active", "start_ns": 1, "end_ns": 2, "calls": 3}],
        "power": {"at_ns": [1, 2], "values": [["3", ""], ["4", ""]]},
    }


def test_what_was_not_said_is_unknown_not_zero():
    recorder = RunRecorder(["a"])
    recording = recorder.recordings["a"]
    assert len(recording.samples_ns()) == len(recording.warmup_ns()) == 0
    assert recording.samples_ns().dtype == np.int64
    assert recording.load_ns is recording.first_ns is None
    assert recorder.details("a") == {}
    assert (recorder.build, recorder.version) == ("unknown", "unknown")


def test_a_peak_of_memory_may_be_unknown():
    recorder = recorder_with_samples()
    say(recorder, "memory", peak_bytes=None)
    assert recorder.details("a")["memory"]["peak_bytes"] is None


# Garbage

NOT_JSON = [
    "",
    "Welcome to the board",
    "{",
    "[]",
    "1",
    "null",
    '"samples"',
    "{}",
    '{"event":"celebration"}',
    '{"event":null}',
    '{"event":["samples"]}',
    '{"event":"line"}',
    '{"event":"samples","job":"a","ns":[NaN],"start_ns":1,"khz":null}',
    '{"event":"samples","job":"a","ns":[Infinity],"start_ns":1,"khz":null}',
    "[" * 100_000,
]
BROKEN: list[tuple[str, Event]] = [
    ("environment", {"when": "preflight"}),
    ("environment", {"when": ["before"]}),
    ("loaded", {"load_ns": "soon"}),
    ("loaded", {"threads": 0}),
    ("loaded", {"delegates": None}),
    ("samples", {"job": "b"}),
    ("samples", {"job": ["a"]}),
    ("samples", {"ns": 3}),
    ("samples", {"ns": "12"}),
    ("samples", {"ns": ["fast"]}),
    ("samples", {"ns": [0]}),
    ("samples", {"ns": [-5]}),
    ("samples", {"ns": [True]}),
    ("samples", {"ns": [36893488147419103232]}),
    ("samples", {"start_ns": None}),
    ("samples", {"start_ns": -1}),
    ("samples", {"khz": "fast"}),
    ("samples", {"khz": -1}),
    ("warmup", {"ns": [None]}),
    ("memory", {"job": "b"}),
    ("memory", {"base_bytes": None}),
    ("memory", {"loaded_bytes": 0}),
    ("memory", {"peak_bytes": 0}),
    ("memory", {"file_bytes": -1}),
    ("operators", {"trace": "model_run"}),
    ("operators", {"trace": ["model_run"]}),
    ("mark", {"what": "lunch"}),
    ("mark", {"end_ns": 0}),
    ("mark", {"calls": 1.5}),
    ("power", {"values": [["3", ""]]}),
    ("power", {"values": [["3", ""], [4, ""]]}),
    ("power", {"values": ["3", "4"]}),
    ("power", {"values": None}),
    ("power", {"at_ns": [2, 1]}),
    ("power", {"at_ns": [1, 1]}),
    ("power", {"at_ns": [1, "2"]}),
]


def refuses(text: str) -> None:
    recorder = recorder_with_samples()
    before = state(recorder)
    with pytest.raises(AgentError, match="unexpected"):
        recorder.line(text)
    assert state(recorder) == before


@pytest.mark.parametrize("text", NOT_JSON, ids=lambda text: repr(text[:60]))
def test_garbage_is_an_agent_error_and_changes_nothing(text):
    refuses(text)


@pytest.mark.parametrize(("event", "changes"), BROKEN, ids=str)
def test_an_event_that_is_wrong_is_an_agent_error_and_changes_nothing(event, changes):
    refuses(json.dumps({"event": event, **VALID[event], **changes}))


@pytest.mark.parametrize("event", VALID)
def test_an_event_without_one_of_its_keys_changes_nothing(event):
    # What the host makes no use of may be missing.
    for key in VALID[event].keys() - {"runtime", "at_ns" * (event == "environment"), "own_ms"}:
        rest = {name: value for name, value in VALID[event].items() if name != key}
        refuses(json.dumps({"event": event, **rest}))


SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
JSON = SCALAR | st.lists(SCALAR, max_size=3) | st.dictionaries(st.text(max_size=5), SCALAR)
NAMES = sorted({name for event in VALID.values() for name in event})


@st.composite
def events(draw: st.DrawFn) -> Event:
    """Events that are nearly right."""
    event = draw(st.sampled_from(list(VALID)))
    spoiled = draw(st.dictionaries(st.sampled_from(NAMES), JSON, max_size=2))
    return {"event": event, **VALID[event], **spoiled}


@given(events())
@example({"event": "samples", "job": "a", "ns": [True], "start_ns": 1, "khz": None})
def test_whatever_comes_the_recorder_stays_usable(event):
    recorder = recorder_with_samples()
    with contextlib.suppress(AgentError):
        recorder.line(json.dumps(event))
    recording = recorder.recordings["a"]
    assert recording.samples_ns().dtype == np.int64
    assert recording.samples_ns().min() > 0
    assert list(recording.samples_ns()[:2]) == [10, 20]
    assert (recording.warmup_ns() > 0).all()
    assert recording.load_ns is None or recording.load_ns > 0
    slices = recorder.details("a")["slices"]
    assert sum(calls for _, calls, _ in slices) == len(recording.samples)
    json.dumps(recorder.details("a"))


# What is demanded


def delivered(kind: str, without: str = "") -> None:
    """Hand in all there is but one kind of event, and ask whether that will do."""
    recorder = RunRecorder(["a"])
    for event in VALID.keys() - {"mark", "error", without}:
        say(recorder, event)
    for what in MARKS:
        if what != without:
            say(recorder, "mark", what=what)
    recorder.demand(plan(kind=kind, iterations=2))


@pytest.mark.parametrize(
    ("kind", "needs"),
    [("memory", "memory"), ("operators", "operators"), ("energy", "power")]
    + [("energy", mark) for mark in MARKS],
)
def test_a_run_has_what_its_kind_is_for(kind, needs):
    delivered(kind)
    delivered("latency", without=needs)
    with pytest.raises(AgentError, match=f"no {kind}"):
        delivered(kind, without=needs)


@pytest.mark.parametrize("kind", ["latency", "app", "memory", "operators"])
def test_a_run_has_all_its_samples_and_no_more(kind):
    delivered(kind)
    for iterations, window_ns in ((1, 0), (3, 0), (3, 9)):
        with pytest.raises(AgentError, match=f"2 of {iterations} samples for a"):
            recorder = RunRecorder(["a"])
            for event in VALID:
                say(recorder, event)
            recorder.demand(plan(kind=kind, iterations=iterations, window_ns=window_ns))


@pytest.mark.parametrize("changes", [{"kind": "sustained", "window_ns": 9}, {"kind": "energy"}])
def test_a_window_may_hold_more_samples_than_were_asked_for(changes):
    recorder = RunRecorder(["a"])
    for event in VALID.keys() - {"mark"}:
        say(recorder, event)
    for what in MARKS:
        say(recorder, "mark", what=what)
    recorder.demand(plan(iterations=1, **changes))
    with pytest.raises(AgentError, match="2 of 3 samples"):
        recorder.demand(plan(iterations=3, **changes))
