"""What a run leaves for bundles: of images in folders, of artifacts that take several at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.bundle.facts import CALLS, facts
from pipeline.bundle.recorded import recorded
from pipeline.data import DataHandle
from pipeline.stage import Workspace
from profiles.config import parse
from profiles.recipe import Recipe
from profiles.records import Io, TensorSpec
from tests import builders

SIZE = 4
CLASSES = ("cat", "dog", "fox")


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = Workspace.open(tmp_path / "work")
    yield workspace
    workspace.close()


def a_recipe(root: Path, **data: Any) -> Recipe:
    """Of five coloured images for each class."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in CLASSES:
            (root / split / name).mkdir(parents=True)
            for number in range(5):
                pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    folder = {"train": "train", "test": "test", "size": [SIZE, SIZE]}
    content = {"folder": folder, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], **data}
    model = {"factory": "a:b"}
    return parse(
        Recipe, {"name": "net", "model": model, "data": content, "devices": ["pi"]}, "test", root
    )


def add_means(workspace: Workspace, rows: int) -> str:
    """An artifact whose outputs are the means of each channel; its sha256."""
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["means"]),
        helper.make_node("Flatten", ["means"], ["output"]),
    ]
    shapes = {"input": (rows, 3, SIZE, SIZE), "output": (rows, 3)}
    given, made = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
    )
    graph = helper.make_graph(nodes, "means", [given], [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = workspace.root / "means.onnx"
    onnx.save(model, path)
    sha256, _ = workspace.adopt(path, "onnx")
    specs = [TensorSpec(name, shape, "float32") for name, shape in shapes.items()]
    io = Io((specs[0],), (specs[1],))
    workspace.store.put_artifact(
        builders.artifact(sha256=sha256, io=io, size_bytes=path.stat().st_size)
    )
    return sha256


def found(workspace: Workspace, recipe: Recipe, *agreeing: str) -> dict[str, Any]:
    """The facts, as they come back from a file."""
    pixel = builders.device(id="mine", profile="pixel-8", address="adb:SERIAL")
    data = DataHandle(recipe.data)
    return dict(json.loads(json.dumps(facts(workspace, recipe, data, [pixel], {*agreeing}))))


def test_images_in_folders_tell_their_classes_and_how_they_become_inputs(
    workspace: Workspace, tmp_path: Path
):
    known = found(workspace, a_recipe(tmp_path), add_means(workspace, 1))
    assert known["labels"] == list(CLASSES)
    assert known["preprocessing"] == {
        "raw_dtype": "uint8", "raw_layout": "nhwc", "divide_by": 255,
        "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4],
    }  # fmt: skip
    assert known["devices"] == {
        "mine": {
            "names": ["pixel-8", "mine", "Pixel 8"],
            "architecture": "aarch64",
            "os": "android",
        }
    }
    assert known["max_relative_error"] == {"float32": 1e-3, "int8": 0.5}


@pytest.mark.parametrize(("rows", "calls"), [(1, CALLS), (7, CALLS), (8, 1), (15, 1), (16, 0)])
def test_vectors_are_whole_calls_of_the_first_test_images(
    workspace: Workspace, tmp_path: Path, rows: int, calls: int
):
    sha256 = add_means(workspace, rows)
    vectors = found(workspace, a_recipe(tmp_path), sha256)["vectors"][sha256]
    assert len(vectors["calls"]) == calls
    files = sorted((tmp_path / "test").glob("*/*.png"))
    for number, call in enumerate(vectors["calls"]):
        arrays = {
            side: np.frombuffer(
                (workspace.root / "stages" / vectors["folder"] / told["file"]).read_bytes(),
                told["dtype"],
            ).reshape(told["shape"])
            for side, told in call.items()
        }
        mine = files[number * rows : (number + 1) * rows]
        np.testing.assert_array_equal(arrays["raw"], [np.asarray(Image.open(f)) for f in mine])
        image = arrays["raw"].transpose(0, 3, 1, 2) / 255
        mean, std = (np.array(v)[:, None, None] for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
        np.testing.assert_allclose(arrays["input"], (image - mean) / std, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            arrays["output"], arrays["input"].mean((2, 3)), rtol=1e-5, atol=1e-6
        )


def test_only_what_agrees_has_vectors_and_an_empty_run_has_facts(
    workspace: Workspace, tmp_path: Path
):
    add_means(workspace, 1)
    assert len(recorded(workspace.store, workspace.root)) == 1
    known = found(workspace, a_recipe(tmp_path))
    assert (known["vectors"], known["preprocessing"]) == ({}, None)
