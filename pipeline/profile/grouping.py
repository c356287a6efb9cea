"""Which operators of an exported network belong together: its own modules, down to some depth.

A group begins with each module that has heavy operators (convolutions, matrix products).  What is
light and keeps the shape, as batch norms and activations do, belongs to what came before, for
runtimes fuse it there; from the first light operator that changes the shape on, as pooling before
a linear layer does, it belongs to what follows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch.fx import Graph, Node

#: How few and how many groups tell something.
FEWEST, MOST = 3, 40
#: What begins a group; by the beginning of ATen names, as ``conv2d`` and ``linear``.
_HEAVY = ("conv", "_conv", "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum")
_HEAVY_ALONE = ("scaled_dot_product_attention", "lstm", "gru", "rnn_tanh", "rnn_relu")
#: Where a program of unnamed parts has a name for nothing.
WHOLE = "network"

_Path = tuple[str, ...]


@dataclass(slots=True)
class Group:
    """Operators that are measured as one.

    Args:
        name: path of the module that it begins with, in the network.
        kind: that module's class, or the operator where it is none.
        nodes: in the graph's order; conversions to integers and constants are not among them.
    """

    name: str
    kind: str
    nodes: list[Node] = field(default_factory=list)


def is_quantize(node: Node) -> bool:
    """Whether the node turns a float tensor into integers."""
    return str(node.target).startswith("quantized_decomposed.quantize_per")


def is_dequantize(node: Node) -> bool:
    """Whether the node turns integers into a float tensor."""
    return str(node.target).startswith("quantized_decomposed.dequantize_per")


def constants(graph: Graph) -> set[Node]:
    """Parameters, and what is computed of nothing else."""
    found: set[Node] = set()
    for node in graph.nodes:
        computed = node.op == "call_function" and found.issuperset(node.all_input_nodes)
        if node.op == "get_attr" or computed:
            found.add(node)
    return found


def sources(node: Node, constant: set[Node]) -> Iterator[Node]:
    """What a node reads, seen through conversions: operators and inputs of the network."""
    for given in node.all_input_nodes:
        if is_quantize(given) or is_dequantize(given):
            yield from sources(given, constant)
        elif given not in constant:
            yield given


def group(graph: Graph, depth: int | None = None) -> tuple[list[Group], int]:
    """Part a graph along its modules.

    Args:
        graph: of an exported module; its nodes carry ``nn_module_stack`` and ``val``.
        depth: levels of modules below the one that holds everything.  Not given: of those with 3
            to 40 groups, the one with most where one tensor alone crosses every border; if there is
            none, the first.

    Returns:
        The groups in the order in which they are computed, and the depth.
    """
    constant = constants(graph)
    plain = [n for n in graph.nodes if n.op == "call_function" and n not in constant]
    plain = [node for node in plain if not (is_quantize(node) or is_dequantize(node))]
    places = _Places(plain)
    if depth is not None:
        return _closed(_grouped(plain, places, depth), constant), depth
    every = {d: _closed(_grouped(plain, places, d), constant) for d in range(1, places.depth + 1)}
    fitting = [d for d, groups in every.items() if FEWEST <= len(groups) <= MOST]
    clean = [d for d in fitting if _widest(every[d], constant) == 1]
    if fitting:
        chosen = max(clean, key=lambda d: len(every[d])) if clean else fitting[0]
        return every[chosen], chosen
    small = [d for d, groups in every.items() if len(groups) < FEWEST]
    chosen = max(small, key=lambda d: len(every[d])) if small else 1
    return _evenly(every[chosen]), chosen


class _Places:
    """Where in the hierarchy of modules each operator is, below the last module that has all."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        stacks = {node: _stack(node) for node in nodes}
        paths = {node: _deepest(stack) for node, stack in stacks.items()}
        self.kinds = {path: kind for stack in stacks.values() for path, kind in stack}
        self.above = _common(list(paths.values()))
        self._paths = {node: path[len(self.above) :] for node, path in paths.items()}
        below = set(self._paths.values())
        self._holders = {path[:end] for path in below for end in range(len(path))}
        self.depth = max([1, *map(len, below)])

    def path(self, node: Node) -> _Path:
        return self._paths[node]

    def holds_others(self, path: _Path) -> bool:
        return path in self._holders

    def name(self, path: _Path) -> str:
        return ".".join(path) or WHOLE

    def kind(self, path: _Path, otherwise: str) -> str:
        return self.kinds.get(".".join((*self.above, *path)), otherwise)


