"""A network's parts as artifacts: cut once, exported to one format, checked, ready to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from devices.agent.engines import ENGINES
from pipeline.campaign import Subject, input_file
from pipeline.export import export_stage
from pipeline.export.parity import HOST_RUNTIMES
from pipeline.quiet import quiet
from pipeline.stage import Stage, StageResult, Workspace
from profiles.canonical import digest, file_sha256
from profiles.errors import StageError
from profiles.export import Export
from profiles.recipe import Tolerance, Tolerances
from profiles.records import RUNTIME_OF, Artifact, ArtifactFormat

if TYPE_CHECKING:
    from pipeline.profile.cut import Cut, Tensors

Values = Sequence[NDArray[np.float32]]

CALL, WHOLE = "call", "whole"


@dataclass(frozen=True, slots=True)
class Network:
    """What is profiled.

    Args:
        program: the ``.pt2`` file.
        model, variant: its names in the records.
        inputs: real ones.
    """

    program: Path
    model: str
    variant: str
    inputs: Values


@dataclass(frozen=True, slots=True)
class Parts:
    """A network that has been cut.

    Args:
        folder: with each part's program and values.
        depth, repeated: see :class:`pipeline.profile.cut.Cut`.
        handed_bytes: what all blocks but the last hand on, in one call.
        blocks: those that differ in more than weights: names of all that are like it, and kind.
        operators: for each block of the network, in order, the names of its operators.
        dtype: ``float32`` or ``int8``.
    """

    key: str
    folder: Path
    depth: int
    repeated: int
    handed_bytes: int
    blocks: tuple[tuple[tuple[str, ...], str], ...]
    operators: Mapping[str, tuple[str, ...]]
    dtype: str

    def values(self, part: str, which: str) -> list[NDArray[np.float32]]:
        """Real inputs (``in``) of a part, or what PyTorch makes of them (``out``)."""
        found = sorted(self.folder.glob(f"{part}-{which}-*.npy"))
        return [np.load(path, allow_pickle=False) for path in found]


def parts_of(workspace: Workspace, network: Network, depth: int | None) -> Parts:
    """Cut a network, or find it cut; raises as :func:`pipeline.profile.cut.cut`."""
    stage = Stage(
        "cut",
        {
            "program": file_sha256(network.program),
            "depth": depth,
            "inputs": [[list(x.shape), digest(x.tobytes().hex())] for x in network.inputs],
        },
        ("torch",),
    )

    def work(folder: Path) -> dict[str, Any]:
        import torch

        from pipeline.profile.cut import cut, is_quantized
        from pipeline.programs import load_program

        program = load_program(network.program)
        inputs = tuple(torch.from_numpy(x) for x in network.inputs)
        found = cut(program, inputs, depth)
        save_part(folder, WHOLE, None, inputs, found.outputs)
        save_call(folder)
        alike: dict[str, list[int]] = {}
        for number, block in enumerate(found.blocks):
            alike.setdefault(block.signature, []).append(number)
        firsts = [found.blocks[numbers[0]] for numbers in alike.values()]
        for number, block in enumerate(firsts):
            save_part(folder, f"{number:02}", block.program(), block.inputs, block.outputs)
        return {
            "depth": found.depth,
            "repeated": found.repeated,
            "handed_bytes": _handed_bytes(found),
            "blocks": [
                [[found.blocks[number].name for number in numbers], first.kind]
                for numbers, first in zip(alike.values(), firsts, strict=True)
            ],
            "operators": [[block.name, list(block.operators)] for block in found.blocks],
            "dtype": "int8" if is_quantized(program) else "float32",
        }

    return _understood(workspace.run(stage, work))


def _understood(result: StageResult) -> Parts:
    value = dict(result.value)
    value["blocks"] = tuple((tuple(names), kind) for names, kind in value["blocks"])
    value["operators"] = {name: tuple(operators) for name, operators in value["operators"]}
    return Parts(key=result.key, folder=result.folder, **value)


def save_call(folder: Path) -> None:
    """Keep an empty network: what it takes is one call of the runtime."""
    import torch

    from pipeline.model import trace

    one = torch.ones(1, 1, 1, 1)
    save_part(folder, CALL, trace(torch.nn.ReLU(), one), (one,), (one,))


def save_part(folder: Path, part: str, program: Any, inputs: Tensors, outputs: Tensors) -> None:
    """Keep a part's program, where it has one of its own, its inputs and what it makes of them."""
    from pipeline.programs import save_program

    if program is not None:
        save_program(program, folder / f"{part}.pt2")
    for which, tensors in (("in", inputs), ("out", outputs)):
        for number, tensor in enumerate(tensors):
            path = folder / f"{part}-{which}-{number:02}.npy"
            np.save(path, tensor.contiguous().numpy(), allow_pickle=False)


