"""What a recipe says of measuring, and the plans that follow from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from profiles.config import Config
from profiles.records import RUNTIME_OF, Plan

Count = Annotated[int, Field(gt=0)]
#: What a user may know of and accept; the other reasons leave nothing to accept.
Tolerable = Literal["throttled", "frequency", "foreign-load", "not-stationary"]
#: An application that draws 30 pictures a second, one inference each.
APP_PERIOD_NS = 33_333_333
#: Takes whatever the runtime makes of an artifact on the device.
ANY_DELEGATE = "any"


def _runtime(name: str) -> str:
    if name not in RUNTIME_OF.values():
        raise ValueError(f"a runtime is one of {', '.join(RUNTIME_OF.values())}")
    return name


Runtime = Annotated[str, AfterValidator(_runtime)]


class Measure(Config):
    """How often to measure: runs (fresh processes) of iterations each, per thread count.

    Args:
        runs: of each artifact, at least; more follow, up to ``max_runs``, while the latency's 95 %
            interval is wider than ``target_percent`` of it to either side.
        max_runs: three times ``runs`` where it is not given.
        iterations: timed calls per run.
        warmup_iterations, warmup_seconds: before them, at least so many and so long.
        threads: thread counts, each a condition of its own.
        core_mask: hexadecimal; keeps the runtime on those cores.
        mode: ``as-shipped`` (nothing on the device is changed) or ``pinned`` (governor and
            frequencies fixed, and put back afterwards).
        delegates: for a runtime the delegate to ask for, or ``any`` where the one that took part on
            this host may be missing on the device.
        deadline_seconds: longest time one process may take.
        budget_minutes: longest time for one device, after which nothing new is begun.
        sustained_seconds: also measure for so long without a pause; 0 is not to.
        app: also measure in a plain application's loop: one call every 33 ms, other work between.
        memory: also measure what loading and calling takes.
        energy: also measure energy, on devices that tell their power.
        tolerate: what is otherwise a reason to refuse data, and here is only remarked upon.
        seed: of the order of turns.
    """

    runs: Annotated[int, Field(ge=3)] = 5
    max_runs: Count | None = None
    target_percent: Annotated[float, Field(gt=0, le=100)] = 2.0
    iterations: Count = 200
    warmup_iterations: Count = 20
    warmup_seconds: Annotated[float, Field(ge=0)] = 0.2
    threads: tuple[Count, ...] = (1,)
    core_mask: Annotated[str, Field(pattern=r"^[0-9a-fA-F]*[1-9a-fA-F][0-9a-fA-F]*$")] | None = None
    mode: Literal["as-shipped", "pinned"] = "as-shipped"
    delegates: dict[Runtime, str] = {}
    deadline_seconds: Annotated[int, Field(ge=10)] = 900
    budget_minutes: Annotated[float, Field(gt=0)] | None = None
    sustained_seconds: Annotated[float, Field(ge=0)] = 0.0
    app: bool = True
    memory: bool = True
    energy: bool = True
    tolerate: tuple[Tolerable, ...] = ()
    seed: int = 0

    @model_validator(mode="after")
    def _most_is_not_less_than_least(self) -> Measure:
        if self.max_runs is not None and self.max_runs < self.runs:
            raise ValueError(f"max_runs: {self.max_runs} is less than runs: {self.runs}")
        return self

    def plan(self) -> Plan:
        """The plan of the latency."""
        return Plan(
            runs=self.runs,
            max_runs=self.max_runs or 3 * self.runs,
            target=self.target_percent / 100,
            iterations=self.iterations,
            warmup_iterations=self.warmup_iterations,
            warmup_ns=round(self.warmup_seconds * 1e9),
            seed=self.seed,
        )

    def plans(self) -> tuple[Plan, ...]:
        """The plans of all that is asked for, the latency's first."""
        plan = self.plan()
        sustained_ns = round(self.sustained_seconds * 1e9)
        found = [plan]
        if self.memory:
            found.append(replace(plan, kind="memory", runs=1, max_runs=1, iterations=10))
        if self.app:
            found.append(
                replace(
                    plan, kind="app", runs=3, max_runs=3, iterations=30, period_ns=APP_PERIOD_NS
                )
            )
        if sustained_ns:
            found.append(
                replace(plan, kind="sustained", runs=3, max_runs=3, window_ns=sustained_ns)
            )
        if self.energy:
            found.append(replace(plan, kind="energy", runs=5, max_runs=5))
        return tuple(found)