def _stack(node: Node) -> list[tuple[str, str]]:
    """Paths and class names of the modules around an operator, from the outermost."""
    found: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    return [
        (path, kind.rpartition(".")[2] if isinstance(kind, str) else kind.__name__)
        for path, kind in found.values()
    ]


def _deepest(stack: Sequence[tuple[str, str]]) -> _Path:
    return tuple(part for part in stack[-1][0].split(".") if part) if stack else ()


def _common(paths: Sequence[_Path]) -> _Path:
    if not paths:
        return ()
    low, high = min(paths), max(paths)
    same = [a == b for a, b in zip(low, high, strict=False)]
    return low[: same.index(False) if False in same else len(same)]


def _grouped(nodes: Sequence[Node], places: _Places, depth: int) -> list[Group]:
    groups: list[Group] = []
    waiting: list[Node] = []
    for (path, own), members in groupby(nodes, key=lambda node: _member_of(node, places, depth)):
        run = list(members)
        first = next((node for node in run if _is_heavy(node)), None)
        if first is None:
            waiting += run
            continue
        kind = _operator(first) if own else places.kind(path, _operator(first))
        new = Group(places.name(path), kind)
        whole = own is None and places.holds_others(path)
        back = len(waiting) if whole else _keeping_shape(waiting)
        if groups:
            groups[-1].nodes += waiting[:back]
            waiting = waiting[back:]
        new.nodes, waiting = waiting + run, []
        groups.append(new)
    if not groups:
        return [Group(WHOLE, places.kind((), WHOLE), waiting)]
    groups[-1].nodes += waiting
    return groups


def _member_of(node: Node, places: _Places, depth: int) -> tuple[_Path, Node | None]:
    """Of which module a node is part; itself, too, where that module's parts are groups."""
    path = places.path(node)
    own = len(path) < depth and places.holds_others(path)
    return path[:depth], node if own else None


def _operator(node: Node) -> str:
    """ATen's name of an operator, empty for what is none."""
    return getattr(node.target, "_opname", "")


def _is_heavy(node: Node) -> bool:
    name = _operator(node)
    return name.startswith(_HEAVY) or name in _HEAVY_ALONE


def _keeping_shape(nodes: Sequence[Node]) -> int:
    """How many of these, from the first, give what has the shape of what they read."""
    for number, node in enumerate(nodes):
        shapes = [getattr(n.meta.get("val"), "shape", None) for n in (node, *node.all_input_nodes)]
        if shapes[0] is None or shapes[0] not in shapes[1:]:
            return number
    return len(nodes)


def _crossing(groups: Sequence[Group], constant: set[Node]) -> list[tuple[Node, int, int]]:
    """Each value that groups hand on: the first group that has it, and the last that reads it."""
    owner = {node: number for number, one in enumerate(groups) for node in one.nodes}
    spans: dict[Node, tuple[int, int]] = {}
    for node, number in owner.items():
        for source in sources(node, constant):
            first, last = spans.get(source, (owner.get(source, number), number))
            spans[source] = min(first, number), max(last, number)
    return [(node, first, last) for node, (first, last) in spans.items() if first < last]


def _widest(groups: Sequence[Group], constant: set[Node]) -> int:
    spans = _crossing(groups, constant)
    crossing = [
        sum(first <= border < last for _, first, last in spans) for border in range(len(groups) - 1)
    ]
    return max(crossing, default=1)


def _closed(groups: list[Group], constant: set[Node]) -> list[Group]:
    """The same, joined where something else than one float tensor after the other would cross."""
    joined = {
        border
        for node, first, last in _crossing(groups, constant)
        if getattr(node.meta.get("val"), "dtype", None) != torch.float32
        for border in range(first, last)
    }
    parts: list[list[Group]] = []
    for number, one in enumerate(groups):
        if number - 1 in joined:
            parts[-1].append(one)
        else:
            parts.append([one])
    return _numbered([_join(part) for part in parts])


def _evenly(groups: list[Group]) -> list[Group]:
    """Neighbours joined until there are few enough."""
    size = -(-len(groups) // MOST)
    return [_join(groups[start : start + size]) for start in range(0, len(groups), size)]


def _join(part: Sequence[Group]) -> Group:
    if len(part) == 1:
        return part[0]
    nodes = [node for one in part for node in one.nodes]
    return Group(f"{part[0].name} to {part[-1].name}", f"{len(part)} modules", nodes)


def _numbered(groups: Sequence[Group]) -> list[Group]:
    """A module that is called again is another group."""
    seen: dict[str, int] = {}
    for one in groups:
        seen[one.name] = seen.get(one.name, 0) + 1
        if seen[one.name] > 1:
            one.name = f"{one.name} ({seen[one.name]})"
    return list(groups)
