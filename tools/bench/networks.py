"""Three networks of the kinds people put on devices, for benchmarks: 224², 1000 classes, random.

========================  ====================================================  ==========
``mobilenet_v2``          inverted residuals, ReLU6                             3.5 million
``mobilenet_v3``          the small one: squeeze and excitation, hardswish      2.5 million
``vit``                   4 layers of width 192, patches of 16², GELU           2.2 million
========================  ====================================================  ==========

Latency does not depend on what the weights are, but on how they are distributed it does a little
(denormal numbers), and INT8 needs ranges that mean something: so batch norms get the statistics of
smooth random images, on which a random network keeps a signal to its last layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

SIZE = 224
CLASSES = 1000


def images(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images with some noise, shape ``(count, 3, 224, 224)``, variance about one.

    Args:
        count: how many.
        seed: of their patterns.
    """
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 7, 7, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bicubic")
    return smooth + 0.2 * torch.randn(count, 3, SIZE, SIZE, generator=generator)


def mobilenet_v2() -> nn.Module:
    """MobileNetV2 of width 1.

    Source: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018, table 2.
    """
    torch.manual_seed(0)
    stages = [
        # expansion, channels, blocks, first stride
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    blocks: list[nn.Module] = [_unit(3, 32, 3, 2, nn.ReLU6)]
    width = 32
    for expansion, out, count, first in stages:
        for i in range(count):
            stride = first if i == 0 else 1
            blocks.append(_Inverted(width, width * expansion, out, 3, stride, nn.ReLU6, gate=0))
            width = out
    blocks.append(_unit(width, 1280, 1, 1, nn.ReLU6))
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, CLASSES)]
    return _settled(nn.Sequential(nn.Sequential(*blocks), nn.Sequential(*head)))


def mobilenet_v3() -> nn.Module:
    """MobileNetV3-Small of width 1.

    Source: Howard et al., Searching for MobileNetV3, 2019, table 2.
    """
    torch.manual_seed(0)
    swish = nn.Hardswish
    stages: list[tuple[int, int, int, bool, type[nn.Module], int]] = [
        # kernel, expanded, out, gate, activation, stride
        (3, 16, 16, True, nn.ReLU, 2),
        (3, 72, 24, False, nn.ReLU, 2),
        (3, 88, 24, False, nn.ReLU, 1),
        (5, 96, 40, True, swish, 2),
        (5, 240, 40, True, swish, 1),
        (5, 240, 40, True, swish, 1),
        (5, 120, 48, True, swish, 1),
        (5, 144, 48, True, swish, 1),
        (5, 288, 96, True, swish, 2),
        (5, 576, 96, True, swish, 1),
        (5, 576, 96, True, swish, 1),
    ]
    blocks: list[nn.Module] = [_unit(3, 16, 3, 2, swish)]
    width = 16
    for kernel, wide, out, gate, activation, stride in stages:
        squeezed = _to_eights(wide / 4) if gate else 0
        blocks.append(_Inverted(width, wide, out, kernel, stride, activation, gate=squeezed))
        width = out
    blocks.append(_unit(width, 576, 1, 1, swish))
    head = [
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(576, 1024),
        swish(),
        nn.Dropout(0.2),
        nn.Linear(1024, CLASSES),
    ]
    return _settled(nn.Sequential(nn.Sequential(*blocks), nn.Sequential(*head)))


def vit() -> nn.Module:
    """A small vision transformer: 197 tokens of width 192, 3 heads, 4 layers.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021; width and heads of DeiT-Tiny
    (Touvron et al., Training data-efficient image transformers, 2021) at a third of its depth.
    """
    torch.manual_seed(0)
    return _VisionTransformer(width=192, heads=3, depth=4, patch=16).eval()


#: By name, what builds it: the same weights each time, in evaluation mode.
NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3": mobilenet_v3,
    "vit": vit,
}


def _unit(
    narrow: int, wide: int, kernel: int, stride: int, activation: type[nn.Module], groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(narrow, wide, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(wide),
        activation(),
    )


class _Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down = nn.Conv2d(width, squeezed, 1)
        self.up = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.up(nn.functional.relu(self.down(self.pool(x))))
        return x * nn.functional.hardsigmoid(scale)


class _Inverted(nn.Module):
    """An inverted residual block; ``gate`` is the width its gate squeezes to, 0 for none."""

    def __init__(
        self,
        narrow: int,
        wide: int,
        out: int,
        kernel: int,
        stride: int,
        activation: type[nn.Module],
        *,
        gate: int,
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *([_unit(narrow, wide, 1, 1, activation)] if wide != narrow else []),
            _unit(wide, wide, kernel, stride, activation, groups=wide),
            *([_Gate(wide, gate)] if gate else []),
            _unit(wide, out, 1, 1, nn.Identity),
        )
        self.shortcut = stride == 1 and narrow == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x)
        return x + result if self.shortcut else result


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        parts = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        result: torch.Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return result


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = _Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        result: torch.Tensor = x + self.mlp(self.norm2(x))
        return result


class _VisionTransformer(nn.Module):
    def __init__(self, width: int, heads: int, depth: int, patch: int) -> None:
        super().__init__()
        tokens = (SIZE // patch) ** 2 + 1
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.place = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.layers = nn.Sequential(*(_Layer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        result: torch.Tensor = self.head(self.norm(self.layers(x))[:, 0])
        return result


def _to_eights(width: float) -> int:
    """The nearest multiple of eight, but at least eight and nine tenths of ``width``."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def _settled(network: nn.Module) -> nn.Module:
    """The network with batch norms that know what passes through them."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        network.train()(images(16, seed=1))
    return network.eval()
