"""A block or network of a search space as an artifact that may be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.campaign import Subject, input_file
from pipeline.data import Images
from pipeline.export import export_stage
from pipeline.export.parity import HOST_RUNTIMES, host_outputs
from pipeline.model import PROGRAM, trace
from pipeline.programs import save_program
from pipeline.stage import Stage, Workspace
from pipeline.supernet.base import Block, recalibrate
from pipeline.training import torch_threads
from profiles.errors import StageError
from profiles.recipe import Tolerances
from profiles.records import Artifact, ArtifactFormat

#: Largest difference between a block in PyTorch and in its runtime, as a share of its output.
BLOCK_TOLERANCE = 1e-3
#: Inputs that INT8 is calibrated with, always the same: a latency does not depend on which.
CALIBRATION = 8
_INPUT = "input.npy"


class _Call(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(x)


def call_block() -> Block:
    """An empty network: what remains is one call of the runtime."""
    return Block("call", _Call(), (1, 1, 1, 1))


def subject_of(
    workspace: Workspace,
    block: Block,
    format_: ArtifactFormat,
    dtype: str,
    *,
    model: str,
    code: str,
) -> Subject:
    """Export a block, or find it exported, and see that its runtime computes what PyTorch does.

    The same block is the same file, whatever network it was taken from and when: its weights and
    its input are drawn anew.

    Args:
        workspace: for stages, inputs and the artifact's record.
        block: with its signature; its module is changed.
        format_: to export to.
        dtype: ``float32`` or ``int8``.
        model: name for the records.
        code: digest of the super-network's source, part of each block's key.

    Raises:
        StageError: if it cannot be quantized or exported, or computes something else then.
    """
    stage = Stage(
        "block",
        {
            "signature": block.signature,
            "shape": block.input_shape,
            "code": code,
            # FP32 is the same for all formats.
            "quantized": None if dtype == "float32" else format_,
        },
        ("torch",) if dtype == "float32" else ("torch", "nncf", "torchao"),
    )

    def work(folder: Path) -> dict[str, Any]:
        with torch_threads(1):
            torch.manual_seed(0)
            module = _drawn_anew(block.module)
            x = torch.randn(CALIBRATION, *block.input_shape[1:])
            module = recalibrate(module, x.numpy())
            program = trace(module, x[:1])
            if dtype != "float32":
                from pipeline.compress.quantize import quantize

                program = quantize(program, format_, x.numpy())
            np.save(folder / _INPUT, x[:1].numpy(), allow_pickle=False)
            save_program(program, folder / PROGRAM)
            with torch.no_grad():
                return {"expected": program.module()(x[:1]).flatten().tolist()}

    result = workspace.run(stage, work)
    artifact = export_stage(
        workspace,
        result.folder / PROGRAM,
        format_,
        model=model,
        variant=block.signature,
        dtype=dtype,
        role="block",
    )
    values = np.load(result.folder / _INPUT, allow_pickle=False)
    expected = np.array(result.value["expected"], dtype=np.float32)
    delegates = _check(workspace, artifact, values, expected)
    workspace.store.put_artifact(artifact)
    return Subject(artifact, (input_file(workspace, values),), delegates)


def _drawn_anew(module: nn.Module) -> nn.Module:
    for layer in module.modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
    return module


def _check(
    workspace: Workspace, artifact: Artifact, values: Images, expected: Images
) -> tuple[str, ...]:
    """No parity, no timing: also for blocks.  Returns the delegates that took part here."""
    packages = (HOST_RUNTIMES[artifact.format],)
    stage = Stage("block-parity", {"artifact": artifact.sha256}, packages)
    allowed = BLOCK_TOLERANCE if artifact.dtype == "float32" else Tolerances().int8.max_abs_error

    def work(_: Path) -> dict[str, Any]:
        outputs, delegates = host_outputs(artifact, values)
        error = float(np.abs(outputs.flatten() - expected).max())
        if not error <= allowed * float(np.abs(expected).max()):
            raise StageError(
                f"block {artifact.variant} differs by {error:.3g} once exported to"
                f" {artifact.format}: not measured"
            )
        return {"max_abs_error": error, "delegates": delegates}

    return tuple(workspace.run(stage, work).value["delegates"])
