"""What the command line prints: progress and problems on standard error, results on standard
output."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from profiles import units
from profiles.records import Measurement

_QUIET_S = 2.0


def print_json(value: Any) -> None:
    """Machine-readable output: JSON, indented."""

    def plain(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        return str(item)

    print(json.dumps(value, indent=2, default=plain))


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; columns whose name starts with ``>`` are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title or None, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Piped output is not bound to a terminal's width.
    Console(width=None if sys.stdout.isatty() else 100, highlight=False).print(table)


def complain(text: str) -> None:
    """One line for people on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A progress callback: a live line on a terminal, else a plain line now and then."""
    start = time.monotonic()
    if sys.stderr.isatty():
        from rich.console import Console

        console = Console(stderr=True)
        with console.status("") as status:

            def show(text: str) -> None:
                status.update(f"[dim]{time.monotonic() - start:4.0f} s[/dim] {text}")

            yield show
        return
    last_kind, last_time = "", start

    def log(text: str) -> None:
        nonlocal last_kind, last_time
        kind, now = text.partition(":")[0], time.monotonic()
        if kind != last_kind or now - last_time >= _QUIET_S:
            complain(f"{now - start:5.0f} s  {text}")
            last_kind, last_time = kind, now

    yield log


def measurement_json(m: Measurement) -> dict[str, Any]:
    """A measurement as ``--json`` lists it."""
    return dataclasses.asdict(m)


def device_label(m: Measurement) -> str:
    """The device, with a mark where its times say nothing about real hardware."""
    return f"{m.device} (emulated)" if m.emulated else m.device or "-"


def latency_cells(m: Measurement) -> tuple[str, str]:
    """Median and interval in ms; what is unknown says so."""
    if m.median_ns is None:
        return units.UNKNOWN, "-"
    return units.format_ms(m.median_ns), units.format_interval_ms(m.ci95_ns)
