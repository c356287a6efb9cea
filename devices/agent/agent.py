"""Measure artifacts on this device with one runtime; one process is one run.

    python agent.py PLAN.json              measure, one JSON object a line on standard output
    python agent.py --probe [RUNTIME...]   say which runtimes work here, and what this device is

This file is copied to the device and run there by itself: it needs the standard library and the
runtime named in the plan, nothing else of this project.  Lines are flushed as they are made, so a
broken link loses only what was not yet produced.  Nothing is written inside a timed slice.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

PLAN_FORMAT = 1
RUNTIMES = ("executorch", "onnxruntime", "litert")
_PROBE_HINTS = {
    "executorch": "pip install executorch",
    "onnxruntime": "pip install onnxruntime",
    "litert": "pip install ai-edge-litert, or tflite-runtime with 'numpy<2'",
}


class Engine(Protocol):
    """One loaded model in one runtime."""

    def feed(self, inputs: Sequence[Any]) -> None:
        """Choose the inputs of the calls to come: numpy arrays in positional order."""

    def prepare(self) -> None:
        """Put the inputs in place; never timed."""

    def call(self) -> None:
        """One inference; this alone is timed."""

    def outputs(self) -> list[Any]:
        """The outputs of the last call as numpy arrays."""

    def delegates(self) -> list[str]:
        """What executes the model: execution providers, delegates, backends."""


class OnnxRuntimeEngine:
    """ONNX Runtime on its CPU provider, inputs and outputs bound once, as an app would do."""

    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self._binding = self._session.io_binding()
        for spec in self._session.get_outputs():
            self._binding.bind_output(spec.name)

    def feed(self, inputs: Sequence[Any]) -> None:
        """Bind the inputs."""
        for spec, value in _paired(self._session.get_inputs(), inputs):
            self._binding.bind_cpu_input(spec.name, value)

    def prepare(self) -> None:
        """Nothing to do: bound inputs are never overwritten."""

    def call(self) -> None:
        """Run the session on the bound tensors."""
        self._session.run_with_iobinding(self._binding)

    def outputs(self) -> list[Any]:
        """Copies of the bound outputs."""
        return list(self._binding.copy_outputs_to_cpu())

    def delegates(self) -> list[str]:
        """The session's execution providers."""
        return list(self._session.get_providers())


class LiteRtEngine:
    """LiteRT (or, on boards, tflite-runtime) with the delegates it applies by default."""

    def __init__(self, path: str, threads: int) -> None:
        self._interpreter = _litert_interpreter()(model_path=path, num_threads=threads)
        self._interpreter.allocate_tensors()
        self._places = [d["index"] for d in self._interpreter.get_input_details()]
        self._results = [d["index"] for d in self._interpreter.get_output_details()]
        self._feeds: list[tuple[int, Any]] = []

    def feed(self, inputs: Sequence[Any]) -> None:
        """Remember the inputs; :meth:`prepare` sets them."""
        self._feeds = _paired(self._places, inputs)

    def prepare(self) -> None:
        """Set the inputs again: the arena may reuse their memory once they are consumed."""
        for index, value in self._feeds:
            self._interpreter.set_tensor(index, value)

    def call(self) -> None:
        """Invoke the interpreter."""
        self._interpreter.invoke()

    def outputs(self) -> list[Any]:
        """Copies of the output tensors."""
        return [self._interpreter.get_tensor(index) for index in self._results]

    def delegates(self) -> list[str]:
        """``XNNPACK`` where a delegate took over part of the graph, else ``builtin``."""
        operators = [op["op_name"] for op in self._interpreter._get_ops_details()]
        return ["XNNPACK"] if "DELEGATE" in operators else ["builtin"]


class ExecuTorchEngine:
    """ExecuTorch's own runtime with the backends registered in it."""

    def __init__(self, path: str, threads: int) -> None:
        library = executorch_library()
        library._unsafe_reset_threadpool(threads)
        self._program = library._load_program(path)
        self._method = self._program.load_method("forward")
        self._delegates = _backends_in(path, library._get_registered_backend_names())

    def feed(self, inputs: Sequence[Any]) -> None:
        """Keep the inputs as tensors that share their memory."""
        import torch

        self._inputs = [torch.from_numpy(value) for value in inputs]

    def prepare(self) -> None:
        """Nothing to do: inputs are handed over with each call."""

    def call(self) -> None:
        """Execute ``forward``; outputs are not copied."""
        self._results = self._method.call(self._inputs, clone_outputs=False)

    def outputs(self) -> list[Any]:
        """Copies of the outputs of the last call."""
        return [value.numpy().copy() for value in self._results]

    def delegates(self) -> list[str]:
        """Registered backends that the program names; ``portable`` where it names none."""
        return self._delegates


