"""Convolutions and linear layers as products of two smaller ones.

A layer's outputs lie near a subspace of few dimensions.  The first of the two layers computes the
coordinates there, with the kernel, stride and padding of the original; the second one, 1x1, takes
them back to all channels.

Source: Zhang et al., "Accelerating Very Deep Convolutional Networks for Classification and
Detection" (2016), section 3.1: principal components of a layer's responses minimise its output's
error, which a singular value decomposition of the weights alone does only for white inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.data import Images
from pipeline.training import torch_threads

Layer = nn.Linear | nn.Conv1d | nn.Conv2d

#: Widths that kernels like; half of it where a layer has room for one such rank at most.
ROUND_TO = 8
#: So many ranks of a layer are offered.
MOST_RANKS = 7
_BATCH = 32


def factorable(module: nn.Module) -> dict[str, Layer]:
    """Layers that two smaller ones could replace, by path; those with groups are left alone."""
    return {
        path: layer
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d)
        and getattr(layer, "groups", 1) == 1
        and ranks_of(layer)
    }


def ranks_of(layer: Layer) -> tuple[int, ...]:
    """Ranks, from the highest, at which a layer's two factors have fewer weights than itself.

    They are multiples of 8, or of 4 in a small layer.
    """
    out, into = layer.weight.shape[0], layer.weight[0].numel()
    most = (out * into - 1) // (out + into)
    step = ROUND_TO if most >= 2 * ROUND_TO else ROUND_TO // 2
    if most < step:
        return ()
    wanted = np.geomspace(step, most, MOST_RANKS) // step * step
    return tuple(sorted({int(rank) for rank in wanted}, reverse=True))


@dataclass(frozen=True, slots=True)
class Responses:
    """What a layer gave on calibration data.

    Args:
        mean: of its outputs without the bias, shape ``(channels,)``.
        covariance: of them, shape ``(channels, channels)``.
        count: of positions over all samples.
        positions: for one sample; a linear layer has one for each token.
        example: what it was given for the first sample.
    """

    mean: torch.Tensor
    covariance: torch.Tensor
    count: int
    positions: int
    example: torch.Tensor


def responses(
    module: nn.Module, layers: Mapping[str, Layer], samples: Images
) -> dict[str, Responses]:
    """Watch layers at work.

    Args:
        module: the whole network, in evaluation mode.
        layers: of it, by path.
        samples: inputs, shape ``(n, channels, height, width)``.
    """
    watched = {path: _Watched(layer) for path, layer in layers.items()}
    hooks = [layers[path].register_forward_hook(one.note) for path, one in watched.items()]
    try:
        with torch.no_grad(), torch_threads(1):
            for start in range(0, len(samples), _BATCH):
                module(torch.from_numpy(samples[start : start + _BATCH]))
    finally:
        for hook in hooks:
            hook.remove()
    return {path: one.found(len(samples)) for path, one in watched.items() if one.count}


class _Watched:
    """Sums over what one layer gives."""

    def __init__(self, layer: Layer) -> None:
        channels = layer.weight.shape[0]
        self.count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)
        self._example = torch.empty(0)

    def note(self, layer: Any, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
        """Called after each forward pass of the layer."""
        if not self.count:
            self._example = given[0][:1].clone()
        values = output if isinstance(layer, nn.Linear) else output.movedim(1, -1)
        values = values.reshape(-1, values.shape[-1]).double()
        if layer.bias is not None:
            values = values - layer.bias.double()
        self.count += len(values)
        self._sum += values.sum(0)
        self._products += values.T @ values

    def found(self, samples: int) -> Responses:
        """All sums as moments."""
        mean = self._sum / self.count
        covariance = self._products / self.count - torch.outer(mean, mean)
        return Responses(mean, covariance, self.count, self.count // samples, self._example)


class Factors:
    """A layer's best approximations of all ranks.

    Args:
        layer: to approximate.
        seen: what it gave.
    """

    def __init__(self, layer: Layer, seen: Responses) -> None:
        self._layer, self._mean = layer, seen.mean
        weight = layer.weight.detach().flatten(1).double()
        blind = weight @ weight.T
        # Few samples span few directions; the others are told apart by the weights alone.
        doubt = len(weight) / (len(weight) + seen.count)
        scale = seen.covariance.trace() / blind.trace().clamp_min(1e-300)
        mixed = (1 - doubt) * seen.covariance + doubt * scale * blind
        self._basis = torch.linalg.eigh(mixed).eigenvectors.flip(1)

    def of_rank(self, rank: int) -> nn.Sequential:
        """Two new layers that together come as near to the layer as that rank allows."""
        layer = self._layer
        weight = layer.weight.detach().flatten(1).double()
        basis = self._basis[:, :rank]
        # Turned so that all coordinates vary alike, which suits one scale for all in INT8.
        out = basis @ _rotation(rank)
        bias = self._mean - basis @ (basis.T @ self._mean)
        if layer.bias is not None:
            bias = bias + layer.bias.detach().double()
        first, second = _pair(layer, rank)
        with torch.no_grad():
            first.weight.copy_((out.T @ weight).view_as(first.weight))
            second.weight.copy_(out.view_as(second.weight))
            second.bias.copy_(bias)  # type: ignore[union-attr]
        return nn.Sequential(first, second).eval()


def product(pair: nn.Sequential) -> torch.Tensor:
    """The weight that two factors come to, shape ``(outputs, weights of an output)``."""
    first, second = (layer.get_parameter("weight").flatten(1) for layer in pair)
    return second @ first


def _pair(layer: Layer, rank: int) -> tuple[Layer, Layer]:
    out, into = layer.weight.shape[:2]
    if isinstance(layer, nn.Linear):
        return nn.Linear(into, rank, bias=False), nn.Linear(rank, out)
    make: Any = type(layer)
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    return make(into, rank, *shape, bias=False), make(rank, out, 1)


def _rotation(size: int) -> torch.Tensor:
    """The orthonormal cosine transform: each of its rows weighs all coordinates about alike."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    matrix = torch.cos(torch.pi * (2 * column + 1) * row / (2 * size)).double()
    return torch.nn.functional.normalize(matrix, dim=1)


@contextmanager
def replaced(module: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Put other layers in the place of a module's own, for a while."""
    own = {path: module.get_submodule(path) for path in layers}
    try:
        replace(module, layers)
        yield
    finally:
        replace(module, own)


def replace(module: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    """Put other layers in the place of a module's own, by path."""
    for path, layer in layers.items():
        holder, _, name = path.rpartition(".")
        setattr(module.get_submodule(holder), name, layer)
