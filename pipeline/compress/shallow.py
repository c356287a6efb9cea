"""Layer removal: residual blocks go whose outputs say the same as their inputs.

Sources: Kornblith et al., "Similarity of Neural Network Representations Revisited" (2019), for
linear centred kernel alignment (CKA); Sajjad et al., "On the Effect of Dropping Layers of
Pre-trained Transformer Models" (2023), for removing layers and fine-tuning what is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

from pipeline.compress.batch_norms import settle
from pipeline.compress.distortion import SAMPLES, few_samples, finite_logits
from pipeline.compress.module import forget_unused
from pipeline.compress.workbench import Workbench
from pipeline.data import Images
from pipeline.training import torch_threads
from profiles.compression import Shallow
from profiles.errors import StageError

_ATEN = torch.ops.aten
_ADD = (_ATEN.add.Tensor, _ATEN.add_.Tensor)
#: What may lie on the way around a block's layers.
_PASSING = (_ATEN.relu.default, _ATEN.relu_.default, _ATEN.clone.default)
_PASSING_LAYERS = (nn.Dropout, nn.LayerNorm)
_BATCH = 32
#: The unbiased estimate needs so many examples.
_FEWEST = 4
#: Most numbers that are kept to compare representations: 256 MB.
_MOST = 1 << 26


def apply(
    module: GraphModule, settings: Shallow, bench: Workbench
) -> tuple[nn.Module, dict[str, Any]]:
    """Remove residual blocks, one at a time, the one that changes least of those left.

    Args:
        module: from :func:`pipeline.compress.module.module_of`; changed in place.
        settings: how many.
        bench: with what.

    Returns:
        The module, and the record: what was removed, and all similarities that it was chosen by.

    Raises:
        StageError: if there are not so many blocks that can be removed, with how many there are, or
            if the model gives values that are not finite.
    """
    found = blocks(module)
    if len(found) < settings.remove:
        names = ", ".join(block.path for block in found) or "none"
        raise StageError(
            f"remove: {settings.remove} blocks cannot be removed: {len(found)} can ({names})",
            "a block can whose output has its input's shape and adds something to it",
        )
    count = len(bench.calibration)
    if count < _FEWEST:
        raise StageError(f"{count} calibration samples: at least {_FEWEST} can be compared")
    finite_logits(module, bench.calibration[:SAMPLES])
    record: dict[str, Any] = {"removed": [], "similarities": []}
    for number in range(settings.remove):
        similar = similarities(module, blocks(module), bench.calibration)
        path = max(similar, key=lambda name: similar[name])
        remove(module, next(block for block in blocks(module) if block.path == path))
        record["removed"].append(path)
        record["similarities"].append(similar)
        bench.progress(f"removed {path} ({number + 1}/{settings.remove})")
    settle(module, bench.calibration)
    record["validation_accuracy_untrained"] = bench.accuracy(module)
    record |= few_samples(count)
    if settings.train:
        record |= bench.fine_tune(module, settings.train, settings.distil, settings.name)
    return module, record


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a network that adds something to what it is given.

    Args:
        path: of its module.
        given, gives: what it reads, and what it hands on; of one shape.
        nodes: all that it computes, in the graph's order.
    """

    path: str
    given: Node
    gives: Node
    nodes: tuple[Node, ...]


def blocks(module: GraphModule) -> list[Block]:
    """Blocks that can be removed, in the graph's order; none of them is within another one."""
    members: dict[str, list[Node]] = {}
    for node in module.graph.nodes:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            members.setdefault(path, []).append(node)
    found = [
        block
        for path, nodes in members.items()
        if path and (block := _block(module, path, nodes)) is not None
    ]
    return [
        block
        for block in found
        if not any(other.path.startswith(f"{block.path}.") for other in found)
    ]


def _block(module: GraphModule, path: str, nodes: list[Node]) -> Block | None:
    inside = set(nodes)
    read = {
        given
        for node in nodes
        for given in node.all_input_nodes
        if given not in inside and given.op != "get_attr" and _shape(given)
    }
    handed = [node for node in nodes if any(user not in inside for user in node.users)]
    if len(read) != 1 or len(handed) != 1:
        return None
    (given,), (gives,) = read, handed
    if _shape(given) != _shape(gives) or not _goes_around(module, gives, given):
        return None
    return Block(path, given, gives, tuple(nodes))


