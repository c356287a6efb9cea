"""Single stages on plain files, without a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from devices.inventory import load_inventory
from pipeline.campaign import Subject, input_file, measure
from pipeline.data import Images
from pipeline.flow import open_workspace
from pipeline.inspect import read_artifact
from pipeline.stage import Progress, Workspace
from profiles.errors import DataError, UsageError
from profiles.findings import Measurement
from profiles.measure import Measure
from profiles.records import Artifact, ArtifactFormat, Plan


def compress_file(
    program: Path,
    output: Path,
    method: str,
    format_: ArtifactFormat,
    data: Path,
    *,
    sparsity: float,
    samples: int,
) -> dict[str, Any]:
    """Compress a ``.pt2`` into another.

    Args:
        program, output: read and written.
        method: ``int8`` or ``sparse``.
        format_: which runtime's format an ``int8`` program is for.
        data: ``.npz`` whose array ``x`` holds float32 inputs, shape ``(n, ...)``.
        sparsity: of ``sparse``.
        samples: calibration inputs of ``int8``, at most.

    Returns:
        What the compression recorded.

    Raises:
        UsageError: for files that cannot be used.
        StageError: if the method does not work on this model.
    """
    import torch

    from pipeline.export import io_of
    from pipeline.programs import load_program, save_program

    loaded = load_program(program)
    x = _inputs(data)[:samples]
    expected = io_of(loaded).inputs[0].shape[1:]
    if x.shape[1:] != expected:
        raise DataError(f"{data}: x holds inputs of shape {x.shape[1:]}, not {expected}")
    _writable(output)
    if method == "int8":
        from pipeline.compress.quantize import quantize

        compressed = quantize(loaded, format_, x)
        details: dict[str, Any] = {"method": method, "calibration_samples": len(x)}
    else:
        from pipeline.compress.masks import prunable
        from pipeline.compress.module import module_of, program_of
        from pipeline.compress.nncf_pruning import prune
        from pipeline.compress.sparse import found

        example = torch.from_numpy(x[:1])
        pruned = module_of(loaded)
        prune(pruned, sparsity, example)
        details = {"sparsity_asked": sparsity, **found(prunable(pruned), {})}
        compressed = program_of(pruned, example)
    aside = output.with_name(f".partial-{output.name}")
    save_program(compressed, aside)
    aside.replace(output)
    return details


def export_file(program: Path, output: Path, format_: ArtifactFormat) -> dict[str, Any]:
    """Lower a ``.pt2`` to a format.

    Returns:
        The artifact's sha256, size, inputs and outputs, and what the exporter recorded.

    Raises:
        UsageError: for files that cannot be used.
        ExportError: if the format cannot express the program.
    """
    from dataclasses import asdict

    from pipeline.export import io_of, write_artifact
    from pipeline.programs import load_program
    from profiles.canonical import file_sha256

    loaded = load_program(program)
    _writable(output)
    aside = output.with_name(f".partial-{output.name}")
    record = write_artifact(loaded, format_, aside)
    aside.replace(output)
    return {
        "sha256": file_sha256(output),
        "size_bytes": output.stat().st_size,
        "io": asdict(io_of(loaded)),
        **record,
    }


def measure_files(
    paths: Sequence[Path],
    device_id: str,
    inventory: Path,
    root: Path,
    settings: Measure,
    progress: Progress,
    plans: Sequence[Plan] | None = None,
) -> list[Measurement]:
    """Measure artifact files with random inputs; their parity is unknown and says so.

    Args:
        paths: ``.pte``, ``.onnx`` and ``.tflite`` files.
        device_id, inventory: where.
        root: workspace for the results.
        settings: how often.
        progress: told what goes on.
        plans: see :func:`pipeline.campaign.measure`.

    Raises:
        UsageError: for files that cannot be used, or an unknown device.
        DeviceError: if the device cannot be reached or leaves.
    """
    device = load_inventory(inventory).find(device_id)
    artifacts = [read_artifact(path) for path in paths]
    with open_workspace(root, progress) as workspace:
        for artifact in artifacts:
            workspace.store.put_artifact(artifact)
        subjects = [Subject(a, _random_inputs(workspace, a)) for a in artifacts]
        trials = measure(workspace, device, subjects, settings, plans=plans)
        return workspace.store.measurements([trial.key for trial in trials])


def _random_inputs(workspace: Workspace, artifact: Artifact) -> tuple[Path, ...]:
    rng = np.random.default_rng(0)
    files = []
    for spec in artifact.io.inputs:
        if spec.dtype != "float32":
            raise UsageError(f"{artifact.path}: input {spec.name} is {spec.dtype}, not float32")
        files.append(input_file(workspace, rng.standard_normal(spec.shape).astype(np.float32)))
    return tuple(files)


def _inputs(data: Path) -> Images:
    try:
        with data.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            x: Images = np.ascontiguousarray(arrays["x"], dtype=np.float32)
    except Exception as error:  # a damaged archive raises whatever zipfile and zlib do
        raise DataError(f"{data} is not an .npz with a plain array x: {error}") from error
    if len(x) == 0 or not np.isfinite(x).all():
        raise DataError(f"{data}: x is empty or not finite")
    return x


def _writable(output: Path) -> None:
    if not output.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {output.absolute().parent}")
