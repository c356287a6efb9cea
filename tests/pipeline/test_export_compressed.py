"""What pruning leaves of a network is lowered to every format, for one example and for four."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compress import sparse, structured
from pipeline.compress.module import module_of, open_program_of, program_of
from pipeline.compress.variants import original
from pipeline.compress.workbench import Workbench
from pipeline.data import Split
from pipeline.export import write_artifact
from pipeline.export.parity import host_outputs
from pipeline.flow import Failure, export_all
from pipeline.inspect import read_artifact
from pipeline.programs import save_program
from pipeline.stage import Workspace
from pipeline.training import torch_threads
from profiles.compression import Budget, Sparse, Structured
from profiles.export import Export
from profiles.records import FORMATS, SUFFIX_OF
from tests.pipeline import gratings
from tests.pipeline.networks import Inverted, image, settled

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:torch",
    "ignore::FutureWarning:copyreg",
    "ignore::DeprecationWarning:torch",
)

X = image(count=6, seed=3)  # no multiple of four


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Beside other tests, more threads wait for each other most of the time."""
    with torch_threads(1):
        yield


class Mobile(nn.Module):
    """A depthwise convolution, squeeze and excitation, and a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 4, 1, bias=False)
        self.gated = Inverted(16, 32, 16, 1, True)
        self.last = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.gated(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, dict[int, Any]]:
    """Half of the work left, most of its weights zero; and a program for each batch, as the stages
    write them."""
    folder = tmp_path_factory.mktemp("pruned")
    torch.manual_seed(0)
    example = torch.from_numpy(image())
    opened = open_program_of(settled(Mobile()), example)
    save_program(opened, folder / "teacher.pt2")
    split = Split(X, np.arange(6) % 5)
    bench = Workbench(split, split, X, folder / "teacher.pt2", folder / "checkpoint")
    half = Structured(name="half", method="structured", budget=Budget(macs=0.5), round_to=1)
    thin = Sparse(name="thin", method="sparse", sparsity=0.7)
    module, _ = structured.apply(module_of(opened), half, bench)
    module, _ = sparse.apply(module_of(open_program_of(module, example)), thin, bench)
    module.eval()
    return module, {1: program_of(module, example), 4: open_program_of(module, example)}


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("format_", FORMATS)
def test_what_pruning_leaves_computes_the_same_in_each_runtime(
    pruned: tuple[nn.Module, dict[int, Any]], tmp_path: Path, format_: Any, batch: int
):
    module, programs = pruned
    path = tmp_path / f"model{SUFFIX_OF[format_]}"
    write_artifact(programs[batch], format_, path, Export(batch=batch))
    artifact = read_artifact(path)
    assert artifact.io.inputs[0].shape == (batch, 3, 32, 32)
    outputs, _ = host_outputs(artifact, X)
    with torch.no_grad():
        expected = module(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(outputs, expected, atol=1e-4 * np.abs(expected).max())


def test_it_is_smaller_and_most_of_its_weights_are_zero(pruned: tuple[nn.Module, dict[int, Any]]):
    weights = torch.cat([p.flatten() for p in pruned[0].parameters()])
    assert len(weights) < 0.7 * sum(p.numel() for p in Mobile().parameters())
    assert (weights == 0).float().mean() > 0.5


def test_a_recipe_says_for_which_batch_its_variants_are_exported(tmp_path: Path):
    workspace = Workspace.open(tmp_path / "work")
    try:
        job = gratings.job(tmp_path, workspace, {}, factor=1.0, export={"batch": 4})
        failures: list[Failure] = []
        (checked,) = export_all(job, [original(job, "onnx")], failures)
    finally:
        workspace.close()
    assert not failures
    assert checked.artifact.io.inputs[0].shape == (4, 1, gratings.SIZE, gratings.SIZE)
    assert checked.artifact.details["batch"] == 4
    assert checked.parity.passed
