"""What quantizers ask of a captured graph: which modules stay in FP32, what is a constant."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation as Annotation
from torchao.quantization.pt2e.quantizer import Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY as KEY

from profiles.errors import ModelError, UsageError

_aten = torch.ops.aten
_BOUNDS = {"relu": (0.0, None), "relu6": (0.0, 6.0), "hardtanh": (-1.0, 1.0)}


def overloads(names: str) -> frozenset[Any]:
    """ATen operators by their names, ``add.Tensor`` or ``relu`` for ``relu.default``."""
    parts = (name.partition(".") for name in names.split())
    return frozenset(getattr(getattr(_aten, op), kind or "default") for op, _, kind in parts)


CLAMPS = overloads("relu relu_ relu6 relu6_ hardtanh hardtanh_ clamp clamp_ clamp_min clamp_min_")


class Kept:
    """The modules that stay in FP32, submodules included.

    Args:
        patterns: ``fnmatch`` patterns of paths in the exported module (``model.features.3``,
            ``model.*.se``).
    """

    def __init__(self, patterns: Collection[str]) -> None:
        self._patterns = frozenset(patterns)
        self._matched: set[str] = set()

    def holds(self, node: Node) -> bool:
        """Whether a node belongs to such a module."""
        paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        hits = {pattern for pattern in self._patterns if fnmatch.filter(paths, pattern)}
        self._matched |= hits
        return bool(hits)

    def check(self) -> None:
        """Complain about what no node of the graph has matched.

        Raises:
            UsageError: naming the patterns.
        """
        unmatched = sorted(self._patterns - self._matched)
        if unmatched:
            hint = "paths start at the exported module, for example model.features.3"
            raise UsageError(f"no module to keep in FP32 under {', '.join(unmatched)}", hint)


def is_constant(value: object) -> bool:
    """Whether an argument is a parameter or buffer."""
    return isinstance(value, Node) and value.op == "get_attr"


def is_float(value: object) -> bool:
    """Whether an argument is an FP32 tensor."""
    fake = value.meta.get("val") if isinstance(value, Node) else None
    return isinstance(fake, torch.Tensor) and fake.dtype == torch.float32


def tensor_of(module: GraphModule, node: Node) -> torch.Tensor:
    """The parameter or buffer that a ``get_attr`` node reads."""
    owner, _, name = str(node.target).rpartition(".")
    value: torch.Tensor = getattr(module.get_submodule(owner), name)
    return value.detach()


def refuse_lost(module: GraphModule) -> None:
    """Refuse a graph that assigns to parts of tensors: NNCF drops that without a word.

    Raises:
        ModelError: naming the assignments.
    """
    lost = [
        node.name
        for node in module.graph.nodes
        if isinstance(node.target, OpOverload) and node.target._schema.is_mutable and not node.users
    ]
    if lost:
        hint = "functionalize the exported program with run_decompositions({})"
        raise ModelError(f"the model assigns to parts of tensors: {', '.join(lost)}", hint)


def drop_idle_clamps(module: GraphModule) -> GraphModule:
    """Take out clamps that quantization does by itself, because integers saturate.

    A clamp from 0 to 6 before integers that stand for 0 to 5.8 changes nothing.  Without it a
    convolution or an addition stands right before its conversion, as LiteRT's converter wants it
    (it fuses clamps to 0…6 and knows none of other limits).

    Args:
        module: a quantized graph; changed in place.

    Returns:
        The same module, computing the same function.
    """
    for node in list(module.graph.nodes):
        if node.target in CLAMPS and all(_saturates(user, *_bounds(node)) for user in node.users):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
    return module


def _bounds(clamp: Node) -> tuple[float | None, float | None]:
    low, high = _BOUNDS.get(str(clamp.target).split(".")[1].rstrip("_"), (None, None))
    given: list[Any] = [*clamp.args[1:], None, None]
    low = given[0] if given[0] is not None else low
    high = given[1] if given[1] is not None else high
    return low, high


def _saturates(user: Node, low: float | None, high: float | None) -> bool:
    """Whether values beyond the bounds become the same integers as the bounds themselves."""
    if user.target != torch.ops.quantized_decomposed.quantize_per_tensor.default:
        return False
    arguments: Any = user.args[1:5]
    scale, zero, least, most = arguments
    half = scale / 2  # what rounding takes to the same integer
    above = low is None or (least - zero) * scale >= low - half
    return bool(above and (high is None or (most - zero) * scale <= high + half))


class UnitQuantizer(Quantizer):  # type: ignore[misc]  # torchao is untyped
    """What quantizers share that annotate whole units: what they read, and what they give.

    Args:
        keep: modules to leave in FP32: see :class:`Kept`.
    """

    def __init__(self, keep: Collection[str]) -> None:
        self._kept = Kept(keep)
        self._integer: set[Node] = set()

    def validate(self, model: GraphModule) -> None:
        """Check the annotated graph against what was asked for.

        Args:
            model: the annotated graph.

        Raises:
            UsageError: if patterns of what is to be kept match no module.
        """
        self._kept.check()

    def _is_integer(self, node: Node) -> bool:
        """Whether the value is quantized, be it for another reader only."""
        return node in self._integer or self._is_read_as_integers(node)

    def _is_read_as_integers(self, node: Node) -> bool:
        read = [user.meta[KEY].input_qspec_map for user in node.users if KEY in user.meta]
        return any(node in inputs for inputs in read)

    def _annotate_unit(self, node: Node, tail: Node, read: Any, given: Any) -> None:
        """Quantize what ``node`` reads and what ``tail`` (itself, or its clamp) gives."""
        node.meta[KEY] = Annotation(read)
        tail.meta.setdefault(KEY, Annotation()).output_qspec = given
        self._integer.add(tail)
