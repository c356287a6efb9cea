"""A predictor's file says all that it knows, today's and those of earlier versions."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from profiles.errors import UsageError
from profiles.predictor import Networks, fit, fit_residual, load, save
from profiles.predictor.storage import FORMAT_VERSION
from tests.profiles.predictor.problems import genomes, interacting

#: Written by version 0.4.0, never again: what it predicted then stands beside each.
GOLDEN = Path(__file__).parents[2] / "golden/predictors"
ASKED = [[3, 5, 7, 3, 5, 7], [7, 7, 7, 7, 7, 7], [5, 3, 3, 3, 3, 9]]


@pytest.mark.parametrize("kind", ["additive", "process", "trees", "line"])
def test_a_file_of_an_earlier_version_predicts_what_it_did(kind):
    predictor = load(GOLDEN / f"{kind}.npz")
    then = json.loads((GOLDEN / "predictions.json").read_text())[kind]
    features = np.full((3, predictor.training.features.shape[1]), 0.5)
    found = predictor.predict(ASKED, features)
    assert predictor.kind == kind
    assert found.values == pytest.approx(then["values"], rel=1e-12)
    assert found.low == pytest.approx(then["low"], rel=1e-9)
    assert found.high == pytest.approx(then["high"], rel=1e-9)


@pytest.mark.parametrize("kind", ["additive", "process", "trees"])
def test_a_predictor_comes_back_as_it_was(kind, tmp_path):
    predictor = fit(interacting(100), kinds=(kind,))
    path = tmp_path / "model.npz"
    save(predictor, path)
    rows = genomes(729, 0)
    before, after = predictor.predict(rows), load(path).predict(rows)
    assert np.array_equal(before.values, after.values)
    assert np.array_equal(before.low, after.low)
    assert np.array_equal(before.high, after.high)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.lists(st.text(max_size=3), min_size=10, max_size=15, unique=True), st.integers(0, 99))
def test_any_choices_come_back(tmp_path, words, seed):
    words = [word.strip() for word in words]
    target = np.random.default_rng(seed).uniform(1, 2, len(words))
    rows = [[word, number] for number, word in enumerate(words)]
    predictor = fit(Networks.of(rows, target, names=["word", "number"]), kinds=("additive",))
    path = tmp_path / "model.npz"
    save(predictor, path)
    again = load(path)
    assert again.training.choices == predictor.training.choices
    assert np.array_equal(again.predict(rows).values, predictor.predict(rows).values)


def test_a_residual_is_saved_as_its_ratio(tmp_path):
    networks = interacting(30)
    rows = networks.choices.decode(networks.codes)
    residual = fit_residual(networks.target * 0.9, rows, networks.target)
    save(residual.ratio, tmp_path / "ratio.npz")
    assert load(tmp_path / "ratio.npz").kind == residual.ratio.kind


def test_equal_predictors_are_equal_files(tmp_path):
    for name in ("a.npz", "b.npz"):
        save(fit(interacting(30)), tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def changed(path: Path, about: dict[str, object], **arrays: np.ndarray) -> Path:
    """A file like the golden trees but for this."""
    with np.load(GOLDEN / "trees.npz") as archive:
        kept = {name: archive[name] for name in archive.files}
    text = json.dumps(json.loads(bytes(kept.pop("about"))) | about)
    np.savez(
        path,
        **{**kept, **arrays, "about": np.frombuffer(text.encode(), np.uint8)},
        allow_pickle=True,
    )
    return path


def test_a_file_of_a_later_format_is_refused(tmp_path):
    path = changed(tmp_path / "later.npz", {"format": FORMAT_VERSION + 1})
    with pytest.raises(UsageError, match=f"format {FORMAT_VERSION + 1}, this edgeloop reads"):
        load(path)


@pytest.mark.parametrize(
    ("about", "arrays"),
    [
        ({"kind": "unknown"}, {}),
        ({"levels": [["3"]] * 6}, {}),
        ({"names": ["one"], "levels": [["3", "5", "7"]]}, {}),
        ({}, {"model.yes": np.zeros(1, dtype=np.int64)}),
        ({}, {"model.value": np.array([np.nan])}),
        ({}, {"training.codes": np.array([[1, {}]], dtype=object)}),
    ],
)
def test_a_file_whose_parts_do_not_fit_is_refused(tmp_path, about, arrays):
    with pytest.raises(UsageError, match="no predictor"):
        load(changed(tmp_path / "wrong.npz", about, **arrays))


def test_trees_that_would_run_in_circles_are_refused(tmp_path):
    with np.load(GOLDEN / "trees.npz") as archive:
        first = archive["model.yes"].copy()
    first[1] = 0
    with pytest.raises(UsageError, match="in circles"):
        load(changed(tmp_path / "circle.npz", {}, **{"model.yes": first}))


@pytest.mark.parametrize("content", [b"", b"\x80\x04}.", b"PK\x03\x04 and no more"])
def test_what_is_no_archive_is_refused(tmp_path, content):
    path = tmp_path / "model.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no predictor"):
        load(path)


def test_a_missing_or_foreign_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="cannot read"):
        load(tmp_path / "none.npz")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("about", "{}")
    with pytest.raises(UsageError, match="no predictor"):
        load(tmp_path / "zip.npz")
