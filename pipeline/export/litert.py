"""TFLite files, through LiteRT's converter; quantized programs keep their INT8 kernels."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import litert_torch
import torch
from litert_converter import schema_py_generated as schema
from litert_torch.quantize import pt2e_quantizer as litert
from litert_torch.quantize.quant_config import QuantConfig

from pipeline.export.batch import LARGEST, batch_of
from pipeline.export.float_io import packed, with_float_io
from pipeline.export.tensors import io_of
from pipeline.export.tflite_nodes import nodes_of
from pipeline.inspect import ENTRY
from profiles.errors import ExportError
from profiles.export import Export
from profiles.records import Io

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def write(
    program: ExportedProgram,
    path: Path,
    settings: Export,
    about: Mapping[str, Any],
    finish: Callable[[bytes], bytes],
) -> dict[str, Any]:
    """Write ``program`` as a ``.tflite``; returns what XNNPACK takes of it.

    Raises:
        ExportError: if its batch is open and the converter needs to know it.
    """
    # Of calls alone: a parameter may be called so too.
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    quantized = any("quantize_per" in str(node.target) for node in calls)
    arguments: dict[str, Any] = {}
    if quantized:
        # The converter only asks it whether ranges are known beforehand.
        static = litert.PT2EQuantizer().set_global(litert.get_symmetric_quantization_config())
        arguments["quant_config"] = QuantConfig(pt2e_quantizer=static)
    inputs, keywords = program.example_inputs
    if batch_of(program) == "dynamic":
        arguments["dynamic_shapes"] = _open_shapes(program, inputs)
    try:
        converted = litert_torch.convert(
            program.module(check_guards=False), inputs, keywords or None, **arguments
        )
    except TypeError as error:
        if "concrete values" not in str(error):
            raise
        raise ExportError(
            "LiteRT's converter cannot leave the batch open where a network reshapes by it",
            "export it for a fixed batch",
        ) from error
    converted.export(str(path))
    content = finish(_named(with_float_io(path.read_bytes()), io_of(program), about))
    path.write_bytes(content)
    return {"quantized": quantized, "placement": nodes_of(content, program)}


def _open_shapes(program: ExportedProgram, inputs: tuple[torch.Tensor, ...]) -> tuple[Any, ...]:
    size = torch.export.Dim("batch", min=1, max=LARGEST)
    open_ = [spec.shape[:1] == (-1,) for spec in io_of(program).inputs]
    return tuple({0: size} if each else None for each in open_)


def _named(content: bytes, io: Io, about: Mapping[str, Any]) -> bytes:
    """The file with the names of its inputs and outputs, and with what it says of itself."""
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    (graph,) = model.subgraphs
    for places, specs, side in (
        (graph.inputs, io.inputs, "inputs"),
        (graph.outputs, io.outputs, "outputs"),
    ):
        for index, spec in zip(places, specs, strict=True):
            graph.tensors[index].name = spec.name.encode()
            for signature in model.signatureDefs or []:
                for tensor in getattr(signature, side):
                    if tensor.tensorIndex == index:
                        tensor.name = spec.name.encode()
    if about:
        model.description = str(about.get("model", "")).encode()
        buffer, entry = schema.BufferT(), schema.MetadataT()
        buffer.data = list(json.dumps(about, sort_keys=True).encode())
        entry.name, entry.buffer = ENTRY.encode(), len(model.buffers)
        model.buffers.append(buffer)
        model.metadata = [*(model.metadata or []), entry]
    return packed(model)
