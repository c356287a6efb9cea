"""ONNX, through PyTorch's exporter; quantized programs come out as QDQ."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from pipeline.export.onnx_biases import quantize_biases
from pipeline.model import INPUT_NAME

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def write(program: ExportedProgram, path: Path) -> dict[str, Any]:
    """Write ``program`` as one ONNX file; returns the opset."""
    names = program.graph_signature.user_inputs
    outputs = program.graph_signature.user_outputs
    exported = torch.onnx.export(
        program,
        dynamo=True,
        external_data=False,
        input_names=[INPUT_NAME] if len(names) == 1 else None,
        output_names=["output"] if len(outputs) == 1 else None,
        verbose=False,
    )
    if exported is None:
        raise RuntimeError("the exporter returned nothing")
    model = exported.model_proto
    _strip_traces(model)
    quantize_biases(model)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return {"opset": next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))}


def _strip_traces(model: onnx.ModelProto) -> None:
    """Drop the stack traces with local paths that the exporter leaves in each node."""
    del model.graph.metadata_props[:]
    for part in (
        *model.graph.node,
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        del part.metadata_props[:]
        if isinstance(part, onnx.NodeProto):
            part.doc_string = ""
