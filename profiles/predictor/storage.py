"""Predictors as files that any later version reads: arrays and one JSON text, no code.

A file is a numpy archive.  Its member ``about`` is UTF-8 JSON: ``format``, and every number and
name that is no array.  The other members are the arrays, named by what they belong to.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from profiles.durable import write_whole
from profiles.errors import UsageError
from profiles.predictor.additive import Additive
from profiles.predictor.fitting import Model, Predictor, Scale
from profiles.predictor.line import Line
from profiles.predictor.networks import UNSEEN, Choices, Networks
from profiles.predictor.process import GaussianProcess
from profiles.predictor.trees import Trees

FORMAT_VERSION = 1
_MODELS: dict[str, type] = {
    "additive": Additive,
    "process": GaussianProcess,
    "trees": Trees,
    "right": Line,
    "line": Line,
}
Arrays = dict[str, np.ndarray[Any, Any]]


def save(predictor: Predictor, path: Path) -> None:
    """Write a predictor; its predictions come back exactly."""
    training, scale = predictor.training, predictor.scale
    arrays: Arrays = {
        "training.codes": training.codes,
        "training.target": training.target,
        "training.groups": training.groups,
        "training.features": training.features,
        "scale.middle": scale.middle,
        "scale.width": scale.width,
    }
    numbers: dict[str, Any] = {}
    for name in _own_fields(type(predictor.model)):
        value = getattr(predictor.model, name)
        if isinstance(value, np.ndarray):
            arrays[f"model.{name}"] = value
        else:
            numbers[name] = value
    about = {
        "format": FORMAT_VERSION,
        "kind": predictor.kind,
        "width": predictor.width,
        "logarithmic": scale.logarithmic,
        "errors": predictor.errors,
        "names": training.choices.names,
        "levels": training.choices.levels,
        "model": numbers,
    }
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    stream = io.BytesIO()
    np.savez_compressed(stream, allow_pickle=False, **arrays)
    write_whole(path, stream.getvalue())


def load(path: Path) -> Predictor:
    """Read a predictor.

    Raises:
        UsageError: if it is none, is of another format version, or does not fit together.
    """
    try:
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise UsageError(f"{path} is no predictor: it is not a numpy archive")
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        about = json.loads(bytes(arrays["about"]))
        if about["format"] != FORMAT_VERSION:
            raise UsageError(
                f"{path} is a predictor of format {about['format']}, this edgeloop reads"
                f" {FORMAT_VERSION}"
            )
        predictor = _predictor(about, arrays)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except (LookupError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UsageError(f"{path} is no predictor: {error}") from error
    return predictor


def _own_fields(model: type) -> list[str]:
    """Names of what a model is made of, but for the choices, which the training rows share."""
    return [f.name for f in fields(model) if f.init and f.name != "choices" and f.repr]


def _predictor(about: dict[str, Any], arrays: Arrays) -> Predictor:
    choices = Choices(tuple(about["names"]), tuple(tuple(levels) for levels in about["levels"]))
    training = Networks(
        choices,
        arrays["training.codes"],
        arrays["training.target"],
        arrays["training.groups"],
        arrays["training.features"],
    )
    kind = _MODELS[about["kind"]]
    given = {
        name: arrays[f"model.{name}"] if f"model.{name}" in arrays else about["model"][name]
        for name in _own_fields(kind)
    }
    if any(field.name == "choices" for field in fields(kind)):
        given["choices"] = choices
    model: Model = kind(**given)
    _check(choices, training, model, arrays)
    return Predictor(
        about["kind"],
        model,
        Scale(bool(about["logarithmic"]), arrays["scale.middle"], arrays["scale.width"]),
        float(about["width"]),
        training,
        dict(about["errors"]),
    )


def _check(choices: Choices, training: Networks, model: Model, arrays: Arrays) -> None:
    """Nothing is predicted from a file whose parts contradict each other."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} holds what is no number")
    highest = np.array([len(levels) for levels in choices.levels])
    for codes in (training.codes, getattr(model, "codes", training.codes)):
        if codes.shape[1] != len(highest) or ((codes < UNSEEN) | (codes >= highest)).any():
            raise ValueError("a training network is outside the choices")
    if isinstance(model, Trees):
        nodes = np.arange(len(model.value))
        leaf = (model.yes == nodes) & (model.no == nodes)
        # Going on only ever to later nodes ends.
        if not (leaf | ((model.yes > nodes) & (model.no > nodes))).all():
            raise ValueError("a tree runs in circles")
    width = training.features.shape[1]
    model.predict(training.codes[:1], np.zeros((1, width)))
