"""``devices.yaml``: which devices there are and how to reach them.

.. code-block:: yaml

    devices:
      - id: pi5                       # the name used everywhere
        profile: raspberry-pi-5       # a file of profiles/catalog
        address: ssh://pi@192.0.2.7   # or ssh://user@host:port, or local:
        key_file: ~/.ssh/id_ed25519   # optional: else your agent and default keys
        known_hosts: known_hosts      # optional: else ~/.ssh/known_hosts
        python: venv/bin/python       # optional: else the profile's
        root: .cache/edgeloop         # optional: else the profile's
        serial: 10000000abcdef01      # optional: another board at this address is refused
      - id: pixel
        profile: pixel-8
        address: adb:28291FDH2000AB   # as `adb devices` lists it; host:port for ADB over TCP
        adb_server: 127.0.0.1:5037    # optional: else the user's own, started where needed
        libraries:                    # these runtimes are measured by the native agent
          onnxruntime: lib/arm64-v8a/libonnxruntime.so
          litert: lib/arm64-v8a/libLiteRt.so
        gates: {battery_percent: [30, 95]}   # optional: changes the profile's
        meter: {name: battery, current_sign: -1, current_ua: 1}   # optional: which power sensor,
                                      # as `device-lab devices calibrate-meter` prints it;
                                      # of several alike the one with `device: 1-0040`, by its bus

Relative paths of this host start at the file's folder.  A runtime with a C library in ``libraries``
is measured by the native agent; every other by the Python agent, with the device's ``python``.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from devices.conditions.gates import Gates
from devices.transport.base import Transport
from profiles.canonical import digest, settled_sha256
from profiles.catalog import DeviceProfile, load_profile
from profiles.catalog.profile import Calibration, MeterKind
from profiles.config import Config, parse, read_yaml
from profiles.errors import UsageError

_SCHEMES = ("ssh", "adb", "local", "scripted")
#: Runtimes that the native agent can load.
NATIVE_RUNTIMES = ("onnxruntime", "litert")


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
    if parts.scheme == "adb" and (not parts.path or parts.netloc):
        raise ValueError("adb:SERIAL, as `adb devices` lists it, or adb:HOST:PORT")
    _ = parts.port  # raises ValueError for a port that is no number
    return address


def _plain_remote(path: str) -> str:
    if path.startswith("~"):
        raise ValueError("relative paths on a device start at the login's home: leave out the ~/")
    return path


def adb_server(text: str) -> tuple[str, int]:
    """An adb server's ``HOST:PORT``.

    Raises:
        UsageError: if it is not of that form.
    """
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"an adb server is HOST:PORT, not {text!r}")
    return host, int(port)


def _server(text: str) -> str:
    try:
        adb_server(text)
    except UsageError as error:
        raise ValueError(error.message) from error
    return text


def _native(runtime: str) -> str:
    if runtime not in NATIVE_RUNTIMES:
        raise ValueError(f"the native agent loads {' and '.join(NATIVE_RUNTIMES)}")
    return runtime


RemotePath = Annotated[str, AfterValidator(_plain_remote)]
HostFile = Annotated[Path, AfterValidator(_host_path)]


class OwnMeter(Calibration):
    """Which of a device's power sensors counts, and what is known of it beyond its profile.

    Args:
        name: as the device spells it; any its profile names if none is given.
        kind: which of several of that name.
        device: which of several of that name and kind: what it is called on its bus (``1-0040``).
        rails: labels of the channels that are summed up.
        covers: what the power is of, for people.
        replay: a recorded energy run that is replayed instead, for scripted devices.
    """

    name: Annotated[str, Field(min_length=1)] | None = None
    kind: MeterKind | None = None
    device: Annotated[str, Field(min_length=1)] | None = None
    rails: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    covers: Annotated[str, Field(min_length=1)] | None = None
    replay: HostFile | None = None


class Device(Config):
    """One device of the inventory; see the module's text for the keys.

    ``emulated`` marks a device whose times say nothing about real hardware.
    """

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    profile: Annotated[str, AfterValidator(_known_profile)]
    address: Annotated[str, AfterValidator(_known_address)]
    key_file: HostFile | None = None
    known_hosts: HostFile | None = None
    adb_server: Annotated[str, AfterValidator(_server)] | None = None
    python: RemotePath | None = None
    libraries: dict[Annotated[str, AfterValidator(_native)], HostFile] = {}
    root: RemotePath | None = None
    serial: Annotated[str, Field(pattern=r"^\S+$")] | None = None
    gates: Gates = Gates()
    meter: OwnMeter = OwnMeter()
    emulated: bool = False

    @model_validator(mode="after")
    def _fitting(self) -> Device:
        for key, scheme in (("key_file", "ssh"), ("known_hosts", "ssh"), ("adb_server", "adb")):
            if getattr(self, key) and self.transport_name != scheme:
                raise ValueError(f"{key} is for {scheme} addresses only")
        if self.meter.replay and not self.is_scripted:
            raise ValueError("meter: replay is for scripted addresses only")
        return self

    def details(self) -> DeviceProfile:
        """The profile's constants."""
        return load_profile(self.profile)

    def all_gates(self) -> Gates:
        """The profile's gates, changed by the device's own."""
        return Gates.of(self.details().gates, **self.gates.model_dump(exclude_unset=True))

    def meter_word(self) -> str:
        """Which sensor is meant and what its numbers are taken for, as a hash."""
        own = self.meter.model_dump(exclude={"covers", "replay"})
        known = [meter.model_dump(exclude={"covers"}) for meter in self.details().meters]
        replayed = self.meter.replay and settled_sha256(self.meter.replay)
        return digest([own, known, replayed])

    @property
    def transport_name(self) -> str:
        """``ssh``, ``adb``, ``local`` or ``scripted``."""
        return urlsplit(self.address).scheme

    @property
    def is_scripted(self) -> bool:
        """Whether it is the public fake."""
        return self.transport_name == "scripted"

    @property
    def is_emulated(self) -> bool:
        """Whether its times say nothing about real hardware; a scripted device's never do."""
        return self.emulated or self.is_scripted

    @property
    def known_serial(self) -> str | None:
        """The serial the inventory fixes; a scripted device is its folder."""
        return self.address if self.is_scripted else self.serial

    @property
    def interpreter(self) -> str | None:
        """The Python that runs the agent there, or ``None`` where there is none."""
        return self.python or self.details().python

    @property
    def folder(self) -> str:
        """Where files go on the device."""
        return self.root or self.details().root

    def agent_for(self, runtime: str) -> str:
        """``native`` for a runtime whose C library the inventory names, else ``python``."""
        return "native" if runtime in self.libraries else "python"

    def place(self, serial: str, runtime: str) -> str:
        """What makes a measurement by ``runtime`` on it another one, as a hash.

        The hardware, the way there, and what runs the model; not the address: a board keeps its
        measurements when it moves in the network or is given another id.
        """
        agent = self.agent_for(runtime)
        native = agent == "native"
        program = settled_sha256(self.libraries[runtime]) if native else self.interpreter
        return digest([serial, self.transport_name, self.is_emulated, agent, program])

    def typed(self, command: str) -> str:
        """What a person types here to run a command line on the device."""
        parts = urlsplit(self.address)
        if parts.scheme == "ssh":
            words = ["ssh"]
            if self.key_file:
                words += ["-i", str(self.key_file)]
            if self.known_hosts:
                # Quoted for ssh itself too, which takes several files here.
                words += ["-o", f'UserKnownHostsFile="{self.known_hosts}"']
            if parts.port:
                words += ["-p", str(parts.port)]
            user = f"{parts.username}@" if parts.username else ""
            return shlex.join([*words, f"{user}{parts.hostname}", command])
        if parts.scheme == "adb":
            words = ["adb"]
            if self.adb_server:
                host, port = adb_server(self.adb_server)
                words += ["-H", host, "-P", str(port)]
            return shlex.join([*words, "-s", parts.path, "shell", command])
        return command

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

            return ScriptedTransport(Path(parts.path), {self.interpreter or "": play_agent})
        if parts.scheme == "adb":
            from devices.transport.adb import AdbTransport

            server = adb_server(self.adb_server) if self.adb_server else None
            return AdbTransport(parts.path, server)
        from devices.transport.ssh import SshTransport

        known_hosts = self.known_hosts or Path.home() / ".ssh/known_hosts"
        return SshTransport(
            parts.hostname or "", parts.port or 22, parts.username, self.key_file, known_hosts
        )


