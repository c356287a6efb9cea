"""From a super-network's blocks to a latency table measured on one device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from devices.inventory import Device
from pipeline.campaign import Subject, measure
from pipeline.stage import Workspace
from pipeline.supernet.base import Block, SuperNetwork
from pipeline.table.subjects import call_block, subject_of
from profiles.errors import StageError
from profiles.measurements import summary_of
from profiles.recipe import Search
from profiles.records import Trial
from profiles.table import LatencyTable, TableKey, build_table


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
    call = call_block()
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
        measured_ns=workspace.store.measured_ns([trial.key for trial in found.values()]),
    )


def _accepted(trial: Trial, device: Device) -> Trial:
    if trial.status != "accepted":
        raise StageError(f"a block was not measured: {trial.reason}", device=device.id)
    return trial


def _export(workspace: Workspace, block: Block, settings: Search, model: str, code: str) -> Subject:
    return subject_of(workspace, block, settings.format, "float32", model=model, code=code)
