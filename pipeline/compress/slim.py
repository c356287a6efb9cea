"""The smaller network: channels cut out of its layers, and out of the sizes in its graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import GraphModule, Node

from pipeline.compress.groups import Gone, Structure
from pipeline.compress.tracing import Layer, operator_name
from pipeline.quiet import quiet
from profiles.errors import StageError

#: How far the smaller network may be from the whole one with zeros, as a share of its outputs: sums
#: of floats in another order.
_TOLERANCE = 1e-4


def slim(structure: Structure, gone: Gone) -> GraphModule:
    """A network without what is gone; the structure's own module is left as it is.

    Raises:
        StageError: if a size in its graph cannot follow.
    """
    with quiet():  # PyTorch warns of itself
        small = copy.deepcopy(structure.module)
    for layer in structure.trace.layers.values():
        _cut(small.get_submodule(layer.path), layer, gone)
    for target in structure.trace.parameters:
        _cut_parameter(small, target, structure, gone)
    sizes = _Sizes(structure, gone)
    for node in small.graph.nodes:
        rewrite = _REWRITES.get(operator_name(node)) if node.op == "call_function" else None
        if rewrite is not None:
            rewrite(node, sizes)
    small.graph.lint()
    small.recompile()
    return small.eval()


def zeroed(structure: Structure, gone: Gone) -> GraphModule:
    """The whole network with zeros where a layer makes or reads what is gone."""
    with quiet():
        whole = copy.deepcopy(structure.module)
    with torch.no_grad():
        for layer in structure.trace.layers.values():
            module: Any = whole.get_submodule(layer.path)
            made, read = (torch.from_numpy(gone[x.numpy()]) for x in (layer.makes, layer.reads))
            for values in (module.weight, module.bias):
                if values is not None:
                    values[made] = 0
            if layer.positions and module.weight.shape[1] == len(read):
                module.weight[:, read] = 0
    return whole.eval()


def check(structure: Structure, gone: Gone, small: nn.Module, example: torch.Tensor) -> None:
    """See that a smaller network computes what the whole one with zeros does.

    Raises:
        StageError: if it does not.
    """
    with torch.no_grad():
        mine, theirs = small(example), zeroed(structure, gone)(example)
    error, largest = float((mine - theirs).abs().max()), float(theirs.abs().max())
    if not error <= _TOLERANCE * max(largest, 1.0):
        raise StageError(
            f"pruning would change more than it removes: outputs differ by {error:.3g} of"
            f" {largest:.3g} from those of the network with zeros"
        )


def _cut(module: Any, layer: Layer, gone: Gone) -> None:
    made, read = (torch.from_numpy(~gone[x.numpy()]) for x in (layer.makes, layer.reads))
    if bool(made.all() & read.all()):
        return
    if not layer.positions:
        _cut_norm(module, made)
        return
    weight = module.weight.detach()[made]
    grouped = weight.shape[1] != len(read)
    if grouped:
        module.groups = module.groups * int(read.sum()) // len(read)
    else:
        weight = weight[:, read]
    module.weight = nn.Parameter(weight.clone())
    if module.bias is not None:
        module.bias = nn.Parameter(module.bias.detach()[made].clone())
    sizes = ("in_features", "out_features")
    if not isinstance(module, nn.Linear):
        sizes = ("in_channels", "out_channels")
    for name, mask in zip(sizes, (read, made), strict=True):
        setattr(module, name, int(mask.sum()))


def _cut_norm(module: Any, kept: torch.Tensor) -> None:
    if module.weight is not None:
        module.weight = nn.Parameter(module.weight.detach()[kept].clone())
        module.bias = nn.Parameter(module.bias.detach()[kept].clone())
    module.running_mean, module.running_var = module.running_mean[kept], module.running_var[kept]
    module.num_features = int(kept.sum())


def _cut_parameter(module: nn.Module, target: str, structure: Structure, gone: Gone) -> None:
    layout = structure.layout(structure.trace.parameters[target])
    if layout is None or not gone[layout.labels].any():
        return
    path, _, name = target.rpartition(".")
    holder = module.get_submodule(path)
    value = getattr(holder, name)
    kept = torch.from_numpy(np.flatnonzero(~gone[layout.labels]))
    small = value.detach().index_select(layout.dim, kept)
    setattr(holder, name, nn.Parameter(small) if isinstance(value, nn.Parameter) else small)


class _Sizes:
    """What sizes become."""

    def __init__(self, structure: Structure, gone: Gone) -> None:
        self._structure, self._gone = structure, gone

    def rank(self, node: Any) -> int:
        """How many dimensions a tensor has."""
        return int(self._structure.trace.of[node.name].ndim)

    def kept(self, node: Any) -> tuple[int, NDArray[np.bool_]] | None:
        """Along which dimension a tensor changes, and what is kept; ``None`` if it does not."""
        labels = self._structure.trace.of.get(node.name)
        layout = self._structure.layout(labels) if isinstance(labels, torch.Tensor) else None
        if layout is None or not self._gone[layout.labels].any():
            return None
        return layout.dim, ~self._gone[layout.labels]

    def pieces(self, node: Node, dim: int) -> list[int]:
        """The sizes along a dimension of each of a node's outputs."""
        found = []
        for labels in self._structure.trace.of[node.name]:
            layout = self._structure.layout(labels)
            along = layout is not None and layout.dim == dim
            gone = int(self._gone[layout.labels].sum()) if layout is not None and along else 0
            found.append(int(labels.shape[dim]) - gone)
        return found


