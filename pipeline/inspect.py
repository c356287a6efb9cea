"""What an artifact file takes and gives, asked of its own runtime on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.quiet import quiet
from profiles.canonical import file_sha256
from profiles.errors import UsageError
from profiles.records import FORMATS, SUFFIX_OF, Artifact, Io, TensorSpec


def read_artifact(path: Path) -> Artifact:
    """An artifact from a bare file, whoever made it.

    Raises:
        UsageError: if the file is not there, its ending is unknown, its runtime refuses it, or a
            shape is not fixed.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    formats = [name for name in FORMATS if SUFFIX_OF[name] == path.suffix]
    if not formats:
        raise UsageError(f"{path}: expected one of {', '.join(SUFFIX_OF.values())}")
    (format_,) = formats
    try:
        with quiet():
            io = _READERS[format_](path)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UsageError(f"{path} cannot be loaded as {format_}: {reason}") from error
    for spec in io.inputs:
        if any(size <= 0 for size in spec.shape):
            raise UsageError(f"{path}: input {spec.name} has the open shape {spec.shape}")
    return Artifact(
        sha256=file_sha256(path),
        format=format_,
        path=path.absolute(),
        size_bytes=path.stat().st_size,
        io=io,
        model=path.stem,
        variant="file",
        dtype="unknown",
        recipe_key="",
        parent="",
    )


def _onnx(path: Path) -> Io:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def spec(value: Any) -> TensorSpec:
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        return TensorSpec(
            value.name, shape, {"float": "float32", "double": "float64"}.get(kind, kind)
        )

    return Io(
        tuple(spec(value) for value in session.get_inputs()),
        tuple(spec(value) for value in session.get_outputs()),
    )


def _tflite(path: Path) -> Io:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))

    def spec(value: Any) -> TensorSpec:
        shape = tuple(int(size) for size in value["shape_signature"])
        return TensorSpec(value["name"], shape, np.dtype(value["dtype"]).name)

    return Io(
        tuple(spec(value) for value in interpreter.get_input_details()),
        tuple(spec(value) for value in interpreter.get_output_details()),
    )


def _executorch(path: Path) -> Io:
    import torch
    from executorch.exir.scalar_type import ScalarType

    from devices.agent.engines import executorch_library

    meta = executorch_library()._load_program(str(path)).method_meta("forward")

    def spec(name: str, value: Any) -> TensorSpec:
        dtype = getattr(torch, ScalarType(value.dtype()).name.lower())
        return TensorSpec(name, tuple(value.sizes()), str(dtype).removeprefix("torch."))

    return Io(
        tuple(spec(f"input_{i}", meta.input_tensor_meta(i)) for i in range(meta.num_inputs())),
        tuple(spec(f"output_{i}", meta.output_tensor_meta(i)) for i in range(meta.num_outputs())),
    )


_READERS = {"onnx": _onnx, "tflite": _tflite, "executorch": _executorch}
