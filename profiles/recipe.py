"""The recipe: what to do with a model, as one YAML file.

Every relative path starts at the recipe's folder; ``${NAME}`` in a path is replaced by the
environment variable.  All mistakes are reported together, each with its key.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from string import Template
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from profiles.compression import Fp32, Fraction, Name, Training, Variant, check_chain
from profiles.config import Config, parse, read_yaml
from profiles.errors import UsageError
from profiles.export import Export
from profiles.measure import Count, Measure
from profiles.records import FORMATS, ArtifactFormat

_IMPORT_PATH = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")


def _import_path(value: str) -> str:
    if not _IMPORT_PATH.match(value):
        raise ValueError(f"{value!r} is not of the form package.module:function")
    return value


def _expand(path: Path, info: ValidationInfo) -> Path:
    try:
        text = Template(str(path)).substitute(os.environ)
    except KeyError as error:
        raise ValueError(f"the environment variable {error.args[0]} is not set") from error
    except ValueError:
        raise ValueError(f"{path} has a '$' that names no variable") from None
    folder: Path = (info.context or {}).get("folder") or Path()
    return (folder / Path(text).expanduser()).absolute()


def _existing_file(path: Path, info: ValidationInfo) -> Path:
    full = _expand(path, info)
    if not full.is_file():
        raise ValueError(f"there is no file {full}")
    return full


def _existing_folder(path: Path, info: ValidationInfo) -> Path:
    full = _expand(path, info)
    if not full.is_dir():
        raise ValueError(f"there is no folder {full}")
    return full


ImportPath = Annotated[str, AfterValidator(_import_path)]
InputFile = Annotated[Path, AfterValidator(_existing_file)]
InputFolder = Annotated[Path, AfterValidator(_existing_folder)]


class Weights(Config):
    """A file of weights: safetensors, or a state dict that loads with ``weights_only=True``.

    ``key`` picks one entry of a checkpoint, ``strip_prefix`` is removed from each name.
    """

    file: InputFile
    key: str | None = None
    strip_prefix: str = ""


class ModelSource(Config):
    """Where the model comes from: exactly one of ``factory``, ``program`` and ``timm``."""

    factory: ImportPath | None = None
    program: InputFile | None = None
    timm: str | None = None
    arguments: dict[str, Any] = {}
    weights: Weights | None = None
    train: Training | None = None

    @field_validator("weights", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        return {"file": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_source(self) -> ModelSource:
        if sum(source is not None for source in (self.factory, self.program, self.timm)) != 1:
            raise ValueError("name exactly one of factory, program and timm")
        if self.program and (self.weights or self.train or self.arguments):
            raise ValueError("a program brings its weights: no weights, train or arguments")
        return self


class NpzData(Config):
    """``.npz`` files with arrays ``x`` and ``y``; ``x`` is uint8 or float, NHWC or NCHW."""

    train: InputFile
    test: InputFile
    layout: Literal["nhwc", "nchw"] = "nhwc"


class FolderData(Config):
    """Folders of images: one folder per class under ``train`` and ``test``, classes by name."""

    train: InputFolder
    test: InputFolder
    size: tuple[Count, Count]


class DataSource(Config):
    """Where the data come from: exactly one of ``factory``, ``npz`` and ``folder``.

    A factory is called with ``split="train"`` or ``"test"`` and yields ``(x, y)`` batches, ``x``
    float32 NCHW ready for the model.  ``mean`` and ``std`` (one number per channel, on a scale of
    0 to 1) normalise images from files.
    """

    factory: ImportPath | None = None
    arguments: dict[str, Any] = {}
    npz: NpzData | None = None
    folder: FolderData | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    calibration: Annotated[int, Field(ge=1)] = 128

    @model_validator(mode="after")
    def _one_source(self) -> DataSource:
        if sum(source is not None for source in (self.factory, self.npz, self.folder)) != 1:
            raise ValueError("name exactly one of factory, npz and folder")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std go together")
        return self


class Tolerance(Config):
    """What parity demands of an artifact of one data type.

    ``max_abs_error`` is a share of the largest reference output, so that it means the same for
    logits of any scale.
    """

    max_abs_error: Annotated[float, Field(gt=0)]
    cosine: Fraction
    top1_agreement: Annotated[float, Field(ge=0, le=1)]


class Tolerances(Config):
    """Tolerances per data type."""

    float32: Tolerance = Tolerance(max_abs_error=1e-3, cosine=0.9999, top1_agreement=0.995)
    int8: Tolerance = Tolerance(max_abs_error=0.5, cosine=0.98, top1_agreement=0.9)


class Search(Config):
    """An elastic network, trained once, searched with a table measured on one device.

    Args:
        supernet: import path of a factory of an elastic network.
        train: how to train it.
        format: which format (and so which runtime) the table and the search are for.
        device: id of the device; the recipe's first where none is named.
        threads: for the table and the candidates.
        measure: how often to measure blocks and candidates.
        population, generations: of the evolution, each round.
        candidates: networks measured whole on the device in each round.
        rounds: how often to search, measure and calibrate.
        trust_table: use the table even if it is stale or fails, see :mod:`profiles.demands`.
        seed: of everything random in it.
    """

    supernet: ImportPath
    arguments: dict[str, Any] = {}
    train: Training = Training(epochs=20)
    format: ArtifactFormat = "onnx"
    device: str | None = None
    threads: Count = 1
    measure: Measure = Measure()
    population: Annotated[int, Field(ge=4)] = 40
    generations: Count = 15
    candidates: Annotated[int, Field(ge=2)] = 5
    rounds: Count = 2
    trust_table: bool = False
    seed: int = 0


class TableBuild(Config):
    """How ``device-lab table build`` makes the latency tables of the recipe's search space.

    One table for each format, data type and number of threads.

    Args:
        minutes: for each table, its exports included.
        networks: whole networks that are measured in turns with the blocks, and say what the blocks
            cost within networks.
        formats: for which formats, and so runtimes; the search's where none are named.
        dtypes: of the blocks; INT8 is calibrated with random inputs, always the same.
        threads: thread counts; the search's where none are named.
        seed: of the choice of networks.
    """

    minutes: Annotated[float, Field(gt=0)] = 15.0
    networks: Annotated[int, Field(ge=10)] = 40
    formats: tuple[ArtifactFormat, ...] = ()
    dtypes: Annotated[tuple[Literal["float32", "int8"], ...], Field(min_length=1)] = ("float32",)
    threads: tuple[Count, ...] = ()
    seed: int = 0


class Recipe(Config):
    """Everything ``device-lab run`` does.

    Args:
        name: of the model, in every row of results.
        model, data: what to compress, and with what to calibrate and to judge it.
        variants: compressed versions.
        formats: what to export each of them to.
        export: how.
        tolerances: for parity.
        inventory: a ``devices.yaml``.
        devices: ids of the devices to measure on.
        measure: how often.
        profile: also measure, for each of them, which of its blocks costs what.
        search: the elastic network and its search, if any.
        table: how to build the tables of its space with whole networks; without it, the search's
            one table is of blocks alone.
        folder: where the recipe is, for its import paths; set by :func:`load_recipe`.
    """

    name: Name
    model: ModelSource
    data: DataSource
    variants: tuple[Variant, ...] = (Fp32(name="fp32"),)
    formats: tuple[ArtifactFormat, ...] = FORMATS
    export: Export = Export()
    tolerances: Tolerances = Tolerances()
    inventory: Annotated[Path, AfterValidator(_expand), Field(validate_default=True)] = Path(
        "devices.yaml"
    )
    devices: Annotated[tuple[str, ...], Field(min_length=1)]
    measure: Measure = Measure()
    profile: bool = False
    search: Search | None = None
    table: TableBuild | None = None
    folder: Annotated[Path, Field(exclude=True)] = Path()

    @field_validator("variants")
    @classmethod
    def _chained(cls, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        check_chain(variants)
        return variants


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe.

    Args:
        path: the YAML file.
        overrides: ``key.of.setting=value`` texts, applied before validation; values are YAML.

    Raises:
        UsageError: if it cannot be read.
        ConfigError: lists all its mistakes.
    """
    data = read_yaml(path)
    for text in overrides:
        override(data, text)
    folder = path.absolute().parent
    return parse(Recipe, data, str(path), folder).model_copy(update={"folder": folder})


def override(data: Any, text: str) -> None:
    """Change plain settings in place by a ``key.of.setting=value`` text.

    Raises:
        UsageError: if it is none, or leads through what is no mapping.
    """
    import yaml

    key, found, value = text.partition("=")
    *parents, last = key.split(".")
    if not found or not all([*parents, last]):
        raise UsageError(f"--set {text}: is not of the form key.of.setting=value")
    for parent in parents:
        data = data.setdefault(parent, {}) if isinstance(data, dict) else None
    if not isinstance(data, dict):
        raise UsageError(f"--set {text}: {'.'.join(parents)} is not a mapping")
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"--set {text}: the value is not YAML") from None
