"""Building latency tables: a search space's distinct blocks, and networks that they stand in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from devices.inventory import Device
from pipeline.campaign import Subject, measure
from pipeline.stage import Workspace
from pipeline.supernet.base import Block, SuperNetwork
from pipeline.table.budget import FEWEST_ITERATIONS, cost_of, iterations_within
from pipeline.table.spaces import Blocks, balanced, blocks_of
from pipeline.table.subjects import call_block, subject_of
from profiles.comparison import medians_by_round
from profiles.errors import StageError
from profiles.in_context import FEWEST_NETWORKS, InContext, in_context
from profiles.measure import Measure
from profiles.measurements import summary_of
from profiles.recipe import TableBuild
from profiles.records import ArtifactFormat, Plan, Trial
from profiles.space import Genomes, SearchSpace
from profiles.statistics import Summary, agreement
from profiles.table import Calibration, LatencyTable, TableKey, build_table

CALL = "call"


@dataclass(frozen=True, slots=True, eq=False)
class Built:
    """A table, and what it was made of.

    Args:
        table: with each block's cost in context; holes where a block could not be exported.
        context: what was learned from whole networks.
        holes: by signature of a block that is missing, why.
        alone_ns: by signature, each block as a network of its own, the call included.
        genomes, measured_ns: the networks learned from.
    """

    table: LatencyTable
    context: InContext
    holes: Mapping[str, str]
    alone_ns: Mapping[str, float]
    genomes: Genomes
    measured_ns: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Builder:
    """What one table is for, and how it is made.

    Args:
        workspace: for stages and measurements.
        device: to measure on.
        format: which format, and so which runtime.
        dtype: ``float32`` or ``int8``.
        threads: of the runtime.
        settings: the budget.
        often: warm-up, runs, and what is tolerated; how many calls follows from the budget.
        model: name for the records.
        code: digest of the super-network's source, part of each block's key.
    """

    workspace: Workspace
    device: Device
    format: ArtifactFormat
    dtype: str
    threads: int
    settings: TableBuild
    often: Measure
    model: str
    code: str

    def build(self, network: SuperNetwork) -> Built:
        """Export, measure and learn; what was done before is not done again.

        Blocks, networks and an empty network share each process and take turns in random order.
        A first, short visit tells how long a call of each takes, from which the second has as many
        as the budget allows: on taking it up again, the same.

        Raises:
            UsageError: if the budget is too small, with the minutes needed.
            StageError: if too few networks are left without blocks that cannot be exported, or
                anything could not be measured.
            DeviceError: if the device cannot be reached or leaves; what was measured is kept.
        """
        blocks = blocks_of(network)
        genomes = balanced(network.space, self.settings.networks, self.settings.seed)
        plan = replace(self._measure().plan(), turns="table", max_runs=self.often.runs)
        cost = cost_of(
            len(blocks.distinct) + 1,
            len(genomes),
            self.format,
            self.dtype,
            plan,
            self.settings.minutes,
        )
        self.workspace.progress(f"table: {self.name}: {cost.describe()}")
        subjects, holes = self._export_blocks(blocks)
        genomes = self._without(genomes, blocks, holes)
        whole = self.networks(network, genomes)
        everything = [*subjects.values(), *whole]
        pilot = replace(plan, runs=1, max_runs=1, iterations=FEWEST_ITERATIONS, turns="table-pilot")
        calls_ns = [summary_of(trial).median_ns for trial in self.trials(everything, pilot)]
        iterations = iterations_within(cost.measure_s, plan, calls_ns)
        trials = self.trials(everything, replace(plan, iterations=iterations))
        found = dict(zip(subjects, trials[: len(subjects)], strict=True))
        runs_ns = _by_run(trials[len(subjects) :])
        return self._conclude(network.space, blocks, found, holes, genomes, runs_ns)

    @property
    def name(self) -> str:
        """What the table is for, in a few words."""
        return f"{self.device.id} {self.format} {self.dtype} {self.threads}t"

    def networks(self, network: SuperNetwork, genomes: Genomes) -> list[Subject]:
        """Whole networks of the space, exported.

        Raises:
            StageError: if one cannot be exported, or computes something else then.
        """
        first = network.block(0, int(genomes[0][0]))
        if first is None:
            raise StageError("the first slot of the space may be left out: its input is unknown")
        subjects = []
        for number, genome in enumerate(genomes, start=1):
            name = f"network {network.space.describe(genome)}"
            self.workspace.progress(f"table: network {number}/{len(genomes)} to {self.format}")
            block = Block(name, network.extract(genome), first.input_shape)
            subjects.append(self._subject(block, self.dtype))
        return subjects

    def trials(self, subjects: Sequence[Subject], plan: Plan) -> list[Trial]:
        """Measure all in turns; one trial for each subject, in their order.

        Raises:
            StageError: if any was not measured, or under another setting than the others.
            DeviceError: as the campaign says.
        """
        found = measure(
            self.workspace, self.device, subjects, self._measure(), together=True, plans=[plan]
        )
        for trial in found:
            if trial.status != "accepted":
                raise StageError(f"a block was not measured: {trial.reason}", device=self.device.id)
        if len({(t.runtime_version, t.condition, t.transport, t.device_build) for t in found}) > 1:
            raise StageError(
                "the blocks were measured under different settings (runtime version, governor...)",
                "measure them in a new workspace",
                self.device.id,
            )
        by_sha = {trial.artifact_sha256: trial for trial in found}
        return [by_sha[subject.artifact.sha256] for subject in subjects]

    def _measure(self) -> Measure:
        return self.often.model_copy(update={"threads": (self.threads,)})

    def _subject(self, block: Block, dtype: str) -> Subject:
        return subject_of(
            self.workspace, block, self.format, dtype, model=self.model, code=self.code
        )

    def _export_blocks(self, blocks: Blocks) -> tuple[dict[str, Subject], dict[str, str]]:
        """The call and every block; and by signature why one cannot be exported."""
        subjects, holes = {CALL: self._subject(call_block(), "float32")}, {}
        for number, (signature, block) in enumerate(blocks.distinct.items(), start=1):
            self.workspace.progress(f"table: block {number}/{len(blocks.distinct)}, {signature}")
            try:
                subjects[signature] = self._subject(block, self.dtype)
            except StageError as error:
                holes[signature] = error.message
        return subjects, holes

    def _without(self, genomes: Genomes, blocks: Blocks, holes: Mapping[str, str]) -> Genomes:
        """Each network once, and none that has a block that cannot be exported."""
        distinct = {tuple(blocks.of(genome)): row for row, genome in enumerate(genomes)}
        kept = sorted(row for made_of, row in distinct.items() if not holes.keys() & made_of)
        if len(kept) < FEWEST_NETWORKS:
            named = "; ".join(f"{signature}: {why}" for signature, why in holes.items())
            without = f", because of holes: {named}" if named else ""
            raise StageError(
                f"of {len(distinct)} different networks only {len(kept)} can be measured with"
                f" {self.format} in {self.dtype}, {FEWEST_NETWORKS} are needed{without}",
                "leave such choices out of the space, or ask for more table.networks",
            )
        return genomes[kept]

    def _conclude(
        self,
        space: SearchSpace,
        blocks: Blocks,
        found: Mapping[str, Trial],
        holes: Mapping[str, str],
        genomes: Genomes,
        runs_ns: NDArray[np.float64],
    ) -> Built:
        summaries = {signature: summary_of(trial) for signature, trial in found.items()}
        signatures = [signature for signature in blocks.distinct if signature not in holes]
        call = summaries[CALL]
        own_ns = np.array([summaries[each].median_ns - call.median_ns for each in signatures])
        context = in_context(blocks.counts(genomes, signatures), own_ns, runs_ns)
        measured_ns = np.median(runs_ns, axis=1)
        costs = {
            signature: _within(summaries[signature], call.median_ns + own, half)
            for signature, own, half in zip(
                signatures, context.own_ns, context.half_width_ns, strict=True
            )
        }
        trial = found[CALL]
        key = TableKey(
            device=self.device.id,
            runtime=trial.runtime,
            runtime_version=trial.runtime_version,
            dtype=self.dtype,
            condition=trial.condition,
            emulated=trial.emulated,
            device_build=trial.device_build,
            delegates=trial.delegates,
        )
        entries = {
            place: None if signature is None else (costs[signature], found[signature].key)
            for place, signature in blocks.places.items()
            if signature not in holes
        }
        table = build_table(
            key,
            space,
            entries,
            call,
            call_trial=trial.key,
            signatures={place: each for place, each in blocks.places.items() if each},
        )
        # The table adds one call to the blocks' own costs; in context there is another offset.
        offset_ns = context.offset_ns - call.median_ns
        population = f"the {len(genomes)} networks it was corrected with, each left out in turn"
        predicted_ns = measured_ns * (1 + context.left_out)
        left_out = agreement(
            predicted_ns, measured_ns, population, context.half_width() * predicted_ns
        )
        return Built(
            table=replace(
                table,
                calibration=Calibration(1.0, offset_ns, len(genomes)),
                validation=(left_out,),
            ),
            context=context,
            holes=holes,
            alone_ns={signature: s.median_ns for signature, s in summaries.items()},
            genomes=genomes,
            measured_ns=measured_ns,
        )


def _by_run(trials: Sequence[Trial]) -> NDArray[np.float64]:
    """The median of each trial's runs that all of them have, shape ``(trials, runs)``."""
    medians = [medians_by_round(trial) for trial in trials]
    common = sorted(set.intersection(*(set(each) for each in medians)))
    if not common:
        raise StageError("no run counts for all networks", "tolerate what refused them, or wait")
    return np.array([[each[at] for at in common] for each in medians])


def _within(alone: Summary, latency_ns: float, half_width_ns: float) -> Summary:
    """A block's summary with its cost in context; at least a nanosecond, as a table needs."""
    median_ns = max(latency_ns, 1.0)
    return replace(
        alone, median_ns=median_ns, ci95_ns=(median_ns - half_width_ns, median_ns + half_width_ns)
    )
