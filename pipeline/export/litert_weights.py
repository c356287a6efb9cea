"""Integer weights in TFLite files, for the kernels that take floats and multiply integers.

LiteRT and XNNPACK see a ``FULLY_CONNECTED`` with FP32 input and INT8 or INT4 weights, one step for
each output channel, and make the input INT8 as it comes, row by row.

Source: ``litert/tflite/kernels/fully_connected.cc`` ("hybrid" kernels) and the quantization
specification, https://ai.google.dev/edge/litert/models/quantization_spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from litert_converter import schema_py_generated as schema

from pipeline.export.float_io import packed
from pipeline.export.integer_weights import IntegerWeights, check_all_written, matching

_TYPES = {8: schema.TensorType.INT8, 4: schema.TensorType.INT4}
#: The first version of FULLY_CONNECTED with integer weights of this kind and floats elsewhere.
_VERSIONS = {8: 12, 4: 12}


def with_integers(content: bytes, weights: Sequence[IntegerWeights]) -> bytes:
    """A TFLite file whose linear layers hold integers for the floats that they stand for.

    Args:
        content: of a ``.tflite`` file with one subgraph.
        weights: of the program it was converted from, a step for each channel.

    Raises:
        StageError: if one of them is not found.
    """
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    (graph,) = model.subgraphs
    written = 0
    changed: set[int] = set()
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        if code.builtinCode != schema.BuiltinOperator.FULLY_CONNECTED:
            continue
        index = operator.inputs[1]
        tensor = graph.tensors[index]
        if index not in changed:
            found = _weights_of(model, tensor, weights)
            if found is None:
                continue
            _write(model, tensor, found)
            changed.add(index)
            code.version = max(code.version, _VERSIONS[found.bits])
        written += 1
    check_all_written(written, weights, "tflite")
    return packed(model)


def _weights_of(
    model: Any, tensor: Any, weights: Sequence[IntegerWeights]
) -> IntegerWeights | None:
    data = model.buffers[tensor.buffer].data
    if tensor.type != schema.TensorType.FLOAT32 or data is None or not len(data):
        return None
    floats = np.frombuffer(bytes(data), np.float32).reshape(tensor.shape)
    return matching(weights, floats)


def _write(model: Any, tensor: Any, weights: IntegerWeights) -> None:
    integers = weights.integers.ravel()
    if weights.bits == 4:  # two in a byte, the first one low
        integers = np.pad(integers, (0, integers.size % 2)).astype(np.uint8)
        integers = (integers[::2] & 15) | (integers[1::2] & 15) << 4
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(integers.tobytes(), np.uint8)
    model.buffers.append(buffer)
    if not any(t is not tensor and t.buffer == tensor.buffer for t in model.subgraphs[0].tensors):
        model.buffers[tensor.buffer].data = None
    tensor.buffer = len(model.buffers) - 1
    tensor.type = _TYPES[weights.bits]
    quantization = schema.QuantizationParametersT()
    quantization.scale = weights.scale[:, 0].tolist()
    quantization.zeroPoint = [0] * len(weights.scale)
    quantization.quantizedDimension = 0
    tensor.quantization = quantization
