"""What can leave a network together: units of channels, in groups of alike ones.

Two witnesses must agree.  Labels that run through the graph (:mod:`pipeline.compress.tracing`)
say which channels hang together, and Torch-Pruning's dependency graph, from the functions of the
gradient, says which layers do; where it finds one that the labels do not, a group is left alone.

Source: Fang et al., "DepGraph: Towards Any Structural Pruning" (2023).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import GraphModule, Node

from pipeline.compress.labels import looked_up, varies
from pipeline.compress.tracing import Layer, Trace, operator_name
from pipeline.compress.witness import coupled_layers

Integers = NDArray[np.int64]
#: For each label whether it is gone.
Gone = NDArray[np.bool_]
#: What would be another operator without one of the places that it counts.
_COUNTS_PLACES = frozenset(("unbind", "select", "roll", "repeat", "stack"))


@dataclass(frozen=True, slots=True)
class Group:
    """Units that the same layers make and read, so that any of them may leave.

    Args:
        name: the first layer that makes them.
        units: a label of each, in the order in which that layer makes them.
        makers, readers: paths of the layers that make and that read them.
        channels: of a unit, in the layer where it has fewest: 1, or a whole head's or group's.
    """

    name: str
    units: tuple[int, ...]
    makers: tuple[str, ...]
    readers: tuple[str, ...]
    channels: int

    @property
    def width(self) -> int:
        """How many units."""
        return len(self.units)


@dataclass(frozen=True, slots=True)
class Layout:
    """Along which dimension a tensor's labels differ, and what they are there."""

    dim: int
    labels: Integers


@dataclass(frozen=True, slots=True)
class Member:
    """Where a group's units are in one layer.

    Args:
        path: of the layer.
        makes: whether among its outputs; else among its inputs.
        places: which of them,
        units: and for each which of the group's units it is of.
    """

    path: str
    makes: bool
    places: Integers
    units: Integers


