"""The tables that a recipe asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from pipeline.bench import pick_devices
from pipeline.flow import importing_from, open_workspace
from pipeline.search.loop import make_supernet
from pipeline.stage import Progress, source_digest
from pipeline.table.build import Builder
from profiles.canonical import digest
from profiles.errors import UsageError
from profiles.recipe import Recipe, TableBuild


@dataclass(frozen=True, slots=True)
class BuiltTable:
    """A table's file; by signature of each block that it lacks, why."""

    table: Path
    holes: Mapping[str, str]


def build_tables(
    recipe: Recipe, root: Path, *, import_from: Path | None = None, progress: Progress
) -> list[BuiltTable]:
    """Build a table for each format, data type and thread count; what is done is not done again.

    Args:
        recipe: with a search, and with how to build its tables.
        root: the workspace's folder.
        import_from: see :func:`pipeline.flow.run`.
        progress: told what goes on, and before each table what it takes.

    Raises:
        UsageError: if the recipe has no search, or its budget is too small.
        StageError, DeviceError: see :meth:`pipeline.table.build.Builder.build`.
    """
    search = recipe.search
    if search is None:
        raise UsageError("the recipe has no search", "add one, see pipeline/examples/digits.yaml")
    asked = recipe.table or TableBuild()
    built = []
    with importing_from(import_from or recipe.folder):
        device = pick_devices(recipe).searched
        network = make_supernet(search)
        code = digest([source_digest(search.supernet), search.arguments])
        with open_workspace(root, progress) as workspace:
            folder = workspace.root / "tables"
            folder.mkdir(exist_ok=True)
            for format_, dtype, threads in product(
                asked.formats or (search.format,), asked.dtypes, asked.threads or (search.threads,)
            ):
                builder = Builder(
                    workspace,
                    device,
                    format_,
                    dtype,
                    threads,
                    asked,
                    search.measure,
                    model=f"{recipe.name}-blocks",
                    code=code,
                )
                found = builder.build(network)
                path = folder / f"{recipe.name}-{builder.name.replace(' ', '-')}.json"
                found.table.save(path)
                built.append(BuiltTable(path, found.holes))
    return built
