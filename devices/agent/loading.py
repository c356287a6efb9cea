"""From a job of a plan to a model that is ready to be timed.

Part of the program that runs on a board: standard library and one runtime, Python 3.9.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from devices.agent.engines import ENGINES, Engine, Fallback

#: Of inputs in memory, in bytes: a cache line.
ALIGNMENT = 64

Emit = Callable[[dict[str, Any]], None]
AnyEngine = TypeVar("AnyEngine", bound=Engine)


def load(plan: dict[str, Any], job: dict[str, Any], emit: Emit) -> Engine:
    """A job's model, loaded, called once, and told of."""
    return load_with(ENGINES[plan["runtime"]], plan, job, emit)


def load_with(
    kind: Callable[..., AnyEngine],
    plan: dict[str, Any],
    job: dict[str, Any],
    emit: Emit,
    **settings: Any,
) -> AnyEngine:
    """The same with a certain engine, and with settings of its own."""
    engine, times = open_model(kind, plan, job, read_inputs(job), **settings)
    emit(loaded(engine, times, plan, job))
    return engine


def open_model(
    kind: Callable[..., AnyEngine],
    plan: dict[str, Any],
    job: dict[str, Any],
    inputs: list[Any],
    opened: Callable[[], None] = lambda: None,
    **settings: Any,
) -> tuple[AnyEngine, dict[str, int]]:
    """Load a model and call it once.

    Args:
        kind: of engine.
        plan: its threads and delegate.
        job: its model.
        inputs: for its calls.
        opened: called between loading and the first call.
        settings: more arguments of the engine.

    Returns:
        The engine, and how long loading and the first call took.
    """
    start = time.perf_counter_ns()
    engine = kind(job["path"], plan["threads"], plan.get("delegate"), **settings)
    load_ns = time.perf_counter_ns() - start
    opened()
    engine.feed(inputs)
    engine.prepare()
    start = time.perf_counter_ns()
    engine.call()
    return engine, {"load_ns": load_ns, "first_ns": time.perf_counter_ns() - start}


def loaded(
    engine: Engine, times: dict[str, int], plan: dict[str, Any], job: dict[str, Any]
) -> dict[str, Any]:
    """The event that says what was loaded.

    Raises:
        Fallback: a delegate that was asked for, or is expected, takes no part.
    """
    delegates = _delegates(engine, plan, job)
    told = {"delegates": delegates, "threads": engine.threads}
    return {"event": "loaded", "job": job["id"], **times, **told}


def _delegates(engine: Engine, plan: dict[str, Any], job: dict[str, Any]) -> list[str]:
    """What executes the model; refused, if it is not what was asked for and is expected."""
    found = engine.delegates()
    asked = [plan["delegate"]] if plan.get("delegate") else []
    for wanted in [*asked, *(job.get("expect") or ())]:
        if wanted not in found:
            raise Fallback(
                f"{job['id']}: {wanted} takes no part in it:"
                f" {plan['runtime']} executes it with {', '.join(found) or 'unknown'}"
            )
    return found


def read_inputs(job: dict[str, Any]) -> list[Any]:
    """The inputs of a job's calls, as numpy arrays."""
    return [_read_input(spec) for spec in job["inputs"]]


def _read_input(spec: dict[str, Any]) -> Any:
    import numpy

    raw = numpy.fromfile(spec["path"], dtype="uint8")
    # Aligned as the native agent's are: kernels read such inputs up to some percent faster.
    room = numpy.empty(raw.size + ALIGNMENT, dtype="uint8")
    start = -room.ctypes.data % ALIGNMENT
    aligned = room[start : start + raw.size]
    aligned[:] = raw
    return aligned.view(spec["dtype"]).reshape(spec["shape"])
