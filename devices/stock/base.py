"""What every stock tool is asked, and what it answers.

A stock tool is a runtime's own benchmark program.  Its figures are its own: aggregates of one run,
by its definitions, in its units.  They stand beside our measurements, never among them.  This
package is the one place where those units become ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Protocol

from devices.transport.base import Completed, Transport
from profiles.errors import AgentError, UsageError

DEADLINE_S = 600.0
#: A number as these tools print it; its length is bounded, so that converting it is cheap.
NUMBER = r"[0-9]{1,18}(?:\.[0-9]{1,18})?(?:[eE][+-]?[0-9]{1,2})?"

_NS_PER_UNIT = {"s": 10**9, "ms": 10**6, "us": 10**3}
_LONGEST_NS = 1 << 63
_NOT_THERE = (126, 127)


@dataclass(frozen=True, slots=True)
class StockRun:
    """What is asked of a tool.

    Attributes:
        program: the tool on the device.
        artifact: the model on the device.
        threads: how many the runtime shall use.
        iterations: timed calls.
        warmup: calls before them, where the tool can make any.
        delegate: what shall execute the whole model, in the tool's own words; ``None`` leaves it
            to the runtime.
        memory: ask for the peak of memory, which disturbs the times of the same run.
        limit_s: seconds after which the tool shall stop by itself, where it can.
    """

    program: str
    artifact: str
    threads: int = 1
    iterations: int = 50
    warmup: int = 5
    delegate: str | None = None
    memory: bool = False
    limit_s: float = DEADLINE_S / 3


@dataclass(frozen=True, slots=True)
class StockResult:
    """A tool's own figures; what it does not tell is ``None``.

    Attributes:
        tool, runtime: who measured what.
        n: timed calls.
        mean_ns, min_ns, max_ns, p50_ns, std_ns: of those calls.
        load_ns: from the file to a model that can be called.
        first_ns: the first call of the process.
        samples_ns: every timed call, in order.
        peak_bytes: the process's largest memory.
        delegates: what took part, in the tool's words.
        notes: what a reader of the figures must know.
    """

    tool: str
    runtime: str
    n: int
    mean_ns: int
    min_ns: int | None = None
    max_ns: int | None = None
    p50_ns: int | None = None
    std_ns: int | None = None
    load_ns: int | None = None
    first_ns: int | None = None
    samples_ns: tuple[int, ...] | None = None
    peak_bytes: int | None = None
    delegates: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()


class StockTool(Protocol):
    """One runtime's benchmark program; ``ending`` is that of the files it takes."""

    name: str
    runtime: str
    ending: str

    def command(self, run: StockRun) -> list[str]:
        """The program and its arguments.

        Raises:
            UsageError: the tool cannot do what is asked.
        """

    def parse(self, run: StockRun, done: Completed) -> StockResult:
        """Read what the tool printed.

        Raises:
            AgentError: it failed, measured nothing, fell back to the CPU, or its output is not
                whole.
        """


def run_stock(
    transport: Transport,
    tool: StockTool,
    program: str,
    artifact_path: str,
    *,
    threads: int,
    iterations: int,
    delegate: str | None = None,
    memory: bool = False,
    deadline_s: float = DEADLINE_S,
) -> StockResult:
    """Run a stock tool on a device.

    Args:
        transport: the connection to the device.
        tool: which tool the program is.
        program: where it is on the device.
        artifact_path: the model's path on the device.
        threads, iterations, delegate: see :class:`StockRun`.
        memory: whether a peak of memory is wanted; a tool whose times suffer from that is run a
            second time for it.
        deadline_s: seconds each of these runs may take.

    Raises:
        UsageError: the tool cannot do what is asked.
        AgentError: it failed; see :meth:`StockTool.parse`.
        ConnectionLost, DeadlineExceeded: as the transport says.
    """
    run = StockRun(
        program, artifact_path, threads, iterations, delegate=delegate, limit_s=deadline_s / 3
    )

    def once(asked: StockRun) -> StockResult:
        return tool.parse(asked, transport.run(tool.command(asked), deadline_s=deadline_s))

    if not memory:
        return once(run)
    for_memory = replace(run, memory=True)
    tool.command(for_memory)  # refused before anything runs, if at all
    result = once(run)
    if result.peak_bytes is None:
        result = replace(result, peak_bytes=once(for_memory).peak_bytes)
    return result


def stock_tool(tools: Iterable[StockTool], ending: str) -> StockTool:
    """The tool for files of this ending.

    Raises:
        UsageError: there is none.
    """
    known = {tool.ending: tool for tool in tools}
    if ending not in known:
        raise UsageError(
            f"no stock tool takes {ending or 'files without an ending'}",
            f"known: {', '.join(f'{e} ({t.name})' for e, t in known.items())}",
        )
    return known[ending]


def output(tool: str, done: Completed) -> str:
    """Both streams of a run that ended well.

    Raises:
        AgentError: the program is missing, or its exit code is not 0.
    """
    if done.exit_code in _NOT_THERE:
        raise AgentError(
            f"{tool} cannot be started: {done.complaint()}",
            "is the path right, is the file executable, and built for this device?",
        )
    if done.exit_code != 0:
        raise AgentError(f"{tool} failed with exit code {done.exit_code}: {done.complaint()[:300]}")
    return text(done)


def text(done: Completed) -> str:
    """The whole lines of both streams: a last one without its end was cut off, and is left out."""
    streams = (
        stream.decode(errors="replace").replace("\r\n", "\n")
        for stream in (done.stdout, done.stderr)
    )
    return "".join(said[: said.rfind("\n") + 1] for said in streams)


def find(pattern: str, said: str) -> re.Match[str] | None:
    """The last place in a tool's output that matches."""
    found = list(re.finditer(pattern, said, re.MULTILINE | re.ASCII))
    return found[-1] if found else None


def incomplete(tool: str, missing: str) -> AgentError:
    """The error for output that lacks something every whole output has."""
    return AgentError(
        f"{tool} does not tell {missing}",
        "it broke off, or is of a version whose output is not known",
    )


def ns(tool: str, number: str, unit: str) -> int:
    """A time as nanoseconds.

    Args:
        tool: for the error.
        number: as :data:`NUMBER`.
        unit: ``s``, ``ms`` or ``us``.

    Raises:
        AgentError: it is 0, which nobody measured, or absurd.
    """
    value = Decimal(number) * _NS_PER_UNIT[unit]
    if not 1 <= value < _LONGEST_NS:
        raise AgentError(f"{tool} says that something took {number} {unit}")
    return round(value)


def known_ns(tool: str, number: str | None, unit: str) -> int | None:
    """As :func:`ns`; ``None`` where the tool gives no number, or 0, which is too fine for it."""
    if number is None or Decimal(number) == 0:
        return None
    return ns(tool, number, unit)
