"""The agent as one file: a Python archive that a board's interpreter runs as it is."""

from __future__ import annotations

import zipfile
from pathlib import Path

_FOLDER = Path(__file__).parent
_MODULES = (
    "agent.py",
    "bench.py",
    "energy.py",
    "engines.py",
    "environment.py",
    "kinds.py",
    "loading.py",
    "sampler.py",
    "timing.py",
    "tiny.py",
)
_MAIN = """\
import sys
from devices.agent.agent import main
sys.exit(main(sys.argv[1:]))
"""
#: The earliest date an archive can hold: the same sources always give the same bytes.
_DATE = (1980, 1, 1, 0, 0, 0)


def sources() -> tuple[Path, ...]:
    """The modules that make up the agent."""
    return tuple(_FOLDER / name for name in _MODULES)


def build(path: Path) -> Path:
    """Write the archive; returns its path."""
    contents = {
        "__main__.py": _MAIN,
        "devices/__init__.py": "",
        "devices/agent/__init__.py": "",
        **{f"devices/agent/{module.name}": module.read_text() for module in sources()},
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in contents.items():
            archive.writestr(zipfile.ZipInfo(name, _DATE), text)
    return path