def _handed_bytes(found: Cut) -> int:
    sizes = {
        name: value.nbytes
        for block in found.blocks
        for name, value in zip(block.gives, block.outputs, strict=True)
    }
    read = {name for block in found.blocks for name in block.reads}
    return sum(size for name, size in sizes.items() if name in read)


def subject_of(
    workspace: Workspace,
    network: Network,
    parts: Parts,
    part: str,
    format_: ArtifactFormat,
    tolerances: Tolerances,
    settings: Export | None = None,
) -> Subject:
    """Export one part, and see that its runtime computes what PyTorch does: else no timing.

    Args:
        workspace: for stages, inputs and the artifact's record.
        network, parts: what it is a part of.
        part: number of a block, ``call`` or ``whole``.
        format_: to export to.
        tolerances: of the outputs, by the data type.
        settings: see :func:`pipeline.export.export_stage`.

    Raises:
        StageError: if the format cannot express it, or it computes something else.
    """
    dtype = "float32" if part == CALL else parts.dtype
    name = part if part in (CALL, WHOLE) else parts.blocks[int(part)][0][0]
    artifact = export_stage(
        workspace,
        network.program if part == WHOLE else parts.folder / f"{part}.pt2",
        format_,
        model=network.model,
        variant=f"{network.variant} {name}",
        dtype=dtype,
        role="block",
        settings=settings,
    )
    inputs = parts.values(part, "in")
    if any(value.dtype != np.float32 for value in inputs):
        raise StageError(f"{name} reads something else than float32: it cannot be measured")
    tolerance: Tolerance = getattr(tolerances, dtype)
    stage = Stage(
        "part-parity",
        {
            "artifact": artifact.sha256,
            "parts": parts.key,
            "part": part,
            "tolerance": tolerance.model_dump(),
        },
        (HOST_RUNTIMES[format_],),
    )

    def work(_: Path) -> dict[str, Any]:
        outputs, delegates = _host_call(artifact, inputs)
        _demand_parity(name, outputs, parts.values(part, "out"), tolerance)
        return {"delegates": delegates}

    delegates = tuple(workspace.run(stage, work).value["delegates"])
    workspace.store.put_artifact(artifact)
    return Subject(artifact, tuple(input_file(workspace, x) for x in inputs), delegates)


def _host_call(artifact: Artifact, inputs: Values) -> tuple[Values, tuple[str, ...]]:
    try:
        with quiet():
            engine = ENGINES[RUNTIME_OF[artifact.format]](str(artifact.path), 1)
            engine.feed(list(inputs))
            engine.prepare()
            engine.call()
            return [value.copy() for value in engine.outputs()], tuple(engine.delegates())
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise StageError(
            f"{artifact.runtime} cannot run its own artifact: {type(error).__name__}: {reason}"
        ) from error


def _demand_parity(name: str, outputs: Values, expected: Values, tolerance: Tolerance) -> None:
    if [value.shape for value in outputs] != [value.shape for value in expected]:
        raise StageError(f"{name} gives tensors of other shapes once exported")
    for mine, theirs in zip(outputs, expected, strict=True):
        error, largest = float(np.abs(mine - theirs).max()), float(np.abs(theirs).max())
        norms = float(np.linalg.norm(mine) * np.linalg.norm(theirs))
        cosine = float((mine * theirs).sum()) / norms if norms else 1.0
        if not (error <= tolerance.max_abs_error * largest and cosine >= tolerance.cosine):
            raise StageError(
                f"{name} computes something else once exported: it differs by {error:.3g} of"
                f" {largest:.3g}, cosine {cosine:.4f}"
            )
