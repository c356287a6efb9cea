"""What a search has measured, kept so that it can be taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.search.goals import Front, front
from pipeline.search.nsga2 import Scores, keys
from profiles.durable import write_whole
from profiles.errors import UsageError
from profiles.space import Genomes, SearchSpace

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Measurements of some genomes.

    Args:
        values: shape ``(n, objectives)``; NaN where measuring failed.
        half_widths: of their 95 % intervals, same shape; NaN where unknown.
        why: of each one that failed, in words; empty for the others and where none is told.
    """

    values: Floats
    half_widths: Floats
    why: tuple[str, ...]

    @classmethod
    def of(cls, values: Floats) -> Measured:
        """Without intervals."""
        return cls(values, np.full_like(values, np.nan), ("",) * len(values))


@dataclass(frozen=True, slots=True)
class Round:
    """One round: its number from 0, how many it measured, whether it was predicted."""

    number: int
    measured: int
    agrees: bool


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """Everything measured, in order.

    Args:
        genomes: shape ``(n, slots)``.
        values, half_widths: shape ``(n, objectives)``.
        why: for each, why it failed; empty where it did not.
        rounds: what each round did.
    """

    genomes: Genomes
    values: Floats
    half_widths: Floats
    why: tuple[str, ...] = ()
    rounds: tuple[Round, ...] = ()

    @classmethod
    def empty(cls, slots: int) -> Record:
        """Before anything was measured."""
        return cls(np.empty((0, slots), dtype=np.int64), np.empty((0, 0)), np.empty((0, 0)))

    def front(self, score: Callable[[Floats], Scores] = Scores.of) -> Front:
        """The measured networks that no other dominates; those that failed are not in it."""
        return front(score(self.values))

    def followed_by(self, genomes: Genomes, found: Measured, step: Round) -> Record:
        """With one more round."""
        if not len(self.genomes):
            return Record(genomes, found.values, found.half_widths, found.why, (step,))
        return Record(
            np.vstack([self.genomes, genomes]),
            np.vstack([self.values, found.values]),
            np.vstack([self.half_widths, found.half_widths]),
            (*self.why, *found.why),
            (*self.rounds, step),
        )

    def recall(self, genomes: Genomes, measure: Callable[[Genomes], Measured]) -> Measured:
        """What is known of these genomes; only the others are measured."""
        place = {int(key): row for row, key in enumerate(keys(self.genomes))}
        rows = np.array([place.get(int(key), -1) for key in keys(genomes)])
        new = rows < 0
        if not new.any():
            return Measured(
                self.values[rows], self.half_widths[rows], tuple(self.why[row] for row in rows)
            )
        found = measure(genomes[new])
        if new.all():
            return found
        values = self.values[rows].copy()
        half_widths = self.half_widths[rows].copy()
        values[new], half_widths[new] = found.values, found.half_widths
        told = iter(found.why)
        return Measured(
            values, half_widths, tuple(next(told) if row < 0 else self.why[row] for row in rows)
        )

    def save(self, path: Path) -> None:
        """As JSON; what is not a number is null."""
        plain = {
            "genomes": self.genomes.tolist(),
            "values": _lists(self.values),
            "half_widths": _lists(self.half_widths),
            "why": list(self.why),
            "rounds": [asdict(step) for step in self.rounds],
        }
        write_whole(path, json.dumps(plain, allow_nan=False).encode())

    @classmethod
    def load(cls, path: Path, space: SearchSpace) -> Record:
        """Read what was saved.

        Raises:
            UsageError: if the file is no record of a search.
            TableError: if a genome in it is outside the space.
        """
        try:
            plain = json.loads(path.read_text())
            genomes = np.array(plain["genomes"], dtype=np.int64)
            values, half_widths = _array(plain["values"]), _array(plain["half_widths"])
            rounds = tuple(Round(**step) for step in plain["rounds"])
            why = tuple(str(words) for words in plain["why"])
            if values.shape != half_widths.shape or not len(values) == len(genomes) == len(why):
                raise ValueError("rows are missing")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path} is no record of a search: {error}") from error
        if not len(genomes):
            return cls.empty(len(space.slots))
        return cls(space.check(genomes), values, half_widths, why, rounds)


def _lists(array: Floats) -> list[list[float | None]]:
    return [[float(cell) if np.isfinite(cell) else None for cell in row] for row in array]


def _array(rows: list[list[float | None]]) -> Floats:
    return np.array(
        [[np.nan if cell is None else cell for cell in row] for row in rows], dtype=float
    )
