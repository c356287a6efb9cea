"""Channels of integer depthwise convolutions brought to a number that the kernel takes well.

ONNX Runtime's integer depthwise kernel computes sixteen channels at a time, and what is left over
one by one: with 88 channels it takes more than twice as long as with 96.  (Its FP32 layout pads by
itself.)  So the channels of all layers that hang together are padded here: what makes them makes
copies of the first ones, whose ranges calibration knows already, and what reads them has zeros
there.  The network computes the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import GraphModule, Node

from pipeline.compress.rewrite import constant, update_shape
from pipeline.compress.units import CLAMPS, is_constant, overloads, tensor_of

#: Channels that the kernel takes at a time.  Measured with ONNX Runtime 1.31 on x86-64 with
#: AVX-512, 28x28 positions, time of the padded layer over that of its own width: 3x3 with 24
#: channels 0.58, 40 0.46, 56 0.45, 72 0.43, 88 0.42, 120 0.35; 5x5 with 72 channels 0.40, 88 0.37,
#: 120 0.36.
MULTIPLE = 16

_CONVOLUTIONS = overloads("conv2d conv2d.padding")
#: What treats every channel alike, and for itself.
_CHANNELWISE = CLAMPS | overloads(
    "add.Tensor add_.Tensor sub.Tensor sub_.Tensor mul.Tensor mul_.Tensor hardswish hardswish_ "
    "hardsigmoid hardsigmoid_ sigmoid silu silu_ gelu avg_pool2d adaptive_avg_pool2d max_pool2d "
    "dropout"
)


def pad_depthwise(module: GraphModule, layers: Iterable[Node]) -> None:
    """Pad the channels of depthwise convolutions to a multiple of :data:`MULTIPLE`.

    Groups of channels that reach something else than convolutions and what treats channels alike
    (the network's output, a concatenation, a linear layer) stay as they are.

    Args:
        module: an exported graph without batch norms; changed in place, the function it computes
            is not.  Nodes carry ``meta["val"]`` before and after.
        layers: those that are to become integers; only what depthwise ones among them need is
            padded.
    """
    done: set[Node] = set()
    for layer in layers:
        if layer in done or not _is_depthwise(layer):
            continue
        missing = -_width(layer) % MULTIPLE
        group = _together(layer) if 0 < missing <= _width(layer) else None
        if group is not None:
            _pad(module, group, missing)
            done |= group
    module.recompile()


def _together(layer: Node) -> set[Node] | None:
    """All values whose channels are those of this layer; ``None`` where they cannot be padded."""
    width, found, open_ = _width(layer), {layer}, [layer]
    while open_:
        node = open_.pop()
        further = [user for user in node.users if not _is_dense(user)]
        if not _is_dense(node):
            further += [value for value in node.all_input_nodes if _has_channels(value, width)]
        for each in further:
            if each not in found and not is_constant(each):
                found.add(each)
                open_.append(each)
    whole = all(_has_channels(node, width) and _can_be_padded(node, width) for node in found)
    return found if whole else None


def _pad(module: GraphModule, group: set[Node], missing: int) -> None:
    """Give the values of a group so many channels more."""
    width = _width(next(iter(group)))
    readers = {user for node in group for user in node.users if _is_dense(user)}
    for node in group:
        if node.target in _CONVOLUTIONS:
            _set(module, node, 1, _repeated(tensor_of(module, _argument(node, 1)), missing, 0))
            if (bias := _argument(node, 2)) is not None:
                _set(module, node, 2, _repeated(tensor_of(module, bias), missing, 0))
            if _is_depthwise(node):
                node.args = (*node.args[:-1], width + missing)  # its number of groups
        else:
            for place, value in enumerate(node.args):
                if is_constant(value) and _has_channels(value, width):
                    _set(module, node, place, _repeated(tensor_of(module, value), missing, 1))
    for node in readers:
        weight = tensor_of(module, _argument(node, 1))
        zeros = weight.new_zeros(len(weight), missing, *weight.shape[2:])
        _set(module, node, 1, torch.cat([weight, zeros], 1))
    for node in group:
        shape = list(node.meta["val"].shape)
        update_shape(node, [shape[0], width + missing, *shape[2:]])


def _set(module: GraphModule, node: Node, place: int, value: torch.Tensor) -> None:
    """Let a node read another constant."""
    before: Any = node.args[place]
    with module.graph.inserting_before(node):
        node.update_arg(place, constant(module, node, f"_padded_{place}", value))
    if not before.users:
        module.graph.erase_node(before)


def _repeated(value: torch.Tensor, missing: int, axis: int) -> torch.Tensor:
    return torch.cat([value, value.narrow(axis, 0, missing)], axis)


def _argument(node: Node, place: int) -> Any:
    return node.args[place] if len(node.args) > place else None


def _can_be_padded(node: Node, width: int) -> bool:
    if node.target in _CONVOLUTIONS:
        return _is_dense(node) or _is_depthwise(node)
    read = [value.meta["val"] for value in node.all_input_nodes]
    alike = all(v.numel() == 1 or (v.dim() == 4 and v.shape[1] in (1, width)) for v in read)
    return node.target in _CHANNELWISE and alike


def _is_dense(node: Node) -> bool:
    """A convolution with constant parameters whose outputs read all channels."""
    return _has_parameters(node) and _argument(node, 6) in (None, 1)


def _is_depthwise(node: Node) -> bool:
    """A convolution with constant parameters that has one filter for each channel."""
    groups = _argument(node, 6)
    return _has_parameters(node) and groups not in (None, 1) and groups == _width(node)


def _has_parameters(node: Node) -> bool:
    if node.target not in _CONVOLUTIONS:
        return False
    return all(value.op == "get_attr" for value in node.args[1:3] if isinstance(value, Node))


def _has_channels(value: object, width: int) -> bool:
    """Whether a value is a stack of images, or numbers for each channel of one."""
    fake = value.meta.get("val") if isinstance(value, Node) else None
    return isinstance(fake, torch.Tensor) and fake.dim() == 4 and fake.shape[1] == width


def _width(node: Node) -> int:
    return int(node.meta["val"].shape[1])
