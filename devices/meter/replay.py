"""The public fake: a power sensor whose readings were recorded before.

A recording is a JSON object::

    {"meter": an entry of a device's facts["meters"], or a list of them for powercap,
     "wanted": {"rails": [...], "covers": "...", "current_sign": -1, ...},
     "marks": [{"what": "idle-before", "start_ns": ..., "end_ns": ..., "calls": 0}, ...],
     "power": {"at_ns": [...], "values": [[...], ...]}}

``marks`` and ``power`` are those of a run's details.  A scripted device plays them when it is asked
for energy, and what they mean is worked out as for the sensor they were recorded from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from devices.meter.base import About, Meter, Sampling, Texts
from devices.meter.kinds import build
from devices.meter.wanted import Wanted
from profiles.energy import Trace
from profiles.errors import MeterError
from profiles.records import Samples


@dataclass(frozen=True, slots=True)
class Replay:
    """The sensor of a recording."""

    path: Path
    recorded: Meter

    @property
    def about(self) -> About:
        """See :class:`devices.meter.base.Meter`."""
        about = self.recorded.about
        return replace(about, kind=f"replay of {about.kind}")

    def sampling(self) -> Sampling:
        """The recording in place of the sensor's files."""
        return replace(self.recorded.sampling(), files=(str(self.path),), command=())

    def trace(self, at_ns: Samples, values: Texts) -> Trace:
        """See :class:`devices.meter.base.Meter`."""
        return self.recorded.trace(at_ns, values)

    def telling(self, texts: Sequence[str]) -> Any:
        """See :class:`devices.meter.base.Meter`."""
        return self.recorded.telling(texts)

    def charging(self, values: Texts) -> bool:
        """See :class:`devices.meter.base.Meter`."""
        return self.recorded.charging(values)


def replay(path: Path) -> Replay:
    """The sensor of a recording.

    Raises:
        MeterError: if it is none.
    """
    recording = _read(path)
    try:
        entries = recording["meter"]
        entries = entries if isinstance(entries, list) else [entries]
        wanted = dict(recording.get("wanted", {}))
        wanted["rails"] = tuple(wanted.get("rails", ()))
        return Replay(path, build(entries, Wanted(**wanted)))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise MeterError(f"{path} is no recording of a power sensor") from error


def events(path: Path) -> list[dict[str, Any]]:
    """What an agent would say of a recorded run: its marks, and its readings.

    Raises:
        MeterError: if it is no recording.
    """
    recording = _read(path)
    try:
        marks = [{"event": "mark", **mark} for mark in recording["marks"]]
        return [*marks, {"event": "power", **recording["power"]}]
    except (KeyError, TypeError) as error:
        raise MeterError(f"{path} is no recording of a power sensor") from error


def _read(path: Path) -> Mapping[str, Any]:
    try:
        recording = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise MeterError(f"{path} is no recording of a power sensor") from error
    if not isinstance(recording, dict):
        raise MeterError(f"{path} is no recording of a power sensor")
    return recording
