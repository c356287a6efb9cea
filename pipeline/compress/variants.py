"""The compress stage: a recipe's variants, each an exported program per format."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.compress import PACKAGES
from pipeline.data import DataHandle
from pipeline.model import PROGRAM, REFERENCE
from pipeline.stage import Stage, Workspace
from profiles.canonical import file_sha256
from profiles.recipe import Variant
from profiles.records import ArtifactFormat

DEFAULT_SPARSITY = 0.5


@dataclass(frozen=True, slots=True)
class Compressed:
    """A compressed program, ready to export to one format.

    Args:
        variant: its name in the recipe.
        format: the format it was made for.
        program: the ``.pt2`` file.
        dtype: which tolerances apply to its artifact.
        reference: ``.npy`` of the logits its artifact should give.
        details: what the compression recorded.
    """

    variant: str
    format: ArtifactFormat
    program: Path
    dtype: str
    reference: Path
    details: Mapping[str, Any] = field(default_factory=dict)


def compress(
    workspace: Workspace,
    variant: Variant,
    format_: ArtifactFormat,
    program: Path,
    reference: Path,
    data: DataHandle,
) -> Compressed:
    """One variant of a model for one format, or find it in the workspace.

    Args:
        workspace: for the stage.
        variant: how to compress.
        format_: what it is for; only quantization depends on it.
        program: the model's ``.pt2``.
        reference: the model's logits on the test split.
        data: to calibrate with.

    Raises:
        StageError: if the method does not work on this model.
    """
    if variant.method == "fp32":
        return Compressed(variant.name, format_, program, "float32", reference)
    if variant.method == "int8":
        return _int8(workspace, variant, format_, program, reference, data)
    return _sparse(workspace, variant, format_, program, data)


def _int8(
    workspace: Workspace,
    variant: Variant,
    format_: ArtifactFormat,
    program: Path,
    reference: Path,
    data: DataHandle,
) -> Compressed:
    stage = Stage(
        "int8",
        {
            "program": file_sha256(program),
            "format": format_,
            "data": data.key,
            "samples": data.calibration_size,
        },
        (*PACKAGES, "executorch", "litert-torch"),
    )

    def work(folder: Path) -> dict[str, Any]:
        from pipeline.compress.quantize import quantize
        from pipeline.model import load_program, save_program

        samples = data.arrays.calibration()
        quantized = quantize(load_program(program), format_, samples)
        save_program(quantized, folder / PROGRAM)
        sha256 = hashlib.sha256(samples.tobytes()).hexdigest()
        return {
            "method": "int8",
            "calibration_samples": len(samples),
            "calibration_sha256": sha256,
        }

    result = workspace.run(stage, work)
    return Compressed(
        variant.name, format_, result.folder / PROGRAM, "int8", reference, result.value
    )


def _sparse(
    workspace: Workspace,
    variant: Variant,
    format_: ArtifactFormat,
    program: Path,
    data: DataHandle,
) -> Compressed:
    sparsity = variant.sparsity or DEFAULT_SPARSITY
    stage = Stage(
        "sparse",
        {"program": file_sha256(program), "sparsity": sparsity, "data": data.key},
        PACKAGES,
    )

    def work(folder: Path) -> dict[str, Any]:
        import torch

        from pipeline.compress.sparsity import prune
        from pipeline.model import load_program, reference_outputs, save_program

        x = data.arrays.test.x
        pruned, details = prune(load_program(program), sparsity, torch.from_numpy(x[:1]))
        save_program(pruned, folder / PROGRAM)
        # Zeroed weights are another function: its artifacts answer to that one.
        np.save(folder / REFERENCE, reference_outputs(pruned, x), allow_pickle=False)
        return {"method": "sparse", **details}

    result = workspace.run(stage, work)
    return Compressed(
        variant.name,
        format_,
        result.folder / PROGRAM,
        "float32",
        result.folder / REFERENCE,
        result.value,
    )
