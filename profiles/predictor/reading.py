"""Measured networks from tables: CSV or Parquet, a row of each network, a column of each gene."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from profiles.errors import ConfigError, UsageError
from profiles.predictor.networks import Networks

Columns = dict[str, list[Any]]
#: So many rows with an unusable target are named; the others are counted.
_NAMED_ROWS = 5


def read_networks(
    path: Path, choices: Sequence[str], target: str, group: str | None = None
) -> Networks:
    """Read measured networks.

    Args:
        path: a file of suffix ``.csv`` or ``.parquet``.
        choices: names of the columns of categorical genes; ``*`` and ``?`` stand for any letters.
        target: name of the column of what was measured, a positive number.
        group: name of the column whose equal rows are never split; ``None``: equal genomes.

    Raises:
        ConfigError: lists every missing column and unusable number.
        UsageError: if the file cannot be read.
    """
    columns = read_columns(path)
    genes, problems = _gene_columns(columns, choices)
    for name in (target, group):
        if name is not None and name not in columns:
            problems.append(_missing(name, columns))
    if target in genes:
        problems.append(f"{target}: is among the choices, and the target too")
    values: list[float] = []
    if target in columns:
        values, wrong = _positive_numbers(columns[target])
        problems += [f"{target}: {problem}" for problem in wrong]
    if problems:
        raise ConfigError(str(path), problems)
    return Networks.of(
        _rows(columns, genes), values, names=genes, groups=columns[group] if group else None
    )


def read_choices(path: Path, names: Sequence[str]) -> list[Sequence[object]]:
    """Rows of these genes, of networks that need not be measured.

    Raises:
        ConfigError: lists every missing column.
        UsageError: if the file cannot be read.
    """
    columns = read_columns(path)
    genes, problems = _gene_columns(columns, names)
    if problems:
        raise ConfigError(str(path), problems)
    return _rows(columns, genes)


def read_columns(path: Path) -> Columns:
    """All columns of a file.

    Raises:
        UsageError: if it cannot be read, is of another suffix, or has no row.
        ConfigError: if columns share a name or a row is longer or shorter than the first.
    """
    readers = {".csv": _read_csv, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise UsageError(
            f"{path}: cannot read files of suffix '{path.suffix}'", "give a .csv or a .parquet"
        )
    try:
        names, rows = readers[path.suffix](path)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
    twice = [name for name, count in Counter(names).items() if count > 1]
    problems = [f"{name}: {names.count(name)} columns have this name" for name in twice]
    problems += [
        f"row {number}: {len(row)} values for {len(names)} columns"
        for number, row in enumerate(rows, start=1)
        if len(row) != len(names)
    ][:_NAMED_ROWS]
    if problems:
        raise ConfigError(str(path), problems)
    if not rows:
        raise UsageError(f"{path} has no rows", "a row of each measured network is needed")
    return {name: [row[index] for row in rows] for index, name in enumerate(names)}


def _read_csv(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        rows = [row for row in csv.reader(stream) if row]
    return [name.strip() for name in (rows[0] if rows else [])], list(rows[1:])


def _read_parquet(path: Path) -> tuple[list[str], list[Sequence[Any]]]:
    from pyarrow import parquet

    with path.open("rb") as stream:
        table = parquet.read_table(stream)
    columns = [column.to_pylist() for column in table.columns]
    return list(table.column_names), list(zip(*columns, strict=True))


def _gene_columns(columns: Columns, choices: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names of the columns that the choices stand for, and what is wrong with them."""
    genes, problems = [], []
    for name in choices:
        found = [column for column in columns if column == name or fnmatchcase(column, name)]
        if not found:
            problems.append(_missing(name, columns))
        genes += [name] if name in columns else found
    problems += [
        f"{name}: is named {count} times among the choices"
        for name, count in Counter(genes).items()
        if count > 1
    ]
    if not choices:
        problems.append("no choices are named: name the columns of genes")
    return genes, problems


def _missing(name: str, columns: Columns) -> str:
    near = get_close_matches(name, columns, n=3, cutoff=0.5)
    known = f"did you mean {' or '.join(near)}?" if near else f"there are {_some(list(columns))}"
    return f"{name}: there is no such column; {known}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _positive_numbers(column: Sequence[Any]) -> tuple[list[float], list[str]]:
    values, problems = [], []
    for number, value in enumerate(column, start=1):
        try:
            found = float(value)
        except (TypeError, ValueError):
            found = math.nan
        values.append(found)
        if not (math.isfinite(found) and found > 0):
            shown = "nothing" if value in (None, "") else repr(value)
            problems.append(f"row {number} has {shown}, which is no positive number")
    more = len(problems) - _NAMED_ROWS
    if more > 0:
        problems = [*problems[:_NAMED_ROWS], f"and so have {more} more rows"]
    return values, problems


def _rows(columns: Columns, genes: Sequence[str]) -> list[Sequence[object]]:
    return list(zip(*(columns[name] for name in genes), strict=True))
