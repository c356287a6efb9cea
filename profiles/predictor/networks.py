"""Measured networks: categorical genes, one positive quantity, and whom each row belongs to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from profiles.errors import UsageError

Codes = NDArray[np.int64]
Floats = NDArray[np.float64]
#: Choices of networks, numbers or words, shape ``(n, genes)``.
Rows = NDArray[Any] | Sequence[Sequence[object]]
#: The code of a choice that no training row has.
UNSEEN = -1


def label(value: object) -> str:
    """A choice as text: 3, 3.0 and "3" are one choice, and what is missing is the choice ""."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    text = str(value).strip()
    number = _number(text)
    if number is not None and number.is_integer() and abs(number) < 2**53:
        return str(int(number))
    return text


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True, slots=True)
class Choices:
    """The genes of a search space and the choices seen of each.

    A gene that has no effect in some networks (a block beyond the stage's depth) has a choice of
    its own there, for instance "" or 0.

    Args:
        names: one of each gene.
        levels: the choices of each gene, numbers by size before words by alphabet.
    """

    names: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, rows: Sequence[Sequence[object]], names: Sequence[str] = ()) -> Choices:
        """All choices that these rows have.

        Args:
            rows: shape ``(n, genes)``, numbers or words.
            names: of the genes; g0, g1, ... if there are none.

        Raises:
            UsageError: for rows of different lengths.
        """
        if len({len(row) for row in rows}) != 1:
            raise UsageError("networks of one space have equally many genes, at least one network")
        columns = list(zip(*rows, strict=True))
        return cls(
            tuple(names) or tuple(f"g{index}" for index in range(len(columns))),
            tuple(_ordered({label(value) for value in column}) for column in columns),
        )

    def encode(self, rows: Rows) -> Codes:
        """Rows as integers, shape ``(n, genes)``; a choice that is not listed is ``UNSEEN``.

        Args:
            rows: choices, numbers or words, shape ``(n, genes)``; quick for an array of integers.

        Raises:
            UsageError: for rows of another number of genes.
        """
        if any(len(row) != len(self.names) for row in rows):
            raise UsageError(f"a network has {len(self.names)} genes: {', '.join(self.names)}")
        codes = np.full((len(rows), len(self.names)), UNSEEN, dtype=np.int64)
        for column, levels in enumerate(self.levels):
            if isinstance(rows, np.ndarray) and rows.dtype.kind in "iu":
                for code, level in enumerate(levels):
                    if level.lstrip("-").isdecimal():
                        codes[rows[:, column] == int(level), column] = code
                continue
            of = {level: code for code, level in enumerate(levels)}
            codes[:, column] = [of.get(label(row[column]), UNSEEN) for row in rows]
        return codes

    def decode(self, codes: Codes) -> list[list[str]]:
        """The choices that these codes stand for; none of them may be ``UNSEEN``."""
        return [
            [levels[code] for levels, code in zip(self.levels, row, strict=True)]
            for row in codes.tolist()
        ]


def _ordered(levels: Iterable[str]) -> tuple[str, ...]:
    def place(level: str) -> tuple[bool, float, str]:
        number = _number(level)
        return number is None, number or 0.0, level

    return tuple(sorted(levels, key=place))


def is_number(level: str) -> bool:
    """Whether a choice has a place among numbers."""
    return _number(level) is not None


@dataclass(frozen=True, slots=True, eq=False)
class Networks:
    """Measured networks.

    Args:
        choices: what the codes stand for.
        codes: shape ``(n, genes)``.
        target: what was measured, shape ``(n,)``, positive.
        groups: shape ``(n,)``, integers; rows of one group are never split between training and
            testing.
        features: further numbers known of each network, shape ``(n, features)``.
    """

    choices: Choices
    codes: Codes
    target: Floats
    groups: Codes
    features: Floats

    @classmethod
    def of(
        cls,
        rows: Rows,
        target: ArrayLike,
        *,
        names: Sequence[str] = (),
        groups: Sequence[object] | None = None,
        features: ArrayLike | None = None,
    ) -> Networks:
        """Networks from plain rows.

        Args:
            rows: choices, numbers or words, shape ``(n, genes)``.
            target: positive, shape ``(n,)``.
            names: of the genes.
            groups: one of each row; equal genomes are a group if there are none.
            features: shape ``(n, features)``.

        Raises:
            UsageError: if lengths differ, there is no row, or a number cannot be.
        """
        plain = plain_rows(rows)
        measured = np.asarray(target, dtype=np.float64)
        if not plain or measured.shape != (len(plain),):
            raise UsageError(f"{len(plain)} networks with {measured.size} measurements")
        wrong = np.flatnonzero(~(np.isfinite(measured) & (measured > 0)))
        if wrong.size:
            raise UsageError(f"measurement {wrong[0]} is {measured[wrong[0]]}, not positive")
        choices = Choices.of(plain, names)
        codes = choices.encode(plain)
        return cls(
            choices,
            codes,
            measured,
            same_rows(codes) if groups is None else _numbered(groups, len(plain)),
            _features(features, len(plain)),
        )

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Networks:
        """These rows alone; the choices stay those of all."""
        return Networks(
            self.choices,
            self.codes[rows],
            self.target[rows],
            self.groups[rows],
            self.features[rows],
        )


def plain_rows(rows: Rows) -> list[Sequence[object]]:
    """Rows as a list."""
    return rows.tolist() if isinstance(rows, np.ndarray) else list(rows)


def same_rows(codes: Codes) -> Codes:
    """One number for each distinct row, shape ``(n,)``."""
    return np.unique(codes, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _numbered(groups: Sequence[object], count: int) -> Codes:
    if len(groups) != count:
        raise UsageError(f"{count} networks with {len(groups)} groups")
    of = {name: number for number, name in enumerate(dict.fromkeys(map(label, groups)))}
    return np.array([of[label(name)] for name in groups], dtype=np.int64)


def _features(features: ArrayLike | None, count: int) -> Floats:
    if features is None:
        return np.empty((count, 0))
    matrix = np.asarray(features, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) != count or not np.isfinite(matrix).all():
        raise UsageError("features are finite numbers, a row of them for each network")
    return matrix
