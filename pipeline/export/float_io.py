"""FP32 at the border of quantized TFLite files.

LiteRT's converter drops the conversions at a quantized graph's inputs and outputs, so that callers
would have to scale their data to INT8 themselves, with other numbers for each file.  Here they are
put back, as operators: every variant of a model then takes and gives the same tensors.
"""

from __future__ import annotations

from typing import Any

import flatbuffers
from litert_converter import schema_py_generated as schema

_IDENTIFIER = b"TFL3"


def with_float_io(content: bytes) -> bytes:
    """A TFLite file whose INT8 inputs and outputs are FP32.

    Args:
        content: of a ``.tflite`` file with one subgraph; files of floats come back as they are.
    """
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    (graph,) = model.subgraphs
    graph.inputs, graph.outputs = list(graph.inputs), list(graph.outputs)
    signature = model.signatureDefs[0] if model.signatureDefs else None
    changed = False
    for position, index in enumerate(graph.inputs):
        if graph.tensors[index].type == schema.TensorType.INT8:
            outer = _float_twin(graph, index)
            operator = _operator(model, schema.BuiltinOperator.QUANTIZE, outer, index)
            graph.operators.insert(0, operator)
            graph.inputs[position] = outer
            _rename(signature.inputs if signature else [], index, outer)
            changed = True
    for position, index in enumerate(graph.outputs):
        if graph.tensors[index].type == schema.TensorType.INT8:
            outer = _float_twin(graph, index)
            operator = _operator(model, schema.BuiltinOperator.DEQUANTIZE, index, outer)
            graph.operators.append(operator)
            graph.outputs[position] = outer
            _rename(signature.outputs if signature else [], index, outer)
            changed = True
    return packed(model) if changed else content


class _Aligned(flatbuffers.Builder):  # type: ignore[misc]
    """A builder that puts buffers where the schema wants them, at multiples of 16 bytes.

    The generated classes forget ``force_align``, and kernels read weights where they lie.
    """

    def StartVector(self, elemSize: int, numElems: int, alignment: int) -> Any:
        return super().StartVector(elemSize, numElems, 16 if elemSize == 1 else alignment)


def packed(model: Any) -> bytes:
    """A TFLite model as the bytes of a file."""
    builder = _Aligned(1024)
    builder.Finish(model.Pack(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


def _float_twin(graph: Any, index: int) -> int:
    """Add an FP32 tensor of the same shape that takes over the name; returns its index."""
    inner = graph.tensors[index]
    twin = schema.TensorT()
    twin.shape = inner.shape
    twin.shapeSignature = inner.shapeSignature
    twin.type = schema.TensorType.FLOAT32
    twin.buffer = 0  # by convention the empty one
    twin.name = inner.name
    inner.name = inner.name + b"_int8"
    graph.tensors.append(twin)
    return len(graph.tensors) - 1


def _operator(model: Any, builtin: int, source: int, target: int) -> Any:
    operator = schema.OperatorT()
    operator.opcodeIndex = _opcode(model, builtin)
    operator.inputs = [source]
    operator.outputs = [target]
    return operator


def _opcode(model: Any, builtin: int) -> int:
    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == builtin:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = builtin
    code.deprecatedBuiltinCode = builtin  # both fields carry codes below 127
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _rename(tensors: Any, old: int, new: int) -> None:
    for tensor in tensors:
        if tensor.tensorIndex == old:
            tensor.tensorIndex = new
