"""What the command line prints: progress and problems on standard error, results on standard
output."""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from profiles import units
from profiles.findings import Measurement

_QUIET_S = 2.0
#: Columns of a plain terminal.
WIDTH = 80


def print_json(value: Any) -> None:
    """Machine-readable output: JSON, indented."""

    def plain(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return dataclasses.asdict(item)
        return str(item)

    print(json.dumps(value, indent=2, default=plain))


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, width: int = 100
) -> None:
    """A table; columns whose name starts with ``>`` are aligned to the right, and never broken.

    Args:
        title: above it.
        columns: their names.
        rows: of cells.
        width: of what is piped; a terminal has its own.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        right = column.startswith(">")
        table.add_column(
            column.lstrip(">"),
            justify="right" if right else "left",
            overflow="fold",
            no_wrap=right,
        )
    for row in rows:
        table.add_row(*row)
    # Piped output does not shrink to whatever terminal may be around.
    console = Console(width=None if sys.stdout.isatty() else width, highlight=False)
    if title:
        console.print(title, style="italic", markup=False)
    console.print(table)


def complain(text: str) -> None:
    """One line for people on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """A progress callback: a live line on a terminal, else a plain line now and then.

    Written to a duplicate of standard error: converters are silenced by turning the original away.
    """
    start = time.monotonic()
    with os.fdopen(os.dup(2), "w") as stream:
        # A converter that crashes in C++ must not take its last words with it.
        faulthandler.enable(stream)
        try:
            yield from _live(stream, start) if stream.isatty() else _plain(stream, start)
        finally:
            faulthandler.disable()


def _live(stream: TextIO, start: float) -> Iterator[Callable[[str], None]]:
    from rich.console import Console

    with Console(file=stream).status("") as status:

        def show(text: str) -> None:
            status.update(f"[dim]{time.monotonic() - start:4.0f} s[/dim] {text}")

        yield show


def _plain(stream: TextIO, start: float) -> Iterator[Callable[[str], None]]:
    last_kind, last_time = "", start

    def show(text: str) -> None:
        nonlocal last_kind, last_time
        kind, now = text.partition(":")[0], time.monotonic()
        if kind != last_kind or now - last_time >= _QUIET_S:
            print(f"{now - start:5.0f} s  {text}", file=stream, flush=True)
            last_kind, last_time = kind, now

    yield show


def device_label(m: Measurement) -> str:
    """The device, with a mark where its times say nothing about real hardware."""
    return f"{m.device} (emulated)" if m.emulated else m.device or "-"


def latency_cells(m: Measurement) -> tuple[str, str]:
    """Median in ms, and the half-width of its interval; what is unknown says so."""
    if m.median_ns is None:
        return units.UNKNOWN, "-"
    return units.format_ms(m.median_ns), units.format_half_width(m.median_ns, m.ci95_ns)
