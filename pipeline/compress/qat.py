"""Training with rounding in the forward pass (QAT), once for all three runtimes.

The network learns with its weights and activations rounded as all three runtimes round them:
weights to INT8 per output channel and symmetric, activations to 8 bits per tensor, ranges by
extremes.  What comes out is the network in FP32 again, whose weights are at home on that grid: the
ordinary calibration of each runtime finds the same scales for the weights, and for the activations
ranges that were held while training.  So one training serves three quantizers.

Batch norms stay on their own: a scale per output channel is taken up by the scale of the channel's
weights, so rounding before or after folding is the same.  In the last third of the training their
statistics and the activations' ranges are held, so that the network ends as what will be deployed.

*Source*: Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", 2018 (rounding in the forward pass, averaged ranges);
Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference", 2018 (holding the
statistics late); Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons",
2013 (straight-through gradients).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any, cast

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.utils import parametrize

from pipeline.compress.units import Kept
from pipeline.compress.workbench import Workbench
from pipeline.training import Callback
from profiles.compression import Int8, Training
from profiles.errors import StageError

#: From this share of the training on, statistics and ranges are held.
HELD_FROM = 2 / 3
#: Ranges grow at once and shrink slowly, as the extremes over many batches do.
_SHRINK = 0.01
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)
_JOINS = ("add", "add_", "mul", "mul_", "cat")
_CLAMPS = ("relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_", "clamp", "clamp_")


def apply(module: nn.Module, settings: Int8, bench: Workbench) -> tuple[nn.Module, dict[str, Any]]:
    """Train a network for INT8.

    Args:
        module: of :func:`pipeline.compress.module.module_of`; changed in place.
        settings: whose ``train`` and ``distil`` say how, and ``keep`` where nothing is rounded.
        bench: with what.

    Returns:
        The module, in FP32 and without any rounding, and the record of its training:
        ``validation_accuracy`` is with rounding, ``validation_accuracy_fp32`` without.

    Raises:
        StageError: if it has no layer to round.
        UsageError: if ``keep`` names nothing.
    """
    before = bench.accuracy(module)
    rounding = Rounding(cast(GraphModule, module), settings.keep)
    record = bench.fine_tune(
        module,
        settings.train or Training(),
        settings.distil,
        f"{settings.name} (QAT)",
        callbacks=[Hold(module)],
    )
    rounding.remove()
    return module, {
        "validation_accuracy_before": before,
        "rounded_activations": rounding.activations,
        "rounded_layers": rounding.layers,
        **record,
        "validation_accuracy_fp32": bench.accuracy(module),
    }


class Rounding:
    """Rounds a module's weights and activations, until it is removed.

    Args:
        module: of standard layers; changed in place.
        keep: modules that will run in FP32, as patterns of their paths: what they are given and
            what they give is rounded only where others read or give it, too.

    Raises:
        StageError: if it has none that becomes integers.
        UsageError: if ``keep`` names nothing.
    """

    def __init__(self, module: GraphModule, keep: Collection[str] = ()) -> None:
        self._module = module
        kept = Kept(keep)
        integer = [node for node in module.graph.nodes if not kept.holds(node)]
        kept.check()
        layers = [module.get_submodule(str(n.target)) for n in integer if _is_layer(module, n)]
        self._layers = list(dict.fromkeys(layers))
        if not self._layers:
            raise StageError("QAT: the model has no convolution or linear layer to round")
        self._nodes: list[Node] = []
        for number, node in enumerate(list(dict.fromkeys(_rounded(module, integer)))):
            self._round(node, f"rounding_{number}")
        module.recompile()
        for layer in self._layers:
            parametrize.register_parametrization(layer, "weight", RoundedWeight())

    @property
    def layers(self) -> int:
        """How many layers have rounded weights."""
        return len(self._layers)

    @property
    def activations(self) -> int:
        """How many tensors are rounded."""
        return len(self._nodes)

    def remove(self) -> None:
        """Leave the module as it was, with the weights it has learned."""
        for layer in self._layers:
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
        for node in self._nodes:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            self._module.graph.erase_node(node)
            delattr(self._module, str(node.target))
        self._module.recompile()

    def _round(self, node: Node, name: str) -> None:
        setattr(self._module, name, RoundedActivation())
        with self._module.graph.inserting_after(node):
            new = self._module.graph.call_module(name, (node,))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        self._nodes.append(new)


class RoundedWeight(nn.Module):
    """A parametrization: 255 values per output channel, symmetric about 0."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Weights of shape ``(channels, ...)``."""
        with torch.no_grad():
            rows = weight.flatten(1).abs().amax(1).clamp_min(torch.finfo(weight.dtype).tiny)
            scale = (rows / 127).reshape(-1, *[1] * (weight.ndim - 1))
            error = (weight / scale).round() * scale - weight
        return weight + error


class RoundedActivation(nn.Module):
    """256 values between the extremes that it has seen; zero is one of them."""

    low: torch.Tensor
    high: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.held = False
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any tensor."""
        if self.training and not self.held:
            with torch.no_grad():
                low, high = x.aminmax()
                self.low.copy_(torch.minimum(low, self.low.lerp(low, _SHRINK)).clamp_max(0))
                self.high.copy_(torch.maximum(high, self.high.lerp(high, _SHRINK)).clamp_min(0))
        scale = ((self.high - self.low) / 255).clamp_min(torch.finfo(x.dtype).eps)
        zero = (-self.low / scale).round().clamp(0, 255).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


class Hold(Callback):
    """Holds batch norms' statistics and activations' ranges in the last part of a training."""

    def __init__(self, module: nn.Module) -> None:
        self._norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self._ranges = [m for m in module.modules() if isinstance(m, RoundedActivation)]

    def begin(self, step: int, steps: int) -> None:
        """Decided anew in each step, so that a training that is taken up again needs no state."""
        held = step >= steps * HELD_FROM
        for norm in self._norms:
            norm.train(not held)
        for one in self._ranges:
            one.held = held


def _rounded(module: GraphModule, integer: Iterable[Node]) -> Iterator[Node]:
    """What becomes integers in all runtimes: what layers and joins of tensors read and give."""
    for node in integer:
        if _is_layer(module, node):
            yield node.all_input_nodes[0]
            yield _tail(module, node)
        elif _operator(node) in _JOINS and len(node.all_input_nodes) > 1:
            given = [n for n in node.all_input_nodes if n.op != "get_attr"]
            if len(given) > 1:
                yield from given
                yield _tail(module, node)


def _is_layer(module: GraphModule, node: Node) -> bool:
    return node.op == "call_module" and isinstance(module.get_submodule(str(node.target)), _LAYERS)


def _operator(node: Node) -> str:
    """ATen's name of an operator, empty for what is none."""
    return getattr(node.target, "_opname", "")


def _tail(module: GraphModule, node: Node) -> Node:
    """The last operator of what runtimes fuse: batch norm and clamp behind a layer."""
    reader = next(iter(node.users), None)
    if reader is None or len(node.users) > 1:
        return node
    is_norm = reader.op == "call_module" and isinstance(
        module.get_submodule(str(reader.target)), nn.modules.batchnorm._NormBase
    )
    is_clamp = _operator(reader) in _CLAMPS
    if is_norm:
        return _tail(module, reader)
    return reader if is_clamp else node
