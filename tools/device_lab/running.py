"""``run`` and ``search``: whole recipes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tools.device_lab.output import complain, print_json, progress

if TYPE_CHECKING:
    from pipeline.flow import Failure

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")]
WorkspaceFolder = Annotated[
    Path, typer.Option("--workspace", "-w", help="Folder for everything the recipe produces.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def run(
    recipe: RecipeFile,
    workspace: WorkspaceFolder = Path("workspace"),
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Do everything a recipe asks for; what is done already is not done again.

    Example: device-lab run recipe.yaml --workspace work --set measure.runs=10
    """
    from profiles.recipe import load_recipe

    loaded = load_recipe(recipe, tuple(overrides or ()))
    with progress() as show:
        from pipeline.flow import run as run_recipe

        summary = run_recipe(loaded, workspace, import_from=recipe.absolute().parent, progress=show)
        show("report ...")
        from pipeline.overview import overview
        from tools.report import write_report

        path = write_report(workspace)
    if as_json:
        print_json(summary)
    else:
        from tools.device_lab.summary import print_overview

        print_overview(overview(workspace))
        print(f"report: {path}")
    _finish(summary.failures)


def search(
    recipe: RecipeFile,
    workspace: WorkspaceFolder = Path("workspace"),
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Search the recipe's super-network for its device, and measure what is found.

    Example: device-lab search recipe.yaml --workspace work --set search.rounds=3
    """
    from profiles.recipe import load_recipe

    loaded = load_recipe(recipe, tuple(overrides or ()))
    with progress() as show:
        from pipeline.flow import search_alone

        result = search_alone(
            loaded, workspace, import_from=recipe.absolute().parent, progress=show
        )
    if as_json:
        print_json(result)
    else:
        from tools.device_lab.summary import print_search

        print_search(result)
    if result["failures"]:
        for reason in result["failures"]:
            complain(f"failed: {reason}")
        raise typer.Exit(1)


def _finish(failures: tuple[Failure, ...]) -> None:
    """List what failed; exit code 1 if anything did."""
    for failure in failures:
        complain(f"failed: {failure.stage}: {failure.what}: {failure.reason}")
    if failures:
        raise typer.Exit(1)
