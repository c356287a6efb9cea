"""Integer weights in ONNX files: ``MatMulNBits``, ONNX Runtime's own operator.

Standard ONNX can say the same with ``DequantizeLinear`` before a product, but ONNX Runtime then
computes FP32 weights when it loads the model, or anew with each call; this operator multiplies by
the integers themselves, INT8 and INT4 alike.

Source: ``docs/ContribOperators.md``, MatMulNBits, in https://github.com/microsoft/onnxruntime.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pipeline.export.integer_weights import IntegerWeights, check_all_written, matching
from pipeline.export.onnx_graphs import drop_unread

_DOMAIN = "com.microsoft"
#: Activations become INT8 within the operator: on x86 and Arm a multiple faster than FP32.
_COMPUTE_IN_INT8 = 4


def with_integers(content: bytes, weights: Sequence[IntegerWeights]) -> bytes:
    """An ONNX file that multiplies by the integers that its floats stand for.

    Args:
        content: of an ``.onnx`` file.
        weights: of the program it was exported from.

    Raises:
        StageError: if one of them is not found.
    """
    model = onnx.load_from_string(content)
    floats = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    turned = {
        node.output[0]: floats[node.input[0]].T
        for node in model.graph.node
        if node.op_type == "Transpose" and node.input[0] in floats
    }
    written = 0
    for position, node in enumerate(model.graph.node):
        found = _weights_of(node, {**floats, **turned}, weights)
        if found is not None:
            model.graph.node[position].CopyFrom(_product(model, node, found))
            written += 1
    check_all_written(written, weights, "onnx")
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    drop_unread(model.graph)
    return bytes(model.SerializeToString(deterministic=True))


def _weights_of(
    node: onnx.NodeProto, floats: dict[str, Any], weights: Sequence[IntegerWeights]
) -> IntegerWeights | None:
    if node.op_type not in ("MatMul", "Gemm") or node.input[1] not in floats:
        return None
    values = floats[node.input[1]]
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    if attributes.get("alpha", 1) != 1 or attributes.get("beta", 1) != 1:
        return None
    return matching(weights, values if attributes.get("transB") else values.T)


def _product(
    model: onnx.ModelProto, node: onnx.NodeProto, weights: IntegerWeights
) -> onnx.NodeProto:
    outputs, inputs = weights.integers.shape
    groups = weights.scale.shape[1]
    block = inputs // groups if groups > 1 else _block_of(inputs)
    blocks = -(-inputs // block)
    offset = 2 ** (weights.bits - 1)
    padded = np.zeros((outputs, blocks * block), np.uint8)
    padded[:, :inputs] = (weights.integers.astype(np.int16) + offset).astype(np.uint8)
    shape = (outputs, blocks, block * weights.bits // 8)
    scale = np.broadcast_to(weights.scale, (outputs, blocks))
    zero = np.broadcast_to(weights.zero.astype(np.int16) + offset, (outputs, blocks))
    parts = {
        "integers": _packed(padded, weights.bits).reshape(shape),
        "scale": np.ascontiguousarray(scale).ravel(),
        "zero": _packed(zero.astype(np.uint8), weights.bits),
    }
    for part, value in parts.items():
        tensor = numpy_helper.from_array(value, f"{node.output[0]}_{part}")
        model.graph.initializer.append(tensor)
    names = [f"{node.output[0]}_{part}" for part in parts]
    bias = ["", node.input[2]] if len(node.input) > 2 else []
    return helper.make_node(
        "MatMulNBits",
        [node.input[0], *names, *bias],
        list(node.output),
        node.name,
        domain=_DOMAIN,
        K=inputs,
        N=outputs,
        bits=weights.bits,
        block_size=block,
        accuracy_level=_COMPUTE_IN_INT8,
    )


def _block_of(inputs: int) -> int:
    """The largest block the operator knows that leaves no gap, where channels have one step."""
    fitting = [size for size in (256, 128, 64, 32) if inputs % size == 0]
    return fitting[0] if fitting else 16


def _packed(values: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Bytes as they are, or two numbers of four bits in a byte, the first one low."""
    if bits == 8:
        return values
    if values.shape[1] % 2:
        values = np.pad(values, ((0, 0), (0, 1)))
    return np.ascontiguousarray(values[:, ::2] | values[:, 1::2] << 4)
