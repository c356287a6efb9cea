"""What building a table takes, said before it starts, and how often to call within a budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from profiles.errors import UsageError
from profiles.records import ArtifactFormat, Plan

#: Seconds to quantize, export and check one block or network.  Measured on two cores of an x86-64
#: server, one at a time with the lowest priority: 1.3, 4.0 and 4.5 in FP32, 1.8, 4.2 and 6.5 in
#: INT8, rounded up.
EXPORT_S: Mapping[tuple[ArtifactFormat, str], float] = {
    ("onnx", "float32"): 1.5,
    ("onnx", "int8"): 2.5,
    ("tflite", "float32"): 4.5,
    ("tflite", "int8"): 5.0,
    ("executorch", "float32"): 5.0,
    ("executorch", "int8"): 8.0,
}
#: Until a device has been asked: a call, chosen for small networks on small boards.
ASSUMED_CALL_NS = 2_000_000.0
#: An agent's process, from its start to its end, without what it measures.
PROCESS_S = 3.0
#: Opening one file.
LOAD_S = 0.02
#: With fewer calls a run's median is not worth having; more than this add nothing to it.
FEWEST_ITERATIONS = 20
MOST_ITERATIONS = 1000
#: Calls before each slice that are not counted, as a share of those that are: 5 of 20.
_SETTLING = 1.25


@dataclass(frozen=True, slots=True)
class Cost:
    """What a table takes.

    Args:
        blocks, networks: to be exported and measured.
        export_s: for all of them.
        measure_s: that are left of the budget for the device.
        runs: fresh processes.
    """

    blocks: int
    networks: int
    export_s: float
    measure_s: float
    runs: int

    def describe(self) -> str:
        """In a line, for people."""
        each = self.export_s / (self.blocks + self.networks)
        return (
            f"{self.blocks} blocks and {self.networks} networks, {each:.1f} s each to export:"
            f" about {self.export_s / 60:.1f} min; then {self.measure_s / 60:.1f} min on the"
            f" device in {self.runs} runs"
        )


def cost_of(
    blocks: int,
    networks: int,
    format_: ArtifactFormat,
    dtype: str,
    plan: Plan,
    minutes: float,
) -> Cost:
    """Share a budget out.

    Args:
        blocks, networks: how many are to be exported and measured.
        format_, dtype: of all of them.
        plan: its runs and warm-up.
        minutes: for everything.

    Raises:
        UsageError: if it is too little, with the minutes needed.
    """
    count = blocks + networks
    export_s = count * EXPORT_S[format_, dtype]
    least_s = seconds(plan, [ASSUMED_CALL_NS] * count, FEWEST_ITERATIONS)
    if export_s + least_s > 60 * minutes:
        needed = math.ceil((export_s + least_s) / 60)
        raise UsageError(
            f"{minutes:g} minutes are too few for {blocks} blocks and {networks} networks in"
            f" {dtype} for {format_}: that takes about {needed}",
            f"give it --minutes {needed}, or fewer table.networks",
        )
    return Cost(blocks, networks, export_s, 60 * minutes - export_s, plan.runs)


def seconds(plan: Plan, calls_ns: Sequence[float], iterations: int) -> float:
    """What measuring takes on the device.

    Args:
        plan: its runs and warm-up.
        calls_ns: one call of each artifact; all share each process.
        iterations: timed calls of each in one run.
    """
    warmup_s = sum(max(plan.warmup_ns, plan.warmup_iterations * ns) for ns in calls_ns) / 1e9
    calls_s = sum(calls_ns) / 1e9 * iterations * _SETTLING
    return plan.runs * (PROCESS_S + LOAD_S * len(calls_ns) + warmup_s + calls_s)


def iterations_within(measure_s: float, plan: Plan, calls_ns: Sequence[float]) -> int:
    """How often to call each artifact in a run, for all runs to end in time.

    Args:
        measure_s: for the device.
        plan, calls_ns: see :func:`seconds`.

    Raises:
        UsageError: if not even the fewest that are worth making fit, with the minutes needed.
    """
    fixed_s = seconds(plan, calls_ns, 0)
    each_s = seconds(plan, calls_ns, 1) - fixed_s
    fitting = math.floor((measure_s - fixed_s) / each_s)
    if fitting < FEWEST_ITERATIONS:
        needed = math.ceil(seconds(plan, calls_ns, FEWEST_ITERATIONS) / 60)
        raise UsageError(
            f"{measure_s / 60:.1f} minutes on the device are too few for {len(calls_ns)} blocks"
            f" and networks in {plan.runs} runs: that takes {needed}",
            "give it more --minutes, or fewer table.networks or measure.runs",
        )
    return min(fitting, MOST_ITERATIONS)
