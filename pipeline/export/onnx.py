"""ONNX, through PyTorch's exporter; quantized programs come out as QDQ."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from pipeline.export.onnx_biases import quantize_biases
from pipeline.export.onnx_graphs import bodies_of, graphs_of
from pipeline.export.onnx_units import units_of
from pipeline.export.tensors import io_of
from pipeline.inspect import ONNX_PREFIX
from profiles.export import Export

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_SCOPES = "pkg.torch.onnx.name_scopes"
_SYMBOL = re.compile(r"\bs\d+\b")


def write(
    program: ExportedProgram,
    path: Path,
    settings: Export,
    about: Mapping[str, Any],
    finish: Callable[[bytes], bytes],
) -> dict[str, Any]:
    """Write ``program`` as one ONNX file; returns the opset and what runs in integers."""
    io = io_of(program)
    exported = torch.onnx.export(
        program,
        dynamo=True,
        external_data=False,
        input_names=[spec.name for spec in io.inputs],
        output_names=[spec.name for spec in io.outputs],
        verbose=False,
    )
    if exported is None:
        raise RuntimeError("the exporter returned nothing")
    model = exported.model_proto
    modules = {output: _module(node) for node in model.graph.node for output in node.output}
    _strip_traces(model)
    quantize_biases(model)
    _name_batch(model)
    for key, value in sorted(about.items()):
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        model.metadata_props.add(key=ONNX_PREFIX + key, value=text)
    model.doc_string = str(about.get("model", ""))
    content = finish(model.SerializeToString(deterministic=True))
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(content)
    return {
        "opset": next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
        "placement": units_of(path, model, modules),
    }


def _module(node: onnx.NodeProto) -> str:
    """The path of the user's module that a node came from, as the exporter noted it."""
    scopes = next((each.value for each in node.metadata_props if each.key == _SCOPES), "[]")
    *modules, _ = ast.literal_eval(scopes) or [""]
    return str(modules[-1]) if modules and not str(modules[-1]).startswith("_empty") else ""


def _strip_traces(model: onnx.ModelProto) -> None:
    """Drop the stack traces with local paths that the exporter leaves in each node."""
    for function in model.functions:
        bodies = [each for node in function.node for each in bodies_of(node)]
        _strip((function, *function.node, *function.value_info))
        for graph in [each for body in bodies for each in graphs_of(body)]:
            _strip_graph(graph)
    for graph in graphs_of(model.graph):
        _strip_graph(graph)


def _strip_graph(graph: onnx.GraphProto) -> None:
    values = (*graph.value_info, *graph.input, *graph.output)
    _strip((graph, *graph.node, *values, *graph.initializer))


def _strip(parts: Iterable[Any]) -> None:
    for part in parts:
        del part.metadata_props[:]
        part.doc_string = ""


def _name_batch(model: onnx.ModelProto) -> None:
    """Call the open dimension what it is; the exporter counts its symbols."""
    for graph in graphs_of(model.graph):
        for part in (*graph.input, *graph.output, *graph.value_info):
            for dimension in part.type.tensor_type.shape.dim:
                if dimension.dim_param:
                    dimension.dim_param = _SYMBOL.sub("batch", dimension.dim_param)
