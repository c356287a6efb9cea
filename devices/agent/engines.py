"""The runtimes an agent can measure, each behind the same few methods.

Part of the program that runs on a board: standard library and one runtime, Python 3.9.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Optional, Protocol

from devices.agent.tiny import tiny_model

RUNTIMES = ("executorch", "onnxruntime", "litert")
_HINTS = {
    "executorch": "pip install executorch",
    "onnxruntime": "pip install onnxruntime",
    "litert": "pip install ai-edge-litert, or tflite-runtime with 'numpy<2'",
}
_ORT_CPU = "CPUExecutionProvider"


class Fallback(Exception):
    """A delegate that was asked for, or is expected, takes no part in executing the model."""


class Engine(Protocol):
    """One loaded model in one runtime.

    Attributes:
        threads: how many the runtime was really given.
    """

    threads: int

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
    """ONNX Runtime, inputs and outputs bound once, as an app would do.

    Args:
        path: of the model.
        threads: to compute with.
        delegate: the execution provider to ask for; without one, the CPU's.
        profiled: whether :meth:`profile` is to be asked for; noting it takes time.

    Raises:
        Fallback: this build does not have the provider, or does not take it.
    """

    def __init__(
        self,
        path: str,
        threads: int,
        delegate: Optional[str] = None,  # noqa: UP045
        profiled: bool = False,
    ) -> None:
        self._path, self.threads = path, threads
        self._delegate = None if delegate == _ORT_CPU else delegate
        self._profile: Any = None
        if profiled:
            self._session, self._profile = self._open_profiled()
        else:
            self._session = self._open()
        self._binding = self._session.io_binding()
        for spec in self._session.get_outputs():
            self._binding.bind_output(spec.name)

    def _open_profiled(self) -> tuple[Any, Any]:
        """A session and the open file of its profile, which has no name by which to be left."""
        with TemporaryDirectory() as folder:
            session = self._open(str(Path(folder) / "profile"))
            (path,) = Path(folder).iterdir()
            return session, path.open("rb")

    def _open(self, profile_prefix: Optional[str] = None) -> Any:  # noqa: UP045
        onnxruntime = _onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if profile_prefix:
            options.enable_profiling = True
            options.profile_file_prefix = profile_prefix
        if not self._delegate:
            return onnxruntime.InferenceSession(self._path, options, providers=[_ORT_CPU])
        if self._delegate not in onnxruntime.get_available_providers():
            raise Fallback(f"this ONNX Runtime has no {self._delegate}")
        xnnpack = self._delegate == "XnnpackExecutionProvider"
        settings = {"intra_op_num_threads": str(self.threads)} if xnnpack else {}
        providers = [(self._delegate, settings), _ORT_CPU]
        session = onnxruntime.InferenceSession(self._path, options, providers=providers)
        if session.get_providers()[0] != self._delegate:
            raise Fallback(f"this ONNX Runtime does not take {self._delegate} here")
        return session

    def feed(self, inputs: Sequence[Any]) -> None:
        """Bind the inputs."""
        self._inputs = inputs
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
        """The execution providers that run nodes of the model.

        A session lists a provider that runs none of them, too.  So where one was asked for, the
        profile of a call in a session of its own tells.
        """
        if not self._delegate:
            return list(self._session.get_providers())
        session, stream = self._open_profiled()
        names = [spec.name for spec in session.get_inputs()]
        session.run(None, dict(zip(names, self._inputs)))  # noqa: B905 - as in _paired
        profile = _profile_of(session, stream)
        ran = {event.get("args", {}).get("provider") for event in profile}
        return [name for name in session.get_providers() if name in ran]

    def profile(self) -> list[dict[str, Any]]:
        """The runtime's own account of all that it has done so far; ends it."""
        return _profile_of(self._session, self._profile)


def _profile_of(session: Any, stream: Any) -> list[dict[str, Any]]:
    session.end_profiling()  # writes it
    with stream:
        events: list[dict[str, Any]] = json.load(stream)
    return events


