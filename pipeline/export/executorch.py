"""ExecuTorch, lowered to a backend wherever that takes an operator."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executorch.exir import to_edge_transform_and_lower

from pipeline.export.attention import write_out_attention
from pipeline.export.batch import any_size
from pipeline.export.partitioners import partitioner_for
from pipeline.export.placement import Operator, macs_of, module_of, placement
from pipeline.inspect import ENTRY
from profiles.export import Export

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_CALL = "executorch_call_delegate"
#: What hands values on or converts them, and computes nothing of the model.
_PLUMBING = (_CALL, "getitem", "sym_size", "alloc", "quantize_per", "_to_dim_order")


def write(
    program: ExportedProgram,
    path: Path,
    settings: Export,
    about: Mapping[str, Any],
    finish: Callable[[bytes], bytes],
) -> dict[str, Any]:
    """Write ``program`` as a ``.pte``; returns what of it is delegated, and what stayed out."""
    partitioner = partitioner_for(settings.partitioner)
    # A format without a place for text has methods that give a constant.
    methods = {ENTRY: json.dumps(about, sort_keys=True)} if about else None
    with any_size():
        edge = to_edge_transform_and_lower(
            write_out_attention(program),
            partitioner=[partitioner] if partitioner else None,
            constant_methods=methods,
        )
        lowered = edge.exported_program().graph_module
        names = [_name(node) for node in lowered.graph.nodes if node.op == "call_function"]
        record = {
            "partitioner": settings.partitioner,
            "delegates": names.count(_CALL),
            "outside_delegate": sorted(n for n in names if n != _CALL and "getitem" not in n),
            "placement": placement(
                settings.partitioner, names.count(_CALL), [*_operators(lowered, False)]
            ),
        }
        path.write_bytes(finish(edge.to_executorch().buffer))
    return record


def _operators(module: Any, inside: bool) -> Iterator[Operator]:
    """The operators of a lowered graph, and of what its delegates took."""
    for node in module.graph.nodes:
        if node.op == "get_attr" and hasattr(getattr(module, node.target), "original_module"):
            taken = getattr(module, node.target).original_module
            yield from _operators(taken.graph_module, True)
        elif node.op == "call_function" and not any(word in _name(node) for word in _PLUMBING):
            integer = any("dequantize" in _name(source) for source in node.all_input_nodes)
            yield Operator(_name(node), module_of(node), macs_of(node), inside, integer)


def _name(node: Any) -> str:
    return str(getattr(node.target, "__name__", node.target))
