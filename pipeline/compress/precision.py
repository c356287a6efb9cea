"""Measured mixed precision: what a device runs slower in INT8 stays in FP32.

Candidates are whole networks, for what an operator costs depends on its neighbours: everything in
INT8, the other settings of the runtime's quantizer, and, found by profiling the fastest of these
block by block beside FP32, the same with every block left in FP32 that was slower in INT8.  All of
them and FP32 are measured in turns; the fastest whose outputs are right is taken.

FP16 is no candidate, for reasons that differ by runtime (:data:`FP16`): processors of x86 mostly
compute it by way of FP32, processors of ARM could gain by it, and no artifact here can have it yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from devices.inventory import Device
from pipeline.campaign import Subject, input_file, measure
from pipeline.compress.int8 import Choice, quantized
from pipeline.compress.variants import Compressed, Job
from pipeline.export import export_stage
from pipeline.export.parity import HOST_RUNTIMES, compare, host_outputs
from pipeline.profile.blocks import profile_network
from pipeline.profile.parts import Network
from pipeline.profile.record import BlockProfile
from pipeline.stage import Stage
from profiles.canonical import digest, file_sha256
from profiles.comparison import Effect, effect, medians_by_round
from profiles.compression import Int8
from profiles.errors import StageError
from profiles.measure import Measure
from profiles.records import ArtifactFormat, Trial
from profiles.statistics import geometric_mean

FP32 = "fp32"
#: Why FP16 is not among the candidates.
FP16: Mapping[ArtifactFormat, str] = {
    "onnx": "not offered: ONNX Runtime's processor kernels compute most operators of an FP16 model"
    " in FP32 between casts, on ARM too (issues 22467, 25824 of microsoft/onnxruntime)",
    "tflite": "not offered: XNNPACK computes a model in FP16 where the processor can, and the"
    " delegate is forced to or the file's metadata allow for it: neither is done here",
    "executorch": "not offered: XNNPACK's delegate computes in FP16 what the program has in FP16;"
    " programs, their inputs and what they are compared by are in FP32 here",
}
#: Outputs of candidates are compared on so many calibration inputs, at most.
_COMPARED = 32


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one candidate.

    Args:
        compressed: the candidate.
        choice: how it was quantized; ``None`` for FP32.
        median_ns: on the device, in turns with the others; ``None`` where it is not known.
        against_fp32: its latency over FP32's, in the same rounds.
        reason: why there is none.
    """

    compressed: Compressed | None
    choice: Choice | None
    median_ns: float | None = None
    against_fp32: Effect | None = None
    reason: str = ""


def fastest(job: Job, settings: Int8, base: Compressed, device: Device) -> Compressed:
    """Quantize a network for one device, as its measurements say.

    Args:
        job: what all compressions share.
        settings: how; each candidate keeps what they keep, and holds their ``max_drop``.
        base: in FP32.
        device: that decides.

    Returns:
        The fastest in INT8; its record says whether it is faster than FP32.

    Raises:
        StageError: if FP32 or all candidates cannot be made or measured.
        DeviceError: if the device cannot be reached or leaves.
    """
    from pipeline.compress.quantize import ALTERNATIVES

    first = Choice("int8", keep=settings.keep)
    others = ALTERNATIVES[base.format].items()
    choices = [first, *(Choice(f"int8, {name}", how, settings.keep) for name, how in others)]
    contest = _Contest(job, settings, base, device)
    found = contest.hold(choices)
    best = contest.best(found)
    refined = contest.refined(found[best])
    if refined is not None:
        found |= contest.hold([found[best].choice or first, refined])
        best = contest.best(found)
    winner = found[best].compressed
    if winner is None:
        raise StageError(f"{settings.name}: {best} was not made")
    policy = {**record(found, best), "blocks": contest.note, "fp16": FP16[base.format]}
    job.workspace.progress(f"{settings.name}: {policy['why']}")
    return replace(
        winner,
        device=device.id,
        details={
            **winner.details,
            "policy": policy,
            "notes": [policy["why"], *winner.details["notes"]],
        },
    )


