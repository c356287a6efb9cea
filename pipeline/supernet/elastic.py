"""An elastic convolutional network of inverted residual blocks.

Kernel size, expansion and depth are free in each block; a sub-network uses the first channels and
the centre of the kernels of the shared weights.

Source of the block: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR
2018; of weight sharing between kernels and widths: Cai et al., "Once-for-All: Train One Network and
Specialize it for Efficient Deployment", ICLR 2020.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pipeline.supernet.base import Block
from profiles.space import Genomes, SearchSpace, Slot

SKIP = "skip"


@dataclass(frozen=True, slots=True)
class StagePlan:
    """Some blocks of one width; the first halves the resolution, later ones may be left out."""

    width: int
    depth: int


@dataclass(frozen=True, slots=True)
class _Place:
    """A block's fixed surroundings."""

    name: str
    narrow: int
    wide: int
    stride: int
    size: int
    optional: bool


class InvertedResidual(nn.Module):
    """Expand by 1x1, filter each channel, project by 1x1; a shortcut where shapes allow it."""

    def __init__(self, narrow: int, wide: int, stride: int, kernel: int, expand: int) -> None:
        super().__init__()
        middle = narrow * expand
        self.expand = nn.Conv2d(narrow, middle, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(middle)
        self.filter = nn.Conv2d(
            middle, middle, kernel, stride, kernel // 2, groups=middle, bias=False
        )
        self.norm2 = nn.BatchNorm2d(middle)
        self.project = nn.Conv2d(middle, wide, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(wide)
        self.shortcut = stride == 1 and narrow == wide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape ``(n, narrow, h, w)`` in, ``(n, wide, h / stride, w / stride)`` out."""
        middle = functional.relu6(self.norm1(self.expand(x)))
        filtered = functional.relu6(self.norm2(self.filter(middle)))
        out: torch.Tensor = self.norm3(self.project(filtered))
        return x + out if self.shortcut else out


class _ElasticBlock(nn.Module):
    """The largest block of one place, and every smaller one inside it."""

    def __init__(self, place: _Place, kernel: int, expand: int) -> None:
        super().__init__()
        self.place = place
        self.largest = InvertedResidual(place.narrow, place.wide, place.stride, kernel, expand)

    def forward_choice(self, x: torch.Tensor, kernel: int, expand: int) -> torch.Tensor:
        full, middle = self.largest, self.place.narrow * expand
        out = functional.conv2d(x, full.expand.weight[:middle])
        out = functional.relu6(_batch_norm(out, full.norm1))
        weight = _centre(full.filter.weight[:middle], kernel)
        out = functional.conv2d(
            out, weight, stride=self.place.stride, padding=kernel // 2, groups=middle
        )
        out = functional.relu6(_batch_norm(out, full.norm2))
        out = functional.conv2d(out, full.project.weight[:, :middle])
        out = _batch_norm(out, full.norm3)
        return x + out if full.shortcut else out

    def extract(self, kernel: int, expand: int) -> InvertedResidual:
        place, full, middle = self.place, self.largest, self.place.narrow * expand
        small = InvertedResidual(place.narrow, place.wide, place.stride, kernel, expand)
        with torch.no_grad():
            small.expand.weight.copy_(full.expand.weight[:middle])
            small.filter.weight.copy_(_centre(full.filter.weight[:middle], kernel))
            small.project.weight.copy_(full.project.weight[:, :middle])
            for name in ("norm1", "norm2", "norm3"):
                target, source = getattr(small, name), getattr(full, name)
                target.weight.copy_(source.weight[: len(target.weight)])
                target.bias.copy_(source.bias[: len(target.bias)])
        return small


class ElasticConvNet(nn.Module):
    """A super-network of inverted residuals; see :class:`pipeline.supernet.base.SuperNetwork`.

    Args:
        input_shape: channels, height and width of an image; height and width are equal and
            divisible by all strides.
        stem_width: channels after the first convolution.
        stem_stride: of the first convolution.
        stages: widths and depths.
        kernels: odd kernel sizes to choose from, increasing.
        expands: expansion ratios to choose from, increasing.
        classes: number of outputs.
    """

    def __init__(
        self,
        *,
        input_shape: tuple[int, int, int],
        stem_width: int,
        stem_stride: int,
        stages: Sequence[StagePlan],
        kernels: Sequence[int],
        expands: Sequence[int],
        classes: int,
    ) -> None:
        super().__init__()
        channels, size, _ = input_shape
        self._input_shape = input_shape
        self._choices = [(kernel, expand) for kernel in kernels for expand in expands]
        places = list(_places(stem_width, size // stem_stride, stages))
        self.stem = nn.Conv2d(channels, stem_width, 3, stem_stride, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(stem_width)
        self.blocks = nn.ModuleList(
            _ElasticBlock(place, max(kernels), max(expands)) for place in places
        )
        self._last = places[-1]
        self.head = nn.Linear(self._last.wide, classes)
        named = tuple(f"k{kernel}e{expand}" for kernel, expand in self._choices)
        self.space = SearchSpace(
            (
                Slot("stem", ("stem",)),
                *(Slot(p.name, (SKIP, *named) if p.optional else named) for p in places),
                Slot("head", ("head",)),
            )
        )

    def forward_genome(self, x: torch.Tensor, genome: Genomes) -> torch.Tensor:
        """See :class:`pipeline.supernet.base.SuperNetwork`."""
        out = functional.relu6(_batch_norm(self.stem(x), self.stem_norm))
        for block, choice in self._chosen(genome):
            out = block.forward_choice(out, *choice)
        logits: torch.Tensor = self.head(out.mean((2, 3)))
        return logits

    def extremes(self) -> tuple[Genomes, Genomes]:
        """See :class:`pipeline.supernet.base.SuperNetwork`."""
        return np.zeros_like(self.space.highest), self.space.highest

    def extract(self, genome: Genomes) -> nn.Module:
        """See :class:`pipeline.supernet.base.SuperNetwork`."""
        parts: list[nn.Module] = [self._static_stem()]
        parts += [block.extract(*choice) for block, choice in self._chosen(genome)]
        return nn.Sequential(*parts, self._static_head())

    def block(self, slot: int, choice: int) -> Block | None:
        """See :class:`pipeline.supernet.base.SuperNetwork`."""
        if slot == 0:
            shape = "x".join(str(size) for size in self._input_shape)
            return Block(f"stem@{shape}", self._static_stem(), (1, *self._input_shape))
        if slot == len(self.space.slots) - 1:
            last, size = self._last, self._last.size // self._last.stride
            signature = f"head {last.wide}-{self.head.out_features}@{size}"
            return Block(signature, self._static_head(), (1, last.wide, size, size))
        place = self._elastic()[slot - 1].place
        picked = self._choice(place, choice)
        if picked is None:
            return None
        kernel, expand = picked
        signature = (
            f"mbconv {place.narrow}-{place.wide} s{place.stride} k{kernel} e{expand}@{place.size}"
        )
        module = InvertedResidual(place.narrow, place.wide, place.stride, kernel, expand)
        return Block(signature, module, (1, place.narrow, place.size, place.size))

    def _elastic(self) -> list[_ElasticBlock]:
        return [block for block in self.blocks if isinstance(block, _ElasticBlock)]

    def _chosen(self, genome: Genomes) -> Iterator[tuple[_ElasticBlock, tuple[int, int]]]:
        """The blocks that a genome keeps, with the kernel and expansion of each."""
        for block, gene in zip(self._elastic(), genome[1:-1], strict=True):
            choice = self._choice(block.place, int(gene))
            if choice is not None:
                yield block, choice

    def _choice(self, place: _Place, gene: int) -> tuple[int, int] | None:
        index = gene - 1 if place.optional else gene
        return None if index < 0 else self._choices[index]

    def _static_stem(self) -> nn.Module:
        return nn.Sequential(deepcopy(self.stem), deepcopy(self.stem_norm), nn.ReLU6())

    def _static_head(self) -> nn.Module:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), deepcopy(self.head))


def _places(width: int, size: int, stages: Sequence[StagePlan]) -> list[_Place]:
    places = []
    for number, stage in enumerate(stages, start=1):
        for index in range(stage.depth):
            first = index == 0
            places.append(
                _Place(
                    name=f"s{number}b{index + 1}",
                    narrow=width,
                    wide=stage.width,
                    stride=2 if first else 1,
                    size=size,
                    optional=not first,
                )
            )
            size, width = (size // 2 if first else size), stage.width
    return places


def _centre(weight: torch.Tensor, kernel: int) -> torch.Tensor:
    """The middle ``kernel`` x ``kernel`` of a larger odd kernel."""
    margin = (weight.shape[-1] - kernel) // 2
    return weight[..., margin : margin + kernel, margin : margin + kernel]


def _batch_norm(x: torch.Tensor, norm: nn.BatchNorm2d) -> torch.Tensor:
    """Normalise by the batch's own statistics: running ones would mix sub-networks."""
    channels = x.shape[1]
    return functional.batch_norm(
        x, None, None, norm.weight[:channels], norm.bias[:channels], training=True
    )