def _with_unlike_ids(entries: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Ids are compared as they are written, so that equal ones are told with all other mistakes."""
    mistakes, checked = _equal_ids(entries), None
    try:
        checked = check(entries)
    except ValidationError as error:
        mistakes = [*_again(error), *mistakes]
    if mistakes:
        raise ValidationError.from_exception_data("devices", mistakes)
    return checked


def _equal_ids(entries: Any) -> list[InitErrorDetails]:
    found, first = [], dict[str, int]()
    for number, entry in enumerate(entries if isinstance(entries, list) else ()):
        name = entry.get("id") if isinstance(entry, dict) else None
        if isinstance(name, str) and first.setdefault(name, number) != number:
            problem = ValueError(f"device ids must differ: devices.{first[name]} is {name}, too")
            found.append(
                InitErrorDetails(
                    type="value_error", loc=(number, "id"), input=name, ctx={"error": problem}
                )
            )
    return found


def _again(error: ValidationError) -> list[InitErrorDetails]:
    """What was found, to be raised together with more."""
    return [
        InitErrorDetails(
            type=each["type"], loc=each["loc"], input=each["input"], ctx=each.get("ctx", {})
        )
        for each in error.errors()
    ]


class Inventory(Config):
    """All devices of one file."""

    devices: Annotated[tuple[Device, ...], WrapValidator(_with_unlike_ids)]

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
