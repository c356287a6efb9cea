"""What an agent delivers, event by event; what is held is valid at any moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from profiles.errors import AgentError
from profiles.records import Plan, Samples

#: When the device is looked at.
LOOKS = ("before", "warm", "after")
#: The stretches of time of an energy trial.
MARKS = ("idle-before", "active", "idle-after")


@dataclass(slots=True)
class Recording:
    """What one job's part of an agent process has delivered so far."""

    load_ns: int | None = None
    first_ns: int | None = None
    delegates: tuple[str, ...] = ()
    threads: int | None = None
    warmup: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)
    # For each slice of the samples: when it began, how many calls it has, and the core's clock.
    slices: list[tuple[int, int, int | None]] = field(default_factory=list)
    memory: dict[str, int | None] | None = None
    operators: list[dict[str, Any]] | None = None

    def warmup_ns(self) -> Samples:
        """Warm-up calls in ns."""
        return np.array(self.warmup, dtype=np.int64)

    def samples_ns(self) -> Samples:
        """Timed calls in ns."""
        return np.array(self.samples, dtype=np.int64)


class RunRecorder:
    """Collects the agent's events; what it holds is valid at any moment, broken link or not.

    Args:
        jobs: ids of the jobs in the plan.
        keep: given each line before it is understood.
    """

    def __init__(
        self, jobs: Sequence[str], keep: Callable[[str], None] = lambda text: None
    ) -> None:
        self._keep = keep
        self.recordings = {job: Recording() for job in jobs}
        self.environment: dict[str, Any] = {}
        self.agent = "unknown"
        self.version = "unknown"
        self.build = "unknown"
        self.marks: list[dict[str, Any]] = []
        self.power: dict[str, list[Any]] | None = None
        self.done = False
        self.error: dict[str, Any] | None = None

    def demand(self, plan: Plan) -> None:
        """Make sure that a run that says it is done has delivered everything.

        Raises:
            AgentError: if a job has another number of samples, or what its kind is for is missing.
        """
        for job, recording in self.recordings.items():
            got = len(recording.samples)
            open_end = plan.window_ns or plan.kind == "energy"
            if got < plan.iterations or (got > plan.iterations and not open_end):
                raise AgentError(
                    f"the agent delivered {got} of {plan.iterations} samples for {job[:12]}"
                )
        kind = plan.kind
        lacking = {
            "memory": any(one.memory is None for one in self.recordings.values()),
            "operators": any(one.operators is None for one in self.recordings.values()),
            "energy": self.power is None or [each["what"] for each in self.marks] != [*MARKS],
        }
        if lacking.get(kind):
            raise AgentError(f"the agent delivered no {kind}")

    def details(self, job: str) -> dict[str, Any]:
        """What a job has beside its samples, as plain data."""
        recording = self.recordings[job]
        found = {
            "slices": [list(each) for each in recording.slices],
            "memory": recording.memory,
            "operators": recording.operators,
            "marks": self.marks,
            "power": self.power,
        }
        return {name: value for name, value in found.items() if value}

    def line(self, text: str) -> None:
        """Take one line of the agent's output.

        Raises:
            AgentError: if it is not one of the agent's events.
        """
        self._keep(text)
        try:
            event = json.loads(text)
            getattr(self, f"_on_{event['event']}")(event)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AgentError(f"the agent said something unexpected: {text[:120]!r}") from error

    def _on_hello(self, event: Mapping[str, Any]) -> None:
        said = [event[name] for name in ("version", "agent", "build")]
        self.version, self.agent, self.build = (str(word or "unknown") for word in said)

    def _on_environment(self, event: Mapping[str, Any]) -> None:
        if event["when"] not in LOOKS:
            raise ValueError(f"the device is looked at {', '.join(LOOKS)}")
        self.environment[event["when"]] = {
            key: value for key, value in event.items() if key not in ("event", "when")
        }

    def _on_loaded(self, event: Mapping[str, Any]) -> None:
        recording = self.recordings[event["job"]]
        delegates = tuple(str(name) for name in event["delegates"])
        threads = event["threads"]
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ValueError("threads is a positive integer or null")
        recording.load_ns, recording.first_ns = _latencies([event["load_ns"], event["first_ns"]])
        recording.delegates, recording.threads = delegates, threads

    def _on_warmup(self, event: Mapping[str, Any]) -> None:
        self.recordings[event["job"]].warmup += _latencies(event["ns"])

    def _on_samples(self, event: Mapping[str, Any]) -> None:
        recording, latencies = self.recordings[event["job"]], _latencies(event["ns"])
        khz = event["khz"]
        slice_ = (
            _natural(event["start_ns"]),
            len(latencies),
            None if khz is None else _natural(khz),
        )
        recording.samples += latencies
        recording.slices.append(slice_)

    def _on_memory(self, event: Mapping[str, Any]) -> None:
        names, peak = ("base_bytes", "loaded_bytes", "file_bytes"), event["peak_bytes"]
        sizes: dict[str, int | None] = {name: _natural(event[name]) for name in names}
        # The agent says null where the mark may be older than the model.
        sizes["peak_bytes"] = None if peak is None else _natural(peak)
        if 0 in (sizes["base_bytes"], sizes["loaded_bytes"], sizes["peak_bytes"]):
            raise ValueError("a process takes memory")
        self.recordings[event["job"]].memory = sizes

    def _on_operators(self, event: Mapping[str, Any]) -> None:
        trace = event["trace"]
        if not isinstance(trace, list) or not all(isinstance(each, dict) for each in trace):
            raise ValueError("a trace is a list of events")
        self.recordings[event["job"]].operators = trace

    def _on_mark(self, event: Mapping[str, Any]) -> None:
        mark = {name: _natural(event[name]) for name in ("start_ns", "end_ns", "calls")}
        if event["what"] not in MARKS or mark["end_ns"] < mark["start_ns"]:
            raise ValueError("a mark is a stretch of time")
        self.marks.append({"what": event["what"], **mark})

    def _on_power(self, event: Mapping[str, Any]) -> None:
        at_ns, values = [_natural(ns) for ns in event["at_ns"]], event["values"]
        texts = all(isinstance(text, str) for reading in values for text in reading)
        if not texts or [*map(type, values)] != [list] * len(at_ns):
            raise ValueError("a reading has a time and texts")
        if any(later <= earlier for earlier, later in pairwise(at_ns)):
            raise ValueError("readings follow each other")
        self.power = {"at_ns": at_ns, "values": values}

    def _on_done(self, event: Mapping[str, Any]) -> None:
        self.done = True

    def _on_error(self, event: Mapping[str, Any]) -> None:
        self.error = {"kind": event["kind"], "message": event["message"]}


def _natural(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError("a clock or a size is an integer of 0 or more")
    return value


def _latencies(values: Any) -> list[int]:
    """Latencies as a clock gives them: a time of 0 was never measured."""
    if not isinstance(values, list) or not all(
        type(ns) is int and 0 < ns < 1 << 63 for ns in values
    ):
        raise ValueError("latencies are positive integers")
    return values
