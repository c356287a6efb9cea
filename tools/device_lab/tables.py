"""``table``: latency tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tools.device_lab import table_files
from tools.device_lab.output import print_json, print_table, progress
from tools.device_lab.running import AsJson, Overrides, RecipeFile, WorkspaceFolder

app = typer.Typer(help="Latency tables of search spaces.", no_args_is_help=True)


@app.command()
def build(
    recipe: RecipeFile,
    workspace: WorkspaceFolder = Path("workspace"),
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure the blocks of a recipe's super-network, and make its latency table.

    Example: device-lab table build recipe.yaml --workspace work
    """
    from profiles.recipe import load_recipe

    loaded = load_recipe(recipe, tuple(overrides or ()))
    with progress() as show:
        from pipeline.flow import table_alone

        path = table_alone(loaded, workspace, import_from=recipe.absolute().parent, progress=show)
    print_json({"table": str(path)}) if as_json else print(path)


@app.command()
def show(
    table: Annotated[Path, typer.Argument(metavar="TABLE.json", help="A table's file.")],
    as_json: AsJson = False,
) -> None:
    """Print a latency table.

    Example: device-lab table show work/tables/mymodel-pi5-onnx-1t.json
    """
    from profiles import units
    from profiles.table import LatencyTable

    loaded = LatencyTable.load(table)
    entries = loaded.entries()
    if as_json:
        print_json(
            {
                "key": loaded.key,
                "call_ns": loaded.call_ns,
                "entries": entries,
                "calibration": loaded.calibration,
                "validation": loaded.validation,
            }
        )
        return
    key = loaded.key
    emulated = " (emulated)" if key.emulated else ""
    title = (
        f"{key.device}{emulated}, {key.runtime} {key.runtime_version}, {key.dtype},"
        f" {key.condition.describe()}"
    )
    rows = [
        [e.slot, e.choice, units.format_ms(e.latency_ns), units.format_ms(e.half_width_ns)]
        for e in entries
    ]
    rows.append(["(call)", "", units.format_ms(loaded.call_ns), ""])
    print_table(title, ["slot", "choice", ">ms", ">+/- ms (95 %)"], rows)
    for found in loaded.validation:
        print(
            f"{found.population}: n {found.n}, MAPE {found.mape:.1%},"
            f" within 10 % {found.within_10_percent:.0%}"
        )


app.command("validate")(table_files.validate)
app.command("diff")(table_files.diff)
app.command("export")(table_files.export)
