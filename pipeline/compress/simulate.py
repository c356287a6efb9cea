"""A quantized program in PyTorch, whose conversions to integers can be switched and measured.

One quantization with its weights still in FP32 tells what would otherwise take many: what each
block alone does to the outputs, and how ranges found with fewer samples, or more, would do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import GraphModule, Interpreter, Node

from pipeline.data import Images
from pipeline.profile.grouping import Group, group, is_dequantize, is_quantize
from pipeline.quiet import quiet
from pipeline.training import logits_of, torch_threads
from profiles.errors import DataError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: Examples at a time, where a program takes more than the one it was exported for.
BATCH = 50
#: Least and greatest value of each tensor that becomes integers, per example: ``(n, 2)``.
Extremes = Mapping[Node, NDArray[np.float32]]
_PER_TENSOR = "quantized_decomposed.quantize_per_tensor"


def free_module_of(program: ExportedProgram) -> GraphModule:
    """A program as a module that does not insist on the batch size of its example."""
    with quiet():
        module: GraphModule = program.module(check_guards=False)
    module._forward_pre_hooks.clear()
    return module


def batch_of(module: Any, x: Images) -> int:
    """How many examples a module of one-example programs computes at once, each as if alone.

    Graphs without a batch size in their constants, as those of most convolutional networks, take
    any; the others give something else, or nothing.
    """
    if len(x) < 2:
        return 1
    try:
        with torch_threads(1), torch.no_grad():
            both = module(torch.from_numpy(x[:2]))
            alone = torch.cat([module(torch.from_numpy(x[i : i + 1])) for i in range(2)])
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError):
        return 1
    # Rounding to integers may turn a last bit into a step, here and there.
    close = both.shape == alone.shape and torch.allclose(both, alone, rtol=0.05, atol=0.05)
    return BATCH if close else 1


def outputs_of(program: ExportedProgram, x: Images) -> Images:
    """A program's outputs, shape ``(n, classes)``, as many at a time as it takes.

    Raises:
        DataError: if it does not take such inputs.
    """
    module = free_module_of(program)
    with torch_threads(1):
        return logits_of(module, x, batch_of(module, x))


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a network that stays in FP32 as a whole, or not.

    Args:
        name: path of the module that it begins with.
        patterns: what to give a quantizer as ``keep``.
        operators: names of its operators in the quantized program.
        macs: multiplications and additions of its convolutions and linear layers.
    """

    name: str
    patterns: tuple[str, ...]
    operators: frozenset[str]
    macs: int


class Simulation:
    """A quantized program with FP32 weights, and what can be asked of it.

    Args:
        program: of :func:`pipeline.compress.quantize.calibrated`.
        x: inputs that it is asked with, shape ``(n, ...)``.
    """

    def __init__(self, program: ExportedProgram, x: Images) -> None:
        self.module = free_module_of(program)
        self.x = x
        self.conversions = [n for n in self.module.graph.nodes if is_quantize(n)]
        self.activations = [
            n for n in self.conversions if str(n.target).startswith(_PER_TENSOR) and _is_data(n)
        ]
        self._batch = batch_of(self.module, x)

    def outputs(
        self,
        active: Collection[Node],
        ranges: Mapping[Node, tuple[float, int]] | None = None,
    ) -> Images:
        """Outputs where only some conversions are made.

        Args:
            active: those that are.
            ranges: scale and zero point instead of what calibration found.
        """
        return self._run(_Switched(self.module, frozenset(active), ranges or {}), self.x)

    def extremes(self, x: Images) -> Extremes:
        """The range of each example in each activation that becomes integers, all in FP32."""
        switched = _Switched(self.module, frozenset(), {})
        switched.seen = {node: [] for node in self.activations}
        self._run(switched, x)
        return {node: np.concatenate(rows) for node, rows in switched.seen.items()}

    def ranges(self, extremes: Extremes, count: int) -> dict[Node, tuple[float, int]]:
        """Scales and zero points that the first ``count`` examples of these lead to."""
        return {
            node: _scale(node, rows[:count, 0].min(), rows[:count, 1].max())
            for node, rows in extremes.items()
        }

    def blocks(self, depth: int | None = None) -> list[Block]:
        """The network's blocks, each with what keeps it in FP32; see :func:`group` for depth."""
        groups, _ = group(self.module.graph, depth)
        heavy = {name: _heavy(one) for name, one in ((one.name, one) for one in groups)}
        everywhere = {one.name: {path for n in one.nodes for path in _paths(n)} for one in groups}
        return [
            Block(
                one.name,
                _patterns(one.name, heavy, everywhere),
                frozenset(node.name for node in one.nodes),
                sum(_macs(node) for node in heavy[one.name]),
            )
            for one in groups
            if heavy[one.name]
        ]

    def touching(self, block: Block) -> list[Node]:
        """The conversions of what a block reads and gives."""
        return [n for n in self.conversions if block.operators & set(_neighbours(n))]

    def _run(self, switched: _Switched, x: Images) -> Images:
        with torch_threads(1):
            return logits_of(switched.run, x, self._batch)


