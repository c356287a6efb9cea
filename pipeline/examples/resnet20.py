"""ResNet-20 for CIFAR-10.

Source of the architecture: He et al., "Deep Residual Learning for Image Recognition" (2016),
section 4.2, with parameter-free (option A) shortcuts.
"""

from __future__ import annotations

import torch
from torch import nn

_WIDTHS = (16, 32, 64)
_BLOCKS_PER_STAGE = 3


class BasicBlock(nn.Module):
    """Two 3x3 convolutions; a narrower or larger input is subsampled and zero-padded."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        stride = 1 if narrow == wide else 2
        self.conv1 = nn.Conv2d(narrow, wide, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.padding = (wide - narrow) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape ``(n, narrow, h, w)`` in, ``(n, wide, h, w)`` or half of that size out."""
        out = nn.functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.padding:
            x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.padding, self.padding))
        return nn.functional.relu(out + x)


class ResNet20(nn.Module):
    """Three stages of three blocks, 0.27 million parameters."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, _WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(_WIDTHS[0])
        narrow = _WIDTHS[0]
        for number, wide in enumerate(_WIDTHS, start=1):
            blocks = [
                BasicBlock(narrow if i == 0 else wide, wide) for i in range(_BLOCKS_PER_STAGE)
            ]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            narrow = wide
        self.linear = nn.Linear(_WIDTHS[-1], classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images ``(n, 3, 32, 32)`` in, logits ``(n, classes)`` out."""
        out = nn.functional.relu(self.bn1(self.conv1(x)))
        for number in range(1, len(_WIDTHS) + 1):
            out = self.get_submodule(f"layer{number}")(out)
        logits: torch.Tensor = self.linear(out.mean((2, 3)))
        return logits
