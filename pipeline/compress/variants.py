"""The compress stage: a recipe's variants, each an exported program per format.

Methods that work on floats change the model once for all formats; what quantizes comes last, and is
made for one format.  Each is a stage, so that a chain takes up where it was.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from devices.inventory import Device
from pipeline.compress import PACKAGES
from pipeline.data import DataHandle
from pipeline.export import PACKAGES as EXPORT_PACKAGES
from pipeline.model import PROGRAM, REFERENCE, TRAINABLE
from pipeline.stage import Stage, StageResult, Workspace, package_versions
from profiles.canonical import file_sha256
from profiles.compression import Budget, Distil, Method
from profiles.errors import StageError, UsageError
from profiles.recipe import Recipe
from profiles.records import ArtifactFormat


@dataclass(frozen=True, slots=True)
class Compressed:
    """A compressed program, ready to export to one format.

    Args:
        variant: its name in the recipe.
        format: the format it was made for.
        program: the ``.pt2`` file, for one example at a time.
        dtype: which tolerances apply to its artifact.
        reference: ``.npy`` of the logits its artifact should give.
        trainable: the same of open batch size, for methods that follow; ``None`` once quantized.
        details: what the compression recorded.
        device: the one device it was made for; ``None`` for all.
        line: by name, the ``trainable`` of each variant that it came of, its own included.
    """

    variant: str
    format: ArtifactFormat
    program: Path
    dtype: str
    reference: Path
    trainable: Path | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    line: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """What all compressions of a recipe share.

    Args:
        workspace: for stages and measurements.
        recipe: what it says.
        data: to calibrate, to train and to judge with.
        model: the uncompressed model's stage.
        devices: those that it is compressed for, by id.
    """

    workspace: Workspace
    recipe: Recipe
    data: DataHandle
    model: StageResult
    devices: Mapping[str, Device]


#: What works on floats: ``apply(module, settings, workbench) -> (module, record)`` of a module.
FLOAT_METHODS: Mapping[str, str] = {
    "finetune": "pipeline.compress.finetune",
    "sparse": "pipeline.compress.sparse",
    "structured": "pipeline.compress.structured",
    "low-rank": "pipeline.compress.low_rank",
    "remove-layers": "pipeline.compress.shallow",
}
#: Distributions that decide what they make.
FLOAT_PACKAGES = (*PACKAGES, "torch-pruning", "numpy", "scipy")


def original(job: Job, format_: ArtifactFormat) -> Compressed:
    """The uncompressed model, which every chain begins with."""
    folder = job.model.folder
    trainable = folder / TRAINABLE
    return Compressed(
        "fp32",
        format_,
        folder / PROGRAM,
        "float32",
        folder / REFERENCE,
        trainable if trainable.exists() else None,
    )


def compress(job: Job, settings: Method, base: Compressed) -> list[Compressed]:
    """One variant of a model for one format, or find it in the workspace.

    Args:
        job: what all share.
        settings: how to compress.
        base: what to begin with, made for the same format.

    Returns:
        One; or one for each device, where a device has a say.

    Raises:
        StageError: if the method does not work on this model.
        UsageError: if its settings do not fit the model or the data.
        DeviceError: if a device that has a say cannot be reached or leaves.
    """
    method: str = getattr(settings, "method", "")
    if method == "fp32":
        return [replace(base, variant=settings.name)]
    if method in FLOAT_METHODS:
        return [on_floats(job, settings, base, FLOAT_METHODS[method])]
    module = importlib.import_module(f"pipeline.compress.{method.replace('-', '_')}")
    made: list[Compressed] = module.make(job, settings, base)
    return made


def on_floats(job: Job, settings: Method, base: Compressed, implementation: str) -> Compressed:
    """A stage whose result is the same for all formats.

    Args:
        job, settings, base: as for :func:`compress`.
        implementation: the module whose ``apply`` does it; see :data:`FLOAT_METHODS`.
    """
    if base.trainable is None:
        raise StageError(
            f"{settings.name}: the model takes a fixed batch only, so it cannot be changed",
            "let it take any batch size: no sizes of its input as constants in forward",
        )
    budget = asks_a_device(settings)
    teacher = teacher_of(job, settings, base)
    stage = Stage(
        settings.method,  # type: ignore[attr-defined]
        {
            "program": file_sha256(base.trainable),
            "teacher": file_sha256(teacher),
            "settings": settings.model_dump(mode="json", exclude={"name", "after"}),
            "data": job.data.key,
            "samples": job.data.calibration_size,
            "measured": _measured(job, budget),
        },
        FLOAT_PACKAGES,
    )
    trainable = base.trainable

    def work(folder: Path) -> dict[str, Any]:
        from pipeline.compress.module import module_of, open_program_of, program_of
        from pipeline.model import reference_outputs
        from pipeline.programs import load_program, save_program
        from pipeline.training import torch_threads

        bench = workbench(job, stage, teacher, budget)
        apply = importlib.import_module(implementation).apply
        # Sums, and so what is decided by them, do not depend on the number of cores.
        with torch_threads(1):
            changed, record = apply(module_of(load_program(trainable)), settings, bench)
        program = program_of(changed, bench.example)
        save_program(program, folder / PROGRAM)
        save_program(open_program_of(changed, bench.example), folder / TRAINABLE)
        # It is another function now: its artifacts answer to that one.
        outputs = reference_outputs(program, job.data.arrays.test.x)
        np.save(folder / REFERENCE, outputs, allow_pickle=False)
        return dict(record)

    result = job.workspace.run(stage, work)
    return Compressed(
        settings.name,
        base.format,
        result.folder / PROGRAM,
        "float32",
        result.folder / REFERENCE,
        result.folder / TRAINABLE,
        record_of(settings, base, result.value),
        line={**base.line, settings.name: result.folder / TRAINABLE},
    )


def teacher_of(job: Job, settings: Method, base: Compressed) -> Path:
    """The program of open batch size that a method's distillation learns from.

    Raises:
        UsageError: if it names a variant that is none of those it came of.
    """
    distil: Distil | None = getattr(settings, "distil", None)
    if distil is None or distil.teacher is None:
        return job.model.folder / TRAINABLE
    if distil.teacher not in base.line:
        raise UsageError(
            f"{settings.name}: distil.teacher: it does not come of {distil.teacher}",
            "name a variant that it comes of by from, or none for the uncompressed model",
        )
    return base.line[distil.teacher]


def workbench(job: Job, stage: Stage, teacher: Path, budget: Budget | None = None) -> Any:
    """A :class:`pipeline.compress.workbench.Workbench` for one stage."""
    from pipeline.compress.workbench import Workbench

    train, validation = job.data.arrays.search_splits(seed=0)
    bench = Workbench(
        train,
        validation,
        job.data.arrays.calibration(),
        teacher,
        job.workspace.checkpoint(stage),
        job.workspace.progress,
    )
    if budget is not None:
        from pipeline.profile.gauge import gauge_for

        device, format_ = place_of(job, budget)
        cost = budget.cost if budget.is_measured else "latency"
        bench = bench.with_gauge(gauge_for(job, device, format_, cost))
    return bench


def place_of(job: Job, budget: Budget) -> tuple[Device, ArtifactFormat]:
    """Where a measured budget is spent: what it names, or what the recipe names first.

    Raises:
        UsageError: if that is none of the devices it is compressed for.
    """
    name = budget.device or job.recipe.devices[0]
    if name not in job.devices:
        known = ", ".join(job.devices) or "none"
        raise UsageError(f"budget.device: {name} is not measured on here (devices: {known})")
    return job.devices[name], budget.format or job.recipe.formats[0]


def asks_a_device(settings: Method) -> Budget | None:
    """The budget of a method that a device has a say in: by its cost, or by the widths it likes."""
    budget: Budget | None = getattr(settings, "budget", None)
    rounds = getattr(settings, "round_to", None) == "device"
    return budget if budget is not None and (budget.is_measured or rounds) else None


def _measured(job: Job, budget: Budget | None) -> dict[str, Any] | None:
    """What the answer of a device depends on."""
    if budget is None:
        return None
    device, format_ = place_of(job, budget)
    return {
        "device": device.id,
        "format": format_,
        "measure": job.recipe.measure.model_dump(mode="json"),
        "tolerances": job.recipe.tolerances.model_dump(mode="json"),
        "export": job.recipe.export.model_dump(mode="json"),
        "packages": package_versions(EXPORT_PACKAGES[format_]),
    }


def record_of(settings: Method, base: Compressed, found: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in the record of a variant's artifacts.

    Args:
        settings: what was asked for.
        base: what it began with, whose own record is kept under ``from``.
        found: what the method recorded.
    """
    asked = settings.model_dump(mode="json", exclude_none=True, by_alias=True)
    return {"settings": asked, **found, **({"from": base.details} if base.details else {})}
