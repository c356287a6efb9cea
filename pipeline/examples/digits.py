"""Handwritten digits: scikit-learn's bundled scans, a small network and an elastic one for them.

Source of the data: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI
Machine Learning Repository (1998): 1,797 scans, 8 x 8 pixels of 17 grey levels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from pipeline.supernet.elastic import ElasticConvNet, StagePlan

SIZE = 32
_TEST_SHARE = 0.2


def data(split: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """One batch with a whole split: images of shape ``(n, 1, 32, 32)``, labels ``(n,)``.

    Args:
        split: ``train`` (four fifths) or ``test`` (the rest, chosen at random once and for all).
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(1998).permutation(len(digits.target))
    test_size = round(len(order) * _TEST_SHARE)
    chosen = order[:test_size] if split == "test" else order[test_size:]
    small = torch.from_numpy(digits.images[chosen]).float().unsqueeze(1) / 16
    large = nn.functional.interpolate(small, size=(SIZE, SIZE), mode="bilinear")
    yield (large - 0.3) / 0.38, torch.from_numpy(digits.target[chosen])


class Residual(nn.Module):
    """Two 3x3 convolutions with batch norm, and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape in, same shape out."""
        return nn.functional.relu(x + self.body(x))


def network(width: int = 32) -> nn.Module:
    """A small residual network for images of shape ``(1, 32, 32)`` and ten classes.

    Args:
        width: channels of the first stage; doubled once.
    """
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        Residual(width),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        Residual(2 * width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * width, 10),
    )


def elastic() -> ElasticConvNet:
    """An elastic network for the same images: 74,088 sub-networks."""
    return ElasticConvNet(
        input_shape=(1, SIZE, SIZE),
        stem_width=24,
        stem_stride=2,
        stages=(StagePlan(40, depth=2), StagePlan(80, depth=2), StagePlan(160, depth=2)),
        kernels=(3, 5),
        expands=(1, 2, 4),
        classes=10,
    )
