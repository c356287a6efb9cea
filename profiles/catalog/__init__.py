"""Device profiles as data: one YAML file per kind of device."""

from __future__ import annotations

from pathlib import Path

from profiles.config import Config, parse, read_yaml
from profiles.errors import UsageError

_FOLDER = Path(__file__).parent


class DeviceProfile(Config):
    """What is known of a kind of device before it is looked at.

    Args:
        description: for people.
        os: ``linux`` or ``android``.
        architecture: as ``uname -m`` says.
        soc: name of the chip, or ``unknown`` for a generic profile.
        cores: number of cores, or ``None`` where the kind does not fix it.
        runtimes: runtimes that exist for it.
        root: default folder for artifacts on the device.
        python: default interpreter for the agent.
        source: where these constants are from.
    """

    description: str
    os: str
    architecture: str
    soc: str = "unknown"
    cores: int | None = None
    runtimes: tuple[str, ...]
    root: str
    python: str
    source: str


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
    path = _FOLDER / f"{name}.yaml"
    return parse(DeviceProfile, read_yaml(path), path.name)