def verdict(name: str, against: Effect | None) -> str:
    """What a choice comes to, in one line."""
    if against is None or against.ci95 is None:
        return f"{name}: too few runs to compare it with FP32"
    low, high = 1 / against.ci95[1], 1 / against.ci95[0]
    times = f"{name}: {1 / against.ratio:.2f} times as fast as FP32 ({low:.2f} to {high:.2f})"
    if low > 1:
        return times
    if high >= 1:
        return f"{times}; no faster beyond noise, but smaller"
    return (
        f"{times}; slower, and the least slow of what this runtime offers in INT8: for speed, ship"
        " FP32 on this device"
    )


def record(found: Mapping[str, Outcome], best: str) -> dict[str, Any]:
    """What was measured and what was taken, for the artifact's record."""
    chosen = found[best]
    return {
        "chosen": best,
        "why": verdict(best, chosen.against_fp32),
        "candidates": {
            name: {
                "median_ns": one.median_ns,
                "against_fp32": one.against_fp32 and asdict(one.against_fp32),
                "keep": list(one.choice.keep) if one.choice else [],
                "choices": dict(one.choice.choices) if one.choice else {},
                "reason": one.reason,
            }
            for name, one in found.items()
        },
    }


class _Contest:
    """Makes candidates of one network, for one format, and measures them on one device."""

    def __init__(self, job: Job, settings: Int8, base: Compressed, device: Device) -> None:
        self._job, self._settings, self._base, self._device = job, settings, base, device
        self.note = ""
        self._x = job.data.arrays.calibration()[:_COMPARED]
        asked = job.recipe.measure
        self._measure: Measure = asked.model_copy(update={"threads": asked.threads[:1]})

    def hold(self, choices: Sequence[Choice]) -> dict[str, Outcome]:
        """Make candidates, and measure those that are right in turns with FP32."""
        outcomes: dict[str, Outcome] = {FP32: Outcome(self._base, None)}
        subjects = {FP32: self._subject(FP32, self._base)}
        for choice in choices:
            try:
                made = quantized(self._job, self._settings, self._base, choice)
                subject = self._subject(choice.name, made)
            except StageError as error:
                outcomes[choice.name] = Outcome(None, choice, reason=str(error))
                continue
            twin = _twin(subject, subjects)
            if twin is None:
                subjects[choice.name] = subject
            reason = "" if twin is None else f"the same file as {twin}"
            outcomes[choice.name] = Outcome(made, choice, reason=reason)
        trials = self._measured(subjects)
        for name, trial in trials.items():
            outcomes[name] = _judged(outcomes[name], trial, trials[FP32])
        if outcomes[FP32].median_ns is None:
            raise StageError(
                f"{self._settings.name}: {self._device.id} decides, and FP32 has no latency there:"
                f" {outcomes[FP32].reason}",
                device=self._device.id,
            )
        return outcomes

    def best(self, found: Mapping[str, Outcome]) -> str:
        """The fastest candidate in INT8."""
        known = {
            name: one.against_fp32.ratio
            for name, one in found.items()
            if name != FP32 and one.against_fp32
        }
        if not known:
            others = [(name, one) for name, one in found.items() if name != FP32]
            reasons = "; ".join(f"{name}: {one.reason}" for name, one in others)
            raise StageError(f"{self._settings.name}: no candidate has a latency: {reasons}")
        return min(known, key=lambda name: known[name])

    def refined(self, one: Outcome) -> Choice | None:
        """A candidate with every block in FP32 that is slower in INT8; ``None`` without any."""
        from pipeline.compress.simulate import Simulation
        from pipeline.programs import load_program

        if one.compressed is None or one.choice is None:
            return None
        try:
            floats = self._profile(self._base, FP32)
            integers = self._profile(one.compressed, one.choice.name, floats.depth)
        except StageError as error:
            self.note = f"not refined by blocks: {error}"
            return None
        gained = gains(floats, integers)
        blocks = Simulation(load_program(one.compressed.program), self._x[:1]).blocks(floats.depth)
        slow = [block for block in blocks if gained.get(block.name, 0.0) < 0]
        self.note = f"{len(slow)} of {len(blocks)} blocks are slower in INT8"
        if not slow or len(slow) == len(blocks):
            return None
        keep = tuple(pattern for block in slow for pattern in block.patterns)
        return replace(
            one.choice,
            name=f"{one.choice.name}, {len(slow)} of {len(blocks)} blocks in FP32",
            keep=(*one.choice.keep, *keep),
            costs_ns=gained,
            depth=floats.depth,
        )

    def _profile(self, item: Compressed, name: str, depth: int | None = None) -> BlockProfile:
        variant = f"{self._settings.name} candidate {name}"
        network = Network(item.program, self._job.recipe.name, variant, [self._x[:1]])
        return profile_network(
            self._job.workspace,
            self._device,
            network,
            item.format,
            self._measure,
            depth=depth,
            tolerances=self._job.recipe.tolerances,
        )

    def _subject(self, name: str, item: Compressed) -> Subject:
        workspace, recipe = self._job.workspace, self._job.recipe
        artifact = export_stage(
            workspace,
            item.program,
            item.format,
            model=recipe.name,
            variant=f"{self._settings.name} candidate {name}",
            dtype=item.dtype,
            role="block",
        )
        tolerance = getattr(recipe.tolerances, item.dtype)
        stage = Stage(
            "candidate-parity",
            {
                "artifact": artifact.sha256,
                "program": file_sha256(self._base.program),
                "tolerance": tolerance.model_dump(),
                "inputs": digest(self._x.tobytes().hex()),
            },
            (HOST_RUNTIMES[item.format],),
        )

        def work(_: Path) -> dict[str, Any]:
            from pipeline.compress.simulate import outputs_of
            from pipeline.data import Split
            from pipeline.programs import load_program

            # By what calibrates, not by the test split: a choice must not be made by that.
            expected = outputs_of(load_program(self._base.program), self._x)
            outputs, delegates = host_outputs(artifact, self._x)
            labels = np.asarray(expected.argmax(1))
            parity = compare(outputs, expected, expected, Split(self._x, labels), tolerance)
            return {"delegates": delegates, "reason": parity.reason}

        checked = workspace.run(stage, work).value
        if checked["reason"]:
            raise StageError(f"it computes something else: {checked['reason']}")
        workspace.store.put_artifact(artifact)
        sample = input_file(workspace, self._x[:1])
        return Subject(artifact, (sample,), tuple(checked["delegates"]))

    def _measured(self, subjects: Mapping[str, Subject]) -> dict[str, Trial]:
        # In turns, and figures of their own: what took other turns is another figure.
        turns = digest(sorted(subject.artifact.sha256 for subject in subjects.values()))
        plan = self._measure.plan()
        plan = replace(plan, turns=f"precision-{turns}", max_runs=plan.runs)
        trials = measure(
            self._job.workspace,
            self._device,
            list(subjects.values()),
            self._measure,
            together=True,
            plans=[plan],
        )
        by_sha = {trial.artifact_sha256: trial for trial in trials}
        return {name: by_sha[subject.artifact.sha256] for name, subject in subjects.items()}


