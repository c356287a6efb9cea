"""One file made of another: what is refused before any work, and that nothing is left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline import files
from pipeline.files import FileData, Setting, compress_file, export_file
from pipeline.model import trace
from pipeline.programs import load_program, save_program
from profiles.errors import DataError, ModelError, UsageError

X = np.random.default_rng(0).standard_normal((6, 1, 8, 8)).astype(np.float32)
SPARSE = {"method": "sparse", "sparsity": 0.5}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


class Constant(nn.Module):
    """Takes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, 3))

    def forward(self) -> torch.Tensor:
        return 2 * self.weight


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    save_program(trace(network(), torch.from_numpy(X[:1])), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(tmp_path / "data.npz", x=X)
    return tmp_path / "data.npz"


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("y", "expected"),
    [
        (np.zeros((6, 1), dtype=np.int64), r"y has shape \(6, 1\), expected one dimension"),
        (np.int64(1), r"y has shape \(\), expected one dimension"),
        (np.zeros(6), "y holds float64, expected integers"),
        (np.zeros(5, dtype=np.int64), "has 6 inputs and 5 labels"),
    ],
    ids=["column", "scalar", "floats", "too few"],
)
def test_labels_that_are_none_are_refused(program: Path, tmp_path: Path, y: Any, expected: str):
    np.savez(tmp_path / "data.npz", x=X, y=y)
    with pytest.raises(DataError, match=expected):
        FileData(tmp_path / "data.npz", 4, load_program(program))


def test_labels_of_any_integer_type_are_taken(program: Path, tmp_path: Path):
    np.savez(tmp_path / "data.npz", x=X, y=np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8))
    labels = FileData(tmp_path / "data.npz", 4, load_program(program)).arrays.train.y
    assert (labels.dtype, labels.tolist()) == (np.int64, [0, 1, 2, 0, 1, 2])


def test_a_program_for_several_examples_is_refused_as_one(tmp_path: Path, data: Path):
    save_program(trace(network(), torch.from_numpy(X[:4])), tmp_path / "four.pt2")
    with pytest.raises(ModelError, match=r"four\.pt2 was exported for a batch of 4"):
        compress_file(tmp_path / "four.pt2", tmp_path / "out.pt2", SPARSE, data, Setting())
    assert listed(tmp_path) == ["data.npz", "four.pt2"]


def test_a_program_without_inputs_is_refused(tmp_path: Path, data: Path):
    save_program(torch.export.export(Constant(), ()), tmp_path / "constant.pt2")
    with pytest.raises(ModelError, match=r"constant\.pt2 takes 0 inputs"):
        compress_file(tmp_path / "constant.pt2", tmp_path / "out.pt2", SPARSE, data, Setting())


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("folder", "folder is a folder or a device"),
        ("gone/out", "there is no folder"),
        # Root may write anywhere, but no such name.
        ("n" * 300, "cannot be written: File name too long"),
    ],
    ids=["a folder", "in none", "not allowed"],
)
def test_what_cannot_be_written_is_refused_before_any_work(
    tmp_path: Path, output: str, expected: str
):
    (tmp_path / "folder").mkdir()
    gone = tmp_path / "gone.pt2"  # would be complained of if it were looked at
    with pytest.raises(UsageError, match=expected):
        compress_file(gone, tmp_path / output, SPARSE, gone, Setting())
    with pytest.raises(UsageError, match=expected):
        export_file(gone, tmp_path / output, "onnx")
    assert listed(tmp_path) == ["folder"]


def test_nothing_is_left_of_what_was_interrupted(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "out.onnx").write_text("from before")

    def stopped(_: Any, __: str, path: Path, *___: Any) -> None:
        path.write_text("half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.export.write_artifact", stopped)
    with pytest.raises(KeyboardInterrupt):
        export_file(program, tmp_path / "out.onnx", "onnx")
    assert listed(tmp_path) == ["out.onnx"]
    assert (tmp_path / "out.onnx").read_text() == "from before"


def test_names_of_files_may_hold_what_recipes_read_as_something_else(program: Path, data: Path):
    odd = data.parent / "a$b é"
    odd.mkdir()
    model = odd / "modèle $1.pt2"
    model.write_bytes(program.read_bytes())
    setting = Setting(inventory=odd / "lab.yaml")
    found = compress_file(model, odd / "klein.pt2", SPARSE, data, setting)
    assert found["sparsity_found"] == pytest.approx(0.5, abs=0.02)
    assert listed(odd) == ["klein.pt2", model.name]
    variant = files.OneMethod.model_validate({"method": {"name": "s", **SPARSE}}).method
    recipe = files._recipe(model, data, variant, setting)
    assert (recipe.model.program, recipe.inventory) == (model, odd / "lab.yaml")
