"""``profile``: which part of a network costs what on a device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiles import units
from tools.device_lab.output import complain, print_json, print_table, progress
from tools.device_lab.running import AsJson, WorkspaceFolder
from tools.device_lab.stages import Format, Inventory, Program, Tolerate, codes

if TYPE_CHECKING:
    from pipeline.profile.dtypes import BothTypes
    from pipeline.profile.record import BlockCost, BlockProfile, OperatorProfile

_NAME_WIDTH, _KIND_WIDTH, _BAR_WIDTH = 20, 11, 8
#: Operators that are shown; ``--json`` has all.
_OPERATORS = 12


def profile(
    program: Program,
    device: Annotated[str, typer.Option("--device", "-d", help="Id of the device.")],
    format_: Annotated[
        Format, typer.Option("--format", "-f", help="The runtime's format to export to.")
    ] = Format.onnx,
    inventory: Inventory = Path("devices.yaml"),
    workspace: WorkspaceFolder = Path("workspace"),
    depth: Annotated[
        int | None, typer.Option(min=1, help="Levels of modules to go down; default: chosen.")
    ] = None,
    operators: Annotated[
        bool, typer.Option("--operators", help="Also ask ONNX Runtime for its own profile.")
    ] = False,
    data: Annotated[
        Path | None, typer.Option("--data", help="An .npz whose array x holds inputs.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Also in INT8: what that would buy in each block.")
    ] = False,
    runs: Annotated[int, typer.Option(min=3, help="Fresh processes.")] = 5,
    iterations: Annotated[int, typer.Option(min=1, help="Timed calls per block and run.")] = 200,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    tolerate: Tolerate = None,
    as_json: AsJson = False,
) -> None:
    """Cut a network along its modules, and measure each block on a device.

    Example: device-lab profile model.pt2 --format onnx --device pi5 --operators
    """
    with progress() as show:
        from pipeline.profile.flow import profile_file, profile_file_in_int8
        from profiles.measure import Measure

        settings = Measure(
            runs=runs, iterations=iterations, threads=(threads,), tolerate=codes(tolerate)
        )
        if int8:
            both = profile_file_in_int8(
                program,
                format_.value,
                device,
                inventory,
                workspace,
                settings,
                show,
                depth=depth,
                data=data,
            )
            print_json(both) if as_json else print_gains(both)
            _finish(both.float32, both.int8)
            return
        found = profile_file(
            program,
            format_.value,
            device,
            inventory,
            workspace,
            settings,
            show,
            depth=depth,
            operators=operators,
            data=data,
        )
    if as_json:
        print_json(found)
    else:
        print_profile(found)
    _finish(found)


def _finish(*found: BlockProfile) -> None:
    """Name what is not known, each reason once; exit code 1 if anything is."""
    by_reason: dict[str, list[str]] = {}
    for part, reason in (item for each in found for item in each.lacking().items()):
        by_reason.setdefault(reason, []).append(part)
    for reason, parts in by_reason.items():
        complain(f"failed: {', '.join(parts)}: {reason}")
    if by_reason:
        raise typer.Exit(1)


def print_profile(found: BlockProfile) -> None:
    """A profile in 80 columns: the blocks, what they come to, and what the runtime says."""
    emulated = " (emulated)" if found.emulated else ""
    print(f"{found.model} {found.variant} {found.format} on {found.device}{emulated}")
    print(f"{found.runtime} {found.runtime_version}, {found.dtype}, {found.condition.describe()}")
    print_table(
        "",
        ["block", "kind", ">ms", ">95 %", ">share", ""],
        [_cells(block) for block in found.blocks],
    )
    for line in _totals(found):
        print(line)
    if found.operators:
        print()
        _print_operators(found.operators)


def print_gains(found: BothTypes) -> None:
    """What each block costs in both data types, and the whole networks."""
    after = found.int8
    print(f"{after.model} {after.format} on {after.device}, FP32 and INT8")
    print(f"{after.runtime} {after.runtime_version}, {after.condition.describe()}")
    rows = [
        [
            _shortened(gain.name, _NAME_WIDTH),
            units.format_ms(gain.float32_ns),
            units.format_ms(gain.int8_ns),
            "-" if gain.saved_ns is None else f"{gain.saved_ns / 1e6:+.4f}",
        ]
        for gain in found.gains
    ]
    wholes = [each.whole_ns.value if each.whole_ns else None for each in (found.float32, after)]
    rows.append(["(whole)", *map(units.format_ms, wholes), ""])
    print_table("", ["block", ">FP32 ms", ">INT8 ms", ">saves ms"], rows)
    for line in _wrapped(
        "A block alone converts at its borders what it is handed as integers in a network: the"
        " whole networks say what INT8 buys in all."
    ):
        print(line)


def _cells(block: BlockCost) -> list[str]:
    times = f" x{block.count}" if block.count > 1 else ""
    name = _shortened(block.names[0], _NAME_WIDTH - len(times)) + times
    kind = _shortened(block.kind, _KIND_WIDTH)
    if block.latency_ns is None:
        return [name, kind, units.UNKNOWN, "-", "-", block.status]
    interval = units.format_interval_ms(block.latency_ns.ci95)
    share = "-" if block.share is None else f"{100 * block.share:.1f} %"
    return [
        name,
        kind,
        units.format_ms(block.latency_ns.value),
        interval,
        share,
        "#" * round(_BAR_WIDTH * (block.share or 0.0)),
    ]


def _shortened(text: str, width: int) -> str:
    """The end of a path says more than its beginning."""
    return text if len(text) <= width else "~" + text[len(text) - width + 1 :]


def _totals(found: BlockProfile) -> list[str]:
    lines = []
    count = sum(block.count for block in found.blocks)
    for name, figure, what in (
        ("call", found.call_ns, "an empty network"),
        ("sum", found.sum_ns, f"{count} blocks less {count - 1} calls"),
        ("whole", found.whole_ns, "the network, in turns with its blocks"),
    ):
        value = f"{units.format_ms(figure.value)} ms" if figure else units.UNKNOWN
        interval = f" ({units.format_interval_ms(figure.ci95)})" if figure else ""
        lines.append(f"{name:6}{value:>12}{interval}  {what}")
    if found.ratio is not None and found.gap_ns is not None:
        sign = "-" if found.gap_ns < 0 else "+"
        share = f"{100 * (found.ratio.value - 1):+.1f} %"
        between = ""
        if found.ratio.ci95 is not None:
            low, high = (100 * (end - 1) for end in found.ratio.ci95)
            between = f", 95 %: {low:+.1f} to {high:+.1f}"
        lines.append(
            f"{'gap':6}{sign + units.format_ms(abs(found.gap_ns)):>9} ms  {share}{between}"
        )
    return [*lines, *(f"  {line}" for text in found.remarks for line in _wrapped(text))]


def _wrapped(text: str) -> list[str]:
    import textwrap

    return textwrap.wrap(text, 76)


def _print_operators(found: OperatorProfile) -> None:
    slowest = sorted(found.operators, key=lambda operator: -operator.latency_ns)
    shown = slowest[:_OPERATORS]
    print_table(
        f"ONNX Runtime's own profile: {len(found.operators)} operators, the slowest {len(shown)}",
        ["operator", "type", "block", ">ms", ">share"],
        [
            [
                _shortened(operator.name, 22),
                _shortened(operator.type, 14),
                _shortened(operator.block or "between blocks", 16),
                units.format_ms(operator.latency_ns),
                f"{100 * operator.latency_ns / found.sum_ns:.1f} %" if found.sum_ns else "-",
            ]
            for operator in shown
        ],
    )
    share = found.gap_ns / found.whole_ns if found.whole_ns else 0.0
    print(
        f"sum   {units.format_ms(found.sum_ns):>9} ms  all operators, median of {found.calls} calls"
    )
    print(f"whole {units.format_ms(found.whole_ns):>9} ms  the same calls")
    print(f"gap   {units.format_ms(found.gap_ns):>9} ms  {100 * share:.1f} %, between operators")
    for line in _wrapped(
        "A call that is observed is slower than one that is not: these are shares, no latencies."
    ):
        print(line)
