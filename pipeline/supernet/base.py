"""The contract of a super-network, and its training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import nn

from pipeline.data import Images, Split
from pipeline.stage import Progress
from pipeline.training import optimise
from profiles.compression import Training
from profiles.space import Genomes, SearchSpace

#: Images that set the batch-norm statistics of an extracted network.
RECALIBRATION_IMAGES = 256


@dataclass(frozen=True, slots=True)
class Block:
    """One choice of one slot as a network of its own.

    Args:
        signature: what it computes, on which shape; equal signatures cost the same.
        module: ready to export; its weights do not matter.
        input_shape: of one input, batch size included.
    """

    signature: str
    module: nn.Module
    input_shape: tuple[int, ...]


class SuperNetwork(Protocol):
    """A module that holds every network of a search space.

    A factory of one is named in a recipe by its import path; nothing else is registered anywhere.
    """

    space: SearchSpace

    def forward_genome(self, x: torch.Tensor, genome: Genomes) -> torch.Tensor:
        """Outputs of one sub-network with the shared weights, in training mode.

        Args:
            x: inputs, shape ``(n, ...)``.
            genome: shape ``(slots,)``.
        """

    def extremes(self) -> tuple[Genomes, Genomes]:
        """The smallest and the largest network, each of shape ``(slots,)``."""

    def extract(self, genome: Genomes) -> nn.Module:
        """A stand-alone copy of one sub-network, with nothing elastic left in it.

        Its batch-norm statistics are meaningless until :func:`recalibrate` has set them.
        """

    def block(self, slot: int, choice: int) -> Block | None:
        """One choice as a network of its own, or ``None`` if it leaves its slot out."""


def train_supernet(
    network: SuperNetwork, data: Split, training: Training, progress: Progress
) -> None:
    """Train all sub-networks at once, in place.

    Each step trains the largest network on the labels, and the smallest and a random one on the
    largest one's predictions.

    Source: Yu & Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV
    2019, sections 3.2 (sandwich rule) and 3.3 (in-place distillation).
    """
    if not isinstance(network, nn.Module):
        raise TypeError("a super-network is a torch module")
    rng = np.random.default_rng(training.seed)
    smallest, largest = network.extremes()

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        logits = network.forward_genome(x, largest)
        loss = nn.functional.cross_entropy(logits, y)
        loss.backward()
        target = logits.detach().softmax(1)
        for genome in (smallest, *network.space.sample(1, rng)):
            nn.functional.cross_entropy(network.forward_genome(x, genome), target).backward()
        return loss

    optimise(network, data, training, step, progress, "super-network")


def recalibrate(module: nn.Module, x: Images) -> nn.Module:
    """Set the batch-norm statistics of an extracted network from real images.

    Args:
        module: in place.
        x: training inputs; the first :data:`RECALIBRATION_IMAGES` are used.

    Returns:
        The module, in evaluation mode.
    """
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # a plain average over what comes
    module.train()
    with torch.no_grad():
        module(torch.from_numpy(x[:RECALIBRATION_IMAGES]))
    return module.eval()
