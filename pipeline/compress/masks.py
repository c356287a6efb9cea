"""Masks over weights: which stay.  By magnitude in each layer or in all together, and N of M."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import nn
from torch.nn.utils import parametrize

#: By the path of a layer, its weight.
Weights = Mapping[str, torch.Tensor]
#: By the path of a layer, true where a weight stays.
Masks = dict[str, torch.Tensor]

_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def prunable(module: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of convolutions and linear layers by their layers' paths; shared ones once."""
    found: dict[str, torch.Tensor] = {}
    for path, layer in module.named_modules():
        if not isinstance(layer, _LAYERS):
            continue
        weight = _trained(layer)
        if not any(weight is known for known in found.values()):
            found[path] = weight
    return found


def _trained(layer: nn.Module) -> torch.Tensor:
    """A layer's weight as the optimiser knows it: QAT's is rounded from one that stays exact."""
    rounded = parametrize.is_parametrized(layer, "weight")
    weight = layer.parametrizations.weight.original if rounded else layer.weight  # type: ignore
    return cast(torch.Tensor, weight)


def local(weights: Weights, shares: Mapping[str, float]) -> Masks:
    """In each layer, the largest weights stay.

    Args:
        weights: by path.
        shares: by path, how many of them go: rounded to whole weights, at least one of which stays.
            Layers that it does not name stay as they are.
    """
    return {
        path: largest(weight.detach().abs(), round(weight.numel() * shares.get(path, 0.0)))
        for path, weight in weights.items()
    }


def overall(weights: Weights, share: float) -> Masks:
    """The largest weights of all layers together stay, each over its layer's norm.

    So does NNCF's global pruning, which has the one-shot case.

    Args:
        weights: by path.
        share: how many of them go.
    """
    scaled = [_over_norm(weight.detach()) for weight in weights.values()]
    kept = largest(
        torch.cat([values.flatten() for values in scaled]),
        round(sum(values.numel() for values in scaled) * share),
    )
    parts = kept.split([values.numel() for values in scaled])
    return {
        path: part.reshape(values.shape)
        for path, part, values in zip(weights, parts, scaled, strict=True)
    }


def largest(values: torch.Tensor, without: int) -> torch.Tensor:
    """True for all values but the smallest.

    Args:
        values: of any shape.
        without: how many are false: all but one at most.  Ties go by their place.
    """
    flat, without = values.flatten(), min(without, values.numel() - 1)
    if without == 0:
        return torch.ones_like(values, dtype=torch.bool)
    limit = flat.kthvalue(without).values
    mask = flat > limit
    # Of those that are just at the limit, the last ones stay: as many as it takes.
    level = (flat == limit).nonzero()[:, 0]
    mask[level[len(level) - (len(flat) - without - int(mask.sum())) :]] = True
    return mask.reshape(values.shape)


def n_of_m(weights: Weights, kept: int, of: int) -> Masks:
    """Of each ``of`` neighbouring input channels' weights, the ``kept`` largest stay.

    Args:
        weights: by path, shape ``(outputs, inputs, ...)``; see :func:`misfits`.
        kept, of: N and M.
    """
    masks = {}
    for path, weight in weights.items():
        grouped = _grouped(weight.detach().abs(), of)
        order = grouped.argsort(dim=-1, descending=True, stable=True)
        mask = torch.zeros_like(grouped, dtype=torch.bool)
        mask.scatter_(-1, order[..., :kept], True)
        inputs_last = weight.movedim(1, -1).shape
        masks[path] = mask.reshape(inputs_last).movedim(-1, 1).contiguous()
    return masks


def misfits(weights: Weights, of: int) -> dict[str, str]:
    """The layers whose input channels are not a multiple of M, with the reason."""
    return {
        path: f"{weight.shape[1]} input channels are no multiple of {of}"
        for path, weight in weights.items()
        if weight.shape[1] % of
    }


def keeps_pattern(weight: torch.Tensor, kept: int, of: int) -> bool:
    """Whether of each M neighbouring input channels' weights at most N are not zero."""
    return bool(((_grouped(weight.detach(), of) != 0).sum(-1) <= kept).all())


def nonzero(weights: Weights) -> Masks:
    """Where weights are not zero."""
    return {path: weight.detach() != 0 for path, weight in weights.items()}


def pruned(weights: Weights) -> Masks:
    """Where weights are not zero, of the layers that have both.

    A layer of nothing but zeros was not pruned but begins so, as the last of a block may.
    """
    return {path: mask for path, mask in nonzero(weights).items() if mask.any() and not mask.all()}


@torch.no_grad()
def apply(weights: Weights, masks: Masks) -> None:
    """Set to zero, in place, what does not stay."""
    for path, mask in masks.items():
        # Not a product: what is masked is zero whatever it was, and has no sign.
        weights[path].masked_fill_(~mask, 0.0)


def _grouped(weight: torch.Tensor, of: int) -> torch.Tensor:
    """Shape ``(..., inputs / of, of)``: neighbours in the last dimension."""
    inputs_last = weight.movedim(1, -1)
    return inputs_last.reshape(*inputs_last.shape[:-1], -1, of)


def _over_norm(weight: torch.Tensor) -> torch.Tensor:
    norm: torch.Tensor = torch.linalg.vector_norm(weight)
    return weight.abs() / norm.clamp_min(torch.finfo(weight.dtype).tiny)
