"""Variants in INT8: for each format, and where measurements decide, for each device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.compress import PACKAGES
from pipeline.compress.variants import Compressed, Job, calibration_record, described
from pipeline.model import PROGRAM
from pipeline.stage import Stage
from profiles.canonical import file_sha256
from profiles.compression import Int8


def make(job: Job, settings: Int8, base: Compressed) -> list[Compressed]:
    """Quantize a program for the format it was made for.

    Args:
        job: what all compressions share.
        settings: how.
        base: in FP32.

    Raises:
        StageError: if NNCF refuses the model.
    """
    stage = Stage(
        "int8",
        {
            "program": file_sha256(base.program),
            "format": base.format,
            "settings": settings.model_dump(mode="json", exclude={"name", "after"}),
            "data": job.data.key,
            "samples": job.data.calibration_size,
        },
        (*PACKAGES, "executorch", "litert-torch"),
    )

    def work(folder: Path) -> dict[str, Any]:
        from pipeline.compress.quantize import quantize
        from pipeline.programs import load_program, save_program

        samples = job.data.arrays.calibration()
        save_program(quantize(load_program(base.program), base.format, samples), folder / PROGRAM)
        return calibration_record(job)

    result = job.workspace.run(stage, work)
    return [
        Compressed(
            settings.name,
            base.format,
            result.folder / PROGRAM,
            "int8",
            base.reference,
            details={**described(settings), **result.value},
        )
    ]
