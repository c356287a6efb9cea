"""What a run is after, and how it gets it: one function for each kind of trial.

Part of the program that runs on a board: standard library and one runtime, Python 3.9.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from devices.agent.bench import LEAST_SLICE_NS, Bench, Refused, warmup
from devices.agent.energy import energy
from devices.agent.engines import ENGINES, Engine, OnnxRuntimeEngine
from devices.agent.environment import environment, forget_peak, memory, peak_bytes
from devices.agent.loading import load, load_with, loaded, open_model, read_inputs

#: What an application touches between two calls, in bytes.  Chosen: more than the caches of the
#: small boards this is made for; a phone's or a desk machine's last cache may hold more.
OTHER_WORK_BYTES = 16 << 20


def _latency(bench: Bench) -> None:
    """Calls back to back; several models take turns.

    Where it is sustained, slices last a while: of a fast model there would be thousands a second.
    """
    plan = bench.plan
    engines = {job["id"]: load(plan, job, bench.emit) for job in plan["jobs"]}
    for job, engine in engines.items():
        bench.warm_up(job, engine, plan["warmup_iterations"], plan["warmup_ns"])
    began = time.monotonic_ns()
    bench.emit(environment("warm"))
    if len(engines) > 1:
        _take_turns(bench, engines)
        return
    ((job, engine),) = engines.items()
    # Looking at the device took a while: caches have cooled, and clocks may have fallen.
    again = bench.warm_again(engine, time.monotonic_ns() - began)
    if again:
        bench.emit(warmup(job, again))
    for each in bench.slices(engine, LEAST_SLICE_NS if plan["kind"] == "sustained" else 0):
        bench.emit(each)


def _take_turns(bench: Bench, engines: dict[str, Engine]) -> None:
    """Time every engine slice by slice, in a new random order each round."""
    order = random.Random(bench.plan["seed"])  # noqa: S311 - an order of turns, not a secret
    # Another model's turn has cooled the caches; a few calls bring them back, kept as warm-up.
    settle = bench.plan["settle_iterations"]
    for size in bench.sizes():
        turns = list(engines)
        order.shuffle(turns)
        for job in turns:
            if settle:
                bench.warm_up(job, engines[job], settle, 0)
            bench.emit(bench.timed_slice(job, engines[job], size))


def _app(bench: Bench) -> None:
    """One call now and then and other work in between, as a plain application has it."""
    plan, job = bench.plan, bench.job
    engine = load(plan, job, bench.emit)
    bench.warm_up(job["id"], engine, plan["warmup_iterations"], 0)
    bench.emit(environment("warm"))
    pace = _Pace(plan["period_ns"])
    for size in bench.sizes():
        begun, taken = [], []
        for _ in range(size):
            begun.append(pace.wait())
            engine.prepare()
            start = time.perf_counter_ns()
            engine.call()
            taken.append(time.perf_counter_ns() - start)
        khz = bench.clocks.khz()
        said = {"event": "samples", "job": job["id"], "ns": taken}
        bench.emit({**said, "start_ns": begun[0], "khz": khz})


class _Pace:
    """Other work, then sleep until the next call is due.

    Args:
        period_ns: from one call's beginning to the next one's.  A call that is late begins at once,
            and the grid with it: what was missed is not made up for.
    """

    def __init__(self, period_ns: int) -> None:
        import numpy

        self._period_ns, self._due_ns = period_ns, 0
        # Not of zeros, which the system makes only once they are written to.
        self._other_work = numpy.ones(OTHER_WORK_BYTES // 8, dtype="int64")

    def wait(self) -> int:
        """Returns when a call is to begin, and does so then."""
        self._other_work += 1  # reads and writes all of it
        now = time.monotonic_ns()
        if now < self._due_ns:
            time.sleep((self._due_ns - now) / 1e9)
        else:
            self._due_ns = now
        self._due_ns += self._period_ns
        return time.monotonic_ns()


def _memory(bench: Bench) -> None:
    """What the model takes: with the runtime alone, once it is loaded, and at most."""
    plan, job = bench.plan, bench.job
    inputs = read_inputs(job)
    looks: list[dict[str, int]] = []
    forget_peak()
    looks.append(memory())
    kind = ENGINES[plan["runtime"]]
    engine, times = open_model(kind, plan, job, inputs, lambda: looks.append(memory()))
    warm = environment("warm")
    slices = [bench.timed_slice(job["id"], engine, size) for size in bench.sizes()]
    looks.append(memory())
    # Only now: to tell what executes it, the model may be loaded once more.
    for event in (loaded(engine, times, plan, job), warm, *slices):
        bench.emit(event)
    base, ready, after = looks
    bench.emit(
        {
            "event": "memory",
            "job": job["id"],
            "base_bytes": base["VmRSS"],
            "loaded_bytes": ready["VmRSS"],
            "peak_bytes": peak_bytes(base, after),
            "file_bytes": after["RssFile"],
        }
    )


def _operators(bench: Bench) -> None:
    """The runtime's own account of where its time goes; it counts the calls of warm-up, too."""
    plan, job = bench.plan, bench.job
    if plan["runtime"] != "onnxruntime":
        name = {"executorch": "ExecuTorch", "litert": "LiteRT"}[plan["runtime"]]
        raise Refused(f"{name} has no profile of operators")
    engine = load_with(OnnxRuntimeEngine, plan, job, bench.emit, profiled=True)
    bench.warm_up(job["id"], engine, plan["warmup_iterations"], plan["warmup_ns"])
    bench.emit(environment("warm"))
    for size in bench.sizes():
        bench.emit(bench.timed_slice(job["id"], engine, size))
    bench.emit({"event": "operators", "job": job["id"], "trace": engine.profile()})


KINDS: dict[str, Callable[[Bench], None]] = {
    "latency": _latency,
    "sustained": _latency,
    "app": _app,
    "memory": _memory,
    "energy": energy,
    "operators": _operators,
}