def _reshape(node: Node, sizes: _Sizes) -> None:
    found = sizes.kept(node)
    if found is not None:
        node.update_arg(1, _resized(node, node.args[1], found[0], int(found[1].sum())))


def _unflatten(node: Node, sizes: _Sizes) -> None:
    found, dim = sizes.kept(node), node.args[1]
    if found is not None and isinstance(dim, int):
        place = found[0] - dim % sizes.rank(node.args[0])
        node.update_arg(2, _resized(node, node.args[2], place, int(found[1].sum())))


def _resized(node: Node, given: Any, place: int, size: int) -> list[Any]:
    """Sizes of which one has become another."""
    shape = list(given)
    if not 0 <= place < len(shape) or shape[place] == -1:
        return shape
    if isinstance(shape[place], int):
        shape[place] = size
    elif -1 not in shape:
        shape[place] = -1  # computed from the batch's size: let PyTorch compute it
    else:
        raise StageError(f"{node.name} computes its sizes in a way that pruning cannot follow")
    return shape


def _expand(node: Node, sizes: _Sizes) -> None:
    found = sizes.kept(node)
    if found is not None:
        shape: list[Any] = list(node.args[1])  # type: ignore[arg-type]
        shape[found[0]] = -1  # as large as it is
        node.update_arg(1, shape)


def _pad(node: Node, sizes: _Sizes) -> None:
    found = sizes.kept(node)
    if found is None:
        return
    dim, kept = found
    pads = [int(pad) for pad in node.args[1]]  # type: ignore[union-attr,arg-type]
    place = 2 * (sizes.rank(node) - 1 - dim)
    if place < len(pads):
        low, high = pads[place : place + 2]
        pads[place : place + 2] = [int(kept[:low].sum()), int(kept[len(kept) - high :].sum())]
        node.update_arg(1, pads)


def _slice(node: Node, sizes: _Sizes) -> None:
    """The same values, counted anew; ``slice(x, dim, start, end)`` and ``narrow(..., length)``."""
    found = sizes.kept(node.args[0])
    arguments: list[Any] = [*node.args, *(0, None, None)[len(node.args) - 1 :]]
    if found is None or arguments[1] % sizes.rank(node.args[0]) != found[0]:
        return
    kept = found[1]
    if operator_name(node) == "narrow":
        start, end = arguments[2], arguments[2] + arguments[3]
    else:
        start, end, _ = slice(arguments[2], arguments[3]).indices(len(kept))
    first, last = int(kept[:start].sum()), int(kept[:end].sum())
    arguments[2:4] = [first, last - first if operator_name(node) == "narrow" else last]
    node.args = tuple(arguments)


def _split(node: Node, sizes: _Sizes) -> None:
    """Pieces that may differ in size now."""
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    found = sizes.kept(node.args[0])
    if isinstance(dim, int) and found is not None and dim % sizes.rank(node.args[0]) == found[0]:
        dim = found[0]
        node.target = torch.ops.aten.split_with_sizes.default
        node.args, node.kwargs = (node.args[0], sizes.pieces(node, dim), dim), {}


_REWRITES: dict[str, Callable[[Node, _Sizes], None]] = {
    **dict.fromkeys(("view", "reshape"), _reshape),
    "unflatten": _unflatten,
    "expand": _expand,
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(("slice", "narrow"), _slice),
    **dict.fromkeys(("split", "chunk", "split_with_sizes"), _split),
}
