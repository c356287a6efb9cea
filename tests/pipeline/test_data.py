"""Data sets: what arrives at a model, and what is refused, by name."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline.data import DataHandle, Dataset, Split, load_data
from profiles.config import parse
from profiles.errors import DataError, EdgeError, UsageError
from profiles.recipe import DataSource


def source(root: Path, **content: Any) -> DataSource:
    return parse(DataSource, content, "recipe", root)


def npz(folder: Path, *, layout: str = "nchw", **content: Any) -> DataSource:
    names = {"train": "train.npz", "test": "test.npz", "layout": layout}
    return source(folder, npz=names, **content)


def write(folder: Path, split: str, x: Any, y: Any, **arrays: Any) -> Path:
    path = folder / f"{split}.npz"
    np.savez(path, x=x, y=y, **arrays)
    return path


def images(count: int = 4, channels: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, channels, 6, 5)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good splits, for a test to replace one of."""
    write(tmp_path, "train", images(8), np.arange(8) % 2)
    write(tmp_path, "test", images(4, seed=1), np.arange(4) % 2)
    return tmp_path


def test_floats_in_nchw_arrive_unchanged(folder: Path):
    data = load_data(npz(folder))
    assert data.train.x.dtype == np.float32
    assert data.train.y.dtype == np.int64
    np.testing.assert_array_equal(data.train.x, images(8))
    np.testing.assert_array_equal(data.test.y, [0, 1, 0, 1])


def test_nhwc_becomes_nchw(folder: Path):
    for split, count, seed in (("train", 8, 0), ("test", 4, 1)):
        x = images(count, seed=seed).transpose(0, 2, 3, 1)
        write(folder, split, x, np.arange(count) % 2)
    data = load_data(npz(folder, layout="nhwc"))
    assert data.train.x.shape == (8, 2, 6, 5)
    assert data.train.x.flags.c_contiguous
    np.testing.assert_array_equal(data.train.x, images(8))


def test_bytes_become_zero_to_one_less_the_mean_over_the_deviation(folder: Path):
    x = np.zeros((2, 2, 3, 3), dtype=np.uint8)
    x[1] = 255
    write(folder, "train", x, [0, 1])
    write(folder, "test", x, [0, 1])
    plain = load_data(npz(folder)).train.x
    assert (plain.min(), plain.max()) == (0.0, 1.0)
    scaled = load_data(npz(folder, mean=[0.5, 0.25], std=[0.5, 0.125])).train.x
    np.testing.assert_allclose(scaled[0, :, 0, 0], [-1, -2], rtol=1e-6)
    np.testing.assert_allclose(scaled[1, :, 0, 0], [1, 6], rtol=1e-6)


def test_mean_and_deviation_are_one_number_per_channel(folder: Path):
    with pytest.raises(DataError, match="mean and std need 2 numbers"):
        load_data(npz(folder, mean=[0.5, 0.5, 0.5], std=[1, 1, 1]))


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        (images(0), [], "empty"),
        (images(4), [0, 1, 0], "4 inputs and 3 labels"),
        (np.full((2, 2, 6, 5), np.nan, dtype=np.float32), [0, 1], "not finite"),
        (np.full((2, 2, 6, 5), np.inf, dtype=np.float32), [0, 1], "not finite"),
        (images(4)[:, 0], np.zeros(4), "shape"),
        (np.array([{"an": "object"}]), [0], "allow_pickle"),
        (images(2), np.array([{"an": "object"}, 1]), "allow_pickle"),
        (np.full((2, 2, 6, 5), "text"), [0, 1], ""),
        (images(2), np.array(["cat", "dog"]), ""),
    ],
    ids=[
        "empty",
        "lengths",
        "nan",
        "infinite",
        "three dimensions",
        "object images",
        "object labels",
        "text images",
        "text labels",
    ],
)
def test_a_bad_split_is_refused_with_its_file(
    folder: Path, split: str, x: Any, y: Any, expected: str
):
    path = write(folder, split, x, y)
    with pytest.raises(DataError) as refusal:
        load_data(npz(folder))
    assert str(path) in str(refusal.value)
    assert expected in str(refusal.value)
    assert "\n" not in str(refusal.value)


