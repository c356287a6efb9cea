"""The loop that closes: search with the table, measure what it proposes, correct it, repeat."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from devices.inventory import Device
from pipeline.data import DataHandle
from pipeline.importing import load_object
from pipeline.search.blocks import measure_blocks
from pipeline.search.evolve import Evolution, evolve
from pipeline.search.verify import Candidate, Ground, verify
from pipeline.stage import Stage, StageResult, Workspace, source_digest
from pipeline.supernet.base import SuperNetwork, recalibrate, train_supernet
from pipeline.training import logits_of, torch_threads
from profiles.canonical import digest
from profiles.demands import demand_trusted
from profiles.errors import ModelError, UsageError
from profiles.recipe import Recipe, Search
from profiles.space import Genomes
from profiles.statistics import Agreement
from profiles.table import LatencyTable

_WEIGHTS = "weights.safetensors"
_EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Args:
        space_size: how many networks there are in the space.
        evaluated: how many distinct ones the evolution scored.
        table_path: the calibrated table.
        candidates: all that were measured.
        agreement: per round, predictions against measurements made after them.
        failures: candidates that could not be measured, and why.
    """

    space_size: int
    evaluated: int
    table_path: Path
    candidates: tuple[Candidate, ...]
    agreement: tuple[Agreement, ...]
    failures: tuple[str, ...]


def search(workspace: Workspace, recipe: Recipe, data: DataHandle, device: Device) -> SearchResult:
    """Train the recipe's super-network, measure its blocks, and search it in rounds.

    Args:
        workspace: for stages, measurements and the table.
        recipe: with a ``search``.
        data: to train on and to judge by.
        device: to search for.

    Raises:
        UsageError: if the recipe has no search.
        StageError, DeviceError: as the stages say; what was done is kept.
        TableError: if the table is not to be trusted, and the recipe does not say to do so.
    """
    settings = _settings(recipe)
    trained = supernet_stage(workspace, recipe, settings, data)
    network = _load_supernet(settings, trained.folder)
    table = table_of(workspace, recipe, device, network)
    ground = Ground(workspace, recipe, settings, device, data, network, trained)
    candidates: list[Candidate] = []
    failures: list[str] = []
    accuracies: dict[tuple[int, ...], float] = {}
    for number in range(1, settings.rounds + 1):
        _demand(ground, table)
        evolution = _round(ground, table, number, accuracies, candidates)
        found, failed = verify(ground, table, number, evolution, candidates)
        failures += failed
        if found:
            _demand(ground, table, found[-1])
            table = _learn(table, candidates, found, number)
            candidates += found
    path = table_path(workspace, recipe, device, calibrated=True)
    table.save(path)
    return SearchResult(
        space_size=network.space.size,
        evaluated=len(accuracies),
        table_path=path,
        candidates=tuple(candidates),
        agreement=table.validation,
        failures=tuple(failures),
    )


def supernet_stage(
    workspace: Workspace, recipe: Recipe, settings: Search, data: DataHandle
) -> StageResult:
    """Train the super-network on four fifths of the train split; ``weights.safetensors``."""
    stage = Stage(
        "supernet",
        {
            "supernet": settings.supernet,
            "arguments": settings.arguments,
            "code": source_digest(settings.supernet),
            "train": settings.train.model_dump(),
            "data": data.key,
            "split": settings.seed,
        },
        ("torch", "numpy"),
    )

    def work(folder: Path) -> dict[str, Any]:
        from safetensors.torch import save_model

        torch.manual_seed(settings.train.seed)
        network = make_supernet(settings)
        train, _ = data.arrays.search_splits(settings.seed)
        train_supernet(network, train, settings.train, workspace.progress)
        save_model(_module(network), str(folder / _WEIGHTS))
        return {"space": network.space.size}

    return workspace.run(stage, work)


def table_of(
    workspace: Workspace, recipe: Recipe, device: Device, network: SuperNetwork | None = None
) -> LatencyTable:
    """The recipe's latency table on a device, before any calibration; measured where needed.

    Raises:
        UsageError: if the recipe has no search.
    """
    settings = _settings(recipe)
    table = measure_blocks(
        workspace,
        network or make_supernet(settings),
        settings,
        device,
        model=f"{recipe.name}-blocks",
        code=digest([source_digest(settings.supernet), settings.arguments]),
    )
    path = table_path(workspace, recipe, device)
    path.parent.mkdir(exist_ok=True)
    table.save(path)
    return table


def table_path(
    workspace: Workspace, recipe: Recipe, device: Device, *, calibrated: bool = False
) -> Path:
    """Where the table of a recipe's search space on a device is kept.

    As it was measured, or as a search has calibrated it.
    """
    settings = _settings(recipe)
    state = "-calibrated" if calibrated else ""
    name = f"{recipe.name}-{device.id}-{settings.format}-{settings.threads}t{state}.json"
    return workspace.root / "tables" / name


