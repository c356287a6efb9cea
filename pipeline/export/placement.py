"""Where an artifact's operators run: how many a delegate takes, in how many pieces, what not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_PRODUCTS = ("convolution", "conv2d", "conv1d", "linear", "addmm", "mm", "bmm")


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of an artifact.

    Args:
        name: as the format calls it.
        module: path of the user's module that it came from; empty where that is not known.
        macs: multiplications with accumulation that it takes, for one call.
        inside: whether the delegate takes it.
        integer: whether it computes with integers.
    """

    name: str
    module: str
    macs: int
    inside: bool
    integer: bool


def placement(what: str, partitions: int, operators: Sequence[Operator]) -> dict[str, Any]:
    """The record of an artifact's placement.

    Conversions between FP32 and INT8 are no operators here: they compute nothing of the model.

    Args:
        what: takes the operators that are inside.
        partitions: pieces that it takes; each border costs a hand-over.
        operators: all.

    Returns:
        ``in`` (what), ``operators``, ``inside``, ``share`` of the operators and ``macs_share``
        (``None`` without any), ``partitions``, ``integer`` (number of operators) and ``outside``:
        what fell out, each with its name, the user's module and how often.
    """
    inside = [each for each in operators if each.inside]
    macs = sum(each.macs for each in operators)
    outside = Counter((each.name, each.module) for each in operators if not each.inside)
    return {
        "in": what,
        "operators": len(operators),
        "inside": len(inside),
        "share": len(inside) / len(operators) if operators else 1.0,
        "macs_share": sum(each.macs for each in inside) / macs if macs else None,
        "partitions": partitions,
        "integer": sum(each.integer for each in operators),
        "outside": [
            {"operator": name, "module": module, "count": count}
            for (name, module), count in sorted(outside.items())
        ],
    }


def module_of(node: Any) -> str:
    """The path of the user's module that a node of a program was traced in."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, *_ in stack.values() if not str(path).startswith("_empty")]
    return paths[-1] if paths else ""


def macs_of(node: Any) -> int:
    """Multiplications with accumulation of a node of a program; 0 for what is no product.

    Open dimensions count as one.
    """
    name = str(getattr(node.target, "__name__", node.target)).removeprefix("aten.")
    if name.partition(".")[0] not in _PRODUCTS:
        return 0
    shapes = [_shape(arg) for arg in node.args if hasattr(arg, "meta")]
    out = math.prod(_shape(node))
    if name.startswith("conv"):
        return out * math.prod(shapes[1][1:])
    return out * shapes[1 if name.startswith("addmm") else 0][-1]


def _shape(node: Any) -> list[int]:
    value = node.meta["val"]
    value = value[0] if isinstance(value, tuple | list) else value
    return [size if isinstance(size, int) else 1 for size in value.shape]
