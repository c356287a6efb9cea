"""Artifacts as a workspace's store has them, with their files."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from profiles.records import SUFFIX_OF, Artifact, ArtifactFormat, Io, Role
from profiles.store import Store


def recorded(store: Store, root: Path) -> list[Artifact]:
    """Every artifact in the store of the workspace ``root``, once for each of its names."""
    found = []
    for row in store.artifacts():
        format_ = cast(ArtifactFormat, row.format)
        found.append(
            Artifact(
                sha256=row.sha256,
                format=format_,
                path=root / "artifacts" / f"{row.sha256}{SUFFIX_OF[format_]}",
                size_bytes=row.size_bytes,
                io=Io.from_json(row.io),
                model=row.model,
                variant=row.variant,
                dtype=row.dtype,
                recipe_key=row.recipe_key,
                parent=row.parent,
                role=cast(Role, row.role),
                toolchain=row.toolchain,
                details=row.details,
            )
        )
    return found