def _one_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, images(2))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no archive at all"),
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(path.read_bytes()[:200] + b"\0" * 300),
        lambda path: np.savez(path, images=images(2)),
        lambda path: path.write_bytes(_one_array()),
    ],
    ids=["empty", "text", "cut short", "overwritten", "other names", "one array"],
)
def test_a_file_that_is_no_data_set_is_refused_by_name(folder: Path, damage: Any):
    path = folder / "train.npz"
    damage(path)
    with pytest.raises(DataError) as refusal:
        load_data(npz(folder))
    assert str(path) in str(refusal.value)


def paint(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Red cats, green dogs and blue owls; no dog is tested."""
    for name, colour in (("cat", (255, 0, 0)), ("dog", (0, 255, 0)), ("owl", (0, 0, 255))):
        for index in range(2):
            paint(tmp_path / "train" / name / f"{index}.png", colour)
    paint(tmp_path / "test" / "cat" / "0.png", (255, 0, 0))
    paint(tmp_path / "test" / "owl" / "0.png", (0, 0, 255), size=(60, 40))
    return tmp_path


def folders(root: Path, **content: Any) -> DataSource:
    return source(root, folder={"train": "train", "test": "test", "size": [4, 6]}, **content)


def test_a_folder_of_images_has_a_class_for_each_folder(pictures: Path):
    data = load_data(folders(pictures))
    assert data.train.x.shape == (6, 3, 4, 6), "size is height and width"
    assert data.train.x.dtype == np.float32
    np.testing.assert_array_equal(data.train.y, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(data.train.x[0, :, 0, 0], [1, 0, 0])
    np.testing.assert_array_equal(data.train.x[5, :, 0, 0], [0, 0, 1])


def test_a_class_has_the_same_number_in_both_splits(pictures: Path):
    np.testing.assert_array_equal(load_data(folders(pictures)).test.y, [0, 2])


def test_a_folder_without_images_is_named(pictures: Path):
    for path in (pictures / "test").glob("*/*.png"):
        path.unlink()
    with pytest.raises(DataError, match=f"{pictures / 'test'} has no images"):
        load_data(folders(pictures))


def test_a_file_that_is_no_image_is_named(pictures: Path):
    bad = pictures / "train" / "cat" / "1.png"
    bad.write_text("not a picture")
    with pytest.raises(DataError, match=str(bad)):
        load_data(folders(pictures))


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_bytes_of_every_image_are_in_the_key(pictures: Path, split: str):
    before = DataHandle(folders(pictures)).key
    paint(pictures / split / "cat" / "0.png", (200, 0, 0))
    assert DataHandle(folders(pictures)).key != before


def test_an_image_that_moves_to_the_other_split_makes_other_data(pictures: Path):
    """Also where the list of all images stays the same."""
    (pictures / "test" / "cat" / "0.png").unlink()
    (pictures / "test" / "owl" / "0.png").rename(pictures / "test" / "owl" / "2.png")
    before = DataHandle(folders(pictures)).key
    (pictures / "train" / "owl" / "1.png").rename(pictures / "test" / "owl" / "1.png")
    assert DataHandle(folders(pictures)).key != before


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_bytes_of_both_files_are_in_the_key(folder: Path, split: str):
    before = DataHandle(npz(folder)).key
    assert DataHandle(npz(folder)).key == before
    write(folder, split, images(4, seed=7), np.arange(4) % 2)
    assert DataHandle(npz(folder)).key != before


def test_how_data_are_read_is_in_the_key(folder: Path):
    keys = {
        DataHandle(npz(folder, **settings)).key
        for settings in ({}, {"mean": [0, 0], "std": [1, 1]}, {"mean": [0, 0], "std": [1, 2]})
    }
    assert len(keys) == 3


def test_how_many_examples_calibrate_makes_no_other_data(folder: Path):
    """Else a change of it would train every model again."""
    assert DataHandle(npz(folder, calibration=3)).key == DataHandle(npz(folder)).key


def test_a_handle_reads_nothing_before_it_is_asked(folder: Path):
    write(folder, "train", images(0), [])
    handle = DataHandle(npz(folder))
    assert handle.key
    with pytest.raises(DataError):
        _ = handle.arrays


_FACTORY = """
import numpy as np

def batches(split, count=2):
    for start in range(count):
        yield np.full((3, 1, 4, 4), start, dtype=np.float64), [start, 0, 1]

def nothing(split):
    return iter(())

def broken(split):
    raise OSError("the disk is gone")

def flat(split):
    yield np.zeros((3, 16)), [0, 1, 2]

def no_pairs(split):
    yield np.zeros((3, 1, 4, 4))

def uneven(split):
    yield np.zeros((3, 1, 4, 4)), [0, 1]
"""


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data_factories.py").write_text(_FACTORY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "data_factories", raising=False)
    return tmp_path


def test_batches_of_a_factory_are_joined(factories: Path):
    data = load_data(source(factories, factory="data_factories:batches", arguments={"count": 3}))
    assert data.train.x.shape == (9, 1, 4, 4)
    assert data.train.x.dtype == np.float32
    np.testing.assert_array_equal(data.test.y, [0, 0, 1, 1, 0, 1, 2, 0, 1])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nothing", "yields no batch for the train split"),
        ("broken", "the disk is gone"),
        ("flat", "shape"),
        ("uneven", "3 inputs and 2 labels"),
        ("no_pairs", "failed"),
    ],
)
def test_a_factory_that_cannot_be_used_is_named(factories: Path, name: str, expected: str):
    with pytest.raises(DataError, match=expected) as refusal:
        load_data(source(factories, factory=f"data_factories:{name}"))
    assert f"data_factories:{name}" in str(refusal.value)


def test_the_source_of_a_factory_is_in_the_key(factories: Path):
    chosen = source(factories, factory="data_factories:batches")
    before = DataHandle(chosen).key
    (factories / "data_factories.py").write_text(_FACTORY + "\n# changed\n")
    assert DataHandle(chosen).key != before


def test_a_factory_that_is_not_there_is_named(factories: Path):
    with pytest.raises(UsageError, match="has no 'surely_missing'"):
        load_data(source(factories, factory="data_factories:surely_missing"))


def numbered(count: int, calibration: int = 5) -> Dataset:
    """Every image holds its own number; those of the test split are negative."""
    train = np.arange(count, dtype=np.float32).reshape(-1, 1, 1, 1)
    test = -1 - np.arange(3, dtype=np.float32).reshape(-1, 1, 1, 1)
    return Dataset(
        Split(train, np.arange(count)), Split(test, np.arange(3)), calibration_size=calibration
    )


def test_calibration_is_the_same_each_time_and_from_the_train_split():
    one, other = numbered(50).calibration(), numbered(50).calibration()
    np.testing.assert_array_equal(one, other)
    assert len(np.unique(one)) == len(one) == 5
    assert (one >= 0).all()
    assert not np.array_equal(one.flatten(), np.arange(5)), "drawn from everywhere, not the start"


def test_what_judges_has_not_calibrated():
    data = numbered(50, calibration=40)
    _, judging = data.search_splits(seed=0)
    assert not set(data.calibration().ravel()) & set(judging.x.ravel())


def test_calibration_takes_what_there_is(folder: Path):
    assert len(load_data(npz(folder, calibration=100)).calibration()) == 8


@given(count=st.integers(2, 60), seed=st.integers(0, 1000))
def test_search_splits_are_disjoint_and_cover_the_train_split(count: int, seed: int):
    data = numbered(count)
    train, validation = data.search_splits(seed)
    together = np.concatenate([train.y, validation.y])
    assert sorted(together) == list(range(count))
    assert len(train.y) > 0 < len(validation.y)
    np.testing.assert_array_equal(train.x.flatten(), train.y)
    again, _ = data.search_splits(seed)
    np.testing.assert_array_equal(again.y, train.y)


def test_errors_of_data_are_the_users(folder: Path):
    assert issubclass(DataError, EdgeError)
    assert DataError.exit_code == 2
