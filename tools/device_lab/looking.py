"""``results`` and ``report``: what a workspace holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from profiles.errors import UsageError
from profiles.findings import Measurement
from tools.device_lab.output import print_json, progress
from tools.device_lab.running import AsJson, WorkspaceFolder


def results(
    trial: Annotated[
        str | None,
        typer.Argument(metavar="[TRIAL]", help="One measurement: how its trial's key begins."),
    ] = None,
    workspace: WorkspaceFolder = Path("workspace"),
    everything: Annotated[
        bool, typer.Option("--all", help="Blocks, and what was measured in turns, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the measurements in a workspace, or tell all about one of them.

    Example: device-lab results 4f81c0 --workspace work
    """
    from pipeline.overview import read_material, read_measurements
    from tools.device_lab.summary import print_measurement, print_measurements

    found = read_measurements(workspace, blocks=everything or trial is not None)
    if trial is not None:
        found = _one_trial(found, trial)
    if as_json:
        print_json(found)
    elif trial is None:
        print_measurements(found)
    else:
        for m, material in zip(found, read_material(workspace, found), strict=True):
            print_measurement(m, material)


def _one_trial(found: Sequence[Measurement], beginning: str) -> list[Measurement]:
    """The measurements of the one trial whose key begins so: several where artifacts are alike.

    Raises:
        UsageError: if there is no such trial, or there are several.
    """
    mine = [m for m in found if beginning and m.trial.startswith(beginning.lower())]
    keys = {m.trial for m in mine}
    if len(keys) != 1:
        how_many = f"{len(keys)} measurements begin" if keys else "no measurement begins"
        raise UsageError(f"{how_many} with {beginning!r}", "device-lab results lists their trials")
    return mine


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
