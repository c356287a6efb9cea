"""Graphs within graphs: an ONNX node such as ``If`` has bodies that read what is around them."""

from __future__ import annotations

from collections.abc import Iterator

import onnx


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and all that are within it."""
    yield graph
    for node in graph.node:
        for body in bodies_of(node):
            yield from graphs_of(body)


def bodies_of(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that a node executes."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def drop_unread(graph: onnx.GraphProto) -> None:
    """Take out the nodes and the initializers that nothing reads, a body neither."""
    read = {value.name for value in graph.output}
    # From the end: what only an unread node reads goes with it.
    for position in reversed(range(len(graph.node))):
        node = graph.node[position]
        if read.isdisjoint(node.output):
            del graph.node[position]
        else:
            read |= _read(node)
    for position in reversed(range(len(graph.initializer))):
        if graph.initializer[position].name not in read:
            del graph.initializer[position]


def _read(node: onnx.NodeProto) -> set[str]:
    """The values that a node or one of its bodies reads, or hands on as they are."""
    found = {name for name in node.input if name}
    for body in bodies_of(node):
        found.update(value.name for value in body.output)
        for inner in body.node:
            found |= _read(inner)
    return found
