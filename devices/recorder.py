"""What an agent delivers, event by event; what is held is valid at any moment."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from profiles.errors import AgentError
from profiles.records import Samples


@dataclass(slots=True)
class Recording:
    """What one job's part of an agent process has delivered so far."""

    load_ns: int | None = None
    first_ns: int | None = None
    delegates: tuple[str, ...] = ()
    threads: int | None = None
    warmup: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

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
        self.peak_bytes: int | None = None
        self.done = False
        self.error: dict[str, Any] | None = None

    def demand(self, iterations: int) -> None:
        """Make sure that a run that says it is done has delivered everything.

        Raises:
            AgentError: if a job has another number of samples.
        """
        for job, recording in self.recordings.items():
            if len(recording.samples) != iterations:
                raise AgentError(
                    f"the agent delivered {len(recording.samples)} of {iterations} samples"
                    f" for {job[:12]}"
                )

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
        self.version, self.agent = str(event["version"]), str(event["agent"])

    def _on_environment(self, event: Mapping[str, Any]) -> None:
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
        self.recordings[event["job"]].samples += _latencies(event["ns"])

    def _on_done(self, event: Mapping[str, Any]) -> None:
        peak_bytes = event["peak_bytes"]
        if peak_bytes is not None and (type(peak_bytes) is not int or peak_bytes < 1):
            raise ValueError("peak_bytes is a positive integer or null")
        self.peak_bytes, self.done = peak_bytes, True

    def _on_error(self, event: Mapping[str, Any]) -> None:
        self.error = {"kind": event["kind"], "message": event["message"]}


def _latencies(values: Any) -> list[int]:
    """Latencies as a clock gives them: a time of 0 was never measured."""
    if not isinstance(values, list) or not all(
        type(ns) is int and 0 < ns < 1 << 63 for ns in values
    ):
        raise ValueError("latencies are positive integers")
    return values
