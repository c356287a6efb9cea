"""ONNX Runtime's ``onnxruntime_perf_test``.

*Source* of flags, messages and the result file: onnxruntime/test/perftest in ONNX Runtime's sources
(README, ``command_args_parser.cc``, ``performance_runner.cc``; pull request 26313 for the file's
sixth column), and the outputs in tests/golden/stock.
"""

from __future__ import annotations

import re
from dataclasses import replace

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
from profiles.errors import AgentError
from profiles.records import SUFFIX_OF

NAME = "onnxruntime_perf_test"
CPU = "cpu"
#: Around the result file's content in what a run prints.
RESULT_BEGINS, RESULT_ENDS = "-- edgeloop: result file --", "-- edgeloop: end --"

# The result file has every call's time, and is appended to if it exists: a folder of its own.
_SCRIPT = f"""
folder=$(mktemp -d 2> /dev/null || mktemp -d /data/local/tmp/edgeloop.XXXXXX) || exit 1
trap 'rm -rf "$folder"' EXIT
trap 'exit 129' HUP INT TERM
"$@" "$folder/result"
code=$?
echo
echo '{RESULT_BEGINS}'
cat "$folder/result"
echo '{RESULT_ENDS}'
exit "$code"
"""
_ALL_OPTIMISATIONS = "99"
_NO_FALLBACK = "session.disable_cpu_ep_fallback|1"

_REQUESTS = r"Total (?:inference requests|iterations): ?([0-9]{1,12})$"
_MEAN = rf"Average (?:inference )?time cost(?: total)?: ?({NUMBER}) ms$"
_TOTAL = rf"Total (?:inference )?time cost: ?({NUMBER})(?: s)?$"
_LOAD = rf"Session creation time cost: ?({NUMBER}) s$"
_FIRST = r"First inference time cost: ?([0-9]{1,12}) ms$"
_PEAK = r"Peak working set size: ?([0-9]{1,15}) bytes$"
_LATENCY = rf" Latency(?: is|:) ({NUMBER}) ?s(?:ec)?$"


class OnnxRuntimePerfTest:
    """The adapter for ``onnxruntime_perf_test``; ``delegate`` is what its ``-e`` takes."""

    name = NAME
    runtime = "onnxruntime"
    ending = SUFFIX_OF["onnx"]

    def command(self, run: StockRun) -> list[str]:
        """Inputs are made up by the tool (``-I``); the level of optimisation is always named.

        A provider other than the CPU takes the whole model or the session is refused.
        """
        provider = run.delegate or CPU
        return [
            *("sh", "-c", _SCRIPT, "sh", run.program),
            *("-m", "times", "-r", str(run.iterations)),
            *("-x", str(run.threads), "-y", "1", "-o", _ALL_OPTIMISATIONS, "-e", provider, "-I"),
            *(() if provider == CPU else ("-C", _NO_FALLBACK)),
            run.artifact,
        ]

    def parse(self, run: StockRun, done: Completed) -> StockResult:
        """See :class:`devices.stock.base.StockTool`."""
        everything = text(done)
        if "fallback to CPU EP has been explicitly disabled" in everything:
            raise AgentError(
                f"{NAME}: the provider {run.delegate} does not execute the whole model",
                "leave out --delegate, or export a model that it can take whole",
            )
        said = output(NAME, done)
        head, begins, rest = said.partition(RESULT_BEGINS)
        rows, ends, tail = rest.partition(RESULT_ENDS)
        if not (begins and ends):
            raise incomplete(NAME, "its result file")
        summary = parse_summary(f"{head}\n{tail}")
        samples = _samples(rows)
        if len(samples) != summary.n or abs(sum(samples) / summary.n / summary.mean_ns - 1) > 0.01:
            raise AgentError(f"{NAME} contradicts itself: its calls do not give their mean")
        notes = list(summary.notes)
        if summary.n != run.iterations:
            notes.append(f"{summary.n} timed calls where {run.iterations} were asked for")
        return replace(
            summary,
            min_ns=min(samples),
            max_ns=max(samples),
            p50_ns=sorted(samples)[len(samples) // 2],
            samples_ns=samples,
            delegates=(run.delegate or CPU,),
            notes=tuple(notes),
        )


def parse_summary(said: str) -> StockResult:
    """Read what the tool prints itself, without its result file.

    Raises:
        AgentError: it is not whole.
    """
    requests, mean, total = find(_REQUESTS, said), find(_MEAN, said), find(_TOTAL, said)
    if requests is None or mean is None or total is None:
        raise incomplete(NAME, "the number of its calls, their sum and their mean")
    n, mean_ns = int(requests[1]), ns(NAME, mean[1], "ms")
    if n == 0:
        raise AgentError(f"{NAME} made no timed call")
    if abs(ns(NAME, total[1], "s") / n / mean_ns - 1) > 0.01:
        raise AgentError(f"{NAME} contradicts itself: sum, number and mean of its calls")
    first, peak = find(_FIRST, said), find(_PEAK, said)
    return StockResult(
        tool=NAME,
        runtime=OnnxRuntimePerfTest.runtime,
        n=n,
        mean_ns=mean_ns,
        min_ns=_latency("Min", said),
        max_ns=_latency("Max", said),
        p50_ns=_latency("P50", said),
        load_ns=_time(find(_LOAD, said), "s"),
        first_ns=_time(first, "ms"),
        peak_bytes=int(peak[1]) or None if peak else None,
        notes=("the first call is told in whole milliseconds",) if first else (),
    )


def _latency(which: str, said: str) -> int | None:
    return _time(find(which + _LATENCY, said), "s")


def _time(found: re.Match[str] | None, unit: str) -> int | None:
    return known_ns(NAME, found[1], unit) if found else None


def _samples(rows: str) -> tuple[int, ...]:
    """Each call's time; rows are model, time, memory, processor, number.

    Newer builds have two times: until the call was handed over, and until it was done.
    """
    samples = []
    for index, row in enumerate(filter(str.strip, rows.split("\n"))):
        fields = row.split(",")
        if len(fields) not in (5, 6) or fields[-1] != str(index):
            raise incomplete(NAME, "every call in its result file")
        if not re.fullmatch(NUMBER, fields[-4]):
            raise AgentError(f"{NAME} has no time in a row of its result file: {row[:80]!r}")
        samples.append(ns(NAME, fields[-4], "s"))
    return tuple(samples)
