"""Latency tables: what each choice of a search space costs on one device, in one runtime.

A block is measured as a network of its own, so its latency includes one call of the runtime.  The
latency of an empty network, measured in the same visit, is that call: a network of k blocks costs
the sum of its blocks less k - 1 calls.  What does not add up is learned from whole networks by
:meth:`LatencyTable.calibrated`.

Energy and size add up in the same way.  Peak memory does not: the weights of all blocks are there
at once, their activations are not, so that the sum is an upper bound.

The format of its files is described in ``docs/latency-table.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.canonical import digest
from profiles.costs import Cost, Costs, Objective, Place
from profiles.errors import TableError
from profiles.records import Condition
from profiles.scoring import Scorer, Structure
from profiles.space import SearchSpace
from profiles.statistics import Agreement, Summary, agreement

#: Version of what a key is made of; part of every key's digest.
KEY_VERSION = 2
UNKNOWN = "unknown"
#: How strongly a calibration is drawn to "the sum is right": one pseudo-network.
_PRIOR_WEIGHT = 1.0


@dataclass(frozen=True, slots=True)
class TableKey:
    """What a table's numbers depend on.

    Args:
        device: id in the inventory.
        runtime, runtime_version: what executed the blocks.
        dtype: of the blocks' weights and activations.
        condition: threads, affinity, delegate, mode.
        emulated: whether the device's times say nothing about real hardware.
        device_build: the device's own name of its system's build; ``unknown`` where it told none.
        delegates: delegates or execution providers that took part, in order; empty where unknown.
    """

    device: str
    runtime: str
    runtime_version: str
    dtype: str
    condition: Condition
    emulated: bool = False
    device_build: str = UNKNOWN
    delegates: tuple[str, ...] = ()

    def of_block(self, signature: str) -> str:
        """The key of one block's numbers: a sha256 in hex.

        Over the canonical JSON of this key's fields, the signature and the version of keys, so
        that the order of fields means nothing and no two blocks share a key.

        Args:
            signature: what the runtime executes: the fused operator or block, with its shapes.
        """
        return digest({"version": KEY_VERSION, "table": self, "signature": signature})


@dataclass(frozen=True, slots=True)
class Calibration:
    """A correction ``scale * sum + offset_ns``, fitted on ``n`` whole networks."""

    scale: float = 1.0
    offset_ns: float = 0.0
    n: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One measured choice: its latency as a network of its own, and the trial it is from.

    ``signature`` is what the runtime executes, empty where the table does not say; ``key`` is
    :meth:`TableKey.of_block` of it; ``n`` is the number of runs.
    """

    slot: str
    choice: str
    latency_ns: float
    half_width_ns: float | None
    trial: str
    n: int = 0
    signature: str = ""
    key: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What a table says of networks, and how sure it is.

    Args:
        value: shape ``(n,)``, in the objective's unit.
        half_width: half of each 95 % interval, same shape; NaN where a block's is unknown.  It is
            about the blocks' measurements alone: what does not add up is in the validation.
    """

    value: NDArray[np.float64]
    half_width: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class LatencyTable:
    """What the choices of a search space cost.

    Args:
        key: what the numbers hold for.
        space: the slots and choices.
        skips: shape ``(slots, most choices)``; true where a choice leaves its slot out of the
            network.
        costs: by objective, each choice's cost as a network of its own; ``latency_ns`` is there.
        signatures: by place, what the runtime executes; what is missing is unknown.
        measured_ns: when the newest number was measured, nanoseconds since 1970, or ``None``.
        calibration: of latency, learned from whole networks.
        validation: how well whole networks that were not learned from were predicted.
    """

    key: TableKey
    space: SearchSpace
    skips: NDArray[np.bool_]
    costs: Mapping[Objective, Costs]
    signatures: Mapping[Place, str] = field(default_factory=dict)
    measured_ns: int | None = None
    calibration: Calibration = Calibration()
    validation: tuple[Agreement, ...] = ()
    #: Fused sums are made when first asked for.
    _scorers: dict[Objective, Scorer] = field(default_factory=dict, init=False, repr=False)

    @property
    def latency_ns(self) -> NDArray[np.float64]:
        """Latency of each choice as a network of its own, shape ``(slots, most choices)``."""
        return self.costs["latency_ns"].value

    @property
    def half_width_ns(self) -> NDArray[np.float64]:
        """Half of each latency's 95 % interval, same shape; NaN where unknown."""
        return self.costs["latency_ns"].half_width

    @property
    def call_ns(self) -> float:
        """Latency of an empty network."""
        return self.costs["latency_ns"].shared.value

    def sums(self, genomes: ArrayLike, objective: Objective = "latency_ns") -> NDArray[np.float64]:
        """The blocks' sum for each genome, before calibration, shape ``(n,)``.

        Args:
            genomes: integers, shape ``(n, slots)``; fastest as row-major ``uint8``.
            objective: which cost.

        Raises:
            TableError: for a gene outside the space, or a choice or objective that was not
                measured.
        """
        if objective not in self._scorers:
            costs = self._of(objective)
            net = np.where(self.skips, 0.0, costs.value - costs.shared.value)
            scorer = Scorer(Structure(self.space), net[np.newaxis], [costs.shared.value])
            self._scorers[objective] = scorer
        try:
            return self._scorers[objective].score(genomes)
        except TableError as error:
            where = f"on {self.key.device} with {self.key.runtime}"
            raise TableError(f"{error.message} ({where})", error.hint) from error

    def sum_ns(self, genomes: ArrayLike) -> NDArray[np.float64]:
        """:meth:`sums` of latency."""
        return self.sums(genomes)

    def predict_ns(self, genomes: ArrayLike) -> NDArray[np.float64]:
        """The latency of each genome's network, shape ``(n,)``; raises as :meth:`sums`."""
        return self.calibration.scale * self.sums(genomes) + self.calibration.offset_ns

    def predict(self, genomes: ArrayLike, objective: Objective = "latency_ns") -> Prediction:
        """The cost of each genome's network with its interval; raises as :meth:`sums`.

        Errors of different trials are independent: they add in quadrature.  One trial's error is
        the same wherever its block stands, so that within a trial they add before that; and so
        does the empty network's, which is taken off once for each block but the first.
        Calibration scales the interval as it does the value; its own error is not in it.
        """
        value = self.sums(genomes, objective)
        matrix = self.space.check(genomes)
        costs = self._of(objective)
        numbers, errors = costs.errors()
        columns = np.arange(len(self.space.slots))
        active = ~self.skips[columns, matrix]
        together = np.zeros((len(matrix), int(numbers.max()) + 1))
        rows = np.broadcast_to(np.arange(len(matrix))[:, np.newaxis], matrix.shape)
        own = np.where(active, errors[columns, matrix], 0.0)
        np.add.at(together, (rows, numbers[columns, matrix]), own)
        times = active.sum(axis=1) - 1
        call = np.nan if costs.shared.half_width is None else costs.shared.half_width
        shared = np.where(times == 0, 0.0, times * call)
        half_width = np.sqrt((together**2).sum(axis=1) + shared**2)
        if objective == "latency_ns":
            scale = self.calibration.scale
            return Prediction(scale * value + self.calibration.offset_ns, abs(scale) * half_width)
        return Prediction(value, half_width)

    def interpolated(self) -> LatencyTable:
        """This table with holes filled between numeric neighbours, see :meth:`Costs.interpolated`.

        What was filled has ``n`` 0, a wide interval and no trial.  What has no neighbours on both
        sides stays a hole.
        """
        filled = {
            name: costs.interpolated(self.space, ~self.skips) for name, costs in self.costs.items()
        }
        return replace(self, costs=filled)

    def holes(self, objective: Objective = "latency_ns") -> list[Place]:
        """Places of the space whose cost is unknown."""
        there = np.arange(self.skips.shape[1]) <= self.space.highest[:, np.newaxis]
        unknown = there & ~self.skips & np.isnan(self._of(objective).value)
        return [(int(row), int(column)) for row, column in np.argwhere(unknown)]

    def with_costs(
        self, objective: Objective, costs: Mapping[Place, Cost], shared: Cost
    ) -> LatencyTable:
        """This table with one more objective.

        Args:
            objective: which; one that is there is replaced.
            costs: of each block as a network of its own, by place.
            shared: of the empty network.
        """
        laid = Costs.of(self.space, costs, shared)
        return replace(self, costs={**self.costs, objective: laid})

    def _of(self, objective: Objective) -> Costs:
        if objective not in self.costs:
            raise TableError(
                f"the table of {self.key.device} has no {objective}",
                f"it has {', '.join(self.costs)}",
            )
        return self.costs[objective]

    def calibrated(self, genomes: ArrayLike, measured_ns: ArrayLike) -> LatencyTable:
        """This table corrected by whole networks measured on its device.

        A straight line from sum to measurement, fitted to relative errors by ridge regression
        towards "the sum is right", so that one network corrects little and many decide.

        Args:
            genomes: shape ``(n, slots)``.
            measured_ns: shape ``(n,)``, positive.
        """
        sums = self.sum_ns(genomes)
        truth = np.asarray(measured_ns, dtype=np.float64)
        if truth.shape != sums.shape or not (truth > 0).all():
            raise TableError("calibration needs one positive latency for each genome")
        typical = float(np.median(truth))
        features = np.column_stack([sums / truth, typical / truth])
        residual = 1 - features[:, 0]
        normal = features.T @ features + _PRIOR_WEIGHT * np.diag([1.0, 1.0])
        delta = np.linalg.solve(normal, features.T @ residual)
        fitted = Calibration(1 + float(delta[0]), float(delta[1]) * typical, len(truth))
        return replace(self, calibration=fitted)

    def validated(
        self, genomes: ArrayLike, measured_ns: ArrayLike, population: str
    ) -> LatencyTable:
        """This table with one more validation: its predictions against these measurements.

        The networks must not be among those it was calibrated with.
        """
        predicted = self.predict(genomes)
        found = agreement(predicted.value, measured_ns, population, predicted.half_width)
        return replace(self, validation=(*self.validation, found))

    def entries(self) -> list[Entry]:
        """The measured choices, slot by slot."""
        found = []
        latency = self.costs["latency_ns"]
        for row, slot in enumerate(self.space.slots):
            for column, choice in enumerate(slot.choices):
                if (cost := latency.at((row, column))) is None:
                    continue
                signature = self.signatures.get((row, column), "")
                found.append(
                    Entry(
                        slot.name,
                        choice,
                        cost.value,
                        cost.half_width,
                        cost.trial,
                        cost.n,
                        signature,
                        self.key.of_block(signature) if signature else "",
                    )
                )
        return found

    @property
    def sha256(self) -> str:
        """Identifies the table's content."""
        from profiles.table_files import to_plain

        return digest(to_plain(self))

    def save(self, path: Path) -> None:
        """Write the table as JSON, or as Parquet where the path ends so; all comes back exactly."""
        from profiles.table_files import save

        save(self, path)

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read a table of any format version so far, as JSON or Parquet.

        Raises:
            TableError: if it is not one, is of a later format version, or holds a value that
                cannot have been measured.
        """
        from profiles.table_files import load

        return load(path)


def build_table(
    key: TableKey,
    space: SearchSpace,
    entries: Mapping[Place, tuple[Summary, str] | None],
    call: Summary,
    *,
    call_trial: str = "",
    signatures: Mapping[Place, str] | None = None,
    measured_ns: int | None = None,
) -> LatencyTable:
    """Put a table together from measured blocks.

    Args:
        key: what the measurements hold for.
        space: slots and choices.
        entries: by (slot, choice) the block's summary and its trial's key, or ``None`` for a
            choice that leaves its slot out; a missing entry was not measured.
        call: summary of the empty network.
        call_trial: key of its trial.
        signatures: what the runtime executes, by (slot, choice).
        measured_ns: when the newest of them was measured, nanoseconds since 1970.
    """
    skips = np.zeros((len(space.slots), int(space.highest.max()) + 1), dtype=bool)
    for place, entry in entries.items():
        skips[place] = entry is None
    costs = {place: _cost(*entry) for place, entry in entries.items() if entry}
    latency = Costs.of(space, costs, _cost(call, call_trial))
    return LatencyTable(key, space, skips, {"latency_ns": latency}, signatures or {}, measured_ns)


def _cost(summary: Summary, trial: str) -> Cost:
    interval = summary.ci95_ns
    half_width = None if interval is None else (interval[1] - interval[0]) / 2
    return Cost(summary.median_ns, half_width, summary.runs, trial)
