"""Every block of a network measured on a device in one visit, beside the whole network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from devices.inventory import Device
from pipeline.campaign import Subject, measure
from pipeline.profile.operators import operators_of
from pipeline.profile.parts import CALL, WHOLE, Network, Parts, parts_of, subject_of
from pipeline.profile.record import BlockCost, BlockProfile, OperatorProfile, write_profile
from pipeline.profile.words import remarks
from pipeline.stage import Workspace
from profiles.comparison import medians_by_round
from profiles.errors import StageError
from profiles.findings import Figure
from profiles.measure import Measure
from profiles.measurements import summary_of
from profiles.quality import counting_runs
from profiles.recipe import Tolerances
from profiles.records import ArtifactFormat, Condition, Trial
from profiles.statistics import geometric_mean, two_stage_interval

#: Calls that the runtime accounts for; its account of one call is a few hundred bytes an operator.
OPERATOR_CALLS = 30

#: By the name of a part: its trial, or why there is none.
_Found = Mapping[str, Trial | str]


def profile_network(
    workspace: Workspace,
    device: Device,
    network: Network,
    format_: ArtifactFormat,
    settings: Measure,
    *,
    depth: int | None = None,
    operators: bool = False,
    tolerances: Tolerances | None = None,
) -> BlockProfile:
    """Cut a network, measure its blocks and itself on a device, and keep the profile.

    Blocks that differ in weights alone are measured once.  All blocks, the whole network and an
    empty one share each process and take turns in it, so that what moves the device moves all.

    Args:
        workspace: for stages, measurements and the profile.
        device: to measure on.
        network: in FP32, or quantized for this format.
        format_: to export to.
        settings: how often to measure; for one thread count.
        depth: levels of modules to go down; chosen where it is not given.
        operators: also ask ONNX Runtime for its own profile.
        tolerances: of a block's outputs; those of a recipe that names none.

    Returns:
        The profile; what could not be exported or measured is named in it.

    Raises:
        UsageError: if the network does not take its inputs.
        StageError: if it cannot be cut.
        DeviceError: if the device cannot be reached or leaves; what was measured is kept.
    """
    parts = parts_of(workspace, network, depth)
    subjects, failed = _subjects(workspace, network, parts, format_, tolerances or Tolerances())
    # What another visit has measured, of the whole network for one, is no part of this one; nor
    # does a part go on alone that needs more runs than the others: it would find other caches.
    plan = replace(settings.plan(), turns=f"profile-{parts.key}", max_runs=settings.runs)
    trials = measure(
        workspace, device, list(subjects.values()), settings, together=True, plans=[plan]
    )
    by_sha = {trial.artifact_sha256: trial for trial in trials}
    found: dict[str, Trial | str] = dict(failed)
    found |= {part: by_sha[subject.artifact.sha256] for part, subject in subjects.items()}
    profile = _conclude(network, parts, found, format_, device, subjects)
    if operators:
        profile = _with_operators(workspace, device, profile, parts, subjects, settings)
    write_profile(workspace.root, profile)
    return profile


def _subjects(
    workspace: Workspace,
    network: Network,
    parts: Parts,
    format_: ArtifactFormat,
    tolerances: Tolerances,
) -> tuple[dict[str, Subject], dict[str, str]]:
    names = [CALL, *(f"{number:02}" for number in range(len(parts.blocks))), WHOLE]
    subjects, failed = {}, {}
    for number, name in enumerate(names, start=1):
        workspace.progress(f"profile: part {number}/{len(names)} to {format_}")
        try:
            subjects[name] = subject_of(workspace, network, parts, name, format_, tolerances)
        except StageError as error:
            failed[name] = str(error)
    return subjects, failed


def _conclude(
    network: Network,
    parts: Parts,
    found: _Found,
    format_: ArtifactFormat,
    device: Device,
    subjects: Mapping[str, Subject],
) -> BlockProfile:
    call_ns, whole_ns = _figure(found[CALL]), _figure(found[WHOLE])
    sum_ns, ratio = _sum(found, parts)
    blocks = [
        _cost(found[f"{number:02}"], names, kind)
        for number, (names, kind) in enumerate(parts.blocks)
    ]
    any_trial = next((trial for trial in found.values() if isinstance(trial, Trial)), None)
    whole = subjects.get(WHOLE)
    profile = BlockProfile(
        model=network.model,
        variant=network.variant,
        format=format_,
        dtype=parts.dtype,
        artifact_sha256=whole.artifact.sha256 if whole else "",
        device=device.id,
        emulated=any_trial.emulated if any_trial else device.is_emulated,
        runtime=any_trial.runtime if any_trial else "",
        runtime_version=any_trial.runtime_version if any_trial else "unknown",
        condition=any_trial.condition if any_trial else Condition(),
        depth=parts.depth,
        blocks=tuple(_with_shares(blocks, call_ns)),
        call_ns=call_ns,
        whole_ns=whole_ns,
        sum_ns=sum_ns,
        ratio=ratio,
        unknown={name: _why(found[name]) for name in (CALL, WHOLE) if _figure(found[name]) is None},
        remarks=(),
    )
    return replace(profile, remarks=remarks(profile, parts))


def _figure(trial: Trial | str) -> Figure | None:
    """The latency of an accepted trial."""
    if isinstance(trial, str) or trial.status != "accepted":
        return None
    summary = summary_of(trial)
    return Figure(summary.median_ns, summary.ci95_ns, summary.n, summary.runs)


def _why(trial: Trial | str) -> str:
    return trial if isinstance(trial, str) else f"{trial.status}: {trial.reason}"


def _cost(trial: Trial | str, names: tuple[str, ...], kind: str) -> BlockCost:
    if isinstance(trial, str):
        return BlockCost(names, kind, None, None, "failed", trial)
    reason = "" if trial.status == "accepted" else trial.reason
    return BlockCost(names, kind, _figure(trial), None, trial.status, reason, trial.key)


def _with_shares(blocks: Sequence[BlockCost], call_ns: Figure | None) -> list[BlockCost]:
    if call_ns is None or any(block.latency_ns is None for block in blocks):
        return list(blocks)
    own = [
        max(block.latency_ns.value - call_ns.value, 0.0) * block.count
        for block in blocks
        if block.latency_ns
    ]
    return [
        replace(block, share=ns / sum(own) if sum(own) else None)
        for block, ns in zip(blocks, own, strict=True)
    ]


def _sum(found: _Found, parts: Parts) -> tuple[Figure | None, Figure | None]:
    """The sum of the blocks less all calls but one, and its ratio to the whole network.

    Both round by round: blocks and network of one process had the same device.
    """
    accepted = {
        part: trial
        for part, trial in found.items()
        if isinstance(trial, Trial) and trial.status == "accepted"
    }
    if set(found) - set(accepted) - {WHOLE}:
        return None, None
    medians = {part: medians_by_round(trial) for part, trial in accepted.items()}
    pilot = accepted[CALL].plan.runs
    samples = sum(len(run.samples_ns) for t in accepted.values() for run in counting_runs(t))
    counts = {f"{number:02}": len(names) for number, (names, _) in enumerate(parts.blocks)}
    counts[CALL] = 1 - sum(counts.values())
    blocks = {part: runs for part, runs in medians.items() if part != WHOLE}
    common = sorted(set.intersection(*(set(runs) for runs in blocks.values())))
    sums = {at: sum(counts[part] * runs[at] for part, runs in blocks.items()) for at in common}
    ratios = {at: sums[at] / ns for at, ns in medians.get(WHOLE, {}).items() if at in sums}
    return _paired(list(sums.values()), pilot, samples), _paired(
        [ratios[at] for at in sorted(ratios)], pilot, samples
    )


def _paired(values: Sequence[float], pilot: int, samples: int) -> Figure | None:
    # Noise may make a sum of hardly anything negative, which is no latency.
    if not values or min(values) <= 0:
        return None
    interval = two_stage_interval(np.array(values), min(pilot, len(values)))
    return Figure(geometric_mean(values), interval, samples, len(values))


def _with_operators(
    workspace: Workspace,
    device: Device,
    profile: BlockProfile,
    parts: Parts,
    subjects: Mapping[str, Subject],
    settings: Measure,
) -> BlockProfile:
    """Add the runtime's own profile, or why there is none."""

    def without(reason: str) -> BlockProfile:
        return replace(profile, unknown={**profile.unknown, "operators": reason})

    whole = subjects.get(WHOLE)
    if profile.format != "onnx":
        return without("only ONNX Runtime tells them in its released build")
    if whole is None:
        return without("the whole network was not measured")
    plan = replace(settings.plan(), kind="operators", runs=1, max_runs=1, iterations=OPERATOR_CALLS)
    (trial,) = measure(workspace, device, [whole], settings, plans=[plan])
    if trial.status != "accepted":
        return without(_why(trial))
    (run, *_) = counting_runs(trial)
    trace: Any = run.details.get("operators")
    try:
        operators: OperatorProfile = operators_of(
            trace, plan.iterations, whole.artifact.path, parts.operators
        )
    except StageError as error:
        return without(str(error))
    return replace(profile, operators=operators)
