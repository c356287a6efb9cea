"""A graph of standard layers run on labels: which channels each layer reads and makes."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from pipeline.compress.heads import attention, product
from pipeline.compress.labels import Labels, combined, none_like, squeezed, varies

#: What is computed place by place, beside what PyTorch says is.
_POINTWISE = {"hardswish", "hardswish_", "relu6", "relu6_", "dropout", "dropout_", "contiguous"}
_POINTWISE |= {"to", "detach", "alias", "type_as", "_to_copy", "feature_dropout"}
#: What moves values and computes none: it is run on the labels themselves.
_MOVES = {"view", "reshape", "flatten", "unflatten", "view_as", "reshape_as", "squeeze"}
_MOVES |= {"unsqueeze", "permute", "transpose", "t", "movedim", "flip", "roll", "pixel_shuffle"}
_MOVES |= {"pixel_unshuffle", "select", "slice", "narrow", "split", "split_with_sizes", "chunk"}
_MOVES |= {"unbind", "expand", "expand_as", "repeat", "cat", "concat", "stack"}
#: What takes so many of the last dimensions together and leaves the others as they are.
_POOLS = {
    "adaptive_avg_pool1d": 1,
    "avg_pool1d": 1,
    "max_pool1d": 1,
    "adaptive_avg_pool2d": 2,
    "avg_pool2d": 2,
    "max_pool2d": 2,
    "upsample_nearest2d": 2,
    "upsample_bilinear2d": 2,
}


@dataclass(slots=True)
class Layer:
    """What a layer with weights reads and makes.

    Args:
        path: of the module.
        reads, makes: labels of its input and output channels; of a batch norm both are the same.
        shape: of one example of what it reads, at its first call.
        positions: at how many places of one example it is computed, in all its calls.
    """

    path: str
    reads: torch.Tensor
    makes: torch.Tensor
    shape: tuple[int, ...]
    positions: float = 0.0


@dataclass(frozen=True, slots=True)
class Product:
    """A product of two computed matrices: labels of the left ``(..., n, k)`` and right one."""

    left: torch.Tensor
    right: torch.Tensor


class Trace(Interpreter):
    """Runs a module on an example, and on labels beside it.

    Args:
        module: of :func:`pipeline.compress.module.module_of`, in evaluation mode.
        example: inputs; of two or more, so that their number is no constant.

    Attributes:
        labels: which of them are the same.
        of: by the name of a node, its labels; for several outputs a list.
        layers: with weights, by path, in the order of their first calls.
        parameters: by target, labels of those that no layer holds.
        products: of attention.
        batch: how many examples.
    """

    def __init__(self, module: GraphModule, example: torch.Tensor) -> None:
        super().__init__(module)
        self.labels = Labels()
        self.of: dict[str, Any] = {}
        self.layers: dict[str, Layer] = {}
        self.parameters: dict[str, torch.Tensor] = {}
        self.products: list[Product] = []
        self.batch = len(example)
        with torch.no_grad():
            self.run(example)

    def run_node(self, n: Node) -> Any:
        """Run one node, on values and on labels."""
        value = super().run_node(n)
        if n.op == "output":
            for node in n.all_input_nodes:
                if isinstance(labels := self.of.get(node.name), torch.Tensor):
                    self.labels.freeze(labels, "it is the network's output")
        elif isinstance(value, torch.Tensor):
            self.of[n.name] = squeezed(self._labels_of(n, value))
        elif isinstance(value, tuple | list) and any(isinstance(v, torch.Tensor) for v in value):
            self.of[n.name] = self._several(n, value)
        return value

    def _labels_of(self, node: Node, value: torch.Tensor) -> torch.Tensor:
        if node.op == "get_attr":
            return self._parameter(str(node.target), value)
        if node.op == "call_module":
            return self._layer(node, value)
        if node.op == "placeholder":
            return none_like(value)
        if node.target is operator.getitem:
            source, place = node.args
            found: torch.Tensor = self.of[source.name][place]  # type: ignore[union-attr,index]
            return found
        read = self._read(node)
        found = self._operator(node, read, value) if read else none_like(value)
        return found if found.shape == value.shape else self._unknown(node, read, value)

    def _read(self, node: Node) -> list[torch.Tensor]:
        """Labels of the tensors that a node reads."""
        found = [self.of[each.name] for each in node.all_input_nodes if each.name in self.of]
        return [labels for labels in found if isinstance(labels, torch.Tensor)]

    def _parameter(self, target: str, value: torch.Tensor) -> torch.Tensor:
        """Each of its values has a label of its own, until it meets a layer's."""
        if value.numel() == 1 or not value.is_floating_point():
            return none_like(value)
        if target not in self.parameters:
            self.parameters[target] = self.labels.fresh(*value.shape)
        return self.parameters[target]

    def _layer(self, node: Node, value: torch.Tensor) -> torch.Tensor:
        layer = self.submodules[str(node.target)]
        (labels,) = self._read(node)
        if isinstance(layer, nn.Dropout):
            return labels
        if isinstance(layer, nn.LayerNorm):
            dims = range(-len(layer.normalized_shape), 0)
            self.labels.freeze_along(labels, list(dims), f"{node.target} normalises over all of it")
            return labels
        if isinstance(layer, nn.BatchNorm2d):
            self._called(str(node.target), labels, 1, None)
            return labels
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear):
            dim = -1 if isinstance(layer, nn.Linear) else 1
            return self._made(layer, self._called(str(node.target), labels, dim, layer), dim, value)
        return self._unknown(node, [labels], value)

    def _called(self, path: str, labels: torch.Tensor, dim: int, layer: nn.Module | None) -> Layer:
        reads = self.labels.along(labels, dim, f"{path} reads it with values that no layer made")
        known = self.layers.get(path)
        if known is not None:
            self.labels.join(known.reads, reads, f"{path} also reads values that no layer made")
            return known
        weight = getattr(layer, "weight", None)
        makes = reads if weight is None else self.labels.fresh(len(weight))
        self.layers[path] = Layer(path, reads, makes, tuple(labels.shape[1:]))
        return self.layers[path]

    def _made(self, layer: nn.Module, found: Layer, dim: int, value: torch.Tensor) -> torch.Tensor:
        groups = int(getattr(layer, "groups", 1))
        if groups > 1:
            # A group of channels leaves whole; of a depthwise convolution it is one channel.
            inputs, outputs = found.reads.reshape(groups, -1), found.makes.reshape(groups, -1)
            for one in (inputs, outputs):
                self.labels.join(one, outputs[:, :1], f"{found.path} reads values no layer made")
        channels = value.shape[dim]
        found.positions += value.numel() / channels / self.batch
        shape = [1] * value.ndim
        shape[dim] = channels
        return found.makes.reshape(shape).expand(value.shape)

    def _operator(self, node: Node, read: list[torch.Tensor], value: torch.Tensor) -> torch.Tensor:
        name = operator_name(node)
        if torch.Tag.pointwise in getattr(node.target, "tags", ()) or name in _POINTWISE:
            return combined(self.labels, read, node.name)
        if name in _MOVES:
            found: torch.Tensor = self._moved(node)
            return found
        return _RULES.get(name, Trace._unknown)(self, node, read, value)

    def _moved(self, node: Node) -> Any:
        """The same operator on labels, with the sizes of this run."""

        def put(each: Node) -> Any:
            return self.of.get(each.name, self.env.get(each))

        arguments = map_arg(node.args, put)
        if operator_name(node) == "view":
            return torch.ops.aten.reshape.default(*arguments)
        return node.target(*arguments, **map_arg(node.kwargs, put))  # type: ignore[operator]

    def _several(self, node: Node, values: Any) -> list[torch.Tensor]:
        if node.op == "call_function" and operator_name(node) in _MOVES:
            return [squeezed(found) for found in self._moved(node)]
        read = self._read(node)
        return [self._unknown(node, read, v) for v in values if isinstance(v, torch.Tensor)]

    def _pooled(self, node: Node, read: list[torch.Tensor], value: torch.Tensor) -> torch.Tensor:
        last = list(range(-_POOLS[operator_name(node)], 0))
        self.labels.freeze_along(read[0], last, f"{node.name} takes it together")
        one = read[0]
        for dim in last:
            one = one.narrow(dim, 0, 1)
        return one.expand(value.shape)

    def _softmax(self, node: Node, read: list[torch.Tensor], value: torch.Tensor) -> torch.Tensor:
        dim = int(node.args[1])  # type: ignore[arg-type]
        self.labels.freeze_along(read[0], [dim], f"{node.name} takes all of it together")
        return read[0]

    def _product(self, node: Node, read: list[torch.Tensor], value: torch.Tensor) -> torch.Tensor:
        if len(read) != 2 or min(one.ndim for one in read) < 2:
            return self._unknown(node, read, value)
        self.products.append(Product(*read))
        return product(self.labels, read[0], read[1], node.name)

    def _attention(self, node: Node, read: list[torch.Tensor], value: torch.Tensor) -> torch.Tensor:
        query, key, values, *masks = read
        mask = masks[0] if masks else None
        scores, result = attention(self.labels, query, key, values, mask, node.name)
        self.products += [Product(query, key.transpose(-2, -1)), Product(scores, values)]
        return result

    def _reduced(self, node: Node, read: list[torch.Tensor], value: torch.Tensor) -> torch.Tensor:
        labels = read[0]
        if len(node.args) < 2 or not isinstance(node.args[1], list):
            return self._unknown(node, read, value)
        dims = [int(dim) for dim in node.args[1]]
        keep = bool(node.args[2]) if len(node.args) > 2 else bool(node.kwargs.get("keepdim"))
        self.labels.freeze_along(labels, dims, f"{node.name} takes it together")
        for dim in sorted((dim % labels.ndim for dim in dims), reverse=True):
            labels = labels.narrow(dim, 0, 1) if keep else labels.select(dim, 0)
        return labels

    def _padded(self, node: Node, read: list[torch.Tensor], value: torch.Tensor) -> torch.Tensor:
        """Channels that are added are nobody's yet: what they are added to says whose."""
        labels = read[0]
        pads = [int(pad) for pad in node.args[1]]  # type: ignore[union-attr,arg-type]
        mode = node.args[2] if len(node.args) > 2 else "constant"
        for place in range(len(pads) // 2):
            dim, (low, high) = labels.ndim - 1 - place, pads[2 * place : 2 * place + 2]
            size = value.shape[dim]
            if not varies(labels, dim):
                shape = [*labels.shape[:dim], size, *labels.shape[dim + 1 :]]
                labels = labels.narrow(dim, 0, 1).expand(shape)
                continue
            if min(low, high) < 0 or (operator_name(node) == "pad" and mode != "constant"):
                return self._unknown(node, [labels], value)
            ends = [self._beside(labels, dim, count) for count in (low, high)]
            labels = torch.cat([ends[0], labels, ends[1]], dim)
        return labels

    def _beside(self, labels: torch.Tensor, dim: int, count: int) -> torch.Tensor:
        shape = [1] * labels.ndim
        shape[dim] = count
        whole = [*labels.shape[:dim], count, *labels.shape[dim + 1 :]]
        return self.labels.fresh(*shape).expand(whole)

    def _unknown(self, node: Node, read: list[torch.Tensor], value: torch.Tensor) -> torch.Tensor:
        for labels in read:
            self.labels.freeze(labels, f"{node.name} ({node.target}) may depend on all of it")
        return none_like(value)


_RULES: dict[str, Callable[[Trace, Node, list[torch.Tensor], torch.Tensor], torch.Tensor]] = {
    **dict.fromkeys(_POOLS, Trace._pooled),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "std", "var"), Trace._reduced),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), Trace._softmax),
    **dict.fromkeys(("pad", "constant_pad_nd"), Trace._padded),
    **dict.fromkeys(("matmul", "bmm"), Trace._product),
    "scaled_dot_product_attention": Trace._attention,
}


def operator_name(node: Node) -> str:
    """The plain name of an operator: ``reshape`` of ``aten.reshape.default``."""
    packet = getattr(node.target, "overloadpacket", None)
    return packet.__name__ if packet is not None else getattr(node.target, "__name__", "")
