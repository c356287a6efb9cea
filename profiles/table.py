"""Latency tables: what each choice of a search space costs on one device, in one runtime.

A block is measured as a network of its own, so its latency includes one call of the runtime.  The
latency of an empty network, measured in the same visit, is that call: a network of k blocks costs
the sum of its blocks less k - 1 calls.  What does not add up is learned from whole networks by
:meth:`LatencyTable.calibrated`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.canonical import canonical_json, digest
from profiles.durable import write_whole
from profiles.errors import TableError
from profiles.records import Condition
from profiles.space import SearchSpace, Slot
from profiles.statistics import Agreement, Summary, agreement

FORMAT_VERSION = 1
#: How strongly a calibration is drawn to "the sum is right": one pseudo-network.
_PRIOR_WEIGHT = 1.0


@dataclass(frozen=True, slots=True)
class TableKey:
    """What a table's numbers depend on.

    Args:
        device: id in the inventory.
        runtime, runtime_version: what executed the blocks.
        dtype: of the blocks' weights and activations.
        condition: threads, affinity, mode.
        emulated: whether the device's times say nothing about real hardware.
    """

    device: str
    runtime: str
    runtime_version: str
    dtype: str
    condition: Condition
    emulated: bool = False


@dataclass(frozen=True, slots=True)
class Calibration:
    """A correction ``scale * sum + offset_ns``, fitted on ``n`` whole networks."""

    scale: float = 1.0
    offset_ns: float = 0.0
    n: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One measured choice: its latency as a network of its own, and the trial it is from."""

    slot: str
    choice: str
    latency_ns: float
    half_width_ns: float | None
    trial: str


