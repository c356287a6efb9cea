"""What a device profile says: constants of a kind of device, each with the place it is from.

A profile's values stand in the file as plain values, and its ``sources`` say where each is from, by
the value's key (``gates.max_temperature_mdegc``) or that of the group it is in (``gates``).
``DeviceProfile.sourced`` puts the two together.

How well a value is known, worst first:

``unverified``  read in a public listing or another's code, remembered, or chosen by us; nobody of
                this project has seen it on such a device
``document``    read in a document or in the code of the vendor that made the part
``device``      seen by this project on a real device of the kind

What one source covers is known as well as the least known part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from profiles.config import Config

Evidence = Literal["unverified", "document", "device"]

#: What a profile is of, which needs no source.
_DEFINITION = {"description", "os", "architecture", "sources"}

Positive = Annotated[int, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]


def _window(window: tuple[int, int]) -> tuple[int, int]:
    low, high = window
    if not 0 <= low < high <= 100:
        raise ValueError("a window is [LOW, HIGH] within 0 to 100 percent")
    return window


class Gates(Config):
    """What must hold before a measurement starts; what is not given is not asked for.

    Args:
        max_temperature_mdegc: the hottest of the zones looked at is at most this, in m°C.
        temperature_zones: which thermal zones are looked at, as shell patterns of their types; all
            of them if none is given.
        max_thermal_status: Android's thermal status is at most this, from 0 (none) to 6 (shutdown).
        max_foreign_load_cores: cores kept busy by others, at most.
        battery_percent: the battery's charge is within these two, ends included.
        governors: every core's frequency governor is one of these; any if none is given.
        settle_s: longest wait in seconds for the device to come within its gates; ``None`` is not
            to wait.
    """

    max_temperature_mdegc: Positive | None = None
    temperature_zones: tuple[Text, ...] = ()
    max_thermal_status: Annotated[int, Field(ge=0, le=6)] | None = None
    max_foreign_load_cores: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    battery_percent: Annotated[tuple[int, int], AfterValidator(_window)] | None = None
    governors: tuple[Text, ...] = ()
    settle_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class Cluster(Config):
    """Cores that are alike and share a clock.

    Args:
        name: for people, such as ``big``.
        part: the core's design, such as ``Cortex-A76``.
        cores: their numbers, as Linux counts them.
        mask: the same as a hexadecimal affinity mask, as ``taskset`` takes it.
        max_khz: highest frequency in kHz, or ``None`` where that differs within the kind.
    """

    name: Text
    part: Text
    cores: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    mask: Annotated[str, Field(pattern=r"^[1-9a-f][0-9a-f]*$")]
    max_khz: Positive | None = None

    @model_validator(mode="after")
    def _mask_says_the_same(self) -> Cluster:
        if int(self.mask, 16) != sum(1 << core for core in set(self.cores)):
            raise ValueError(f"mask {self.mask} is not cores {list(self.cores)}")
        return self


MeterKind = Literal["hwmon", "iio", "odpm", "power_supply", "powercap", "pmic"]


class Calibration(Config):
    """What a sensor does not tell of itself; nothing of it is guessed.

    Args:
        current_sign: what a battery's current is multiplied by to be positive while it discharges;
            -1 where the maker keeps to Linux' ABI.
        current_ua: µA that one of its numbers stands for; 1 where the maker keeps to the ABI.
        update_ms: from one new value of the sensor to the next, in ms.
    """

    current_sign: Literal[1, -1] | None = None
    current_ua: Literal[1, 1000] | None = None
    update_ms: Positive | None = None


class Meter(Calibration):
    """A place where the device tells its power.

    Args:
        kind: how it is read; the kinds of :func:`devices.facts.look`.
        names: shell patterns, one of which its name matches; numbers in paths change at each boot.
        rails: labels of the channels that are summed up, as the device spells them; all if none is
            given and none contains another.
        covers: what the power is of, for people.
    """

    kind: MeterKind
    names: Annotated[tuple[Text, ...], Field(min_length=1)]
    rails: tuple[Text, ...] = ()
    covers: Text

    def fits(self, kind: str, name: str) -> bool:
        """Whether a meter that a device shows is this one."""
        return kind == self.kind and any(fnmatchcase(name, pattern) for pattern in self.names)


class Source(Config):
    """Where some of a profile's values are from, and how well they are known.

    Args:
        of: keys of values or of groups of them.
        source: the document, file or listing, or why we chose them.
        evidence: see the module's text.
    """

    of: Annotated[tuple[Text, ...], Field(min_length=1)]
    source: Text
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Sourced:
    """A value, where it is from, and how well it is known."""

    value: Any
    source: str
    evidence: Evidence

    @property
    def verified(self) -> bool:
        """Whether the vendor's own document or a real device says so."""
        return self.evidence != "unverified"


