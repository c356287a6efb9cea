"""The contract of a power sensor: what is read on the device, and what the readings mean.

The agent reads and understands nothing: every ``period_ns`` it notes its clock and the text of each
file, or what a command printed.  A meter makes a curve of energy of that on the host, where it can
be tested, and can be done again when a calibration is found to be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from profiles.energy import MIN_PERIODS, Trace
from profiles.records import Samples

#: For each reading the text of every file, or of the command.
Texts = Sequence[Sequence[str]]

_SHORTEST_WINDOW_NS = 2_000_000_000
_FASTEST_NS, _SLOWEST_NS = 20_000_000, 500_000_000


@dataclass(frozen=True, slots=True)
class Sampling:
    """What the agent reads for a meter, and how often.

    Args:
        period_ns: from one reading to the next.
        window_ns: shortest stretch of time that its readings can tell the energy of.
        files: paths on the device, read whole.
        command: run instead, and its output read; one text.
    """

    period_ns: int
    window_ns: int
    files: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    @classmethod
    def of(cls, update_ns: int, files: Sequence[str] = (), command: Sequence[str] = ()) -> Sampling:
        """For a sensor that has a new value every ``update_ns``: each is seen twice where that is
        not faster than a board can well read, and a stretch has one period more than it must, for
        the first is not used.
        """
        period_ns = min(max(update_ns // 2, _FASTEST_NS), _SLOWEST_NS)
        window_ns = max((MIN_PERIODS + 1) * update_ns, _SHORTEST_WINDOW_NS)
        return cls(period_ns, window_ns, tuple(files), tuple(command))


@dataclass(frozen=True, slots=True)
class About:
    """What a meter is.

    Args:
        name: as the device spells it.
        kind: how it is read.
        covers: what its power is of.
        method: how its readings become an energy.
        update_ns: from one new value of the sensor to the next.
        update_known: whether a document or a person says so; else readings are looked at, too.
        calibration: what its numbers were taken for; empty where the ABI fixes that.
    """

    name: str
    kind: str
    covers: str
    method: str
    update_ns: int
    update_known: bool = True
    calibration: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name and kind, for people."""
        return f"{self.name} ({self.kind})"


class Meter(Protocol):
    """A power sensor of one device."""

    @property
    def about(self) -> About:
        """What it is."""

    def sampling(self) -> Sampling:
        """What to read."""

    def trace(self, at_ns: Samples, values: Texts) -> Trace:
        """The energy that readings amount to.

        A reading that cannot be understood is a gap.

        Args:
            at_ns: the device's monotonic clock at each reading, shape ``(n,)``.
            values: for each reading the text of every file, or of the command.

        Raises:
            MeterError: if none of them is what such a sensor says.
        """

    def telling(self, texts: Sequence[str]) -> Any:
        """What of a reading is another one once the sensor has a new value."""

    def charging(self, values: Texts) -> bool:
        """Whether anything but the device took part in what these readings say.

        Raises:
            MeterError: if they should say so, and do not.
        """