class LiteRtEngine:
    """LiteRT (or, on boards, tflite-runtime).

    Args:
        path: of the model.
        threads: to compute with.
        delegate: ``XNNPACK``, ``builtin`` for the runtime's own kernels alone, or ``None`` for
            what it applies by default.

    Raises:
        Fallback: no other delegate can be asked for.
    """

    def __init__(self, path: str, threads: int, delegate: Optional[str] = None) -> None:  # noqa: UP045
        if delegate not in (None, "XNNPACK", "builtin"):
            raise Fallback(f"this agent cannot ask LiteRT for {delegate}")
        module = _litert_module()
        resolver = module.OpResolverType.AUTO
        if delegate == "builtin":
            resolver = module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        self.threads = threads
        self._interpreter = module.Interpreter(
            model_path=path, num_threads=threads, experimental_op_resolver_type=resolver
        )
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
    """ExecuTorch's own runtime with the backends registered in it.

    Args:
        path: of the program, which itself says what its delegates are.
        threads: to compute with.
        delegate: the backend that is asked for; checked like one that is expected.
    """

    def __init__(self, path: str, threads: int, delegate: Optional[str] = None) -> None:  # noqa: UP045
        library = executorch_library()
        library._unsafe_reset_threadpool(threads)
        self.threads = library._threadpool_get_thread_count()
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


def _onnxruntime() -> Any:
    """ONNX Runtime, told not to report home: from 1.29 on its builds send names of models.

    *Source*: the release notes of 1.29 and the variable's name in the library; it is read once,
    when the library is loaded.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime


def _litert_module() -> Any:
    try:
        import ai_edge_litert.interpreter as module
    except ImportError as error:
        try:
            import tflite_runtime.interpreter as module
        except ImportError:
            raise ImportError(
                "neither ai_edge_litert nor tflite_runtime can be imported"
            ) from error
        import numpy

        # It would import, and fail on use.
        if int(numpy.__version__.split(".")[0]) >= 2:
            raise ImportError(
                f"tflite_runtime was built for numpy 1, and numpy {numpy.__version__} is here"
            ) from error
    return module


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


ENGINES: dict[str, Callable[..., Engine]] = {
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
        return str(_onnxruntime().__version__)
    if runtime == "litert":
        module = _litert_module().__name__.split(".")[0]
        return f"{module} {version(module.replace('_', '-'))}"
    executorch_library()
    return version("executorch")


def runtime_build(runtime: str) -> Optional[str]:  # noqa: UP045
    """From what the runtime was built, as far as it tells."""
    if runtime == "onnxruntime":
        # It came with 1.15.
        tell = getattr(_onnxruntime(), "get_build_info", None)
        return " ".join(tell().split()) if tell else None
    if runtime == "executorch":
        with contextlib.suppress(ImportError):
            from executorch.version import git_version

            return f"git {git_version}"
    return None


def prove(runtime: str) -> None:
    """Run a tiny model; raises what the runtime raises where it does not work."""
    import numpy

    with TemporaryDirectory() as folder:
        path = Path(folder) / "tiny"
        path.write_bytes(tiny_model(runtime))
        engine = ENGINES[runtime](str(path), 1)
        engine.feed([numpy.array([[-1, 0, 1, 2]], dtype="float32")])
        engine.prepare()
        engine.call()
        found = engine.outputs()[0].tolist()
    if found != [[0, 0, 1, 2]]:
        raise ArithmeticError(f"a ReLU of -1, 0, 1 and 2 came out as {found}")


def available_delegates(runtime: str) -> list[str]:
    """What models can be executed with here, as far as the runtime tells."""
    if runtime == "onnxruntime":
        return list(_onnxruntime().get_available_providers())
    if runtime == "litert":
        return ["XNNPACK", "builtin"]
    return [*executorch_library()._get_registered_backend_names(), "portable"]


def hint(runtime: str) -> str:
    """The command that installs a runtime."""
    return _HINTS.get(runtime, f"name one of {', '.join(RUNTIMES)}")