def _paired(places: Sequence[Any], inputs: Sequence[Any]) -> list[tuple[Any, Any]]:
    if len(places) != len(inputs):
        raise ValueError(f"the model takes {len(places)} inputs and was given {len(inputs)}")
    return list(zip(places, inputs))  # noqa: B905 - strict= came with Python 3.10


def _litert_interpreter() -> Any:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError as error:
            raise ImportError(
                "neither ai_edge_litert nor tflite_runtime can be imported"
            ) from error
    return Interpreter


def executorch_library() -> Any:
    """ExecuTorch's Python extension, with its quantized operators."""
    # The package's public entry imports its whole compiler (4 s); the extension alone needs
    # only torch loaded before it, and is what that entry wraps.
    import torch  # noqa: F401
    from executorch.extension.pybindings import _portable_lib

    # Out-of-delegate quantized operators live in a library of their own.
    with contextlib.suppress(ImportError, OSError):
        import executorch.kernels.quantized  # noqa: F401
    return _portable_lib


def _backends_in(path: str, registered: Sequence[str]) -> list[str]:
    program = Path(path).read_bytes()
    return [name for name in registered if name.encode() in program] or ["portable"]


ENGINES: dict[str, Callable[[str, int], Engine]] = {
    "executorch": ExecuTorchEngine,
    "onnxruntime": OnnxRuntimeEngine,
    "litert": LiteRtEngine,
}


def runtime_version(runtime: str) -> str:
    """The runtime's version, found by importing it; raises what the import raises."""
    from importlib.metadata import version

    if runtime not in RUNTIMES:
        raise ValueError(f"this agent knows no runtime {runtime!r}")
    if runtime == "onnxruntime":
        import onnxruntime

        return str(onnxruntime.__version__)
    if runtime == "litert":
        # numpy 2 lets old builds import and fails on use: the class must be reachable.
        module = _litert_interpreter().__module__.split(".")[0]
        return f"{module} {version(module.replace('_', '-'))}"
    executorch_library()
    return version("executorch")


def _hint(runtime: str) -> str:
    return _PROBE_HINTS.get(runtime, f"name one of {', '.join(RUNTIMES)}")


class MissingRuntime(Exception):
    """The plan's runtime cannot be used here."""


def measure(plan: dict[str, Any], emit: Callable[[dict[str, Any]], None]) -> None:
    """Carry out one run of a plan, handing every event to ``emit`` as it happens."""
    if plan["format"] != PLAN_FORMAT:
        raise ValueError(f"plan format {plan['format']}, this agent speaks {PLAN_FORMAT}")
    if plan["core_mask"] is not None:
        mask = int(plan["core_mask"], 16)
        os.sched_setaffinity(0, [core for core in range(mask.bit_length()) if mask >> core & 1])
    runtime = plan["runtime"]
    try:
        version = runtime_version(runtime)
    except Exception as error:
        raise MissingRuntime(f"{error}; {_hint(runtime)}") from error
    emit({"event": "hello", "runtime": runtime, "version": version})
    emit({"event": "environment", "when": "before", **environment()})
    engines = {job["id"]: _load(runtime, job, plan["threads"], emit) for job in plan["jobs"]}
    _take_turns(engines, plan, emit)
    emit({"event": "environment", "when": "after", **environment()})
    peak_bytes = _peak_bytes() if len(engines) == 1 else None
    emit({"event": "done", "peak_bytes": peak_bytes})


def _load(
    runtime: str, job: dict[str, Any], threads: int, emit: Callable[[dict[str, Any]], None]
) -> Engine:
    inputs = [_read_input(spec) for spec in job["inputs"]]
    start = time.perf_counter_ns()
    engine = ENGINES[runtime](job["path"], threads)
    loaded = time.perf_counter_ns()
    engine.feed(inputs)
    engine.prepare()
    called = time.perf_counter_ns()
    engine.call()
    first = time.perf_counter_ns()
    emit(
        {
            "event": "loaded",
            "job": job["id"],
            "load_ns": loaded - start,
            "first_ns": first - called,
            "delegates": engine.delegates(),
        }
    )
    return engine


def _read_input(spec: dict[str, Any]) -> Any:
    import numpy

    raw = numpy.fromfile(spec["path"], dtype=spec["dtype"])
    return raw.reshape(spec["shape"])


