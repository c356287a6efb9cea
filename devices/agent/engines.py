"""The runtimes an agent can measure, each behind the same few methods.

Part of the program that runs on a board: standard library and one runtime, Python 3.9.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

RUNTIMES = ("executorch", "onnxruntime", "litert")
_HINTS = {
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


def hint(runtime: str) -> str:
    """The command that installs a runtime."""
    return _HINTS.get(runtime, f"name one of {', '.join(RUNTIMES)}")
