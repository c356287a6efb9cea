"""Export: an exported program becomes an artifact in one runtime's format, with its record."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.model import INPUT_NAME
from pipeline.programs import load_program
from pipeline.quiet import quiet
from pipeline.stage import Stage, Workspace, package_versions
from profiles.canonical import file_sha256
from profiles.errors import ExportError
from profiles.records import Artifact, ArtifactFormat, Io, Role, TensorSpec

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: Distributions whose versions decide what an artifact looks like.
PACKAGES: Mapping[ArtifactFormat, tuple[str, ...]] = {
    "executorch": ("executorch", "torch", "torchao"),
    "onnx": ("onnx", "onnxscript", "torch"),
    "tflite": ("litert-torch", "litert-converter", "torch"),
}
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
) -> Artifact:
    """Write one artifact into the workspace, or find it there.

    Args:
        workspace: it goes to.
        program: the ``.pt2`` file to lower.
        format_: to which format.
        model, variant, dtype, role, details: for its record.

    Raises:
        ExportError: if this format cannot express the program, with the reason.
    """
    packages = PACKAGES[format_]
    parent = file_sha256(program)
    stage = Stage(f"export-{format_}", {"program": parent}, packages)

    def work(folder: Path) -> dict[str, Any]:
        loaded = load_program(program)
        target = folder / "artifact"
        record = write_artifact(loaded, format_, target)
        sha256, _ = workspace.adopt(target, format_)
        size_bytes = target.stat().st_size
        target.unlink()
        return {"sha256": sha256, "size_bytes": size_bytes, "io": io_of(loaded), "record": record}

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


def write_artifact(
    program: ExportedProgram, format_: ArtifactFormat, path: Path
) -> Mapping[str, Any]:
    """Lower a program to a file.

    Returns:
        What the exporter recorded: opset, delegates...

    Raises:
        ExportError: if the format cannot express it; no file is left.
    """
    try:
        with quiet():
            writer = importlib.import_module(_WRITERS[format_])
            record: Mapping[str, Any] = writer.write(program, path)
    except Exception as error:
        path.unlink(missing_ok=True)
        reason = _root_reason(error)
        raise ExportError(f"no {format_}: {type(error).__name__}: {reason}") from error
    return record


def io_of(program: ExportedProgram) -> Io:
    """Inputs and outputs of a program, named as the artifacts name them."""
    placeholders = [
        node
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    results = [
        node for node in program.graph.nodes if node.name in program.graph_signature.user_outputs
    ]
    inputs = [INPUT_NAME] if len(placeholders) == 1 else [node.name for node in placeholders]
    outputs = ["output"] if len(results) == 1 else [f"output_{i}" for i in range(len(results))]
    return Io(
        tuple(_spec(name, node) for name, node in zip(inputs, placeholders, strict=True)),
        tuple(_spec(name, node) for name, node in zip(outputs, results, strict=True)),
    )


def _spec(name: str, node: Any) -> TensorSpec:
    value = node.meta["val"]
    dtype = str(value.dtype).removeprefix("torch.")
    return TensorSpec(name, tuple(int(size) for size in value.shape), dtype)


def _root_reason(error: BaseException) -> str:
    """The first line of the innermost cause: converters wrap errors several times."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
