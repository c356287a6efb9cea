"""A network that tells gratings apart, trained in seconds, which INT8 hurts: two channels between
its inner blocks are hundreds of times as large as the others, and share their scale."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from devices.inventory import Device
from pipeline.compress.variants import Job
from pipeline.data import DataHandle, Split
from pipeline.model import model_stage, trace
from pipeline.stage import Workspace
from pipeline.training import train_classifier
from profiles.compression import Training
from profiles.config import parse
from profiles.recipe import Recipe

SIZE = 12


def block(wide: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(wide, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()
    )


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = block(1, 8, 1)
        self.down = block(8, 16, 2)
        self.deep = block(16, 16, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.deep(self.down(self.stem(x)))).flatten(1))


@cache
def gratings(count: int, seed: int) -> Split:
    """Four directions in much noise."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, count)
    grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"))
    waves = np.array([[1, 0], [0, 1], [0.7, 0.7], [0.7, -0.7]])[y]
    phases = rng.uniform(0, 2 * np.pi, (count, 1, 1))
    x = np.sin(1.2 * np.einsum("nk,kij->nij", waves, grid) + phases)
    x += 1.6 * rng.standard_normal(x.shape)
    return Split(x[:, None].astype(np.float32), y.astype(np.int64))


@cache
def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = Net()
    training = Training(epochs=5, learning_rate=0.01)
    train_classifier(net, gratings(1024, 0), training, lambda text: None, "gratings")
    return net.state_dict()


def network(factor: float = 300.0) -> nn.Module:
    """The same function for any factor by which two channels between down and deep are larger."""
    net = Net()
    net.load_state_dict(_weights())
    with torch.no_grad():
        for channel in (0, 3):
            net.down[1].weight[channel] *= factor
            net.down[1].bias[channel] *= factor
            net.deep[0].weight[:, channel] /= factor
    return net.eval()


def program(factor: float = 300.0) -> Any:
    return trace(network(factor), example())


def example() -> torch.Tensor:
    return torch.from_numpy(gratings(64, 2).x[:1])


def job(folder: Path, workspace: Workspace, devices: dict[str, Device], **content: Any) -> Job:
    """A recipe's job for the network; its train split is small."""
    from pipeline.programs import save_program

    save_program(program(content.pop("factor", 300.0)), folder / "model.pt2")
    for name, split in (("train", gratings(320, 3)), ("test", gratings(32, 4))):
        np.savez(folder / f"{name}.npz", x=split.x, y=split.y)
    plain = {
        "name": "gratings",
        "model": {"program": "model.pt2"},
        "data": {
            "npz": {"train": "train.npz", "test": "test.npz", "layout": "nchw"},
            "calibration": 64,
        },
        "devices": list(devices) or ["none"],
        "formats": ["onnx"],
        **content,
    }
    recipe = parse(Recipe, plain, "recipe", folder)
    data = DataHandle(recipe.data)
    return Job(workspace, recipe, data, model_stage(workspace, recipe, data), devices)
