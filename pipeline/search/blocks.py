"""From a super-network's blocks to a latency table measured on one device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from devices.inventory import Device
from pipeline.campaign import Subject, input_file, measure
from pipeline.export import export_stage
from pipeline.export.parity import HOST_RUNTIMES, host_outputs
from pipeline.model import PROGRAM, trace
from pipeline.programs import save_program
from pipeline.stage import Stage, Workspace
from pipeline.supernet.base import Block, SuperNetwork
from profiles.errors import StageError
from profiles.measurements import summary_of
from profiles.recipe import Search
from profiles.records import Artifact, Trial
from profiles.table import LatencyTable, TableKey, build_table

#: Largest difference between a block in PyTorch and in its runtime, as a share of its output.
BLOCK_TOLERANCE = 1e-3
_INPUT = "input.npy"


class _Call(nn.Module):
    """An empty network: what remains is one call of the runtime."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(x)


def measure_blocks(
    workspace: Workspace,
    network: SuperNetwork,
    settings: Search,
    device: Device,
    *,
    model: str,
    code: str,
) -> LatencyTable:
    """Export every distinct block, measure all in one visit, in turns, and make the table.

    Args:
        workspace: for stages and measurements.
        network: whose blocks; their weights do not matter.
        settings: format, threads, how often to measure.
        device: to measure on.
        model: name for the records.
        code: digest of the super-network's source, part of each block's key.

    Raises:
        StageError: if a block computes something else once exported, or could not be measured.
        DeviceError: as the campaign says.
    """
    call = Block("call", _Call(), (1, 1, 1, 1))
    blocks = {
        (slot, choice): network.block(slot, choice)
        for slot, place in enumerate(network.space.slots)
        for choice in range(len(place.choices))
    }
    distinct = {block.signature: block for block in (call, *blocks.values()) if block}
    subjects = {}
    for number, (signature, block) in enumerate(sorted(distinct.items()), start=1):
        workspace.progress(f"table: block {number}/{len(distinct)}, {signature}")
        subjects[signature] = _export(workspace, block, settings, model, code)
    often = settings.measure.model_copy(update={"threads": (settings.threads,)})
    # A block that went on alone because it needs more runs would find other caches.
    plan = replace(often.plan(), max_runs=often.runs)
    trials = measure(
        workspace,
        device,
        list(subjects.values()),
        often,
        together=True,
        plans=[plan],
    )
    by_sha = {trial.artifact_sha256: _accepted(trial, device) for trial in trials}
    found = {signature: by_sha[s.artifact.sha256] for signature, s in subjects.items()}

    def entry(block: Block | None) -> Any:
        if block is None:
            return None
        trial = found[block.signature]
        return summary_of(trial), trial.key

    settings_seen = {
        (t.runtime_version, t.condition, t.transport, t.device_build) for t in found.values()
    }
    if len(settings_seen) > 1:
        raise StageError(
            "the blocks were measured under different settings (runtime version, governor...)",
            "measure them in a new workspace",
            device.id,
        )
    any_trial = found[call.signature]
    key = TableKey(
        device=device.id,
        runtime=any_trial.runtime,
        runtime_version=any_trial.runtime_version,
        dtype="float32",
        condition=any_trial.condition,
        emulated=any_trial.emulated,
        device_build=any_trial.device_build,
        delegates=any_trial.delegates,
    )
    entries = {place: entry(block) for place, block in blocks.items()}
    return build_table(
        key,
        network.space,
        entries,
        entry(call)[0],
        call_trial=any_trial.key,
        signatures={place: block.signature for place, block in blocks.items() if block},
    )


def _accepted(trial: Trial, device: Device) -> Trial:
    if trial.status != "accepted":
        raise StageError(f"a block was not measured: {trial.reason}", device=device.id)
    return trial


def _export(workspace: Workspace, block: Block, settings: Search, model: str, code: str) -> Subject:
    stage = Stage(
        "block",
        {"signature": block.signature, "shape": block.input_shape, "code": code},
        ("torch",),
    )

    def work(folder: Path) -> dict[str, Any]:
        # The same block is the same file, whatever network it was taken from and when.
        torch.manual_seed(0)
        for layer in block.module.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
        example = torch.randn(block.input_shape)
        np.save(folder / _INPUT, example.numpy(), allow_pickle=False)
        program = trace(block.module, example)
        save_program(program, folder / PROGRAM)
        with torch.no_grad():
            return {"expected": program.module()(example).flatten().tolist()}

    result = workspace.run(stage, work)
    artifact = export_stage(
        workspace,
        result.folder / PROGRAM,
        settings.format,
        model=model,
        variant=block.signature,
        dtype="float32",
        role="block",
    )
    values = np.load(result.folder / _INPUT, allow_pickle=False)
    expected = np.array(result.value["expected"], dtype=np.float32)
    delegates = _check(workspace, artifact, values, expected)
    workspace.store.put_artifact(artifact)
    return Subject(artifact, (input_file(workspace, values),), delegates)


def _check(
    workspace: Workspace,
    artifact: Artifact,
    values: np.ndarray[Any, np.dtype[np.float32]],
    expected: np.ndarray[Any, np.dtype[np.float32]],
) -> tuple[str, ...]:
    """No parity, no timing: also for blocks.  Returns the delegates that took part here."""
    packages = (HOST_RUNTIMES[artifact.format],)
    stage = Stage("block-parity", {"artifact": artifact.sha256}, packages)

    def work(_: Path) -> dict[str, Any]:
        outputs, delegates = host_outputs(artifact, values)
        error = float(np.abs(outputs.flatten() - expected).max())
        if not error <= BLOCK_TOLERANCE * float(np.abs(expected).max()):
            raise StageError(
                f"block {artifact.variant} differs by {error:.3g} once exported to"
                f" {artifact.format}: not measured"
            )
        return {"max_abs_error": error, "delegates": delegates}

    return tuple(workspace.run(stage, work).value["delegates"])
