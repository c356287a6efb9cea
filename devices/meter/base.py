"""The contract of a power sensor: what is read on the device, and what the readings mean.

The agent reads and understands nothing: every ``period_ns`` it notes its clock and the text of each
file, or what a command printed.  A meter makes a curve of energy of that on the host, where it can
be tested, and can be done again when a calibration is found to be wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from profiles.energy import Trace
from profiles.records import Samples


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


class Meter(Protocol):
    """A power sensor of one device.

    Args:
        name: as the device spells it, with its kind.
        covers: what its power is of.
    """

    name: str
    covers: str

    def sampling(self) -> Sampling:
        """What to read."""

    def trace(self, at_ns: Samples, values: Sequence[Sequence[str]]) -> Trace:
        """The energy that readings amount to.

        Args:
            at_ns: the device's monotonic clock at each reading, shape ``(n,)``.
            values: for each reading the text of every file, or of the command.

        Raises:
            MeterError: if they are not what such a sensor says.
        """

    def charging(self, values: Sequence[Sequence[str]]) -> bool:
        """Whether anything but the device took part in what these readings say."""
