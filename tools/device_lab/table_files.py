"""``table validate|diff|export``: a table's file checked, compared, and in other formats."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.device_lab.output import WIDTH, print_json, print_table
from tools.device_lab.running import AsJson

if TYPE_CHECKING:
    from profiles.table import LatencyTable

TableFile = Annotated[Path, typer.Argument(metavar="TABLE", help="A table: .json or .parquet.")]


def validate(
    table: TableFile,
    device: Annotated[str | None, typer.Option(help="The device it must be of.")] = None,
    runtime: Annotated[str | None, typer.Option(help="The runtime it must be of.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a table's file, and print how well it predicted whole networks.

    Exit code 1 if choices are not measured, or the last validation fails; 2 if the file is damaged
    or of something else.

    Example: device-lab table validate work/tables/mymodel-pi5-onnx-1t.json --device pi5
    """
    from profiles.demands import demand, failing
    from profiles.table import LatencyTable

    loaded = LatencyTable.load(table)
    demand(loaded, device=device, runtime=runtime)
    slots = loaded.space.slots
    wrong = [
        f"{slots[row].name}/{slots[row].choices[column]} has no {name}"
        for name in loaded.costs
        for row, column in loaded.holes(name)
    ]
    wrong += failing(loaded.validation[-1]) if loaded.validation else []
    if as_json:
        print_json({"problems": wrong, "validation": loaded.validation})
    else:
        rows = [
            [v.population, str(v.n), f"{v.mape:.1%}", f"{v.within_5_percent:.0%}",
             f"{v.within_10_percent:.0%}", _two(v.spearman), _two(v.kendall),
             _two(v.interval_coverage)]
            for v in loaded.validation
        ]  # fmt: skip
        columns = ["population", ">n", ">MAPE", ">5 %", ">10 %", ">rho", ">tau", ">covered"]
        print_table("", columns, rows, width=WIDTH)
        print("\n".join(wrong) or f"{table}: no problems")
    if wrong:
        raise typer.Exit(1)


def diff(before: TableFile, now: TableFile, as_json: AsJson = False) -> None:
    """Compare two tables: what their keys differ in, and each choice's latency as a ratio.

    Example: device-lab table diff old.json new.json
    """
    from profiles.table import LatencyTable

    first, second = LatencyTable.load(before), LatencyTable.load(now)
    keys = {
        name: [getattr(first.key, name), getattr(second.key, name)]
        for name in first.key.__dataclass_fields__
        if getattr(first.key, name) != getattr(second.key, name)
    }
    ratios = _ratios(first, second)
    if as_json:
        print_json({"key": keys, "ratios": ratios})
        return
    for name, (old, new) in keys.items():
        print(f"{name}: {old} -> {new}")
    rows = [[r["slot"], r["choice"], _two(r["ratio"]), _interval(r["ci95"])] for r in ratios]
    print_table("now / before", ["slot", "choice", ">ratio", ">95 %"], rows, width=WIDTH)


def export(
    table: TableFile,
    to: Annotated[Path, typer.Argument(metavar="FILE", help=".json, .parquet or .yaml.")],
    as_json: AsJson = False,
) -> None:
    """Write a table in another format: JSON and Parquet are exact, YAML is once-for-all's.

    Example: device-lab table export work/tables/mymodel-pi5-onnx-1t.json table.parquet
    """
    from profiles.errors import UsageError
    from profiles.once_for_all import blocks_of, write_yaml
    from profiles.table import LatencyTable

    if to.suffix not in (".json", ".parquet", ".yaml"):
        raise UsageError(f"{to}: unknown format", "end it with .json, .parquet or .yaml")
    loaded = LatencyTable.load(table)
    if not to.absolute().parent.is_dir():
        raise UsageError(f"{to}: there is no folder {to.parent}", "make it first")
    if to.suffix == ".yaml":
        write_yaml(blocks_of(loaded), to)
    else:
        loaded.save(to)
    print_json({"table": str(to)}) if as_json else print(to)


def _ratios(first: LatencyTable, second: LatencyTable) -> list[dict[str, Any]]:
    """Every choice of either table; ``None`` where one of them has no number or no interval."""
    old, new = ({(e.slot, e.choice): e for e in table.entries()} for table in (first, second))
    found = []
    for slot, choice in dict.fromkeys([*old, *new]):
        a, b = old.get((slot, choice)), new.get((slot, choice))
        row: dict[str, Any] = {"slot": slot, "choice": choice, "ratio": None, "ci95": None}
        if a and b:
            row["ratio"] = ratio = b.latency_ns / a.latency_ns
            if a.half_width_ns is not None and b.half_width_ns is not None:
                # Independent relative errors add in quadrature.
                half = math.hypot(a.half_width_ns / a.latency_ns, b.half_width_ns / b.latency_ns)
                row["ci95"] = [ratio * math.exp(-half), ratio * math.exp(half)]
        found.append(row)
    return found


def _two(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _interval(ends: list[float] | None) -> str:
    return "unknown" if ends is None else f"{ends[0]:.3f}-{ends[1]:.3f}"
