"""A small training: its data, its network, and the loop around one step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.data import Split
from pipeline.training import optimise
from profiles.compression import Training

EPOCHS = 4
TRAINING = Training(epochs=EPOCHS, batch_size=16, learning_rate=0.01, flip=True, crop=1, seed=5)
CLASSES = 3


def data(count: int = 48, seed: int = 0) -> Split:
    """Classes that differ by the brightest channel."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    x = rng.standard_normal((count, CLASSES, 6, 6)).astype(np.float32)
    x[np.arange(count), y] += 1.0
    return Split(x, y.astype(np.int64))


def network() -> nn.Module:
    """With everything that has a state or a die: batch norm and dropout."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


def fit(
    module: nn.Module,
    *,
    examples: Split | None = None,
    training: Training = TRAINING,
    progress: Callable[[str], None] = lambda text: None,
    **more: Any,
) -> nn.Module:
    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()
        return loss

    optimise(module, examples or data(), training, step, progress, "net", **more)
    return module