def _round(
    ground: Ground,
    table: LatencyTable,
    number: int,
    accuracies: dict[tuple[int, ...], float],
    measured: Sequence[Candidate],
) -> Evolution:
    """Evolve on (validation error, predicted latency); accuracies found are kept in a stage."""
    settings, network = ground.settings, ground.network
    train, validation = ground.data.arrays.search_splits(settings.seed)
    stage = Stage(
        "search-round",
        {
            "number": number,
            "supernet": ground.supernet.key,
            "table": table.sha256,
            "settings": settings.model_dump(mode="json", exclude={"measure", "trust_table"}),
            "measured": [candidate.genome for candidate in measured],
        },
        ("moocore", "torch", "numpy"),
    )

    def accuracy(genome: tuple[int, ...]) -> float:
        if genome not in accuracies:
            module = recalibrate(network.extract(np.array(genome)), train.x)
            logits = logits_of(module, validation.x, _EVALUATION_BATCH)
            accuracies[genome] = float(np.mean(logits.argmax(1) == validation.y))
            ground.workspace.progress(
                f"search: round {number}, {len(accuracies)} networks evaluated"
            )
        return accuracies[genome]

    def objectives(genomes: Genomes) -> np.ndarray[Any, np.dtype[np.float64]]:
        errors = [1 - accuracy(tuple(int(gene) for gene in genome)) for genome in genomes]
        return np.column_stack([errors, table.predict_ns(genomes)])

    def work(_: Path) -> dict[str, Any]:
        start = [*network.extremes(), *(candidate.genome for candidate in measured)]
        with torch_threads(settings.train.threads):
            evolution = evolve(
                network.space,
                objectives,
                population=settings.population,
                generations=settings.generations,
                seed=settings.seed + number,
                start=np.array(start, dtype=np.int64),
            )
        return {
            "genomes": evolution.genomes.tolist(),
            "scores": evolution.scores.tolist(),
            "accuracies": [[list(genome), value] for genome, value in accuracies.items()],
        }

    value = ground.workspace.run(stage, work).value
    accuracies.update({tuple(genome): found for genome, found in value["accuracies"]})
    return Evolution(np.array(value["genomes"], dtype=np.int64), np.array(value["scores"]))


def _demand(ground: Ground, table: LatencyTable, measured: Candidate | None = None) -> None:
    """Refuse a table that is stale, or that fails, unless the recipe trusts it.

    Blocks that were measured once are not measured again, so that the device may have been updated
    since: what it is now, the trial of a candidate says.  The first validation is of the blocks'
    bare sum, which the calibration after it is there to mend: it is not held against the table.
    """
    if ground.settings.trust_table:
        return
    trials = ground.workspace.store.trials([measured.trial]) if measured else []
    demand_trusted(
        replace(table, validation=table.validation[1:]),
        runtime_version=trials[0].runtime_version if trials else None,
        device_build=trials[0].device_build if trials else None,
        now_ns=time.time_ns(),
    )


def _learn(
    table: LatencyTable, before: Sequence[Candidate], found: Sequence[Candidate], number: int
) -> LatencyTable:
    """Judge the table by what it had not seen, then calibrate it with everything."""
    new = np.array([candidate.genome for candidate in found])
    table = table.validated(
        new, [candidate.measured_ns for candidate in found], f"search candidates, round {number}"
    )
    everything = [*before, *found]
    return table.calibrated(
        np.array([candidate.genome for candidate in everything]),
        [candidate.measured_ns for candidate in everything],
    )


def _settings(recipe: Recipe) -> Search:
    if recipe.search is None:
        raise UsageError("the recipe has no search", "add one, see pipeline/examples/digits.yaml")
    return recipe.search


def make_supernet(settings: Search) -> SuperNetwork:
    """The super-network that a search names, untrained.

    Raises:
        ModelError: if its factory fails, or gives something else.
    """
    factory = load_object(settings.supernet)
    try:
        network: SuperNetwork = factory(**settings.arguments)
    except Exception as error:
        raise ModelError(f"{settings.supernet} failed: {type(error).__name__}: {error}") from error
    parts = ("space", "forward_genome", "extremes", "extract", "block")
    missing = [name for name in parts if not hasattr(network, name)]
    if missing:
        raise ModelError(f"{settings.supernet} gives no super-network: no {', '.join(missing)}")
    _module(network)
    return network


def _load_supernet(settings: Search, folder: Path) -> SuperNetwork:
    from safetensors.torch import load_model

    network = make_supernet(settings)
    load_model(_module(network), str(folder / _WEIGHTS))
    return network


def _module(network: SuperNetwork) -> nn.Module:
    if not isinstance(network, nn.Module):
        raise UsageError("a super-network's factory returns a torch module")
    return network


def result_to_json(result: SearchResult) -> dict[str, Any]:
    """The result as plain data; paths as text."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(result), default=str))
    return plain