class Structure:
    """A module's groups, and what it costs without some of their units.

    Args:
        module: of :func:`pipeline.compress.module.module_of`, in evaluation mode.
        example: one input.

    Attributes:
        module: the same.
        trace: its run on labels.
        groups: by name.
        fixed: by the path of a convolution or linear layer none of whose outputs can leave, why.
        remarks: on how it was found.
    """

    def __init__(self, module: GraphModule, example: torch.Tensor) -> None:
        self.module = module
        self.trace = Trace(module, torch.cat([example[:1]] * 2))
        self.remarks: list[str] = []
        for node in module.graph.nodes:
            self._freeze_ragged(node)
        self._freeze_where_witnesses_differ(example)
        self.groups: dict[str, Group] = {group.name: group for group in self._found()}
        self.fixed = {
            layer.path: self._why(layer)
            for layer in self.trace.layers.values()
            if layer.positions and not any(layer.path in g.makers for g in self.groups.values())
        }

    def gone(self, kept: Mapping[str, Sequence[int]]) -> Gone:
        """What is gone if only these units of each group are kept; of others, all are."""
        gone = np.zeros(len(self._roots), dtype=bool)
        for name, units in kept.items():
            labels = np.array(self.groups[name].units)
            gone[labels] = True
            gone[labels[list(units)]] = False
        return gone[self._roots]

    def members(self, group: Group) -> list[Member]:
        """All places of a group's units in layers; a batch norm has outputs alone."""
        number = {label: unit for unit, label in enumerate(group.units)}
        found = []
        for layer in self.trace.layers.values():
            sides = [(True, layer.makes)] + ([(False, layer.reads)] if layer.positions else [])
            for makes, labels in sides:
                roots = self._roots[labels.numpy()].tolist()
                places = [place for place, root in enumerate(roots) if root in number]
                if places:
                    units = [number[roots[place]] for place in places]
                    found.append(Member(layer.path, makes, np.array(places), np.array(units)))
        return found

    def macs(self, gone: Gone) -> int:
        """Multiplications and additions of one example, of layers and of attention."""
        total = sum(self.macs_by_layer(gone).values())
        for one in self.trace.products:
            columns = self._sizes(one.right, gone)[-1]
            total += float(np.prod(self._sizes(one.left, gone))) * columns / self.trace.batch
        return round(total)

    def macs_by_layer(self, gone: Gone) -> dict[str, float]:
        """The same of each convolution and linear layer."""
        return {
            layer.path: layer.positions * self._weights(layer, gone)
            for layer in self.trace.layers.values()
            if layer.positions
        }

    def parameters(self, gone: Gone) -> int:
        """How many there are."""
        everything = sum(p.numel() for p in self.module.parameters())
        nothing = np.zeros_like(gone)
        return everything - self._counted(nothing) + self._counted(gone)

    def widths(self, gone: Gone) -> dict[str, int]:
        """How many outputs each convolution and linear layer has."""
        return {
            layer.path: _left(layer.makes, gone)
            for layer in self.trace.layers.values()
            if layer.positions
        }

    def layout(self, labels: torch.Tensor) -> Layout | None:
        """Where a tensor's channels are; ``None`` where none of them could leave."""
        rooted = looked_up(labels, self._roots)
        dims = [dim for dim in range(rooted.ndim) if varies(rooted, dim)]
        if len(dims) != 1:
            return None
        row = rooted.movedim(dims[0], -1).reshape(-1, rooted.shape[dims[0]])[0]
        return Layout(dims[0], row.numpy().copy())

    @cached_property
    def _roots(self) -> Integers:
        return self.trace.labels.roots()

    def _freeze_ragged(self, node: Node) -> None:
        """Freeze what could leave only in pieces that are no whole places of some tensor."""
        found = self.trace.of.get(node.name)
        for labels in found if isinstance(found, list) else [found]:
            if labels is None:
                continue
            rooted = looked_up(labels, self._roots)
            if sum(varies(rooted, dim) for dim in range(rooted.ndim)) > 1:
                shape = list(labels.shape[1:])
                why = f"{node.name} lays it out as {shape}, where it is no whole place"
                self.trace.labels.freeze(labels, why)
        if node.op == "call_function" and node.all_input_nodes:
            self._freeze_counted(node)

    def _freeze_counted(self, node: Node) -> None:
        source = self.trace.of.get(node.all_input_nodes[0].name)
        layout = self.layout(source) if isinstance(source, torch.Tensor) else None
        if layout is None or not isinstance(source, torch.Tensor):
            return
        name = operator_name(node)
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        along = not isinstance(dim, int) or dim % source.ndim == layout.dim
        steps = name == "slice" and len(node.args) > 4 and node.args[4] != 1
        if along and (name in _COUNTS_PLACES or steps):
            self.trace.labels.freeze(source, f"{node.name} counts on all of its places")

    def _freeze_where_witnesses_differ(self, example: torch.Tensor) -> None:
        layers = self.trace.layers
        coupled = coupled_layers(self.module, example)
        if isinstance(coupled, str):
            self.remarks.append(f"Torch-Pruning cannot trace it: {coupled}")
            return
        for path, others in coupled.items():
            mine = set(self._roots[layers[path].makes.numpy()].tolist()) if path in layers else ()
            for other in others & set(layers):
                both = torch.cat([layers[other].reads, layers[other].makes])
                if mine and not mine & set(self._roots[both.numpy()].tolist()):
                    why = f"Torch-Pruning finds that {other} hangs on it, too"
                    self.trace.labels.freeze(layers[path].makes, why)

    def _found(self) -> Iterator[Group]:
        """Units by what makes and reads them, and how many channels they have there."""
        users: dict[int, list[tuple[str, str, int]]] = {}
        for layer in self.trace.layers.values():
            for side, labels in (("makes", layer.makes), ("reads", layer.reads)):
                roots, counts = np.unique(self._roots[labels.numpy()], return_counts=True)
                for root, count in zip(roots.tolist(), counts.tolist(), strict=True):
                    if self.trace.labels.reason(root) is None:
                        users.setdefault(root, []).append((layer.path, side, count))
        alike: dict[tuple[tuple[str, str, int], ...], list[int]] = {}
        for root, of_root in users.items():
            alike.setdefault(tuple(of_root), []).append(root)
        names: set[str] = set()
        for its, units in alike.items():
            heavy = [use for use in its if self.trace.layers[use[0]].positions]
            makers = [path for path, side, _ in heavy if side == "makes"]
            readers = [path for path, side, _ in heavy if side == "reads"]
            if not makers or not readers or len(units) < 2:
                continue
            name = next(n for n in (makers[0], *_numbered(makers[0])) if n not in names)
            names.add(name)
            order = self._roots[self.trace.layers[makers[0]].makes.numpy()].tolist()
            units.sort(key=order.index)
            fewest = min(count for _, _, count in heavy)
            yield Group(name, tuple(units), tuple(makers), tuple(readers), fewest)

    def _why(self, layer: Layer) -> str:
        labels = self.trace.labels
        reasons = [labels.reason(label) for label in layer.makes.tolist()]
        told = next((reason for reason in reasons if reason), None)
        return told or "all its channels hang together: they would leave all at once"

    def _weights(self, layer: Layer, gone: Gone) -> int:
        weight = self._module(layer).weight
        inputs = weight.shape[1]
        if inputs == len(layer.reads):
            inputs = _left(layer.reads, gone)
        return _left(layer.makes, gone) * inputs * int(np.prod(weight.shape[2:]))

    def _counted(self, gone: Gone) -> int:
        """Parameters of everything that has labels."""
        count = sum(int(np.prod(self._sizes(p, gone))) for p in self.trace.parameters.values())
        for layer in self.trace.layers.values():
            module, outputs = self._module(layer), _left(layer.makes, gone)
            count += self._weights(layer, gone) if layer.positions else 0
            vectors = [module.bias] if layer.positions else [module.weight, module.bias]
            count += outputs * sum(vector is not None for vector in vectors)
        return count

    def _sizes(self, labels: torch.Tensor, gone: Gone) -> list[int]:
        """A tensor's shape without what is gone."""
        shape = list(labels.shape)
        if layout := self.layout(labels):
            shape[layout.dim] = int((~gone[layout.labels]).sum())
        return shape

    def _module(self, layer: Layer) -> nn.Conv2d | nn.Linear:
        return self.module.get_submodule(layer.path)  # type: ignore[return-value]


def _left(labels: torch.Tensor, gone: Gone) -> int:
    return int((~gone[labels.numpy()]).sum())


def _numbered(name: str) -> Iterator[str]:
    return (f"{name}#{number}" for number in range(2, 1000))
