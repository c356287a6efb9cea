"""Which operators of a TFLite file XNNPACK takes on this host, and in how many pieces."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from litert_converter import schema_py_generated as schema

from pipeline.export.placement import Operator, module_of, placement

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_NAMES = {
    value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
}
_CONVERSIONS = {"QUANTIZE", "DEQUANTIZE"}
_CONVOLUTIONS = {"CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV"}
_PRODUCTS = {"FULLY_CONNECTED", "BATCH_MATMUL"}
_INTEGERS = {schema.TensorType.INT8, schema.TensorType.INT4}
#: A module in the name of a value: its class, and its name in the module around it.
_SCOPE = re.compile(r"^[\w.<>]*\.(?:[A-Za-z]\w*?)_(\w+)$")
_DELEGATE = "DELEGATE"


def nodes_of(content: bytes, program: ExportedProgram) -> dict[str, Any]:
    """The placement of a file's operators.

    Args:
        content: of the file.
        program: that it was made of, for its modules' paths.
    """
    (graph,) = (model := schema.ModelT.InitFromPackedBuf(content, 0)).subgraphs
    paths = {path for node in program.graph.nodes if (path := module_of(node))}
    taken, pieces = _taken(content)
    operators = []
    for number, node in enumerate(graph.operators):
        code = model.operatorCodes[node.opcodeIndex]
        name = _NAMES[max(code.builtinCode, code.deprecatedBuiltinCode)]
        out = graph.tensors[node.outputs[0]]
        if name not in _CONVERSIONS:
            integer = out.type in _INTEGERS or _has_integer_weights(name, graph, node)
            module = _module(out.name.decode(errors="replace"), paths)
            macs = _macs(name, graph, node)
            operators.append(Operator(name, module, macs, number in taken, integer))
    return placement("XNNPACK", pieces, operators)


def _taken(content: bytes) -> tuple[set[int], int]:
    """The numbers of the operators that the delegate took, and how many pieces it made of them.

    The interpreter lists operators that it runs no more. What a piece took lies between the values
    that it reads and those that it gives.
    """
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    details = interpreter._get_ops_details()
    pieces = [each for each in details if each["op_name"] == _DELEGATE]
    makers = {
        int(out): each
        for each in details
        if each["op_name"] != _DELEGATE
        for out in each["outputs"]
    }
    taken: set[int] = set()
    for piece in pieces:
        given, open_ = set(map(int, piece["inputs"])), list(map(int, piece["outputs"]))
        while open_:
            maker = makers.get(open_.pop())
            if maker is not None and maker["index"] not in taken:
                taken.add(maker["index"])
                open_ += [int(each) for each in maker["inputs"] if int(each) not in given]
    return taken, len(pieces)


def _module(name: str, paths: Iterable[str]) -> str:
    """The user's module that a value was made in, by the converter's name for it.

    That is the classes and names of the modules around it, one in the other.
    """
    parts = name.partition(";")[0].split("/")
    words = [found.group(1) for part in parts if (found := _SCOPE.match(part))]
    joined = ".".join(words)
    return max((p for p in paths if joined == p or joined.endswith(p)), key=len, default="")


def _has_integer_weights(name: str, graph: Any, node: Any) -> bool:
    """Whether a layer that gives floats multiplies by integers all the same."""
    if name not in _CONVOLUTIONS | _PRODUCTS:
        return False
    return graph.tensors[node.inputs[1]].type in _INTEGERS


def _macs(name: str, graph: Any, node: Any) -> int:
    if name not in _CONVOLUTIONS | _PRODUCTS:
        return 0
    first, weight = ([int(n) for n in graph.tensors[index].shape] for index in node.inputs[:2])
    out = math.prod(int(n) for n in graph.tensors[node.outputs[0]].shape)
    if name == "CONV_2D":
        return out * math.prod(weight[1:])
    if name == "DEPTHWISE_CONV_2D":
        return out * math.prod(weight[1:3])
    if name == "TRANSPOSE_CONV":  # first comes the output's shape; weights are (out, h, w, in)
        values = [int(n) for n in graph.tensors[node.inputs[2]].shape]
        return math.prod(values) * math.prod(weight[:3])
    return out * first[-1]
