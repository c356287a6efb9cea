"""How much each unit of a group matters: by its weights, or by the loss without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pipeline.compress.groups import Group, Member, Structure
from pipeline.data import Split
from pipeline.training import torch_threads

Scores = Mapping[str, NDArray[np.float64]]

#: Batches of training examples that gradients are taken of, and their size.
_BATCHES, _BATCH = 8, 64


def magnitude(structure: Structure) -> dict[str, NDArray[np.float64]]:
    """The norm of all weights that would go with a unit, as a multiple of its group's mean.

    Without their group's mean layers of few and of many weights could not be ranked together.

    Source: Fang et al., "DepGraph: Towards Any Structural Pruning" (2023), section 3.3.
    """
    found = {}
    for name, group in structure.groups.items():
        squares = _summed(structure, group, lambda weight: weight.detach().square())
        norms = np.sqrt(squares)
        found[name] = norms / max(float(norms.mean()), np.finfo(np.float64).tiny)
    return found


class Taylor:
    """First-order estimate of how the loss changes without a unit: (sum of weight x gradient)^2.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning" (2019), equation 8,
    with all layers that a unit is in taken together.
    """

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self.scores = {name: np.zeros(g.width) for name, g in structure.groups.items()}

    def add(self) -> None:
        """Take the gradients that the module's weights have now."""
        for name, group in self._structure.groups.items():
            self.scores[name] += _summed(self._structure, group, _weight_by_gradient) ** 2


def taylor(structure: Structure, data: Split) -> dict[str, NDArray[np.float64]]:
    """:class:`Taylor` over some batches of examples; the weights are left as they are."""
    module = structure.module.eval()
    found = Taylor(structure)
    order = np.random.default_rng(0).permutation(len(data.y))[: _BATCHES * _BATCH]
    asked = [parameter.requires_grad for parameter in module.parameters()]
    with torch_threads(1), torch.enable_grad():
        module.requires_grad_()
        for start in range(0, len(order), _BATCH):
            places = order[start : start + _BATCH]
            module.zero_grad()
            outputs = module(torch.from_numpy(data.x[places]))
            functional.cross_entropy(outputs, torch.from_numpy(data.y[places])).backward()
            found.add()
    module.zero_grad()
    for parameter, before in zip(module.parameters(), asked, strict=True):
        parameter.requires_grad_(before)
    return found.scores


def _weight_by_gradient(weight: torch.Tensor) -> torch.Tensor:
    if weight.grad is None:
        return torch.zeros_like(weight)
    return weight.detach() * weight.grad


def _summed(structure: Structure, group: Group, of: Any) -> NDArray[np.float64]:
    """What each weight comes to, summed over all weights of each unit."""
    total = np.zeros(group.width)
    for member in structure.members(group):
        for values, dim in tensors(structure, member):
            rest = [d for d in range(values.ndim) if d != dim]
            each = of(values).double()
            each = each.sum(rest) if rest else each
            np.add.at(total, member.units, each.numpy()[member.places])
    return total


def tensors(structure: Structure, member: Member) -> Iterator[tuple[torch.nn.Parameter, int]]:
    """A layer's parameters that a member's places are of, and along which dimension."""
    layer: Any = structure.module.get_submodule(member.path)
    if member.makes:
        yield from ((v, 0) for v in (layer.weight, layer.bias) if v is not None)
    elif layer.weight.shape[1] == len(structure.trace.layers[member.path].reads):
        yield layer.weight, 1
