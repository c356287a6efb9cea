"""The ``device-lab`` command.

Exit codes: 0 done; 1 something failed (the rest was done and kept); 2 the input is wrong; 130
interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from profiles.errors import EdgeError
from tools.device_lab import bundles, compare, devices, looking, profiling, running, stages, tables
from tools.device_lab.output import complain

app = typer.Typer(
    name="device-lab",
    help="Compress a PyTorch model, measure it on your own devices, search with what was measured.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_DEBUG = {"on": False}
_INTERRUPTED = 130


def _version(value: bool) -> None:
    if value:
        from importlib.metadata import version

        print(f"edgeloop {version('edgeloop')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks of failures.")] = False,
) -> None:
    _DEBUG["on"] = debug


app.command("run")(running.run)
app.command("compress")(stages.compress)
app.command("export")(stages.export)
app.command("measure")(stages.measure)
app.command("compare")(compare.compare)
app.command("profile")(profiling.profile)
app.command("search")(running.search)
app.command("results")(looking.results)
app.command("report")(looking.report)
app.add_typer(devices.app, name="devices")
app.add_typer(tables.app, name="table")
app.add_typer(bundles.app, name="bundle")


def main() -> None:
    """Entry point: errors become one line and an exit code."""
    try:
        app()
    except SystemExit as ending:
        if ending.code == _INTERRUPTED:
            complain("interrupted; run the same command again to go on")
        raise
    except EdgeError as error:
        if _DEBUG["on"]:
            raise
        complain(f"error: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        if _DEBUG["on"]:
            raise
        complain(
            f"internal error: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            " (run again with: device-lab --debug ...)"
        )
        sys.exit(1)