class DeviceProfile(Config):
    """What is known of a kind of device before it is looked at.

    Args:
        description: for people.
        os: ``linux`` or ``android``.
        architecture: as ``uname -m`` says.
        models: shell patterns of the model's name as the device tells it; any if none is given.
        soc: names under which the chip is known, the usual one first; none for a generic profile.
        clusters: the cores; none for a generic profile.
        memory_gib: sizes of memory it is sold with, in GiB.
        meters: where it tells its power.
        throttle_mdegc: temperature in m°C at which its clocks are slowed.
        gates: what must hold before it measures.
        runtimes: runtimes that exist for it.
        root: default folder for artifacts on the device; relative to the login's home.
        python: default interpreter for the Python agent; ``None`` where there is none.
        store_bytes: how much space artifacts may take on the device before old ones are evicted.
        sources: where all of this is from.
    """

    description: Text
    os: Literal["linux", "android"]
    architecture: Text
    models: tuple[Text, ...] = ()
    soc: tuple[Text, ...] = ()
    clusters: tuple[Cluster, ...] = ()
    memory_gib: tuple[Positive, ...] = ()
    meters: tuple[Meter, ...] = ()
    throttle_mdegc: Positive | None = None
    gates: Gates = Gates()
    runtimes: Annotated[tuple[Text, ...], Field(min_length=1)]
    root: Text
    python: Text | None = None
    store_bytes: Positive
    sources: tuple[Source, ...]

    @property
    def cores(self) -> int | None:
        """Number of cores, or ``None`` where the kind does not fix it."""
        return sum(len(cluster.cores) for cluster in self.clusters) or None

    def sourced(self, key: str) -> Sourced:
        """One value with its source.

        Args:
            key: its name, with dots between a group's and its own: ``gates.settle_s``.

        Raises:
            KeyError: if this profile does not set it.
        """
        value = _constants(self)[key]
        source = _source_of(key, self.sources)
        return Sourced(value, source.source, source.evidence)

    @model_validator(mode="after")
    def _cores_are_counted_once(self) -> DeviceProfile:
        cores = sorted(core for cluster in self.clusters for core in cluster.cores)
        if cores != list(range(len(cores))):
            raise ValueError(f"clusters: cores are {cores}, not each once from 0")
        return self

    @model_validator(mode="after")
    def _gate_is_below_throttling(self) -> DeviceProfile:
        gate = self.gates.max_temperature_mdegc
        if gate and self.throttle_mdegc and gate >= self.throttle_mdegc:
            raise ValueError(f"gates: {gate} m°C is not below throttling at {self.throttle_mdegc}")
        return self

    @model_validator(mode="after")
    def _everything_has_a_source(self) -> DeviceProfile:
        constants = _constants(self)
        named = [key for source in self.sources for key in source.of]
        problems = [f"{key} has no source" for key in constants if not _covered(key, named)]
        problems += [f"{key} has two sources" for key in set(named) if named.count(key) > 1]
        problems += [
            f"sources name {key}, which is not set"
            for key in named
            if not any(_within(constant, key) for constant in constants)
        ]
        if problems:
            raise ValueError(f"sources: {'; '.join(sorted(problems))}")
        return self


def _constants(profile: DeviceProfile) -> dict[str, Any]:
    """The values that need a source, by their keys; a list of things is one value."""
    found: dict[str, Any] = {}
    for name in profile.model_fields_set - _DEFINITION:
        value = getattr(profile, name)
        if isinstance(value, Gates):
            found |= {f"{name}.{key}": getattr(value, key) for key in value.model_fields_set}
        else:
            found[name] = value
    return found


def _within(key: str, group: str) -> bool:
    return key == group or key.startswith(f"{group}.")


def _covered(key: str, groups: list[str]) -> bool:
    return any(_within(key, group) for group in groups)


def _source_of(key: str, sources: tuple[Source, ...]) -> Source:
    """The source that names the key most closely."""
    fitting = [(group, source) for source in sources for group in source.of if _within(key, group)]
    return max(fitting, key=lambda pair: len(pair[0]))[1]