@dataclass(frozen=True, slots=True, eq=False)
class LatencyTable:
    """Latencies of a search space's choices.

    Args:
        key: what they hold for.
        space: the slots and choices.
        latency_ns: shape ``(slots, most choices)``; the latency of a choice as a network of its
            own; NaN where a slot has fewer choices or a choice was not measured.
        half_width_ns: half of each 95 % interval, same shape; NaN where unknown.
        skips: same shape; true where a choice leaves its slot out of the network.
        call_ns: latency of an empty network.
        provenance: key of the trial behind each measured choice, by ``slot/choice``.
        calibration: learned from whole networks.
        validation: how well whole networks that were not learned from were predicted.
    """

    key: TableKey
    space: SearchSpace
    latency_ns: NDArray[np.float64]
    half_width_ns: NDArray[np.float64]
    skips: NDArray[np.bool_]
    call_ns: float
    provenance: Mapping[str, str]
    calibration: Calibration = Calibration()
    validation: tuple[Agreement, ...] = ()

    def sum_ns(self, genomes: ArrayLike) -> NDArray[np.float64]:
        """The blocks' sum for each genome, before calibration, shape ``(n,)``.

        Raises:
            TableError: for a gene outside the space, or a choice that was not measured.
        """
        matrix = self.space.check(genomes)
        columns = np.arange(len(self.space.slots))
        active = ~self.skips[columns, matrix]
        net = np.where(active, self.latency_ns[columns, matrix] - self.call_ns, 0.0)
        unknown = np.isnan(net)
        if unknown.any():
            row, column = (int(index) for index in np.argwhere(unknown)[0])
            slot = self.space.slots[column]
            raise TableError(
                f"{slot.name}/{slot.choices[matrix[row, column]]} was not measured on"
                f" {self.key.device} with {self.key.runtime}",
                "measure it, or choose from what the table has",
            )
        total: NDArray[np.float64] = net.sum(axis=1) + self.call_ns
        return total

    def predict_ns(self, genomes: ArrayLike) -> NDArray[np.float64]:
        """The latency of each genome's network, shape ``(n,)``; raises as :meth:`sum_ns`."""
        return self.calibration.scale * self.sum_ns(genomes) + self.calibration.offset_ns

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
        found = agreement(self.predict_ns(genomes), measured_ns, population)
        return replace(self, validation=(*self.validation, found))

    def entries(self) -> list[Entry]:
        """The measured choices, slot by slot."""
        found = []
        for row, slot in enumerate(self.space.slots):
            for column, choice in enumerate(slot.choices):
                if np.isnan(self.latency_ns[row, column]):
                    continue
                half_width = float(self.half_width_ns[row, column])
                found.append(
                    Entry(
                        slot.name,
                        choice,
                        float(self.latency_ns[row, column]),
                        None if np.isnan(half_width) else half_width,
                        self.provenance[f"{slot.name}/{choice}"],
                    )
                )
        return found

    @property
    def sha256(self) -> str:
        """Identifies the table's content."""
        return digest(self._plain())

    def save(self, path: Path) -> None:
        """Write the table as JSON; numbers come back exactly."""
        write_whole(path, (canonical_json(self._plain()) + "\n").encode())

    @classmethod
    def load(cls, path: Path) -> LatencyTable:
        """Read a table.

        Raises:
            TableError: if it is not one, is of another format version, or holds a latency that
                cannot have been measured.
        """
        try:
            data = json.loads(path.read_text())
            if data["format"] != FORMAT_VERSION:
                raise TableError(
                    f"{path} is a table of format {data['format']}, this edgeloop reads"
                    f" {FORMAT_VERSION}"
                )
            table = cls._from_plain(data)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TableError(f"{path} is no latency table: {error}") from error
        shape = (len(table.space.slots), int(table.space.highest.max()) + 1)
        if {a.shape for a in (table.latency_ns, table.half_width_ns, table.skips)} != {shape}:
            raise TableError(f"{path} is no latency table: its numbers do not fit its slots")
        known = np.append(table.latency_ns[~np.isnan(table.latency_ns)], table.call_ns)
        if not ((known > 0) & np.isfinite(known)).all():
            raise TableError(f"{path} holds latencies of zero or less, or infinite: damaged")
        return table

    def _plain(self) -> dict[str, Any]:
        return {
            "format": FORMAT_VERSION,
            "key": asdict(self.key),
            "slots": [{"name": s.name, "choices": list(s.choices)} for s in self.space.slots],
            "latency_ns": _lists(self.latency_ns),
            "half_width_ns": _lists(self.half_width_ns),
            "skips": self.skips.tolist(),
            "call_ns": self.call_ns,
            "provenance": dict(self.provenance),
            "calibration": asdict(self.calibration),
            "validation": [asdict(found) for found in self.validation],
        }

    @classmethod
    def _from_plain(cls, data: Mapping[str, Any]) -> LatencyTable:
        key = dict(data["key"])
        slots = tuple(Slot(slot["name"], tuple(slot["choices"])) for slot in data["slots"])
        return cls(
            key=TableKey(**{**key, "condition": Condition(**key["condition"])}),
            space=SearchSpace(slots),
            latency_ns=_array(data["latency_ns"]),
            half_width_ns=_array(data["half_width_ns"]),
            skips=np.array(data["skips"], dtype=bool),
            call_ns=data["call_ns"],
            provenance=data["provenance"],
            calibration=Calibration(**data["calibration"]),
            validation=tuple(Agreement(**found) for found in data["validation"]),
        )


def build_table(
    key: TableKey,
    space: SearchSpace,
    entries: Mapping[tuple[int, int], tuple[Summary, str] | None],
    call: Summary,
) -> LatencyTable:
    """Put a table together from measured blocks.

    Args:
        key: what the measurements hold for.
        space: slots and choices.
        entries: by (slot, choice) the block's summary and its trial's key, or ``None`` for a
            choice that leaves its slot out; a missing entry was not measured.
        call: summary of the empty network.
    """
    shape = (len(space.slots), int(space.highest.max()) + 1)
    latency_ns = np.full(shape, np.nan)
    half_width_ns = np.full(shape, np.nan)
    skips = np.zeros(shape, dtype=bool)
    provenance = {}
    for (row, column), entry in entries.items():
        if entry is None:
            skips[row, column] = True
            continue
        summary, trial = entry
        slot = space.slots[row]
        latency_ns[row, column] = summary.median_ns
        if summary.ci95_ns is not None:
            half_width_ns[row, column] = (summary.ci95_ns[1] - summary.ci95_ns[0]) / 2
        provenance[f"{slot.name}/{slot.choices[column]}"] = trial
    return LatencyTable(key, space, latency_ns, half_width_ns, skips, call.median_ns, provenance)


def _lists(array: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in array]


def _array(rows: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    return np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=np.float64)
