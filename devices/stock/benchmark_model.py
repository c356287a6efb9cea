"""LiteRT's and TensorFlow Lite's ``benchmark_model``.

*Source* of flags, messages and units: tensorflow/lite/tools/benchmark (README,
``benchmark_model.cc``, ``benchmark_tflite_model.cc``) and the outputs in tests/golden/stock.
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

NAME = "benchmark_model"
_BYTES_PER_MB = 1 << 20  # the tool divides kilobytes by 1024

# To the name that the tool has for a delegate, the flags that ask for it.
_DELEGATES = {
    "gpu": ("GPU", ("--use_gpu=true",)),
    # Without the second, NNAPI may run the model by its own reference code on the CPU.
    "nnapi": ("NNAPI", ("--use_nnapi=true", "--disable_nnapi_cpu=true")),
    "xnnpack": ("XNNPACK", ("--use_xnnpack=true",)),
    "hexagon": ("Hexagon", ("--use_hexagon=true",)),
    "coreml": ("COREML", ("--use_coreml=true",)),
}
# Where all calls took the same time, the line ends after ``curr``.
_STATISTICS = re.compile(
    rf"count=(?P<n>[0-9]{{1,12}})(?: first=(?P<first>{NUMBER}))?(?: curr=(?P<curr>{NUMBER}))?"
    rf"(?: min=(?P<min>{NUMBER}) max=(?P<max>{NUMBER})"
    rf" avg=(?P<avg>{NUMBER}) std=(?P<std>{NUMBER}))?"
    rf"(?: p5={NUMBER} median=(?P<median>{NUMBER}) p95={NUMBER})?"
)
_SUMMARY = (
    rf"Inference timings in us: Init: (?P<init>{NUMBER}), First inference: {NUMBER}, "
    rf"Warmup \(avg\): {NUMBER}, Inference \(avg\): (?P<avg>{NUMBER})$"
)
_SUMMARY_OF_2019 = (
    rf"Average inference timings in us: Warmup: {NUMBER}, Init: (?P<init>{NUMBER}), "
    rf"no stats: (?P<avg>{NUMBER})$"
)
_PEAK = rf"Overall peak memory footprint \(MB\) via periodic monitoring: ({NUMBER})$"
_REPLACED = r"Replacing ([0-9]{1,9}) out of [0-9]+ node\(s\) with delegate \((\w+)\) node"
_APPLIED = r"(?:Explicitly applied|Applied) (\w+) delegate"


class BenchmarkModel:
    """The adapter for ``benchmark_model``; a path as ``delegate`` is an external delegate."""

    name = NAME
    runtime = "litert"
    ending = SUFFIX_OF["tflite"]

    def command(self, run: StockRun) -> list[str]:
        """All four bounds are set: the tool's defaults of 0.5 s and 1 s override counts."""
        return [
            run.program,
            f"--graph={run.artifact}",
            f"--num_threads={run.threads}",
            f"--num_runs={run.iterations}",
            "--min_secs=0",
            f"--warmup_runs={run.warmup}",
            "--warmup_min_secs=0",
            f"--max_secs={run.limit_s:g}",
            f"--report_peak_memory_footprint={str(run.memory).lower()}",
            *(_delegate(run.delegate)[1] if run.delegate else ()),
            *(["--require_full_delegation=true"] if run.delegate else ()),
        ]

    def parse(self, run: StockRun, done: Completed) -> StockResult:
        """See :class:`devices.stock.base.StockTool`."""
        _refuse_fallback(run, text(done))
        said = output(NAME, done)
        statistics = list(_STATISTICS.finditer(said))
        summary = _summary(said)
        if summary is None or len(statistics) != 2:
            raise incomplete(NAME, "warm-up, timed calls and a summary, each once")
        warmup, timed = statistics
        n, mean = int(timed["n"]), timed["avg"] or timed["curr"]
        if n == 0:
            raise AgentError(f"{NAME} made no timed call")
        # Both are one number printed twice: a line that was cut off does not pass for whole.
        if mean != summary["avg"]:
            raise AgentError(f"{NAME} contradicts itself: {mean} and {summary['avg']} us")
        peak = find(_PEAK, said)
        if run.memory and peak is None:
            raise incomplete(NAME, "the peak of memory")
        return StockResult(
            tool=NAME,
            runtime=self.runtime,
            n=n,
            mean_ns=ns(NAME, mean, "us"),
            min_ns=known_ns(NAME, timed["min"] or timed["curr"], "us"),
            max_ns=known_ns(NAME, timed["max"] or timed["curr"], "us"),
            p50_ns=known_ns(NAME, timed["median"], "us"),
            std_ns=round(float(timed["std"]) * 1000) if timed["std"] else None,
            load_ns=known_ns(NAME, summary["init"], "us"),
            first_ns=known_ns(NAME, warmup["first"] or warmup["curr"], "us"),
            peak_bytes=round(float(peak[1]) * _BYTES_PER_MB) if run.memory and peak else None,
            delegates=_took_part(said),
            notes=_notes(run, n),
        )


def _summary(said: str) -> re.Match[str] | None:
    return find(_SUMMARY, said) or find(_SUMMARY_OF_2019, said)


def _delegate(wanted: str) -> tuple[str, tuple[str, ...]]:
    if "/" in wanted or wanted.endswith(".so"):
        return "EXTERNAL", (f"--external_delegate_path={wanted}",)
    if wanted not in _DELEGATES:
        raise UsageError(
            f"{NAME} knows no delegate {wanted!r}",
            f"name one of {', '.join(_DELEGATES)}, or the path of an external one",
        )
    return _DELEGATES[wanted]


def _refuse_fallback(run: StockRun, said: str) -> None:
    """A delegate that was asked for has the whole model, or nothing is reported.

    The flag alone is not enough: older builds do not look at it when no delegate could be made
    at all, and NNAPI counts its own reference code as an accelerator.
    """
    if run.delegate is None:
        return
    name = _delegate(run.delegate)[0]
    whole = find(rf"Explicitly applied {name} delegate, .* completely executed", said) or find(
        rf"Applied {name} delegate\.$", said
    )
    reference = name == "NNAPI" and "accelerators available: [nnapi-reference]" in said
    if "Disallowed CPU fallback detected" in said or (_summary(said) and not whole):
        raise AgentError(
            f"{NAME}: the {name} delegate does not execute the whole model",
            "leave out --delegate, or export a model that it can take whole",
        )
    if reference:
        raise AgentError(f"{NAME}: NNAPI has nothing on this device but its reference code")


def _took_part(said: str) -> tuple[str, ...] | None:
    """Names of delegates that got nodes; ``None`` where the tool says nothing of any."""
    applied = [found[1] for found in re.finditer(_APPLIED, said)]
    replaced = [found[2] for found in re.finditer(_REPLACED, said) if int(found[1]) > 0]
    return tuple(dict.fromkeys([*applied, *replaced])) or None


def _notes(run: StockRun, n: int) -> tuple[str, ...]:
    notes = []
    if n != run.iterations:
        notes.append(f"{n} timed calls where {run.iterations} were asked for")
    if run.memory:
        notes.append("memory was watched meanwhile, which disturbs the times")
    return tuple(notes)
