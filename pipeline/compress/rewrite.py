"""Rewriting a captured graph into an equal one, of operators that have integer kernels.

No runtime here has an integer kernel for hardswish that keeps its neighbours together: ONNX Runtime
computes it in FP32 between conversions, and LiteRT's integer one stays outside XNNPACK.  All have
one for adding, clamping and multiplying.  Written out, hardswish is ``x * clamp(x + 3, 0, 6) / 6``;
the division would be one more operator, and falls away when the layer before gives ``u = x / c``
with ``c = sqrt(6)``::

    hardswish(x) = u * clamp(u + 3 / c, 0, c)

Scaling a layer's weights costs nothing: each output channel has a scale of its own anyway.  In the
same way a hardsigmoid, ``clamp(x / 6 + 1/2, 0, 1)``, becomes a mere clamp behind its layer, which
integer kernels do by saturation.

Source of both functions: Howard et al., Searching for MobileNetV3, 2019, section 5.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from pipeline.compress.units import tensor_of

_aten = torch.ops.aten
_LAYERS = {
    _aten.conv1d.default,
    _aten.conv1d.padding,
    _aten.conv2d.default,
    _aten.conv2d.padding,
    _aten.linear.default,
}
_SWISHES = {_aten.hardswish.default, _aten.hardswish_.default}
_SIGMOIDS = {_aten.hardsigmoid.default, _aten.hardsigmoid_.default}
_ROOT = math.sqrt(6)


def decompose_hard_activations(
    module: GraphModule, where: Callable[[Node], bool] = lambda node: True
) -> list[Node]:
    """Write hardswish and hardsigmoid out, where the layer before them takes their factor up.

    Batch norms are to be folded into the layers first.  An activation stays as it is if what it
    reads is no layer with constant weights, or is read by others too.

    Args:
        module: an exported graph, in evaluation mode; changed in place.  Nodes carry
            ``meta["val"]`` before and after; new ones belong to the module of the activation.
        where: which activations are meant, by their nodes; all of them where it is not given.

    Returns:
        The nodes that took the activations' place: a product each, or a clamp.
    """
    results = []
    for node in list(module.graph.nodes):
        if node.target not in _SWISHES | _SIGMOIDS or not where(node):
            continue
        if not _is_own_layer(node.args[0]):
            continue
        if node.target in _SWISHES:
            results.append(_write_out_swish(module, node))
        else:
            results.append(_write_out_sigmoid(module, node))
    module.graph.lint()
    module.recompile()
    return results


def pool_by_window(module: GraphModule) -> GraphModule:
    """Write global average pooling as pooling by a window of the whole size.

    Args:
        module: an exported graph; changed in place.  Means over open sizes stay.

    Returns:
        The same module, computing the same function.
    """
    for node in list(module.graph.nodes):
        _pool_by_window(node)
    module.recompile()
    return module


def _pool_by_window(node: Node) -> None:
    arguments: list[Any] = [*node.args, None, None, None]
    source, over, keeps_rank, *_ = arguments
    if node.target == _aten.adaptive_avg_pool2d.default:
        is_global, keeps_rank = set(over) == {1}, True
    elif node.target == _aten.mean.dim and source.meta["val"].dim() == 4:
        is_global = {axis % 4 for axis in over or ()} == {2, 3} and not node.kwargs
    else:
        return
    window = source.meta["val"].shape[-2:]
    if not is_global or not all(isinstance(size, int) for size in window):
        return
    with node.graph.inserting_before(node):
        result = _call(node, _aten.avg_pool2d.default, source, list(window))
        if not keeps_rank:
            result.meta["val"] = node.meta["val"][..., None, None]
            result = _call(node, _aten.flatten.using_ints, result, 1)
    _replace(node, result)


def _write_out_swish(module: GraphModule, node: Node) -> Node:
    layer: Any = node.args[0]
    _scale(module, layer, 1 / _ROOT, 0.0)
    with module.graph.inserting_before(node):
        # A tensor, not a number: quantizers annotate what is a node.
        half = constant(module, layer, "_half", torch.tensor(3 / _ROOT))
        raised = _call(node, _aten.add.Tensor, layer, half)
        gate = _call(node, _aten.clamp.default, raised, 0.0, _ROOT)
        return _replace(node, _call(node, _aten.mul.Tensor, layer, gate))


def _write_out_sigmoid(module: GraphModule, node: Node) -> Node:
    layer: Any = node.args[0]
    _scale(module, layer, 1 / 6, 0.5)
    with module.graph.inserting_before(node):
        return _replace(node, _call(node, _aten.clamp.default, layer, 0.0, 1.0))


def _is_own_layer(source: object) -> bool:
    """Whether it is a layer with constant parameters that has one reader."""
    if not isinstance(source, Node) or source.target not in _LAYERS or len(source.users) != 1:
        return False
    return all(value.op == "get_attr" for value in source.args[1:3] if isinstance(value, Node))


def _scale(module: GraphModule, layer: Node, factor: float, offset: float) -> None:
    """Let a layer give ``factor * x + offset`` instead of ``x``, with parameters of its own."""
    _, weight, bias, *rest = [*layer.args, None][: max(3, len(layer.args))]
    weights = tensor_of(module, weight)
    shift = torch.full((len(weights),), offset, dtype=weights.dtype)
    if bias is not None:
        shift = shift + factor * tensor_of(module, bias)
    with module.graph.inserting_before(layer):
        scaled = constant(module, layer, "_weight", factor * weights)
        moved = constant(module, layer, "_bias", shift) if bias is not None or offset else None
    layer.args = (layer.args[0], scaled, moved, *rest)
    for before in (weight, bias):
        if isinstance(before, Node) and not before.users:
            module.graph.erase_node(before)


def constant(module: GraphModule, layer: Node, suffix: str, value: torch.Tensor) -> Node:
    """Make a buffer of the module, and the node that reads it, where nodes are inserted now.

    Args:
        module: gets the buffer.
        layer: what it is for; the buffer's name begins with this node's.
        suffix: how the name ends.
        value: of the buffer.
    """
    name = f"{layer.name}{suffix}"
    module.register_buffer(name, value)
    node = module.graph.get_attr(name)
    # The shape and type of what is there, as the exporter would have noted it.
    mode = layer.meta["val"].fake_mode
    node.meta = {**layer.meta, "val": mode.from_tensor(value, static_shapes=True)}
    return node


def update_shape(node: Node, shape: Sequence[Any]) -> None:
    """Note that a node's value has another shape now."""
    value = node.meta["val"]
    with value.fake_mode:
        node.meta["val"] = value.new_empty(shape)


def _call(like: Node, operator: Any, *arguments: Any) -> Node:
    node = like.graph.call_function(operator, arguments)
    node.meta = dict(like.meta)
    return node


def _replace(node: Node, result: Node) -> Node:
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)
    return result
