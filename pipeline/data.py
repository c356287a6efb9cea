"""Data sets: what a recipe names becomes four arrays, ready for the model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.importing import load_object
from pipeline.stage import package_versions, source_digest
from profiles.canonical import digest, file_sha256
from profiles.errors import DataError, EdgeError
from profiles.recipe import DataSource, FolderData, NpzData

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

#: Share of the train split that a search may look at; the test split is for reports alone.
VALIDATION_SHARE = 0.2
#: Distributions that decide what is read.
_READERS = ("numpy", "pillow", "scikit-learn")
_IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


@dataclass(frozen=True, slots=True)
class Split:
    """Inputs, float32 of shape ``(n, channels, height, width)``, and labels of shape ``(n,)``."""

    x: Images
    y: Labels

    def take(self, indices: NDArray[np.int64]) -> Split:
        """The examples at these indices."""
        return Split(self.x[indices], self.y[indices])


@dataclass(frozen=True, slots=True)
class Dataset:
    """A train split and a held-out test split.

    Args:
        train, test: the splits.
        calibration_size: how many training examples calibrate a quantization.
    """

    train: Split
    test: Split
    calibration_size: int

    def calibration(self) -> Images:
        """The training examples that calibrate a quantization; the same for every runtime.

        From the other end of the order that :meth:`search_splits` parts: what judges a quantization
        has not calibrated it, while there are enough examples for both.
        """
        chosen = np.random.default_rng(0).permutation(len(self.train.y))[::-1]
        return self.train.x[np.sort(chosen[: self.calibration_size])]

    def search_splits(self, seed: int) -> tuple[Split, Split]:
        """The train split parted in two: to train on, and to judge candidates by."""
        order = np.random.default_rng(seed).permutation(len(self.train.y))
        held_out = max(1, round(len(order) * VALIDATION_SHARE))
        return self.train.take(order[held_out:]), self.train.take(order[:held_out])


class DataHandle:
    """A recipe's data set: identified at once, read only when a stage needs it.

    Args:
        source: what the recipe names.
    """

    def __init__(self, source: DataSource) -> None:
        self._source = source

    @cached_property
    def key(self) -> str:
        """What identifies the data set in the keys of stages."""
        return _data_key(self._source)

    @property
    def calibration_size(self) -> int:
        """How many training examples calibrate, at most."""
        return self._source.calibration

    @cached_property
    def arrays(self) -> Dataset:
        """The data set itself; raises as :func:`load_data`."""
        return load_data(self._source)


def _data_key(source: DataSource) -> str:
    """The files' bytes or the factory's source, how they are read, and by which packages."""
    files: Any = {}
    if source.npz:
        files = {"train": file_sha256(source.npz.train), "test": file_sha256(source.npz.test)}
    elif source.folder:
        files = [
            [[str(path.relative_to(root)), file_sha256(path)] for path in _image_files(root)]
            for root in (source.folder.train, source.folder.test)
        ]
    code = source_digest(source.factory) if source.factory else None
    # Where files lie and how many of them calibrate makes no other data.
    places = {"train", "test"}
    settings = source.model_dump(
        mode="json", exclude={"calibration": True, "npz": places, "folder": places}
    )
    return digest([settings, files, code, package_versions(_READERS)])


def load_data(source: DataSource) -> Dataset:
    """Read a data set.

    Raises:
        DataError: if a file is not what it should be, a split is empty or not finite, or images
            and labels do not match.
    """
    if source.npz:
        train = _from_npz(source.npz.train, source.npz, source)
        test = _from_npz(source.npz.test, source.npz, source)
    elif source.folder:
        train = _from_folder(source.folder.train, source.folder, source)
        test = _from_folder(source.folder.test, source.folder, source)
    else:
        train, test = (_from_factory(source, name) for name in ("train", "test"))
    return Dataset(train, test, calibration_size=min(source.calibration, len(train.y)))


def _checked(name: str, split: Split) -> Split:
    if split.x.ndim != 4 or split.y.ndim != 1:
        raise DataError(
            f"{name}: inputs have shape {split.x.shape} and labels {split.y.shape}, expected"
            " four dimensions and one"
        )
    if len(split.y) == 0 or split.x.size == 0:
        raise DataError(f"{name} is empty")
    if len(split.x) != len(split.y):
        raise DataError(f"{name} has {len(split.x)} inputs and {len(split.y)} labels")
    if not np.isfinite(split.x).all():
        raise DataError(f"{name} has values that are not finite")
    return split


def _from_factory(source: DataSource, name: str) -> Split:
    factory = load_object(source.factory or "")
    xs, ys = [], []
    try:
        batches: Iterable[tuple[Any, Any]] = factory(split=name, **source.arguments)
        for x, y in batches:
            xs.append(np.asarray(x, dtype=np.float32))
            ys.append(np.asarray(y, dtype=np.int64))
        if not xs:
            raise DataError(f"{source.factory} yields no batch for the {name} split")
        split = Split(np.concatenate(xs), np.concatenate(ys))
    except EdgeError:
        raise
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        raise DataError(f"{source.factory} failed: {type(error).__name__}: {reason}") from error
    return _checked(f"the {name} split of {source.factory}", split)


def _from_npz(path: Path, npz: NpzData, source: DataSource) -> Split:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"].astype(np.int64)
        if x.dtype != np.uint8:
            x = x.astype(np.float32)
    except Exception as error:  # a damaged archive raises whatever zipfile and zlib do
        raise DataError(f"{path} is not an .npz with plain arrays x and y: {error}") from error
    if x.ndim != 4:
        raise DataError(f"{path}: x has shape {x.shape}, expected four dimensions ({npz.layout})")
    if npz.layout == "nhwc":
        x = x.transpose(0, 3, 1, 2)
    return _checked(str(path), Split(_normalise(x, source), y))


def raw_examples(source: DataSource, count: int) -> NDArray[Any] | None:
    """The first examples of the test split as their files hold them, before anything is done.

    Returns:
        In the files' own type and layout, those of a folder as bytes with channels last; ``None``
        for a factory, whose examples come ready.
    """
    if source.npz:
        with source.npz.test.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            found: NDArray[Any] = arrays["x"][:count]
        return found
    if source.folder:
        files = _image_files(source.folder.test)[:count]
        return np.stack([_pixels(path, source.folder) for path in files])
    return None


def class_names(source: DataSource) -> list[str] | None:
    """What the classes are called, by their numbers; ``None`` where the data do not tell.

    Of folders from both splits: a class has one number, also where a split has no image of it.
    """
    if source.folder is None:
        return None
    both = (*_image_files(source.folder.train), *_image_files(source.folder.test))
    return sorted({path.parent.name for path in both})


def _image_files(root: Path) -> list[Path]:
    return sorted(p for p in root.glob("*/*") if p.suffix.lower() in _IMAGE_SUFFIXES)


def _from_folder(root: Path, folder: FolderData, source: DataSource) -> Split:
    files = _image_files(root)
    if not files:
        raise DataError(
            f"{root} has no images",
            f"expected one folder per class with {', '.join(_IMAGE_SUFFIXES)}",
        )
    classes = class_names(source) or []
    x = np.stack([_pixels(path, folder) for path in files]).transpose(0, 3, 1, 2)
    y = np.array([classes.index(path.parent.name) for path in files], dtype=np.int64)
    return _checked(str(root), Split(_normalise(x, source), y))


def _pixels(path: Path, folder: FolderData) -> NDArray[np.uint8]:
    """An image of shape ``(height, width, 3)``."""
    from PIL import Image, UnidentifiedImageError

    height, width = folder.size
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB").resize((width, height)))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _normalise(x: NDArray[Any], source: DataSource) -> Images:
    """To float32: bytes to 0..1, then less the mean and over the standard deviation."""
    values = x.astype(np.float32) / (255 if x.dtype == np.uint8 else 1)
    if source.mean is not None and source.std is not None:
        channels = x.shape[1]
        if len(source.mean) != channels or len(source.std) != channels:
            raise DataError(f"mean and std need {channels} numbers, one per channel of the images")
        shape = (1, channels, 1, 1)
        mean = np.array(source.mean, dtype=np.float32).reshape(shape)
        values = (values - mean) / np.array(source.std, dtype=np.float32).reshape(shape)
    return np.ascontiguousarray(values, dtype=np.float32)