class _Switched(Interpreter):
    """Runs a quantized graph with some of its conversions left out."""

    def __init__(
        self,
        module: GraphModule,
        active: frozenset[Node],
        ranges: Mapping[Node, tuple[float, int]],
    ) -> None:
        super().__init__(module)
        self._active, self._ranges = active, ranges
        self.seen: dict[Node, list[NDArray[np.float32]]] = {}

    def run_node(self, n: Node) -> Any:
        """One operator; conversions that are switched off hand their input on."""
        if is_quantize(n):
            (source,) = n.all_input_nodes[:1]
            value = self.env[source]
            if n in self.seen:
                rows = value.flatten(1)
                self.seen[n].append(torch.stack([rows.amin(1), rows.amax(1)], 1).numpy())
            if n not in self._active:
                return value
            return self._converted(n, value)
        if is_dequantize(n):
            (source,) = n.all_input_nodes[:1]
            value = self.env[source]
            if torch.is_floating_point(value):
                return value
            return self._converted(n, value, source)
        return super().run_node(n)

    def _converted(self, n: Node, value: Any, source: Any = None) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        scale = self._ranges.get(source if source is not None else n)
        if scale is not None:
            args = (value, *scale, *args[3:])
        return n.target(*args, **kwargs)  # type: ignore[operator]


def _is_data(node: Node) -> bool:
    """Whether it is computed from the input, not from parameters alone."""
    return any(n.op == "placeholder" for n in _above(node))


def _above(node: Node) -> Iterator[Node]:
    todo, seen = [node], set()
    while todo:
        one = todo.pop()
        if one not in seen:
            seen.add(one)
            yield one
            todo += one.all_input_nodes


def _scale(node: Node, low: float, high: float) -> tuple[float, int]:
    """As a MinMax range estimator: zero is exact."""
    least, most = int(node.args[3]), int(node.args[4])  # type: ignore[arg-type]
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = max((high - low) / (most - least), float(np.finfo(np.float32).eps))
    return scale, int(np.clip(round(least - low / scale), least, most))


def _paths(node: Node) -> list[str]:
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values() if path]


def _heavy(one: Group) -> list[Node]:
    return [node for node in one.nodes if _macs(node)]


def _patterns(
    name: str, heavy: Mapping[str, list[Node]], everywhere: Mapping[str, set[str]]
) -> tuple[str, ...]:
    """One module where a block is a module, else those of its convolutions and linear layers."""
    common = [set(_paths(node)) for node in heavy[name]]
    others = set().union(*(paths for other, paths in everywhere.items() if other != name))
    own = set.intersection(*common) - others if common else set()
    if own:
        return (_escaped(min(own, key=len)),)
    return tuple(dict.fromkeys(_escaped(_paths(n)[-1]) for n in heavy[name] if _paths(n)))


def _escaped(path: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def _neighbours(conversion: Node) -> Iterator[str]:
    """Names of the operators that give a value and read it, seen through its conversions."""
    yield conversion.all_input_nodes[0].name
    readers = [user for given in conversion.users for user in given.users]
    yield from (reader.name for reader in readers)


def _macs(node: Node) -> int:
    """Multiplications and additions of a convolution or linear layer, for one example."""
    name = getattr(node.target, "_opname", "")
    if not name.startswith(("conv", "linear")):
        return 0
    weight, result = node.args[1].meta["val"], node.meta["val"]  # type: ignore[union-attr]
    return int(result[0].numel() * weight[0].numel())


def demand_finite(program: ExportedProgram, x: Images) -> None:
    """See that everything that calibration would look at is a number.

    Args:
        program: in FP32.
        x: calibration inputs.

    Raises:
        DataError: if not, naming the module where it first appears.
    """
    module = free_module_of(program)
    with torch_threads(1):
        logits_of(_Finite(module).run, x, batch_of(module, x))


class _Finite(Interpreter):
    """Runs a graph until something that is not a number reaches a layer or the output.

    What is masked on its way, as the scores that attention sets to minus infinity, does no harm.
    """

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self._first: str | None = None

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """One batch."""
        self._first = None
        return super().run(*args, **kwargs)

    def run_node(self, n: Node) -> Any:
        """One operator."""
        given = [self.env[i] for i in n.all_input_nodes]
        if (_macs(n) or n.op == "output") and any(map(_is_broken, given)):
            raise DataError(
                f"calibration: values that are not finite appear in {self._first}",
                "no range fits them: look at the weights there, and at how the data are normalised",
            )
        value = super().run_node(n)
        if self._first is None and _is_broken(value):
            paths = _paths(n)
            self._first = f"{paths[-1]} ({n.name})" if paths else str(n.target)
        return value


def _is_broken(value: Any) -> bool:
    is_float = isinstance(value, torch.Tensor) and value.is_floating_point()
    return is_float and not bool(torch.isfinite(value).all())
