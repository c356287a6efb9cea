"""Export: an exported program becomes an artifact in one runtime's format, with its record."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.export.about import about
from pipeline.export.batch import batch_of, with_batch
from pipeline.export.layout import layout_of
from pipeline.export.lowering import culprit, root_reason
from pipeline.export.tensors import io_of
from pipeline.programs import load_program
from pipeline.quiet import quiet
from pipeline.stage import Stage, Workspace, package_versions
from profiles.canonical import file_sha256
from profiles.errors import ExportError
from profiles.export import Export
from profiles.records import Artifact, ArtifactFormat, Io, Role

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: Distributions whose versions decide what an artifact looks like.
PACKAGES: Mapping[ArtifactFormat, tuple[str, ...]] = {
    "executorch": ("executorch", "torch", "torchao"),
    "onnx": ("onnx", "onnxscript", "torch"),
    "tflite": ("litert-torch", "litert-converter", "torch"),
}
#: Distributions whose runtimes tell, on this host, where an artifact's operators run.
_TELLING: Mapping[ArtifactFormat, tuple[str, ...]] = {
    "executorch": (),
    "onnx": ("onnxruntime",),
    "tflite": ("ai-edge-litert",),
}
_TOLD = ("batch", "layout", "opset", "partitioner", "placement")
_WRITERS: Mapping[ArtifactFormat, str] = {
    "executorch": "pipeline.export.executorch",
    "onnx": "pipeline.export.onnx",
    "tflite": "pipeline.export.litert",
}


def export_stage(
    workspace: Workspace,
    program: Path,
    format_: ArtifactFormat,
    *,
    model: str,
    variant: str,
    dtype: str,
    role: Role = "variant",
    details: Mapping[str, Any] | None = None,
    settings: Export | None = None,
    says: Mapping[str, Any] | None = None,
) -> Artifact:
    """Write one artifact into the workspace, or find it there.

    Args:
        workspace: it goes to.
        program: the ``.pt2`` file to lower.
        format_: to which format.
        model, variant, dtype, role, details: for its record.
        settings: batch and partitioner; the program's own batch, and XNNPACK, where none are given.
        says: what the file is to say of itself beside ``model`` and ``dtype``; nothing
            at all where it is ``None``, so that what is equal has equal bytes.

    Raises:
        ExportError: if this format cannot express the program, with the reason.
    """
    packages = PACKAGES[format_]
    parent = file_sha256(program)
    given: dict[str, Any] = {}
    if says is not None:
        given = {"model": model, "dtype": dtype, **says}
    inputs = {"program": parent, "settings": _asked(settings, format_), "says": given}
    stage = Stage(f"export-{format_}", inputs, (*packages, *_TELLING[format_]))

    def work(folder: Path) -> dict[str, Any]:
        target = folder / "artifact"
        record = write_artifact(load_program(program), format_, target, settings, given)
        sha256, _ = workspace.adopt(target, format_)
        size_bytes = target.stat().st_size
        target.unlink()
        io, details = record.pop("io"), record
        return {"sha256": sha256, "size_bytes": size_bytes, "io": io, "record": details}

    result = workspace.run(stage, work)
    return Artifact(
        sha256=result.value["sha256"],
        format=format_,
        path=workspace.artifact_path(result.value["sha256"], format_),
        size_bytes=result.value["size_bytes"],
        io=Io.from_json(result.value["io"]),
        model=model,
        variant=variant,
        dtype=dtype,
        recipe_key=result.key,
        parent=parent,
        role=role,
        toolchain=package_versions(packages),
        details={**(details or {}), **result.value["record"]},
    )


def _asked(settings: Export | None, format_: ArtifactFormat) -> dict[str, Any] | None:
    """The settings that decide what a file of this format looks like."""
    if settings is None:
        return None
    return settings.model_dump(exclude=set() if format_ == "executorch" else {"partitioner"})


def told(artifact: Artifact) -> dict[str, Any]:
    """What a report shows of how an artifact was lowered."""
    details = {key: artifact.details[key] for key in _TOLD if key in artifact.details}
    return {"variant": artifact.variant, "format": artifact.format, "details": details}


def write_artifact(
    program: ExportedProgram,
    format_: ArtifactFormat,
    path: Path,
    settings: Export | None = None,
    says: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Lower a program to a file.

    Args:
        program: to lower.
        format_: to which format.
        path: of the file.
        settings: batch and partitioner; the program's own batch, and XNNPACK, where none are given.
        says: see :func:`export_stage`.

    Returns:
        ``io``, and what the exporter recorded: ``batch``, ``layout`` (of integers),
        ``placement``, the opset...

    Raises:
        ExportError: if the format cannot express it; no file is left.
    """
    if settings is not None:
        program = with_batch(program, settings.batch)
    try:
        with quiet():
            writer = importlib.import_module(_WRITERS[format_])
            inside = about(program, says or {})
            # Imported here: it imports torch.
            integers = importlib.import_module("pipeline.export.integer_weights")
            given = integers.prepared(program, format_)
            finish = integers.finisher(program, format_)
            record: dict[str, Any] = writer.write(given, path, settings or Export(), inside, finish)
    except ExportError as error:
        path.unlink(missing_ok=True)
        raise ExportError(f"no {format_}: {error.message}", error.hint) from error
    except Exception as error:
        path.unlink(missing_ok=True)
        raise ExportError(f"no {format_}: {_why(program, error)}") from error
    record |= {"io": io_of(program), "batch": batch_of(program)}
    layout = layout_of(program)
    return record | {"layout": layout} if layout else record


def _why(program: ExportedProgram, error: Exception) -> str:
    where = culprit(program, error)
    reason = f"{type(error).__name__}: {root_reason(error)}"
    return f"{where} cannot be lowered: {reason}" if where else reason