def _shape(node: Node) -> str:
    """Of a tensor; empty for numbers such as the batch size."""
    value = node.meta.get("val")
    return str((tuple(value.shape), value.dtype)) if isinstance(value, torch.Tensor) else ""


def _goes_around(module: GraphModule, node: Node, given: Node, added: bool = False) -> bool:
    """Whether a value is what was given, plus something."""
    if node is given:
        return added
    if node.target in _ADD:
        return any(_goes_around(module, term, given, True) for term in node.all_input_nodes)
    passes = node.target in _PASSING or (
        node.op == "call_module"
        and isinstance(module.get_submodule(str(node.target)), _PASSING_LAYERS)
    )
    return passes and _goes_around(module, node.all_input_nodes[0], given, added)


def remove(module: GraphModule, block: Block) -> None:
    """Let what follows a block read what the block is given; its parameters go."""
    constants = [
        given for node in block.nodes for given in node.all_input_nodes if given.op == "get_attr"
    ]
    block.gives.replace_all_uses_with(block.given)
    # Written out, for what writes in place is not dead to PyTorch.
    for node in reversed(block.nodes):
        module.graph.erase_node(node)
    for node in dict.fromkeys(constants):
        if not node.users:
            module.graph.erase_node(node)
    module.graph.lint()
    module.recompile()
    module.delete_all_unused_submodules()
    forget_unused(module)


def similarities(module: GraphModule, found: list[Block], samples: Images) -> dict[str, float]:
    """Linear CKA of each block's input and output on calibration data, by path.

    Args:
        module: the network.
        found: its blocks.
        samples: inputs, shape ``(n, channels, height, width)``; the first 128 count, or fewer where
            representations are large.
    """
    ends = {end for block in found for end in (block.given, block.gives)}
    size = sum(math.prod(end.meta["val"].shape[1:]) for end in ends)
    samples = samples[: max(_FEWEST, min(SAMPLES, _MOST // max(1, size)))]
    kept: dict[Node, list[torch.Tensor]] = {end: [] for end in ends}
    with torch.no_grad(), torch_threads(1):
        for start in range(0, len(samples), _BATCH):
            _Listener(module, kept).run(torch.from_numpy(samples[start : start + _BATCH]))
        grams = {end: _gram(torch.cat(parts)) for end, parts in kept.items()}
    return {block.path: _alignment(grams[block.given], grams[block.gives]) for block in found}


class _Listener(Interpreter):
    """Keeps some nodes' values."""

    def __init__(self, module: GraphModule, kept: dict[Node, list[torch.Tensor]]) -> None:
        super().__init__(module)
        self._kept = kept

    def run_node(self, n: Node) -> Any:
        """The node's value."""
        value = super().run_node(n)
        if n in self._kept:
            self._kept[n].append(value.clone())  # what follows may write over it
        return value


def _gram(values: torch.Tensor) -> torch.Tensor:
    """Inner products of all pairs of different examples' representations, shape ``(n, n)``."""
    flat = values.flatten(1)
    # Centred first, so that little is lost when large means are subtracted later.
    flat = flat - flat.mean(0)
    return (flat @ flat.T).double().fill_diagonal_(0)


def _alignment(one: torch.Tensor, other: torch.Tensor) -> float:
    """Linear CKA from both Gram matrices: 1 for what is the same up to rotation and scale.

    Without bias: with more features than examples the plain estimate is near 1 for everything.
    Source: Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?" (2021), section 3.
    """
    norms = _independence(one, one) * _independence(other, other)
    return _independence(one, other) / math.sqrt(norms) if norms > 0 else 0.0


def _independence(one: torch.Tensor, other: torch.Tensor) -> float:
    """The unbiased Hilbert-Schmidt independence criterion, up to a factor of its own."""
    count = len(one)
    rows, columns = one.sum(0), other.sum(0)
    same = (one * other).sum()
    sums = rows.sum() * columns.sum() / ((count - 1) * (count - 2))
    return float(same + sums - 2 * rows @ columns / (count - 2))
