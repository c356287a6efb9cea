"""Device profiles as data: one YAML file per kind of device."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from profiles.catalog.profile import Cluster, DeviceProfile, Gates, Meter, Source, Sourced
from profiles.config import parse, read_yaml
from profiles.errors import UsageError

__all__ = [
    "Cluster",
    "DeviceProfile",
    "Gates",
    "Meter",
    "Source",
    "Sourced",
    "load_profile",
    "profile_names",
]

_FOLDER = Path(__file__).parent


def profile_names() -> list[str]:
    """The names of all profiles in the catalog."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_profile(name: str) -> DeviceProfile:
    """One profile.

    Raises:
        UsageError: if there is none of that name.
    """
    if name not in profile_names():
        raise UsageError(
            f"there is no device profile {name!r}", f"one of: {', '.join(profile_names())}"
        )
    return _read(_FOLDER / f"{name}.yaml")


# A profile is asked for at every turn, and reading YAML takes milliseconds; nothing changes it.
@cache
def _read(path: Path) -> DeviceProfile:
    return parse(DeviceProfile, read_yaml(path), path.name)
