"""SmoothQuant: outliers of activations move into the weights, before anything is quantized.

In transformers a few channels behind each layer norm are tens of times as large as the others, and
one step of INT8 for all of them leaves the others a handful of values.  A linear layer computes the
same if channel ``j`` of its input is divided by ``s_j`` and column ``j`` of its weights multiplied
by it.  The division costs nothing: the layer norm's own factors take it up.

Source: Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models, 2023, equation 4.  NNCF has the method, too, but inserts a product before each
layer, which the integer kernels do not fuse.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.fx import GraphModule, Interpreter, Node

from pipeline.compress.units import overloads
from pipeline.data import Images
from pipeline.quiet import quiet
from pipeline.training import torch_threads
from profiles.errors import StageError, UsageError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_NORM = torch.ops.aten.layer_norm.default
_LINEAR = torch.ops.aten.linear.default
#: What hands channels on as they are.  Those of the second row do so in other dimensions only.
_PASSING = overloads("dropout clone contiguous")
_CUTTING = overloads("select.int slice.Tensor")


@dataclass(frozen=True, slots=True)
class _Pair:
    """A layer norm with the names of its parameters, and those of all weights that read it."""

    norm: Node
    parameters: tuple[str, ...]
    weights: tuple[str, ...]


def smooth(program: ExportedProgram, samples: Images, strength: float) -> ExportedProgram:
    """Even out the channels between layer norms and linear layers; the function stays the same.

    A layer norm whose result is read by anything but linear layers stays as it is, and so does one
    whose parameters, or its readers' weights, are used elsewhere, too.

    Args:
        program: in FP32.
        samples: inputs to see the activations with, shape ``(n, …)``.
        strength: how much of the outliers moves into the weights, between 0 and 1: the paper's
            alpha.  One half shares them evenly.

    Returns:
        A program of its own with other parameters; what was given is left alone.

    Raises:
        UsageError: if ``strength`` is out of range.
        StageError: if there is no layer norm to smooth, or its values are not finite.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"smoothing strength {strength:g} is not between 0 and 1")
    module: Any = program.module(check_guards=False)
    pairs = [pair for node in module.graph.nodes for pair in _pairs(node)]
    pairs = [p for p in pairs if {*p.parameters, *p.weights} <= set(program.state_dict)]
    if not pairs:
        raise StageError(
            "there is nothing to smooth: no layer norm is read by linear layers alone",
            "SmoothQuant is for transformers; leave it out",
        )
    with quiet(), torch_threads(1), torch.no_grad():
        largest = _largest(module, pairs, samples)
        smoothed = copy.deepcopy(program)
        for pair in pairs:
            _move(smoothed.state_dict, pair, largest[pair.norm], strength)
    return smoothed


def _pairs(node: Node) -> Iterator[_Pair]:
    if node.target != _NORM or len(node.args) < 3 or not isinstance(node.args[2], Node):
        return
    if len(node.args[1]) != 1:  # type: ignore[arg-type]  # over more than the channels
        return
    parameters = [value for value in node.args[2:4] if isinstance(value, Node)]
    weights = list(_weights(node))
    if weights and all(v is not None and _is_own(v) for v in (*parameters, *weights)):
        yield _Pair(node, _names(parameters), _names(weights))


def _weights(source: Node) -> Iterator[Any]:
    """The weights of all linear layers that read a value; ``None`` for any other reader."""
    for user in source.users:
        if user.target == _LINEAR and user.args[0] is source:
            yield user.args[1]
        elif user.target in _PASSING or (user.target in _CUTTING and _keeps_channels(user)):
            yield from _weights(user)
        else:
            yield None


def _keeps_channels(node: Node) -> bool:
    source: Any = node.args[0]
    dimension: Any = node.args[1] if len(node.args) > 1 else 0
    return bool(dimension % source.meta["val"].dim() != source.meta["val"].dim() - 1)


def _is_own(value: Any) -> bool:
    """Whether it is a parameter that is read once."""
    if not isinstance(value, Node) or value.op != "get_attr" or len(value.users) != 1:
        return False
    others = (n for n in value.graph.nodes if n.op == "get_attr" and n is not value)
    return all(other.target != value.target for other in others)


def _names(nodes: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(node.target) for node in nodes)


class _Listener(Interpreter):
    """Runs a graph and keeps the largest magnitude of each channel behind chosen layer norms."""

    def __init__(self, module: GraphModule, chosen: Sequence[Node]) -> None:
        super().__init__(module)
        self._chosen = frozenset(chosen)
        self.largest: dict[Node, torch.Tensor] = {}

    def run_node(self, node: Node) -> Any:
        value = super().run_node(node)
        if node in self._chosen:
            found = value.abs().flatten(0, -2).amax(0)
            if not bool(found.isfinite().all()):
                paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
                place = paths[-1] if paths else node.name
                raise StageError(
                    f"{place} gives values that are not finite for a calibration sample",
                    "look for NaN in the samples and the weights",
                )
            self.largest[node] = torch.maximum(self.largest.get(node, found), found)
        return value


def _largest(
    module: GraphModule, pairs: Sequence[_Pair], samples: Images
) -> dict[Node, torch.Tensor]:
    listener = _Listener(module, [pair.norm for pair in pairs])
    for index in range(len(samples)):
        listener.run(torch.from_numpy(samples[index : index + 1]))
    return listener.largest


def _move(
    state: dict[str, torch.Tensor], pair: _Pair, largest: torch.Tensor, strength: float
) -> None:
    weights = [state[name] for name in pair.weights]
    columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    # Channels that are always zero, or never used, have nothing to move.
    factors = largest**strength / columns ** (1 - strength)
    factors = torch.where((largest > 0) & (columns > 0), factors, torch.ones_like(factors))
    for name in pair.parameters:
        state[name].div_(factors)
    for weight in weights:
        weight.mul_(factors)
