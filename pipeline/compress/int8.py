"""Variants in INT8: for each format, and where measurements decide, for each device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.compress import PACKAGES
from pipeline.compress.variants import Compressed, Job, on_floats, record_of
from pipeline.model import PROGRAM
from pipeline.stage import Stage
from profiles.canonical import file_sha256
from profiles.compression import Int8
from profiles.records import ArtifactFormat

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from pipeline.data import Images


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to quantize a network for a runtime.

    Args:
        name: for people.
        choices: what the runtime's quantizer is told beside its defaults.
        keep: modules left in FP32, as patterns of their paths.
        costs_ns: by block, what it takes longer in FP32, where that was measured.
        depth: levels of modules that were gone down to find these blocks.
    """

    name: str
    choices: Mapping[str, Any] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    costs_ns: Mapping[str, float] = field(default_factory=dict)
    depth: int | None = None


def make(job: Job, settings: Int8, base: Compressed) -> list[Compressed]:
    """Quantize a program for the format it was made for.

    Args:
        job: what all compressions share.
        settings: how.
        base: in FP32.

    Returns:
        One; or one for each device, where their measurements decide.

    Raises:
        DataError: if calibration comes upon values that are not finite.
        UsageError: if ``keep`` names nothing.
        StageError: if NNCF refuses the model, or ``max_drop`` cannot hold.
        DeviceError: if a device that decides cannot be reached or leaves.
    """
    if settings.train is not None:
        # Of what decides about integers later, nothing changes how it is trained.
        training = Int8(
            name=settings.name,
            method="int8",
            keep=settings.keep,
            train=settings.train,
            distil=settings.distil,
        )
        base = on_floats(job, training, base, "pipeline.compress.qat")
    if settings.precision == "measured":
        from pipeline.compress.precision import fastest

        return [fastest(job, settings, base, device) for device in job.devices.values()]
    return [quantized(job, settings, base, Choice("int8", keep=settings.keep))]


def quantized(job: Job, settings: Int8, base: Compressed, choice: Choice) -> Compressed:
    """Quantize in one way, or find it done; arguments and errors as for :func:`make`."""
    stage = Stage(
        "int8",
        {
            "program": file_sha256(base.program),
            "reference": file_sha256(job.model.folder / PROGRAM),
            "format": base.format,
            "keep": list(choice.keep),
            "choices": dict(choice.choices),
            "max_drop": settings.max_drop,
            "costs_ns": dict(choice.costs_ns) if settings.max_drop else {},
            "depth": choice.depth if settings.max_drop else None,
            "smooth": settings.smooth,
            "validation_seen": _seen(job),
            "data": job.data.key,
            "samples": job.data.calibration_size,
        },
        (*PACKAGES, "executorch", "litert-torch"),
    )

    def work(folder: Path) -> dict[str, Any]:
        from pipeline.programs import load_program, save_program

        program, record = _work(job, settings, load_program(base.program), base.format, choice)
        save_program(program, folder / PROGRAM)
        return record

    result = job.workspace.run(stage, work)
    for note in result.value["notes"]:
        job.workspace.progress(f"{settings.name} {base.format}: {note}")
    return Compressed(
        settings.name,
        base.format,
        result.folder / PROGRAM,
        "int8",
        base.reference,
        details=record_of(settings, base, result.value),
    )


def describe(control: Mapping[str, Any]) -> str:
    """What holding a drop has cost, in one line."""
    reverted, everything = control["reverted"], control["sensitivity"]
    return (
        f"{len(reverted)} of {len(everything)} blocks are back in FP32 ({', '.join(reverted)}) to"
        f" hold a drop of {100 * control['max_drop']:g} points:"
        f" {100 * control['drop']:.2f}, with all in INT8"
        f" {100 * control['attempts']['0']:.2f}"
    )


def _seen(job: Job) -> bool:
    """Whether the uncompressed model was trained on all of the train split."""
    return job.recipe.model.train is not None


def _work(
    job: Job, settings: Int8, program: ExportedProgram, format_: ArtifactFormat, choice: Choice
) -> tuple[ExportedProgram, dict[str, Any]]:
    import torch

    from pipeline.compress.calibration import (
        Judge,
        calibration_record,
        drop_record,
        quantization_record,
    )
    from pipeline.compress.quantize import calibrated, lowered
    from pipeline.compress.simulate import demand_finite
    from pipeline.programs import load_program

    samples: Images = job.data.arrays.calibration()
    train, validation = job.data.arrays.search_splits(seed=0)
    demand_finite(program, samples)
    if settings.smooth is not None:
        from pipeline.compress.smooth import smooth

        program = smooth(program, samples, settings.smooth)

    def build(keep: Sequence[str]) -> ExportedProgram:
        job.workspace.progress(f"{settings.name} {format_}: calibrate {choice.name}")
        patterns = (*choice.keep, *keep)
        return calibrated(program, format_, samples, keep=patterns, choices=choice.choices)

    judge = Judge(load_program(job.model.folder / PROGRAM), validation, seen=_seen(job))
    keep = choice.keep
    control: dict[str, Any] = {}
    if settings.max_drop is None:
        result = build(())
    else:
        from pipeline.compress.controlled import controlled

        result, reverted, control = controlled(
            program,
            build,
            judge,
            settings.max_drop,
            samples,
            costs_ns=choice.costs_ns,
            depth=choice.depth,
            progress=job.workspace.progress,
        )
        keep = (*keep, *reverted)
    notes = [describe(control)] if control.get("reverted") else []
    calibration = calibration_record(result, samples, train.x, validation.x)
    final = lowered(result, format_, torch.from_numpy(samples[:1]))
    return final, {
        "seed": 0,  # of the choice of samples
        "keep": list(keep),
        "choices": dict(choice.choices),
        "quantization": quantization_record(final),
        **calibration,
        **drop_record(judge.drop(result)),
        **({"control": control} if control else {}),
        "notes": [*notes, *([calibration["warning"]] if "warning" in calibration else [])],
    }
