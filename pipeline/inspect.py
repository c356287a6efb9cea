"""What an artifact file takes, gives and says of itself, asked of its own runtime on this host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.quiet import quiet
from profiles.canonical import file_sha256
from profiles.errors import UsageError
from profiles.records import FORMATS, SUFFIX_OF, Artifact, Io, TensorSpec

#: Where a file says what it is: a metadata entry of TFLite, a method without inputs of ExecuTorch.
ENTRY = "edgeloop"
#: In front of the names of our entries in ONNX's ``metadata_props``.
ONNX_PREFIX = "edgeloop."


def read_artifact(path: Path) -> Artifact:
    """An artifact from a bare file, whoever made it.

    Its ``details`` hold what the file says of itself, where edgeloop made it.

    Raises:
        UsageError: if the file is not there, its ending is unknown, its runtime refuses it, or a
            size other than the batch is open.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    formats = [name for name in FORMATS if SUFFIX_OF[name] == path.suffix]
    if not formats:
        raise UsageError(f"{path}: expected one of {', '.join(SUFFIX_OF.values())}")
    (format_,) = formats
    try:
        with quiet():
            io, says = _READERS[format_](path)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise UsageError(f"{path} cannot be loaded as {format_}: {reason}") from error
    for spec in io.inputs:
        if any(size <= 0 for size in spec.shape[1:]) or 0 in spec.shape:
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
        details={"says": says} if says else {},
    )


def _onnx(path: Path) -> tuple[Io, dict[str, Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def spec(value: Any) -> TensorSpec:
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        kind = value.type.removeprefix("tensor(").removesuffix(")")
        return TensorSpec(
            value.name, shape, {"float": "float32", "double": "float64"}.get(kind, kind)
        )

    io = Io(
        tuple(spec(value) for value in session.get_inputs()),
        tuple(spec(value) for value in session.get_outputs()),
    )
    entries = session.get_modelmeta().custom_metadata_map
    ours = {key: text for key, text in entries.items() if key.startswith(ONNX_PREFIX)}
    return io, {key.removeprefix(ONNX_PREFIX): _plain(text) for key, text in ours.items()}


def _tflite(path: Path) -> tuple[Io, dict[str, Any]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))

    def spec(value: Any) -> TensorSpec:
        shape = tuple(int(size) for size in value["shape_signature"])
        return TensorSpec(value["name"], shape, np.dtype(value["dtype"]).name)

    io = Io(
        tuple(spec(value) for value in interpreter.get_input_details()),
        tuple(spec(value) for value in interpreter.get_output_details()),
    )
    return io, _said_in_tflite(path)


def _said_in_tflite(path: Path) -> dict[str, Any]:
    from litert_converter import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    for entry in model.metadata or []:
        if entry.name == ENTRY.encode():
            return _object(bytes(model.buffers[entry.buffer].data).decode())
    return {}


def _executorch(path: Path) -> tuple[Io, dict[str, Any]]:
    import torch
    from executorch.exir.scalar_type import ScalarType

    from devices.agent.engines import executorch_library

    program = executorch_library()._load_program(str(path))
    meta = program.method_meta("forward")
    methods = [program.get_method_name(number) for number in range(program.num_methods())]
    says = _object(program.load_method(ENTRY).call([])[0]) if ENTRY in methods else {}

    def spec(name: str, value: Any, is_open: bool) -> TensorSpec:
        dtype = getattr(torch, ScalarType(value.dtype()).name.lower())
        sizes = tuple(value.sizes())
        shape = (-1, *sizes[1:]) if is_open and sizes else sizes
        return TensorSpec(name, shape, str(dtype).removeprefix("torch."))

    # The format itself knows the largest sizes alone.
    opened = says.get("open", {})

    def named(side: str, values: list[Any]) -> tuple[TensorSpec, ...]:
        names = says.get(side, [])
        if len(names) != len(values):
            names = [f"{side[:-1]}_{number}" for number in range(len(values))]
        open_ = opened.get(side, [])
        if len(open_) != len(values):
            open_ = [False] * len(values)
        return tuple(spec(str(n), v, o) for n, v, o in zip(names, values, open_, strict=True))

    io = Io(
        named("inputs", [meta.input_tensor_meta(i) for i in range(meta.num_inputs())]),
        named("outputs", [meta.output_tensor_meta(i) for i in range(meta.num_outputs())]),
    )
    return io, says


def _plain(text: str) -> Any:
    """A value as it was before it became text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _object(text: str) -> dict[str, Any]:
    found = _plain(text)
    return found if isinstance(found, dict) else {}


_READERS = {"onnx": _onnx, "tflite": _tflite, "executorch": _executorch}
