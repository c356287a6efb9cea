"""Parity: every tolerance can fail an artifact, and says which figure did."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data import DataHandle, Split
from pipeline.export.parity import compare, host_outputs, parity_stage
from pipeline.inspect import read_artifact
from pipeline.stage import Workspace
from profiles.canonical import file_sha256
from profiles.config import parse
from profiles.errors import StageError
from profiles.recipe import DataSource, Tolerance, Tolerances
from profiles.records import Artifact
from tests import builders
from tests.builders import TinyModel

LOOSE = Tolerance(max_abs_error=100, cosine=1e-9, top1_agreement=0)
STRICT = Tolerances().float32
CLASSES = 4


def logits(n: int = 40, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal((n, CLASSES))).astype(np.float32)


def split(reference: np.ndarray, right: float = 1.0) -> Split:
    """Labels of which the reference gets a share right."""
    y = reference.argmax(1)
    wrong = round(len(y) * (1 - right))
    y[:wrong] = (y[:wrong] + 1) % CLASSES
    return Split(np.zeros((len(y), 1, 1, 1), dtype=np.float32), y)


def test_equal_outputs_pass_with_perfect_figures():
    reference = logits()
    found = compare(reference.copy(), reference, reference, split(reference, 0.75), STRICT)
    assert found.passed
    assert found.reason == ""
    assert found.n == 40
    assert found.max_abs_error == 0
    assert found.cosine == pytest.approx(1, abs=1e-6)
    assert found.top1_agreement == 1
    assert found.accuracy == found.reference_accuracy == 0.75
    low, high = found.accuracy_drop_ci95
    assert low < 0 < high


def test_one_wild_element_trips_the_largest_error_alone():
    reference = logits(400)
    outputs = reference.copy()
    row = int(np.argmax(reference.max(1) - np.sort(reference, 1)[:, -2]))
    outputs[row, reference[row].argmin()] -= 0.5
    tolerance = Tolerance(max_abs_error=0.01, cosine=0.9, top1_agreement=0.99)
    found = compare(outputs, reference, reference, split(reference), tolerance)
    assert not found.passed
    assert found.reason == f"max abs error 0.5 > {0.01 * np.abs(reference).max():.3g}"
    assert found.max_abs_error == pytest.approx(0.5)


def test_another_direction_trips_the_cosine():
    reference = logits()
    tolerance = LOOSE.model_copy(update={"cosine": 0.9})
    found = compare(logits(seed=1), reference, reference, split(reference), tolerance)
    assert not found.passed
    assert found.reason.startswith("cosine ")
    assert found.reason.endswith("< 0.9")


def test_another_ranking_trips_the_agreement():
    reference = logits()
    outputs = reference.copy()
    outputs[:10] = np.roll(outputs[:10], 1, axis=1)
    tolerance = LOOSE.model_copy(update={"top1_agreement": 0.8})
    found = compare(outputs, reference, reference, split(reference), tolerance)
    assert found.reason == "top-1 agreement 0.750 < 0.8"
    assert not found.passed


def test_all_figures_that_trip_are_named():
    reference = logits()
    found = compare(-3 * reference, reference, reference, split(reference), STRICT)
    assert len(found.reason.split("; ")) == 3


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_outputs_that_are_not_finite_fail_any_tolerance(value: float):
    reference = logits()
    outputs = reference.copy()
    outputs[3, 1] = value
    found = compare(outputs, reference, reference, split(reference), LOOSE)
    assert not found.passed
    assert "outputs are not finite" in found.reason
    numbers = (found.max_abs_error, found.cosine, found.top1_agreement, *found.accuracy_drop_ci95)
    assert np.isfinite(numbers).all(), "they are stored as JSON"


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_a_tolerance_means_the_same_for_logits_of_any_scale(scale: float):
    reference = logits(scale=scale)
    off = reference + np.float32(0.02 * np.abs(reference).max())
    tight = LOOSE.model_copy(update={"max_abs_error": 0.015})
    wide = LOOSE.model_copy(update={"max_abs_error": 0.025})
    assert not compare(off, reference, reference, split(reference), tight).passed
    assert compare(off, reference, reference, split(reference), wide).passed


def test_the_drop_is_paired_and_against_the_uncompressed_model():
    """A sparse model answers to its own reference, and loses accuracy against the original."""
    baseline = logits(200)
    outputs = baseline.copy()
    outputs[:20] = np.roll(outputs[:20], 1, axis=1)
    found = compare(outputs, outputs, baseline, split(baseline), STRICT)
    assert found.passed
    assert (found.reference_accuracy, found.accuracy) == (1.0, 0.9)
    low, high = found.accuracy_drop_ci95
    assert 0 < low < 0.1 < high


def test_the_interval_narrows_with_more_inputs():
    widths = []
    for n in (50, 5000):
        reference = logits(n)
        low, high = compare(
            reference, reference, reference, split(reference), STRICT
        ).accuracy_drop_ci95
        widths.append(high - low)
    assert widths[1] < widths[0] / 10


@given(
    seed=st.integers(0, 2**32 - 1),
    noise=st.floats(0, 3),
    scale=st.floats(1e-3, 1e3),
    n=st.integers(1, 30),
)
def test_passing_is_exactly_that_no_figure_is_beyond_its_tolerance(
    seed: int, noise: float, scale: float, n: int
):
    reference = logits(n, seed, scale)
    outputs = reference + np.float32(noise * scale) * logits(n, seed + 1)
    tolerance = Tolerances().int8
    found = compare(outputs, reference, reference, split(reference), tolerance)
    within = (
        found.max_abs_error <= tolerance.max_abs_error * float(np.abs(reference).max())
        and found.cosine >= tolerance.cosine
        and found.top1_agreement >= tolerance.top1_agreement
    )
    assert found.passed == within == (found.reason == "")
    assert -1.001 <= found.cosine <= 1.001
    low, high = found.accuracy_drop_ci95
    assert low <= found.reference_accuracy - found.accuracy <= high or n < 3


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    opened = Workspace.open(tmp_path / "workspace")
    yield opened
    opened.close()


@pytest.fixture
def tiny(tiny_model: TinyModel) -> Artifact:
    return builders.artifact(
        path=tiny_model.path, sha256=file_sha256(tiny_model.path), io=tiny_model.io
    )


class _Handle(DataHandle):
    """Eight numbers for the tiny model, and labels that a test chooses."""

    def __init__(self, folder: Path, y: np.ndarray) -> None:
        x = np.random.default_rng(0).standard_normal((len(y), 8, 1, 1)).astype(np.float32)
        folder.mkdir(exist_ok=True)
        np.savez(folder / "split.npz", x=x, y=y)
        npz = {"train": "split.npz", "test": "split.npz", "layout": "nchw"}
        super().__init__(parse(DataSource, {"npz": npz}, "recipe", folder))


def _tiny_outputs(tiny: Artifact, handle: DataHandle) -> np.ndarray:
    outputs, _ = host_outputs(tiny, handle.arrays.test.x.reshape(-1, 8))
    return outputs


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model takes rows, not images."""
    from pipeline.export import parity

    def rows_of(artifact: Artifact, x: np.ndarray, rows: int | None = None):
        return host_outputs(artifact, x.reshape(-1, 8), rows)

    monkeypatch.setattr(parity, "host_outputs", rows_of)


