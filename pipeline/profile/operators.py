"""ONNX Runtime's own profile: what each operator takes, and of which block it is.

A call that is observed is slower than one that is not: these are shares, and never a latency.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from pipeline.profile.record import OperatorCost, OperatorProfile
from profiles.errors import StageError

#: Source: ``onnxruntime/core/common/profiler.cc``, which writes Chrome's trace format: times in µs.
_NS_PER_TICK = 1000
_KERNEL = "_kernel_time"
_CALL = "model_run"
#: What ONNX Runtime puts behind the name of a node that it fuses, moves or gives another layout.
_ADDED = re.compile(r"(_token_\d+|_nchwc|_nhwc|_transformed|_fused)$")

_Node = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Span:
    """One event: when it began and how long it took, in µs."""

    start: int
    length: int
    node: _Node

    @property
    def end(self) -> int:
        return self.start + self.length


def operators_of(
    trace: Any, calls: int, artifact: Path, blocks: Mapping[str, Sequence[str]]
) -> OperatorProfile:
    """Understand a trace, and find each operator's block.

    Args:
        trace: see :func:`understand`.
        calls: see there.
        artifact: the ``.onnx`` file that ran.
        blocks: see :func:`places`.

    Raises:
        StageError: if it is no trace of so many calls.
    """
    profile = understand(trace, calls)
    known = places(artifact, blocks)
    found = [known.get(_original(operator.name, known)) for operator in profile.operators]
    return replace(
        profile,
        operators=tuple(
            replace(operator, block=block)
            for operator, block in zip(profile.operators, _closed(found), strict=True)
        ),
    )


def understand(trace: Any, calls: int) -> OperatorProfile:
    """What ONNX Runtime's trace says of the last ``calls`` calls; those before warmed up.

    An operator's time is summed over a call, and the median taken over the calls.

    Args:
        trace: the JSON that the runtime writes, decoded.
        calls: how many count.

    Raises:
        StageError: if it is no such trace, or one of fewer calls.
    """
    try:
        spans = list(_spans(trace))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise StageError(f"the runtime's profile is not understood: {error!r}") from error
    runs = sorted((s for s in spans if s.node[0] == _CALL), key=lambda span: span.start)
    if not 0 < calls <= len(runs):
        raise StageError(f"the runtime's profile has {len(runs)} calls, not {calls}")
    counted = runs[-calls:]
    sums: dict[_Node, list[int]] = {}
    for span in _outermost(s for s in spans if s.node[0] != _CALL):
        number = bisect_right(counted, span.start, key=lambda run: run.start) - 1
        if number >= 0 and span.start <= counted[number].end:
            sums.setdefault(span.node, [0] * calls)[number] += span.length
    if not sums:
        raise StageError("the runtime's profile has calls, but no operators")
    totals = [sum(each) for each in zip(*sums.values(), strict=True)]
    return OperatorProfile(
        operators=tuple(
            OperatorCost(name, type_, provider, median(each) * _NS_PER_TICK)
            for (name, type_, provider), each in sums.items()
        ),
        sum_ns=median(totals) * _NS_PER_TICK,
        whole_ns=median(run.length for run in counted) * _NS_PER_TICK,
        calls=calls,
        resolution_ns=_NS_PER_TICK,
    )


def _spans(trace: Any) -> Iterator[_Span]:
    if not isinstance(trace, list):
        raise TypeError("a trace is a list of events")
    for event in trace:
        category, name = event.get("cat"), event.get("name")
        if category == "Session" and name == _CALL:
            yield _Span(_ticks(event["ts"]), _ticks(event["dur"]), (_CALL, "", ""))
        elif category == "Node" and isinstance(name, str) and name.endswith(_KERNEL):
            arguments = event["args"]
            node = (
                name.removesuffix(_KERNEL),
                str(arguments["op_name"]),
                str(arguments.get("provider", "unknown")),
            )
            yield _Span(_ticks(event["ts"]), _ticks(event["dur"]), node)


def _ticks(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no time")
    return value


def _outermost(spans: Iterable[_Span]) -> Iterator[_Span]:
    """Without the operators inside a loop or a branch: the time is the outer one's already."""
    until = 0
    for span in sorted(spans, key=lambda span: (span.start, -span.length)):
        if span.start >= until:
            yield span
            until = span.end


def places(artifact: Path, blocks: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The block of each node and value of an ONNX file, where names tell.

    The exporter keeps the names of parameters, so nodes that read one are certain.  It may number
    other operators anew: their names count only between the certain nodes before and after.

    Args:
        artifact: the file.
        blocks: for each block of the network, in order, the names of its operators and parameters
            in the exported program.
    """
    import onnx

    order = list(blocks)
    numbers: dict[str, int | None] = {}
    for number, names in enumerate(blocks.values()):
        for name in names:
            # What several blocks read tells nothing.
            numbers[name] = number if numbers.get(name, number) == number else None
    graph = onnx.load(artifact, load_external_data=False).graph
    parameters = {tensor.name for tensor in graph.initializer}
    carried = {name: numbers.get(name) for name in parameters}
    certain: list[int | None] = []
    for node in graph.node:
        read = {carried[name] for name in node.input if carried.get(name) is not None}
        certain.append(next(iter(read)) if len(read) == 1 else None)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[0] in carried:
            carried |= dict.fromkeys(node.output, certain[-1])
    found: dict[str, str] = {}
    likely = _between(graph, certain, numbers, len(order))
    for node, place in zip(graph.node, likely, strict=True):
        if place is not None:
            found |= dict.fromkeys([node.name, *node.output], order[place])
    return found


def _between(
    graph: Any, certain: Sequence[int | None], numbers: Mapping[str, int | None], count: int
) -> Iterator[int | None]:
    """For each node its block: the certain one, or the one its name says if that can be."""
    following = [count - 1] * len(certain)
    for place in reversed(range(len(certain) - 1)):
        after = certain[place + 1]
        following[place] = following[place + 1] if after is None else after
    before = 0
    for node, number, after in zip(graph.node, certain, following, strict=True):
        named = next((numbers[name] for name in node.output if numbers.get(name) is not None), None)
        if number is not None:
            before = number
            yield number
        elif named is not None and before <= named <= after:
            yield named
        else:
            yield before if before == after else None


def _original(name: str, known: Mapping[str, str]) -> str:
    """The name of the node, or of the value, that an operator of the running session stems from."""
    while name not in known and (shorter := _ADDED.sub("", name)) != name:
        name = shorter
    return name


def _closed(found: Sequence[str | None]) -> list[str | None]:
    """What stands between two operators of one block belongs to it."""
    closed = list(found)
    known = [place for place, block in enumerate(found) if block is not None]
    for first, second in pairwise(known):
        if found[first] == found[second]:
            closed[first:second] = [found[first]] * (second - first)
    return closed
