"""What a search proposes, measured whole: sub-networks as checked artifacts on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from devices.inventory import Device
from pipeline.campaign import Subject, input_file, measure
from pipeline.data import DataHandle
from pipeline.export import export_stage
from pipeline.export.parity import parity_stage
from pipeline.model import PROGRAM, REFERENCE, reference_outputs, trace
from pipeline.programs import save_program
from pipeline.search.evolve import Evolution, best_and_most_diverse
from pipeline.stage import Stage, StageResult, Workspace
from pipeline.supernet.base import SuperNetwork, recalibrate
from profiles.errors import EdgeError, StageError
from profiles.measurements import summary_of
from profiles.recipe import Recipe, Search
from profiles.space import Genomes
from profiles.table import LatencyTable


@dataclass(frozen=True, slots=True)
class Candidate:
    """A sub-network that was proposed and measured.

    Args:
        round: in which it was proposed, from 1.
        genome: in the table's space.
        description: the same in words.
        artifact_sha256: what was measured.
        trial: key of its trial.
        predicted_ns: by the table as it was before this round's measurements.
        measured_ns, ci95_ns: on the device.
        validation_accuracy: what the search saw.
        accuracy: of the artifact itself, on the test split.
        size_bytes: of the artifact.
    """

    round: int
    genome: tuple[int, ...]
    description: str
    artifact_sha256: str
    trial: str
    predicted_ns: float
    measured_ns: float
    ci95_ns: tuple[float, float] | None
    validation_accuracy: float
    accuracy: float
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Ground:
    """What every round of a search stands on."""

    workspace: Workspace
    recipe: Recipe
    settings: Search
    device: Device
    data: DataHandle
    network: SuperNetwork
    supernet: StageResult


def verify(
    ground: Ground,
    table: LatencyTable,
    number: int,
    evolution: Evolution,
    measured: Sequence[Candidate],
) -> tuple[list[Candidate], list[str]]:
    """Extract, export, check and measure a round's proposals on the device.

    Args:
        ground: what the search stands on.
        table: predicts their latencies, before they are measured.
        number: of the round, from 1.
        evolution: the networks to choose from.
        measured: candidates of earlier rounds, not to be measured again.

    Returns:
        The candidates, and for those that could not be measured why.

    Raises:
        DeviceError: as the campaign says.
    """
    known = {candidate.genome for candidate in measured}
    picks = best_and_most_diverse(evolution, ground.settings.candidates, known)
    predicted = table.predict_ns(evolution.genomes[picks])
    ready: list[tuple[int, Subject, float]] = []
    failures = []
    for place, pick in enumerate(picks):
        genome = evolution.genomes[pick]
        try:
            subject, accuracy = _prepare(ground, genome)
        except EdgeError as error:
            failures.append(f"{ground.network.space.describe(genome)}: {error}")
            continue
        ready.append((place, subject, accuracy))
    settings = ground.settings.measure.model_copy(update={"threads": (ground.settings.threads,)})
    subjects = [subject for _, subject, _ in ready]
    trials = {
        trial.artifact_sha256: trial
        for trial in measure(
            ground.workspace, ground.device, subjects, settings, plans=[settings.plan()]
        )
    }
    candidates = []
    for place, subject, accuracy in ready:
        trial = trials[subject.artifact.sha256]
        genome = evolution.genomes[picks[place]]
        description = ground.network.space.describe(genome)
        if trial.status != "accepted":
            failures.append(f"{description}: {trial.reason}")
            continue
        summary = summary_of(trial)
        candidates.append(
            Candidate(
                round=number,
                genome=tuple(int(gene) for gene in genome),
                description=description,
                artifact_sha256=subject.artifact.sha256,
                trial=trial.key,
                predicted_ns=float(predicted[place]),
                measured_ns=summary.median_ns,
                ci95_ns=summary.ci95_ns,
                validation_accuracy=1 - float(evolution.scores[picks[place], 0]),
                accuracy=accuracy,
                size_bytes=subject.artifact.size_bytes,
            )
        )
    return candidates, failures


def _prepare(ground: Ground, genome: Genomes) -> tuple[Subject, float]:
    """One sub-network as a checked artifact, and that artifact's accuracy on the test split.

    Raises:
        StageError: if it cannot be exported or fails parity.
    """
    workspace, data = ground.workspace, ground.data.arrays
    stage = Stage(
        "candidate",
        {"supernet": ground.supernet.key, "genome": genome.tolist(), "split": ground.settings.seed},
        ("torch",),
    )

    def work(folder: Path) -> dict[str, Any]:
        train, _ = data.search_splits(ground.settings.seed)
        module = recalibrate(ground.network.extract(genome), train.x)
        program = trace(module, torch.from_numpy(data.test.x[:1]))
        save_program(program, folder / PROGRAM)
        reference = reference_outputs(program, data.test.x)
        np.save(folder / REFERENCE, reference, allow_pickle=False)
        return {}

    extracted = workspace.run(stage, work)
    artifact = export_stage(
        workspace,
        extracted.folder / PROGRAM,
        ground.settings.format,
        model=f"{ground.recipe.name}-search",
        variant=ground.network.space.describe(genome),
        dtype="float32",
        role="candidate",
    )
    reference = extracted.folder / REFERENCE
    parity = parity_stage(
        workspace,
        artifact,
        ground.recipe.tolerances.float32,
        ground.data,
        reference,
        reference,
    )
    workspace.store.put_artifact(artifact, parity)
    if not parity.passed:
        raise StageError(f"parity: {parity.reason}")
    sample = input_file(workspace, data.test.x[:1])
    return Subject(artifact, (sample,), parity.delegates), parity.accuracy