def _twin(subject: Subject, others: Mapping[str, Subject]) -> str | None:
    """Which of the others is the same file: a setting that this network has no use for."""
    sha256 = subject.artifact.sha256
    return next((n for n, other in others.items() if other.artifact.sha256 == sha256), None)


def gains(floats: BlockProfile, integers: BlockProfile) -> dict[str, float]:
    """By the name of a block, what it takes longer in FP32, in nanoseconds; below 0: in INT8."""
    known = [
        {
            name: block.latency_ns.value
            for block in profile.blocks
            if block.latency_ns
            for name in block.names
        }
        for profile in (floats, integers)
    ]
    return {name: known[0][name] - known[1][name] for name in known[0].keys() & known[1].keys()}


def _judged(outcome: Outcome, trial: Trial, reference: Trial) -> Outcome:
    if trial.status != "accepted":
        return replace(outcome, reason=f"{trial.status}: {trial.reason}")
    medians, others = medians_by_round(trial), medians_by_round(reference)
    shared = sorted(medians.keys() & others.keys())
    ns = geometric_mean(list(medians.values()))
    if not shared:
        return replace(outcome, median_ns=ns, reason="no round of it stands beside FP32's")
    against = effect([others[at] for at in shared], [medians[at] for at in shared], paired=True)
    return replace(outcome, median_ns=ns, against_fp32=against)
