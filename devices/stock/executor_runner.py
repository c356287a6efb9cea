"""ExecuTorch's ``executor_runner``.

*Source* of flags and messages: examples/portable/executor_runner and runtime/platform/default in
ExecuTorch's sources, and the outputs in tests/golden/stock.
"""

from __future__ import annotations

import re

from devices.stock.base import (
    NUMBER,
    StockResult,
    StockRun,
    find,
    incomplete,
    known_ns,
    ns,
    output,
    text,
)
from devices.transport.base import Completed
from profiles.errors import AgentError, UsageError
from profiles.records import SUFFIX_OF

NAME = "executor_runner"

# On Android the program logs to the system's log alone: what its process wrote there is appended.
_SCRIPT = """
command -v logcat > /dev/null 2>&1 || exec "$@"
"$@" &
process=$!
wait "$process"
code=$?
logcat -d -v raw --pid="$process" -s ExecuTorch
exit "$code"
"""
_LOADED = rf"Model loaded in ({NUMBER}) ms\.$"
_ITERATION = rf"Iteration ([0-9]{{1,9}}) of ([0-9]{{1,9}}): ({NUMBER}) ms$"
_TOTAL = rf"Model executed successfully ([0-9]{{1,9}}) time\(s\) in ({NUMBER}) ms\.$"


class ExecutorRunner:
    """The adapter for ``executor_runner``: it makes no warm-up call, and counts the first one."""

    name = NAME
    runtime = "executorch"
    ending = SUFFIX_OF["executorch"]

    def command(self, run: StockRun) -> list[str]:
        """Only flags that builds without a tracer and without the newest options have."""
        if run.delegate is not None:
            raise UsageError(
                f"{NAME} cannot be asked for a delegate: backends are written in the program",
                "leave out --delegate, and export for the backend",
            )
        if run.memory:
            raise UsageError(f"{NAME} does not tell its memory", "leave out --memory")
        return [
            *("sh", "-c", _SCRIPT, "sh", run.program),
            f"--model_path={run.artifact}",
            f"--num_executions={run.iterations}",
            f"--cpu_threads={run.threads}",
        ]

    def parse(self, run: StockRun, done: Completed) -> StockResult:
        """See :class:`devices.stock.base.StockTool`."""
        _refuse_other_builds(text(done))
        said = output(NAME, done)
        total = find(_TOTAL, said)
        if total is None:
            if find(r"Model executed successfully\.$", said):
                raise AgentError(f"this build of {NAME} measures no time", "use a newer one")
            raise incomplete(NAME, "the time of all calls")
        n = int(total[1])
        if n == 0:
            raise AgentError(f"{NAME} made no timed call")
        total_ns = ns(NAME, total[2], "ms")
        samples = _samples(said, n, total_ns)
        loaded = find(_LOADED, said)
        return StockResult(
            tool=NAME,
            runtime=self.runtime,
            n=n,
            mean_ns=round(total_ns / n),
            min_ns=min(samples) if samples else None,
            max_ns=max(samples) if samples else None,
            p50_ns=sorted(samples)[n // 2] if samples else None,
            load_ns=known_ns(NAME, loaded[1], "ms") if loaded else None,
            first_ns=samples[0] if samples else total_ns if n == 1 else None,
            samples_ns=samples,
            notes=_notes(run, n, said),
        )


def _refuse_other_builds(said: str) -> None:
    if "unknown command line flag" in said:
        raise AgentError(
            f"this build of {NAME} has not all the options that are needed",
            "use one that has --num_executions and --cpu_threads",
        )
    if "ETDump written to file" in said:
        raise AgentError(
            f"this build of {NAME} traces every operator, which its times include",
            "build it without EXECUTORCH_ENABLE_EVENT_TRACER",
        )


def _samples(said: str, n: int, total_ns: int) -> tuple[int, ...] | None:
    """Newer builds tell each call's time."""
    found = list(re.finditer(_ITERATION, said, re.MULTILINE))
    if not found:
        return None
    if [(int(m[1]), int(m[2])) for m in found] != [(i + 1, n) for i in range(len(found))]:
        raise incomplete(NAME, "every call")
    samples = tuple(ns(NAME, m[3], "ms") for m in found)
    # Each is rounded to the last digit printed.
    if len(samples) != n or abs(sum(samples) - total_ns) > 0.01 * total_ns + n:
        raise AgentError(f"{NAME} contradicts itself: its calls do not add up to their sum")
    return samples


def _notes(run: StockRun, n: int, said: str) -> tuple[str, ...]:
    notes = ["no warm-up: the first call is one of those timed"]
    if n != run.iterations:
        notes.append(f"{n} timed calls where {run.iterations} were asked for")
    if "Resetting threadpool" not in said:
        notes.append("the tool does not say how many threads it used")
    return tuple(notes)
