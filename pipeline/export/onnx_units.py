"""What ONNX Runtime makes of a model: which of its operators run with integers, which do not."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from pipeline.export.placement import Operator, placement

_CONVERSIONS = {"QuantizeLinear", "DequantizeLinear"}
_PLUMBING = _CONVERSIONS | {"ReorderInput", "ReorderOutput", "Constant", "Identity", "Shape"}
_INTEGER = {"QGemm", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger", "QAttention"}
_INTEGER |= {"DynamicQuantizeMatMul", "MatMulNBits"}
#: Of these, what multiplies integers and gives floats.
_GIVES_FLOATS = {"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits"}


def units_of(path: Path, model: onnx.ModelProto, modules: Mapping[str, str]) -> dict[str, Any]:
    """The placement of a model's operators, from what the runtime optimizes it to on this host.

    Args:
        path: of the file.
        model: the same, with the shapes that the exporter inferred.
        modules: the user's module of each value in it.
    """
    optimized = _optimized(path).graph
    owners = _owners(model.graph, {out for node in optimized.node for out in node.output})
    shapes = _shapes(model.graph)
    integers: set[str] = set()
    operators = []
    for node in optimized.node:
        integer = _is_integer(node, integers)
        gives = integer and node.op_type not in _GIVES_FLOATS
        if gives or node.op_type == "QuantizeLinear":
            integers.update(node.output)
        if node.op_type not in _PLUMBING:
            origins = [origin for out in node.output for origin in owners[out]]
            macs = sum(_macs(origin, shapes) for origin in origins)
            places = [modules.get(origin.output[0], "") for origin in origins]
            module = next((place for place in places if place), "")
            operators.append(Operator(node.op_type, module, macs, True, integer))
    entries = sum(node.op_type == "QuantizeLinear" for node in optimized.node)
    quantized = any(node.op_type in _CONVERSIONS | _INTEGER for node in model.graph.node)
    if not quantized:
        return placement("ONNX Runtime's kernels", 1, operators)
    inside = [
        Operator(each.name, each.module, each.macs, each.integer, each.integer)
        for each in operators
    ]
    return placement("integer kernels", entries, inside)


def _optimized(path: Path) -> onnx.ModelProto:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as in devices.agent.engines
    import onnxruntime

    with TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "model.onnx")
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return onnx.load(options.optimized_model_filepath)


def _is_integer(node: onnx.NodeProto, integers: set[str]) -> bool:
    if node.op_type in _PLUMBING:
        return False
    if node.op_type.startswith("QLinear") or node.op_type in _INTEGER:
        return True
    # What moves values works on integers where it is given them.
    return bool(node.input) and node.input[0] in integers


def _owners(graph: onnx.GraphProto, optimized: set[str]) -> defaultdict[str, list[onnx.NodeProto]]:
    """For each value of the optimized graph, the original operators that were fused into its own.

    A fused operator has the name of the last value that it makes.
    """
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    found: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        if node.op_type in _PLUMBING:
            continue
        name = node.output[0]
        while name not in optimized and len(readers[name]) == 1:
            name = readers[name][0].output[0]
        found[name].append(node)
    return found


def _shapes(graph: onnx.GraphProto) -> dict[str, list[int]]:
    """The sizes of all values; open ones count as one."""
    found = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        dimensions = value.type.tensor_type.shape.dim
        found[value.name] = [1 if d.dim_param else d.dim_value for d in dimensions]
    for node in graph.node:  # what a conversion gives has the shape of what it takes
        if node.op_type in _CONVERSIONS and node.input[0] in found:
            found.setdefault(node.output[0], found[node.input[0]])
    return found


def _macs(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int:
    out, taken = shapes.get(node.output[0]), [shapes.get(name) for name in node.input]
    if out is None or len(taken) < 2 or not taken[0] or not taken[1]:
        return 0
    if node.op_type == "Conv":
        return math.prod(out) * math.prod(taken[1][1:])
    if node.op_type in ("MatMul", "Gemm", "MatMulNBits"):
        return math.prod(out) * taken[0][-1]
    return 0
