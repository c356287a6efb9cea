"""The model stage: what it takes, and the code in a file that must never run."""

from __future__ import annotations

import pickle
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.data import DataHandle
from pipeline.export import write_artifact
from pipeline.model import PROGRAM, REFERENCE, model_stage, reference_outputs, trace
from pipeline.programs import save_program
from pipeline.stage import StageResult, Workspace
from profiles.config import parse
from profiles.errors import DataError, EdgeError, ModelError, UsageError
from profiles.recipe import Recipe
from tests.pipeline.archives import Bomb
from tests.projects import stripes

pytestmark = pytest.mark.filterwarnings(
    # PyTorch's own tree utilities and graph module, while it exports.
    "ignore::FutureWarning:torch",
    "ignore::DeprecationWarning:torch",
)

_MODULE = """
import torch
from torch import nn


def network(width=4):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, stride=2, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 3),
    )

def number():
    return 7

def broken(width):
    raise ValueError("no such width")

def features():
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1))

def single():
    return nn.Sequential(nn.Flatten(), nn.Linear(256, 1))

def colour():
    return nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

class Branching(nn.Module):
    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "model_factories.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "model_factories", raising=False)
    for name, count, seed in (("train", 48, 0), ("test", 12, 1)):
        x, y = stripes(count, seed)
        np.savez(tmp_path / f"{name}.npz", x=x, y=y)
    return tmp_path


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    opened = Workspace.open(tmp_path / "workspace")
    yield opened
    opened.close()


def recipe(folder: Path, **model: Any) -> Recipe:
    content = {
        "name": "stripes",
        "model": model,
        "data": {"npz": {"train": "train.npz", "test": "test.npz", "layout": "nchw"}},
        "devices": ["board"],
    }
    return parse(Recipe, content, "recipe", folder)


def build(workspace: Workspace, folder: Path, **model: Any) -> StageResult:
    chosen = recipe(folder, **model)
    return model_stage(workspace, chosen, DataHandle(chosen.data))


def network(width: int = 4, seed: int = 5) -> nn.Module:
    import model_factories

    torch.manual_seed(seed)
    return model_factories.network(width).eval()


def outputs(module: nn.Module, folder: Path) -> np.ndarray:
    x = np.load(folder / "test.npz")["x"]
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


def reference(result: StageResult) -> np.ndarray:
    return np.load(result.folder / REFERENCE)


def test_a_factory_with_safetensors(workspace: Workspace, folder: Path):
    module = network()
    save_file(module.state_dict(), folder / "weights.safetensors")
    result = build(
        workspace, folder, factory="model_factories:network", weights="weights.safetensors"
    )
    np.testing.assert_allclose(reference(result), outputs(module, folder), atol=1e-5)
    y = np.load(folder / "test.npz")["y"]
    assert result.value["accuracy"] == np.mean(outputs(module, folder).argmax(1) == y)
    assert result.value["parameters"] == sum(p.numel() for p in module.parameters())


def test_a_checkpoint_with_a_key_and_a_prefix(workspace: Workspace, folder: Path):
    module = network(width=5)
    state = {f"module.{name}": value for name, value in module.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "best": 0.9}, folder / "checkpoint.th")
    result = build(
        workspace,
        folder,
        factory="model_factories:network",
        arguments={"width": 5},
        weights={"file": "checkpoint.th", "key": "state_dict", "strip_prefix": "module."},
    )
    np.testing.assert_allclose(reference(result), outputs(module, folder), atol=1e-5)


def test_training_is_the_same_for_a_seed(tmp_path: Path, folder: Path):
    programs = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        workspace = Workspace.open(tmp_path / name)
        try:
            result = build(
                workspace,
                folder,
                factory="model_factories:network",
                train={"epochs": 2, "batch_size": 16, "seed": seed},
            )
        finally:
            workspace.close()
        programs.append((result.folder / PROGRAM).read_bytes())
    assert programs[0] == programs[1] != programs[2]


@pytest.mark.parametrize("changed", ["weights", "code", "data"])
def test_whatever_a_model_is_made_of_makes_another(
    workspace: Workspace, folder: Path, changed: str
):
    save_file(network().state_dict(), folder / "weights.safetensors")
    source = {"factory": "model_factories:network", "weights": "weights.safetensors"}
    before = build(workspace, folder, **source)
    assert build(workspace, folder, **source).key == before.key
    if changed == "weights":
        save_file(network(seed=6).state_dict(), folder / "weights.safetensors")
    elif changed == "code":
        (folder / "model_factories.py").write_text(_MODULE + "\n# changed\n")
    else:
        x, y = stripes(12, seed=9)
        np.savez(folder / "test.npz", x=x, y=y)
    assert build(workspace, folder, **source).key != before.key


def _without_bias(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name != "5.bias"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_without_bias, "1 missing (first: 5.bias)"),
        (lambda s: {**s, "extra.weight": torch.zeros(1)}, "1 not in the model (first: extra."),
        (lambda s: {**s, "5.bias": torch.zeros(4)}, "5.bias"),
        (lambda s: {"other": torch.zeros(1)}, "missing"),
    ],
    ids=["missing", "unexpected", "shape", "another model"],
)
def test_weights_that_do_not_fit_say_where(
    workspace: Workspace,
    folder: Path,
    change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    expected: str,
):
    save_file(change(network().state_dict()), folder / "weights.safetensors")
    with pytest.raises(ModelError) as refusal:
        build(workspace, folder, factory="model_factories:network", weights="weights.safetensors")
    message = str(refusal.value)
    assert "weights.safetensors does not fit the model" in message
    assert expected in message
    assert "\n" not in message
    assert list((workspace.root / "stages").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "weights", "expected"),
    [
        ({"state_dict": {"a": torch.zeros(1)}}, {"key": "ema"}, "no entry 'ema'"),
        ({"epoch": 3, "model": {}}, {}, "its entries: epoch, model"),
        ([torch.zeros(1)], {}, "is no state dict"),
    ],
)
def test_a_file_that_is_no_state_dict_says_what_it_holds(
    workspace: Workspace, folder: Path, content: Any, weights: dict[str, str], expected: str
):
    torch.save(content, folder / "weights.pt")
    with pytest.raises(ModelError, match=re.escape(expected)):
        build(
            workspace,
            folder,
            factory="model_factories:network",
            weights={"file": "weights.pt", **weights},
        )


def test_the_bomb_goes_off_where_nobody_looks(tmp_path: Path):
    """Without this, the tests below could pass for a bomb that is a dud."""
    torch.save({"a": Bomb(tmp_path / "marker")}, tmp_path / "bomb.pt")
    torch.load(tmp_path / "bomb.pt", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["weights.pt", "weights.th", "weights.bin", "weights.safetensors"])
@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_weights_with_code_are_refused_and_the_code_does_not_run(
    workspace: Workspace, folder: Path, name: str, kind: str
):
    bomb = {"a": Bomb(folder / "marker")}
    if kind == "torch":
        torch.save(bomb, folder / name)
    else:
        (folder / name).write_bytes(pickle.dumps(bomb))
    with pytest.raises(ModelError, match=f"{name} holds more than plain tensors.*refused"):
        build(workspace, folder, factory="model_factories:network", weights=name)
    assert not (folder / "marker").exists()


@pytest.fixture
def program_file(folder: Path) -> Path:
    path = folder / "model.pt2"
    save_program(trace(network(), torch.zeros(1, 1, 16, 16)), path)
    return path


def test_a_program_comes_back_as_it_was(workspace: Workspace, folder: Path, program_file: Path):
    result = build(workspace, folder, program="model.pt2")
    np.testing.assert_allclose(reference(result), outputs(network(), folder), atol=1e-5)
    assert result.value["parameters"] == sum(p.numel() for p in network().parameters())


@pytest.mark.parametrize(
    ("factory", "arguments", "kind", "expected"),
    [
        ("number", {}, ModelError, "returned a int, not a torch module"),
        ("broken", {"width": 3}, ModelError, "failed: ValueError: no such width"),
        ("network", {"depth": 3}, ModelError, "unexpected keyword argument 'depth'"),
        ("features", {}, ModelError, "expected one score for each class"),
        ("single", {}, ModelError, "expected one score for each class"),
        ("colour", {}, EdgeError, "expected input.* to have 3 channels"),
        ("Branching", {}, ModelError, "torch.export cannot capture the model"),
        ("surely_missing", {}, UsageError, "has no 'surely_missing'"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_in_one_line(
    workspace: Workspace,
    folder: Path,
    factory: str,
    arguments: dict[str, Any],
    kind: type[EdgeError],
    expected: str,
):
    with pytest.raises(kind, match=expected) as refusal:
        build(workspace, folder, factory=f"model_factories:{factory}", arguments=arguments)
    assert refusal.value.exit_code == 2
    assert "\n" not in str(refusal.value)
    assert list((workspace.root / "stages").iterdir()) == []


def test_training_on_data_of_another_shape_is_refused_in_one_line(
    workspace: Workspace, folder: Path
):
    with pytest.raises(UsageError, match="3 channels") as refusal:
        build(workspace, folder, factory="model_factories:colour", train={"epochs": 1})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("split", "train"), [("train", {"epochs": 1}), ("test", None)])
def test_labels_the_model_has_no_class_for_are_refused_in_one_line(
    workspace: Workspace, folder: Path, split: str, train: dict[str, int] | None
):
    x, y = stripes(48, 0)
    np.savez(folder / f"{split}.npz", x=x, y=y + 7)
    with pytest.raises(DataError, match="tells 3 classes apart, labelled 0 to 2, but the data's"):
        build(workspace, folder, factory="model_factories:network", train=train)


def test_a_program_for_another_input_is_refused(workspace: Workspace, folder: Path):
    save_program(trace(network(), torch.zeros(1, 1, 20, 20)), folder / "model.pt2")
    with pytest.raises(DataError, match=r"does not take inputs of shape \(1, 16, 16\)"):
        build(workspace, folder, program="model.pt2")


def test_a_module_that_is_not_there_is_named(workspace: Workspace, folder: Path):
    with pytest.raises(UsageError, match="surely_missing"):
        build(workspace, folder, factory="surely_missing:network")


def test_a_module_that_fails_to_import_says_why(workspace: Workspace, folder: Path):
    (folder / "model_with_typo.py").write_text("import surely_missing_library\n")
    with pytest.raises(UsageError, match="No module named 'surely_missing_library'"):
        build(workspace, folder, factory="model_with_typo:network")


def test_without_timm_the_hint_says_what_to_install(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError) as refusal:
        build(workspace, folder, timm="resnet18")
    assert refusal.value.hint == "pip install 'edgeloop[timm]'"


def test_a_bare_sequential_with_batch_norm_lowers_to_executorch(folder: Path):
    """XNNPACK's fusion cannot look up parameters whose names begin with a digit."""
    x = torch.zeros(1, 1, 16, 16)
    program = trace(network(), x)
    record = write_artifact(program, "executorch", folder / "model.pte")
    assert record["delegates"] >= 1
    assert not any("batch_norm" in name for name in record["outside_delegate"])


def test_outputs_of_a_program_are_those_of_its_module(folder: Path):
    module = network()
    program = trace(module, torch.zeros(1, 1, 16, 16))
    x = np.load(folder / "test.npz")["x"]
    np.testing.assert_allclose(reference_outputs(program, x), outputs(module, folder), atol=1e-5)


def test_a_module_is_exported_in_evaluation_mode(folder: Path):
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(256, 3)).train()
    program = trace(module, torch.zeros(1, 1, 16, 16))
    x = np.load(folder / "test.npz")["x"]
    np.testing.assert_array_equal(reference_outputs(program, x), reference_outputs(program, x))
