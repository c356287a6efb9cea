"""``compare``: is it slower than before?"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from profiles import units
from profiles.errors import UsageError
from tools.device_lab.output import WIDTH, print_json, print_table, progress
from tools.device_lab.running import AsJson, WorkspaceFolder
from tools.device_lab.stages import Inventory, Tolerate, codes

if TYPE_CHECKING:
    from pipeline.compare import Comparison

#: Names in front of a reason; ``--json`` has all.
_NAMES = 6
#: What says how two files are measured, and nothing to workspaces that were measured before.
_OF_FILES = ("device", "inventory", "rounds", "iterations", "threads", "tolerate")


def compare(
    context: typer.Context,
    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[BEFORE NOW]", help="Two artifact files, to measure in turns."),
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option("--baseline", "-b", help="The workspace to compare with.")
    ] = None,
    workspace: WorkspaceFolder = Path("workspace"),
    history: Annotated[
        list[Path] | None,
        typer.Option("--history", help="A workspace of a visit before the baseline; repeatable."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", "-d", help="Where to measure two files.")
    ] = None,
    inventory: Inventory = Path("devices.yaml"),
    rounds: Annotated[int, typer.Option(min=3, help="Runs of each of two files.")] = 12,
    iterations: Annotated[int, typer.Option(min=1, help="Timed calls per run.")] = 200,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    tolerate: Tolerate = None,
    as_json: AsJson = False,
) -> None:
    """Compare two files, measured in turns, or a workspace with those of earlier visits.

    Exit code 1 if anything is slower, was accepted before and is refused or failed now, or if
    nothing could be compared at all. Of what is called faster or slower, 4 % at most are so by
    chance; 12 rounds find a file that is 3 % slower, where runs vary by 2 %, nine times in ten.

    Example: device-lab compare old.onnx new.onnx --device pi5

    Example: device-lab compare -b night3 -w night4 --history night1 --history night2
    """
    with progress() as show:
        from pipeline.compare import compare_files, compare_workspaces
        from profiles.measure import Measure

        if files:
            if baseline or history:
                raise UsageError("name two files or a baseline, not both")
            if len(files) != 2 or device is None:
                raise UsageError("two files are compared on a device", "BEFORE NOW --device ID")
            settings = Measure(
                runs=rounds, iterations=iterations, threads=(threads,), tolerate=codes(tolerate)
            )
            pair = (files[0], files[1])
            found = [compare_files(pair, device, inventory, workspace, settings, show)]
        elif baseline is None:
            raise UsageError("there is nothing to compare", "name two files, or a --baseline")
        else:
            _refuse_given(context, _OF_FILES)
            found = compare_workspaces(baseline, workspace, history or [])
    if as_json:
        print_json(found)
    else:
        _print_comparisons(found)
    compared = any(one.before_ns and one.now_ns for one in found)
    if not compared or any(one.change.outcome == "slower" or one.is_lost for one in found):
        raise typer.Exit(1)


def _refuse_given(context: typer.Context, names: Sequence[str]) -> None:
    """Raise :class:`UsageError` for options that would have no effect."""
    sources = {name: context.get_parameter_source(name) for name in names}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        words = ", ".join(f"--{name}" for name in given)
        raise UsageError(f"{words}: only of use with two files", "leave it out")


def _print_comparisons(found: Sequence[Comparison]) -> None:
    """A table for each place, and under it why something is undecided."""
    for place in dict.fromkeys(_place(one) for one in found):
        mine = [one for one in found if _place(one) == place]
        print_table(
            place,
            ["variant", "format", ">before ms", ">now ms", ">ratio", ">95 %", ">verdict"],
            [_cells(one) for one in mine],
            width=WIDTH,
        )
    for reason in dict.fromkeys(one.change.reason for one in found if one.change.reason):
        mine = [one for one in found if one.change.reason == reason]
        names = list(dict.fromkeys(f"{one.variant} {one.format}" for one in mine))
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        text = f"undecided: {', '.join(names[:_NAMES])}{more}: {reason}"
        # A path is whole, to be copied.
        print(textwrap.fill(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False))


def _place(one: Comparison) -> str:
    device = f"{one.device} (emulated)" if one.emulated else one.device
    # A file's model is the file.
    model = "" if Path(one.now).name == one.model else f"{one.model}, "
    return f"{model}{one.before} to {one.now}: {device}, {one.condition.describe()}"


def _cells(one: Comparison) -> list[str]:
    effect = one.change.effect
    interval = effect.ci95 if effect else None
    return [
        one.variant,
        one.format,
        units.format_ms(one.before_ns),
        units.format_ms(one.now_ns),
        f"{effect.ratio:.3f}" if effect else "-",
        f"{interval[0]:.3f}-{interval[1]:.3f}" if interval else "-",
        one.change.outcome,
    ]
