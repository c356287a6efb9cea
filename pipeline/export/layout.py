"""How a program is quantized: data types, granularity and zero points of its tensors."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_PER_CHANNEL = "dequantize_per_channel"


def layout_of(program: ExportedProgram) -> dict[str, list[dict[str, Any]]] | None:
    """The quantization of a program's weights and activations; ``None`` where there is none.

    Returns:
        For ``weights`` and ``activations`` each way that occurs, the most frequent first:
        ``dtype``, ``range`` of the integers, ``granularity``, ``axis`` (per channel), whether it is
        ``symmetric`` (all zero points are 0), the type of the ``zero_points``, and in how many
        ``tensors``.
    """
    values = _constants(program)
    found: dict[str, Counter[tuple[tuple[str, Any], ...]]] = {
        "weights": Counter(),
        "activations": Counter(),
    }
    for node in program.graph.nodes:
        if "dequantize_per" in _name(node):
            source = node.args[0]
            while "quantize_per" in _name(source):
                source = source.args[0]
            side = "weights" if source.name in values else "activations"
            found[side][tuple(_way(node, values).items())] += 1
    if not any(found.values()):
        return None
    return {
        side: [{**dict(way), "tensors": count} for way, count in ways.most_common()]
        for side, ways in found.items()
    }


def _way(node: Any, values: dict[str, Any]) -> dict[str, Any]:
    if _PER_CHANNEL in _name(node):
        _, _, points, axis, low, high, dtype = node.args[:7]
        given = values.get(points.name) if hasattr(points, "name") else None
        symmetric = None if given is None else not bool(given.any())
        kind = "unknown" if given is None else str(given.dtype).removeprefix("torch.")
        more: dict[str, Any] = {"granularity": "per-channel", "axis": axis}
    else:
        _, _, points, low, high, dtype = node.args[:6]
        symmetric, kind = points == 0, str(dtype).removeprefix("torch.")
        more = {"granularity": "per-tensor"}
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "range": (low, high),
        **more,
        "symmetric": symmetric,
        "zero_points": kind,
    }


def _constants(program: ExportedProgram) -> dict[str, Any]:
    """The tensors that belong to the program, by the names of their nodes."""
    signature = program.graph_signature
    places = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {**program.constants, **program.state_dict}
    return {name: tensors.get(place) for name, place in places.items()}


def _name(node: Any) -> str:
    return str(getattr(node, "target", "")) if getattr(node, "op", "") == "call_function" else ""
