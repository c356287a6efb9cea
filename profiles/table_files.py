"""Files of latency tables: JSON and Parquet, both exact, as ``docs/latency-table.md`` says.

What cannot have been measured is refused when a file is read, with the place it stands at.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from profiles.canonical import canonical_json
from profiles.costs import OBJECTIVES, Cost, Costs, Objective, Place
from profiles.durable import write_whole
from profiles.errors import TableFileError
from profiles.records import Condition
from profiles.space import SearchSpace, Slot
from profiles.statistics import Agreement
from profiles.table import Calibration, LatencyTable, TableKey

FORMAT_VERSION = 2
PARQUET = ".parquet"
_METADATA = b"edgeloop.table"
_COLUMNS = (
    "slot",
    "choice",
    "objective",
    "value",
    "half_width",
    "n",
    "trial",
    "signature",
    "skips",
)
#: Problems of a file that are listed; the others are counted.
_MOST_LISTED = 8

Plain = dict[str, Any]


def save(table: LatencyTable, path: Path) -> None:
    """Write a table whole: as Parquet where the path ends so, else as JSON."""
    if path.suffix == PARQUET:
        write_whole(path, _parquet(table))
    else:
        write_whole(path, (canonical_json(to_plain(table)) + "\n").encode())


def load(path: Path) -> LatencyTable:
    """Read a table.

    Raises:
        TableFileError: if the file is no table, is of another format version, or holds values
            that cannot have been measured; all that is wrong with its values at once.
    """
    try:
        data = _read_parquet(path) if path.suffix == PARQUET else _read_json(path)
        if data["format"] not in (1, FORMAT_VERSION):
            raise TableFileError(
                f"{path} is a table of format {data['format']}, this edgeloop reads"
                f" 1 to {FORMAT_VERSION}",
                "read it with the edgeloop that wrote it",
            )
        table = _from_plain(_upgraded(data) if data["format"] == 1 else data)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise TableFileError(f"{path} is no latency table: {error}") from error
    if found := problems(table):
        more = f"; and {len(found) - _MOST_LISTED} more" if len(found) > _MOST_LISTED else ""
        raise TableFileError(
            f"{path} is damaged: {'; '.join(found[:_MOST_LISTED])}{more}", "measure it again"
        )
    return table


def problems(table: LatencyTable) -> list[str]:
    """What in a table cannot have been measured, one clause each; holes are no problem here."""
    found = []
    names = [slot.name for slot in table.space.slots]
    found += [f"slot {name} is there twice" for name in sorted(names) if names.count(name) > 1]
    for slot in table.space.slots:
        twice = sorted({c for c in slot.choices if slot.choices.count(c) > 1})
        found += [f"{slot.name}/{choice} is there twice" for choice in twice]
    for name, costs in table.costs.items():
        found += [
            f"{where} of {name} is {number:g}: zero or less, or infinite"
            for where, number in _numbers(table.space, costs.value, costs.shared.value)
            if not 0 < number < np.inf
        ]
        shared = np.nan if costs.shared.half_width is None else costs.shared.half_width
        found += [
            f"half an interval of {where} of {name} is {number:g}"
            for where, number in _numbers(table.space, costs.half_width, shared)
            if not 0 <= number < np.inf
        ]
    return found


def _numbers(
    space: SearchSpace, values: NDArray[np.float64], shared: float
) -> list[tuple[str, float]]:
    """All that is known, with where it stands."""
    found = [] if np.isnan(shared) else [("the empty network", shared)]
    for row, column in np.argwhere(~np.isnan(values)):
        choices = space.slots[row].choices
        choice = choices[column] if column < len(choices) else f"choice {column}"
        found.append((f"{space.slots[row].name}/{choice}", float(values[row, column])))
    return found


def to_plain(table: LatencyTable) -> Plain:
    """A table as plain data: what its JSON file and its digest are made of."""
    return {
        **_about(table),
        "skips": table.skips.tolist(),
        "signatures": _texts(table.signatures, table.skips.shape),
        "costs": {name: _costs_plain(costs) for name, costs in table.costs.items()},
    }


def _about(table: LatencyTable) -> Plain:
    """All of a table but its cells."""
    return {
        "format": FORMAT_VERSION,
        "key": asdict(table.key),
        "slots": [{"name": s.name, "choices": list(s.choices)} for s in table.space.slots],
        "measured_ns": table.measured_ns,
        "calibration": asdict(table.calibration),
        "validation": [asdict(found) for found in table.validation],
    }


def _costs_plain(costs: Costs) -> Plain:
    return {
        "value": _lists(costs.value),
        "half_width": _lists(costs.half_width),
        "n": costs.n.tolist(),
        "shared": asdict(costs.shared),
        "trials": _texts(costs.trials, costs.value.shape),
    }


def _from_plain(data: Mapping[str, Any]) -> LatencyTable:
    key = dict(data["key"])
    key["condition"] = Condition(**key["condition"])
    key["delegates"] = tuple(key["delegates"])
    slots = tuple(Slot(slot["name"], tuple(slot["choices"])) for slot in data["slots"])
    space = SearchSpace(slots)
    shape = (len(slots), int(space.highest.max()) + 1)
    skips = np.array(data["skips"], dtype=bool)
    costs = {_objective(name): _costs(found, shape) for name, found in data["costs"].items()}
    if skips.shape != shape or "latency_ns" not in costs:
        raise ValueError("its numbers do not fit its slots, or it has no latencies")
    return LatencyTable(
        key=TableKey(**key),
        space=space,
        skips=skips,
        costs=costs,
        signatures=_by_place(data["signatures"], shape),
        measured_ns=data["measured_ns"],
        calibration=Calibration(**data["calibration"]),
        validation=tuple(Agreement(**found) for found in data["validation"]),
    )


def _objective(name: str) -> Objective:
    for objective in OBJECTIVES:
        if name == objective:
            return objective
    raise ValueError(f"{name} is none of the objectives {', '.join(OBJECTIVES)}")


def _costs(found: Mapping[str, Any], shape: tuple[int, int]) -> Costs:
    value, half_width = _array(found["value"]), _array(found["half_width"])
    n = np.array(found["n"], dtype=np.int64)
    if {value.shape, half_width.shape, n.shape} != {shape}:
        raise ValueError("its numbers do not fit its slots")
    shared = Cost(**found["shared"])
    return Costs(value, half_width, n, shared, _by_place(found["trials"], shape))


def _upgraded(data: Plain) -> Plain:
    """A file of format 1 as one of format 2: latency alone, and no signatures."""
    shape = np.array(data["skips"]).shape
    trials: dict[Place, str] = {
        (row, column): data["provenance"][f"{slot['name']}/{choice}"]
        for row, slot in enumerate(data["slots"])
        for column, choice in enumerate(slot["choices"])
        if f"{slot['name']}/{choice}" in data["provenance"]
    }
    latency = {
        "value": data["latency_ns"],
        "half_width": data["half_width_ns"],
        "n": np.zeros(shape, dtype=int).tolist(),
        "shared": asdict(Cost(data["call_ns"])),
        "trials": _texts(trials, shape),
    }
    return {
        **{name: data[name] for name in ("slots", "skips", "calibration", "validation")},
        "key": {**asdict(TableKey(**data["key"])), "condition": data["key"]["condition"]},
        "measured_ns": None,
        "signatures": _texts({}, shape),
        "costs": {"latency_ns": latency},
    }


def _read_json(path: Path) -> Plain:
    data: Plain = json.loads(
        path.read_text(), object_pairs_hook=_once, parse_constant=_refuse_constant
    )
    return data


def _once(pairs: Sequence[tuple[str, Any]]) -> Plain:
    """A mapping of which no key is there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)} is there twice")
    return found


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} stands where a number must")


