"""``results`` and ``report``: what a workspace holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tools.device_lab.output import print_json, print_table, progress
from tools.device_lab.running import AsJson, WorkspaceFolder


def results(
    workspace: WorkspaceFolder = Path("workspace"),
    everything: Annotated[
        bool, typer.Option("--all", help="Blocks of latency tables too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the measurements in a workspace.

    Example: device-lab results --workspace work --json
    """
    from pipeline.overview import read_measurements
    from tools.device_lab.summary import measurement_row

    found = read_measurements(workspace, blocks=everything)
    if as_json:
        print_json(found)
        return
    columns, rows = measurement_row(found)
    print_table("", columns, rows)


def report(
    workspace: WorkspaceFolder = Path("workspace"),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; default in the workspace.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the HTML report of a workspace: one file, no network.

    Example: device-lab report --workspace work --output report.html
    """
    with progress() as show:
        show("report ...")
        from tools.report import write_report

        path = write_report(workspace, output)
    print_json({"report": str(path)}) if as_json else print(path)
