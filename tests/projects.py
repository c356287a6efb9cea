"""A whole project on disk, as a user has one: a module, data, an inventory and a recipe.

Everything in it is as small as it can be and still go through every stage; its device is scripted,
so that two runs of it must come to the same numbers.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

DEVICE_LAB = str(Path(sys.executable).with_name("device-lab"))
CLASSES = 3
SIZE = 16

_MODULE = '''
"""Three classes of stripes, and networks that tell them apart."""

import torch
from torch import nn

from pipeline.supernet.elastic import ElasticConvNet, StagePlan


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.body = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = nn.functional.relu(self.norm(self.stem(x)))
        x = nn.functional.relu(x + self.body(x))
        return self.head(x.mean((2, 3)))


class Spectrum(Net):
    """Has an operator that TFLite and ExecuTorch cannot express."""

    def forward(self, x):
        return super().forward(torch.fft.ifft2(torch.fft.fft2(x)).real)


def elastic():
    return ElasticConvNet(
        input_shape=(1, 16, 16),
        stem_width=8,
        stem_stride=2,
        stages=(StagePlan(8, depth=2),),
        kernels=(3,),
        expands=(1, 2),
        classes=3,
    )
'''

#: Tests run on machines that do other things, too.
TOLERATE = ["throttled", "frequency", "foreign-load", "not-stationary"]
RECIPE: Mapping[str, Any] = {
    "name": "stripes",
    "model": {"factory": "stripes:Net", "train": {"epochs": 4, "batch_size": 16}},
    "data": {
        "npz": {"train": "train.npz", "test": "test.npz", "layout": "nchw"},
        "calibration": 16,
    },
    "variants": ["fp32", "int8", {"name": "sparse", "sparsity": 0.3}],
    "inventory": "devices.yaml",
    "devices": ["board"],
    "measure": {
        "runs": 3,
        "max_runs": 3,
        "iterations": 10,
        "warmup_iterations": 1,
        "warmup_seconds": 0,
        "tolerate": TOLERATE,
    },
}
SEARCH: Mapping[str, Any] = {
    "supernet": "stripes:elastic",
    "train": {"epochs": 3, "batch_size": 16},
    "measure": RECIPE["measure"],
    "population": 4,
    "generations": 2,
    "candidates": 2,
    "rounds": 2,
}


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with everything a recipe names."""

    root: Path

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def inventory(self) -> Path:
        return self.root / "devices.yaml"

    def write_recipe(self, **changes: Any) -> Path:
        """The usual recipe with some keys changed; ``None`` takes a key out."""
        content = {**copy.deepcopy(dict(RECIPE)), **changes}
        content = {key: value for key, value in content.items() if value is not None}
        self.recipe.write_text(yaml.safe_dump(content))
        return self.recipe

    def write_inventory(self, *devices: Mapping[str, Any]) -> Path:
        self.inventory.write_text(yaml.safe_dump({"devices": list(devices)}))
        return self.inventory


def scripted_device(home: Path, **changes: Any) -> dict[str, Any]:
    """A device whose every answer is a fixed function of what it is asked."""
    return {
        "id": "board",
        "profile": f"linux-{os.uname().machine}",
        "address": f"scripted:{home}",
        **changes,
    }


def local_device(root: Path, **changes: Any) -> dict[str, Any]:
    """This machine, measured by this Python."""
    return {
        "id": "board",
        "profile": f"linux-{os.uname().machine}",
        "address": "local:",
        "python": sys.executable,
        "root": str(root),
        **changes,
    }


def stripes(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of shape ``(count, 1, 16, 16)`` with stripes along a direction, and its number."""
    rng = np.random.default_rng(seed)
    y = np.arange(count) % CLASSES
    rows, columns = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")
    waves = np.stack([np.sin(rows), np.sin(columns), np.sin((rows + columns) * 0.7)])
    x = waves[y][:, None] + 0.3 * rng.standard_normal((count, 1, SIZE, SIZE))
    return x.astype(np.float32), y.astype(np.int64)


def make_project(root: Path, **recipe: Any) -> Project:
    """Write a project, with a scripted device."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "stripes.py").write_text(_MODULE)
    for name, count, seed in (("train", 96, 0), ("test", 30, 1)):
        x, y = stripes(count, seed)
        np.savez(root / f"{name}.npz", x=x, y=y)
    project = Project(root)
    project.write_inventory(scripted_device(root / "device"))
    project.write_recipe(**recipe)
    return project


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command line that must not depend on this test's own terminal."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return {**kept, "TERM": "dumb", "NO_COLOR": "1", **changes}


def device_lab(
    *arguments: str | Path, cwd: Path | None = None, timeout_s: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the real command to its end."""
    return subprocess.run(
        [DEVICE_LAB, *map(str, arguments)],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
