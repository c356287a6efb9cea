"""Writing files that are whole or not there, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write aside, bring to disk, rename: a reader never sees half of it."""
    aside = path.with_name(f".partial-{path.name}")
    with aside.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)