def _parquet(table: LatencyTable) -> bytes:
    """One row for each slot, choice and objective; all else as JSON in the file's metadata."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for name, costs in table.costs.items():
        for row, slot in enumerate(table.space.slots):
            for column, choice in enumerate(slot.choices):
                place = row, column
                cost = costs.at(place)
                cells = (slot.name, choice, name, cost.value if cost else None,
                         cost.half_width if cost else None, cost.n if cost else 0,
                         costs.trials.get(place, ""), table.signatures.get(place, ""),
                         bool(table.skips[place]))  # fmt: skip
                rows.append(dict(zip(_COLUMNS, cells, strict=True)))
    about = {**_about(table), "shared": {name: asdict(c.shared) for name, c in table.costs.items()}}
    kinds = (pa.string(),) * 3 + (pa.float64(),) * 2 + (pa.int64(),) + (pa.string(),) * 2
    schema = pa.schema(
        list(zip(_COLUMNS, (*kinds, pa.bool_()), strict=True)),
        metadata={_METADATA: canonical_json(about).encode()},
    )
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink)
    return sink.getvalue()


def _read_parquet(path: Path) -> Plain:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        read = pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(str(error).splitlines()[0]) from error
    about: Plain = json.loads((read.schema.metadata or {})[_METADATA])
    if about["format"] != FORMAT_VERSION:
        return about
    slots = about["slots"]
    places = {
        (slot["name"], choice): (row, column)
        for row, slot in enumerate(slots)
        for column, choice in enumerate(slot["choices"])
    }
    shape = len(slots), max(len(slot["choices"]) for slot in slots)
    costs: Plain = {name: _empty(shape, shared) for name, shared in about.pop("shared").items()}
    skips = np.zeros(shape, dtype=bool)
    signatures = _texts({}, shape)
    seen = set()
    for cells in read.to_pylist():
        where = cells["slot"], cells["choice"], cells["objective"]
        if where in seen:
            raise ValueError(f"{where[0]}/{where[1]} has two rows of {where[2]}")
        seen.add(where)
        if where[:2] not in places:
            raise ValueError(f"{where[0]}/{where[1]} is not in its space")
        row, column = places[where[0], where[1]]
        one = costs[cells["objective"]]
        if cells["value"] is not None and np.isnan(cells["value"]):
            raise ValueError(f"{where[0]}/{where[1]} of {where[2]} is NaN")
        for name, kind in (
            ("value", "value"),
            ("half_width",) * 2,
            ("n",) * 2,
            ("trials", "trial"),
        ):
            one[name][row][column] = cells[kind]
        skips[row, column] = cells["skips"]
        signatures[row][column] = cells["signature"]
    return {**about, "costs": costs, "skips": skips.tolist(), "signatures": signatures}


def _empty(shape: tuple[int, int], shared: Plain) -> Plain:
    def filled(value: Any) -> list[list[Any]]:
        return [[value] * shape[1] for _ in range(shape[0])]

    return {
        "value": filled(None), "half_width": filled(None), "n": filled(0), "trials": filled(""),
        "shared": shared,
    }  # fmt: skip


def _texts(texts: Mapping[Place, str], shape: tuple[int, ...]) -> list[list[str]]:
    return [[texts.get((row, c), "") for c in range(shape[1])] for row in range(shape[0])]


def _by_place(texts: Sequence[Sequence[str]], shape: tuple[int, int]) -> dict[Place, str]:
    if len(texts) != shape[0] or any(len(row) != shape[1] for row in texts):
        raise ValueError("its texts do not fit its slots")
    return {(r, c): text for r, row in enumerate(texts) for c, text in enumerate(row) if text}


def _lists(array: NDArray[np.float64]) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in array]


def _array(rows: Sequence[Sequence[float | None]]) -> NDArray[np.float64]:
    return np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=np.float64)
