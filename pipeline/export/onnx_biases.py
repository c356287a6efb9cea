"""Biases as INT32 in quantized ONNX files.

Behind integers a kernel adds its bias to sums of products, which are INT32 in units of the input's
scale times the weights'.  ONNX Runtime converts a float bias so by itself, but only where the
output is quantized too; a layer that gives FP32 would run in FP32 altogether.

Source: ``weight_bias_quantization.cc`` in ``onnxruntime/core/optimizer/qdq_transformer``,
https://github.com/microsoft/onnxruntime.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from pipeline.export.onnx_graphs import drop_unread

_MOST = np.iinfo(np.int32).max


def quantize_biases(model: onnx.ModelProto) -> int:
    """Turn the biases of layers that read integers and have integer weights into INT32.

    Args:
        model: changed in place.  A bias too large for its unit stays as it is, which happens
            where a channel's weights are next to nothing.

    Returns:
        How many biases were turned.
    """
    graph = _Graph(model.graph)
    added: dict[int, NodeProto] = {}
    for position, node in enumerate(model.graph.node):
        layer, place = graph.layer_of(node)
        if layer is None:
            continue
        bias, unit = graph.constant(node.input[place]), graph.unit(layer)
        if bias is None or bias.ndim != 1 or bias.dtype != np.float32 or unit is None:
            continue
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            steps = np.round(bias / unit.astype(np.float64))
        if not (np.abs(steps) <= _MOST).all():
            continue
        name = f"{layer.name or layer.output[0]}_bias_integer"
        scale = np.broadcast_to(unit, bias.shape).astype(np.float32)
        for value, suffix in ((steps.astype(np.int32), ""), (scale, "_scale")):
            model.graph.initializer.append(numpy_helper.from_array(value.copy(), name + suffix))
        added[position] = helper.make_node(
            "DequantizeLinear", [name, f"{name}_scale"], [f"{name}_float"], f"{name}_float", axis=0
        )
        node.input[place] = f"{name}_float"
    for position in reversed(added):
        model.graph.node.insert(position, added[position])
    if added:
        drop_unread(model.graph)
    return len(added)


class _Graph:
    """Who makes which value of a graph."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._makers = {name: node for node in graph.node for name in node.output}
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}

    def layer_of(self, node: NodeProto) -> tuple[NodeProto | None, int]:
        """The layer whose bias a node adds, and which input of the node that is."""
        if node.op_type in ("Conv", "Gemm") and len(node.input) == 3:
            return node, 2
        if node.op_type == "Add":  # a layer over tokens is a MatMul and an Add
            for place in (0, 1):
                maker = self._makers.get(node.input[1 - place])
                if maker is not None and maker.op_type == "MatMul":
                    return maker, place
        return None, 0

    def constant(self, name: str) -> NDArray[np.float32] | None:
        """The value of an initializer."""
        tensor = self._tensors.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def unit(self, layer: NodeProto) -> NDArray[np.float32] | None:
        """What an integer sum of a layer's products stands for, for each output channel."""
        input_, weights = (self._scale(name) for name in layer.input[:2])
        if input_ is None or weights is None or input_.size != 1:
            return None
        return np.asarray(input_.reshape(()) * weights)

    def _scale(self, name: str) -> NDArray[np.float32] | None:
        maker = self._makers.get(name)
        if maker is not None and maker.op_type == "Transpose":
            maker = self._makers.get(maker.input[0])
        if maker is None or maker.op_type != "DequantizeLinear":
            return None
        return self.constant(maker.input[1])