def _take_turns(
    engines: dict[str, Engine], plan: dict[str, Any], emit: Callable[[dict[str, Any]], None]
) -> None:
    """Warm every engine up, then time them slice by slice, in a new random order each round."""
    for job, engine in engines.items():
        enough = plan["warmup_iterations"]
        warmup: list[int] = []
        spent = 0
        while len(warmup) < enough or spent < plan["warmup_ns"]:
            part = timed_slice(engine, max(enough, 1))
            spent += sum(part)
            warmup += part
        emit({"event": "warmup", "job": job, "ns": warmup})
    order = random.Random(plan["seed"])  # noqa: S311 - an order of turns, not a secret
    # Another model's turn has cooled the caches; a few calls bring them back, kept as warm-up.
    settle = plan["settle_iterations"] if len(engines) > 1 else 0
    for size in _slices(plan["iterations"], plan["slice_iterations"]):
        turns = list(engines)
        order.shuffle(turns)
        for job in turns:
            if settle:
                emit({"event": "warmup", "job": job, "ns": timed_slice(engines[job], settle)})
            emit({"event": "samples", "job": job, "ns": timed_slice(engines[job], size)})


def _slices(total: int, size: int) -> Iterator[int]:
    while total > 0:
        yield min(size, total)
        total -= size


def timed_slice(engine: Engine, count: int) -> list[int]:
    """The latencies in ns of ``count`` calls, with the garbage collector out of the way."""
    clock, prepare, call = time.perf_counter_ns, engine.prepare, engine.call
    taken = [0] * count
    gc.disable()
    for index in range(count):
        prepare()
        start = clock()
        call()
        taken[index] = clock() - start
    gc.enable()
    return taken


def environment() -> dict[str, Any]:
    """What the device says of its own state; what it does not tell is left out."""
    clock = time.get_clock_info("perf_counter")
    return {
        "load_1min": os.getloadavg()[0],
        "frequencies_khz": _numbers(
            "/sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_cur_freq"
        ),
        "temperatures_mdegc": _numbers("/sys/class/thermal", "thermal_zone*/temp"),
        "clock": clock.implementation,
    }


def facts() -> dict[str, Any]:
    """What the device is: for the inventory, for conditions and for reports."""
    governors = _texts("/sys/devices/system/cpu", "cpu[0-9]*/cpufreq/scaling_governor")
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "cpu": _cpu_model(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "governor": ",".join(sorted(set(governors))) or "unknown",
        "power_source": _power_source(),
    }


def probe(names: Sequence[str]) -> dict[str, Any]:
    """The device's facts and, for each runtime named, its version or why it cannot be used."""
    runtimes: dict[str, dict[str, str]] = {}
    for name in names:
        try:
            runtimes[name] = {"version": runtime_version(name)}
        except Exception as error:
            runtimes[name] = {"missing": f"{error}", "hint": _hint(name)}
    return {"event": "probe", "facts": facts(), "runtimes": runtimes}


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _power_source() -> str:
    online = _numbers("/sys/class/power_supply", "*/online")
    types = _texts("/sys/class/power_supply", "*/type")
    if any(online):
        return "mains"
    return "battery" if "Battery" in types else "unknown"


def _peak_bytes() -> int | None:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return None


def _texts(folder: str, pattern: str) -> list[str]:
    found = []
    for path in sorted(Path(folder).glob(pattern)):
        with contextlib.suppress(OSError):
            found.append(path.read_text().strip())
    return found


def _numbers(folder: str, pattern: str) -> list[int]:
    return [int(text) for text in _texts(folder, pattern) if text.lstrip("-").isdigit()]


def _event_writer() -> Callable[[dict[str, Any]], None]:
    """Keep standard output for events alone: what a runtime prints goes to standard error."""
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(event: dict[str, Any]) -> None:
        stream.write(json.dumps(event, separators=(",", ":")) + "\n")
        stream.flush()

    return emit


def main(arguments: Sequence[str]) -> int:
    """Run as a program; the exit code is 0 only if the last line is ``done`` or ``probe``."""
    # A host that went away must not leave a measuring process behind on the device.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    emit = _event_writer()
    if arguments[0] == "--probe":
        emit(probe(arguments[1:] or RUNTIMES))
        return 0
    try:
        plan = json.loads(Path(arguments[0]).read_text())
        signal.alarm(plan["deadline_s"])
        measure(plan, emit)
    except MissingRuntime as error:
        emit({"event": "error", "kind": "runtime-missing", "message": str(error)})
        return 1
    except Exception as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        emit({"event": "error", "kind": "failed", "message": message[:2000]})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
