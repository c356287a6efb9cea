"""How a program is quantized: data types, granularity and zero points of its tensors."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_PER_CHANNEL = "dequantize_per_channel"
_PER_GROUP = "dequantize_per_channel_group"


def layout_of(program: ExportedProgram) -> dict[str, Any] | None:
    """The quantization of a program's weights and activations; ``None`` where there is none.

    Returns:
        For ``weights`` and ``activations`` each way that occurs, the most frequent first:
        ``dtype``, ``range`` of the integers, ``granularity``, ``axis`` (per channel) or
        ``group_size`` (inputs of a layer with one step), whether it is ``symmetric`` (all zero
        points are 0), the type of the ``zero_points``, and in how many ``tensors``.  For
        ``parameters`` what tells two quantizations of one layout apart: the number of quantized
        ``tensors``, the least and the greatest of their ``scales``, and the ``sha256`` over all
        scales and zero points; they themselves are in the file.
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
    sides = {
        side: [{**dict(way), "tensors": count} for way, count in ways.most_common()]
        for side, ways in found.items()
    }
    return {**sides, "parameters": _parameters(program, values)}


def _parameters(program: ExportedProgram, values: dict[str, Any]) -> dict[str, Any]:
    # What several layers read is one tensor.
    reads = {n.args[0]: n for n in program.graph.nodes if "dequantize_per" in _name(n)}
    digest, scales = hashlib.sha256(), []
    for node in reads.values():
        scale, points = (_numbers(given, values) for given in node.args[1:3])
        digest.update(scale.tobytes() + points.tobytes())
        scales.append(scale)
    known = np.concatenate(scales)
    return {
        "tensors": len(reads),
        "scales": [float(known.min()), float(known.max())] if known.size else None,
        "sha256": digest.hexdigest(),
    }


def _numbers(given: Any, values: dict[str, Any]) -> NDArray[np.float64]:
    """Scales or zero points; none where they are computed with each call."""
    held = values.get(given.name) if hasattr(given, "name") else given
    return np.asarray([] if held is None else held, np.float64).ravel()


def _way(node: Any, values: dict[str, Any]) -> dict[str, Any]:
    if _PER_CHANNEL in _name(node):
        if _PER_GROUP in _name(node):
            integers, _, points, low, high, dtype, size = node.args[:7]
            more: dict[str, Any] = {"granularity": "per-group", "group_size": size}
            if integers.meta["val"].shape[-1] == size:  # one group holds all inputs
                more = {"granularity": "per-channel", "axis": 0}
        else:
            _, _, points, axis, low, high, dtype = node.args[:7]
            more = {"granularity": "per-channel", "axis": axis}
        given = values.get(points.name) if hasattr(points, "name") else None
        symmetric = None if given is None else not bool(given.any())
        kind = "unknown" if given is None else str(given.dtype).removeprefix("torch.")
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