def test_labels_are_part_of_what_parity_is_about(
    workspace: Workspace, tiny: Artifact, tmp_path: Path, flat: None
):
    """Other labels for the same images: the artifact has another accuracy."""
    first = _Handle(tmp_path / "one", np.zeros(20, dtype=np.int64))
    reference = tmp_path / "reference.npy"
    np.save(reference, _tiny_outputs(tiny, first))
    right = np.load(reference).argmax(1)
    second = _Handle(tmp_path / "two", right)
    found = [
        parity_stage(workspace, tiny, STRICT, data, reference, reference)
        for data in (first, second)
    ]
    assert found[0].accuracy == np.mean(right == 0) < 1
    assert found[1].accuracy == found[1].reference_accuracy == 1


def test_parity_is_worked_out_once_and_comes_back_the_same(
    workspace: Workspace, tiny: Artifact, tmp_path: Path, flat: None
):
    data = _Handle(tmp_path / "data", np.arange(20) % 4)
    reference = tmp_path / "reference.npy"
    np.save(reference, _tiny_outputs(tiny, data) + 0.25)
    arguments = (workspace, tiny, STRICT, data, reference, reference)
    first, second = parity_stage(*arguments), parity_stage(*arguments)
    assert first == second
    assert isinstance(second.accuracy_drop_ci95, tuple)
    assert not first.passed
    assert len(list((workspace.root / "stages").iterdir())) == 1


@pytest.mark.parametrize(("axis", "passes"), [(1, True), (0, False)])
def test_an_open_batch_is_tried_with_several_examples(
    workspace: Workspace, tmp_path: Path, flat: None, axis: int, passes: bool
):
    """Each alone it computes what is expected; together a mean over the wrong axis mixes them."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[axis], keepdims=1),
            helper.make_node("Add", ["x", "mean"], ["sum"]),
            helper.make_node("MatMul", ["sum", "w"], ["y"]),
        ],
        "open",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(logits(8), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "open.onnx"
    onnx.save(model, path)
    artifact = read_artifact(path)
    assert artifact.io.inputs[0].shape == (-1, 8)
    data = _Handle(tmp_path / "data", np.arange(20) % 4)
    reference = tmp_path / "reference.npy"
    np.save(reference, _tiny_outputs(artifact, data))
    found = parity_stage(workspace, artifact, STRICT, data, reference, reference)
    assert found.passed is passes
    assert found.reason.startswith("" if passes else "3 examples at once are off from each alone")
    assert bool(found.reason) is not passes
    assert found.max_abs_error == 0


def test_an_artifact_that_its_runtime_refuses_says_so(tiny: Artifact, tmp_path: Path):
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    broken = builders.artifact(path=tmp_path / "broken.onnx")
    with pytest.raises(StageError, match="onnxruntime cannot run its own artifact") as refusal:
        host_outputs(broken, np.zeros((1, 8), dtype=np.float32))
    assert "\n" not in str(refusal.value)
