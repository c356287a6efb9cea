"""``devices.yaml``: which devices there are and how to reach them.

.. code-block:: yaml

    devices:
      - id: pi5                       # the name used everywhere
        profile: linux-aarch64        # a file of profiles/catalog
        address: ssh://pi@192.0.2.7   # or ssh://user@host:port, or local:
        key_file: ~/.ssh/id_ed25519   # optional: else your agent and default keys
        known_hosts: known_hosts      # optional: else ~/.ssh/known_hosts
        python: venv/bin/python       # optional: else the profile's
        root: .cache/edgeloop         # optional: else the profile's

Relative paths of this host start at the file's folder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from devices.transport.base import Transport
from profiles.canonical import digest
from profiles.catalog import DeviceProfile, load_profile
from profiles.config import Config, parse, read_yaml
from profiles.errors import UsageError

_SCHEMES = ("ssh", "local", "scripted")


def _host_path(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder") or Path()
    full = (folder / path.expanduser()).absolute()
    if not full.is_file():
        raise ValueError(f"there is no file {full}")
    return full


def _known_profile(name: str) -> str:
    try:
        load_profile(name)
    except UsageError as error:
        raise ValueError(str(error)) from error
    return name


def _known_address(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"an address starts with one of {', '.join(s + ':' for s in _SCHEMES)}")
    if parts.password:
        raise ValueError("passwords do not belong in an inventory: use a key file")
    if parts.scheme == "ssh" and not parts.hostname:
        raise ValueError("ssh://USER@HOST or ssh://USER@HOST:PORT")
    _ = parts.port  # raises ValueError for a port that is no number
    return address


def _plain_remote(path: str) -> str:
    if path.startswith("~"):
        raise ValueError("relative paths on a device start at the login's home: leave out the ~/")
    return path


RemotePath = Annotated[str, AfterValidator(_plain_remote)]
HostFile = Annotated[Path, AfterValidator(_host_path)]


class Device(Config):
    """One device of the inventory; see the module's text for the keys.

    ``emulated`` marks a device whose times say nothing about real hardware.
    """

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    profile: Annotated[str, AfterValidator(_known_profile)]
    address: Annotated[str, AfterValidator(_known_address)]
    key_file: HostFile | None = None
    known_hosts: HostFile | None = None
    python: RemotePath | None = None
    root: RemotePath | None = None
    emulated: bool = False

    def details(self) -> DeviceProfile:
        """The profile's constants."""
        return load_profile(self.profile)

    @property
    def transport_name(self) -> str:
        """``ssh``, ``local`` or ``scripted``."""
        return urlsplit(self.address).scheme

    @property
    def is_emulated(self) -> bool:
        """Whether its times say nothing about real hardware; a scripted device's never do."""
        return self.emulated or self.transport_name == "scripted"

    @property
    def identity(self) -> str:
        """What makes a measurement on it another one: the way there and the agent's interpreter.

        Not the address: a board keeps its measurements when it moves in the network.
        """
        return digest([self.id, self.transport_name, self.is_emulated, self.python])

    def connect(self) -> Transport:
        """Open a connection.

        Raises:
            DeviceError: as the transport says.
        """
        parts = urlsplit(self.address)
        if parts.scheme == "local":
            from devices.transport.local import LocalTransport

            return LocalTransport()
        if parts.scheme == "scripted":
            from devices.transport.scripted import ScriptedTransport, play_agent

            interpreter = self.python or self.details().python
            return ScriptedTransport(Path(parts.path), {interpreter: play_agent})
        from devices.transport.ssh import SshTransport

        known_hosts = self.known_hosts or Path.home() / ".ssh/known_hosts"
        return SshTransport(
            parts.hostname or "", parts.port or 22, parts.username, self.key_file, known_hosts
        )


class Inventory(Config):
    """All devices of one file."""

    devices: tuple[Device, ...]

    @model_validator(mode="after")
    def _unique(self) -> Inventory:
        names = [device.id for device in self.devices]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"device ids must differ: {', '.join(twice)}")
        return self

    def find(self, device_id: str) -> Device:
        """The device of that id.

        Raises:
            UsageError: if there is none.
        """
        for device in self.devices:
            if device.id == device_id:
                return device
        known = ", ".join(device.id for device in self.devices) or "none"
        raise UsageError(f"there is no device {device_id!r} in the inventory", f"known: {known}")


def load_inventory(path: Path) -> Inventory:
    """Read a ``devices.yaml``.

    Raises:
        UsageError: if it cannot be read.
        ConfigError: lists all its mistakes.
    """
    if not path.is_file():
        raise UsageError(
            f"there is no inventory {path}", "write one (see the README), or name another"
        )
    return parse(Inventory, read_yaml(path), str(path), path.absolute().parent)
