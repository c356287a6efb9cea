"""What must hold before a measurement starts, and the sentence that says what does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from profiles.catalog import Gates as ProfileGates

Khz = Annotated[int, Field(gt=0)]


class Gates(ProfileGates):
    """A profile's gates, and what only this visit asks for; what is not given is not asked for.

    As-shipped, ``screen`` and ``airplane`` must be found so; pinned, they are set so.

    Args:
        screen: ``on`` or ``off``.
        airplane: whether a phone's radios are off.  Not for one that is reached over Wi-Fi.
        unplugged: nothing charges the battery.
        pinned_khz: frequency in kHz to pin the cores to; the highest of each cluster if none is
            given, or where a cluster does not reach it.
    """

    screen: Literal["on", "off"] | None = None
    airplane: bool | None = None
    unplugged: bool = False
    pinned_khz: Khz | None = None

    @property
    def pass_with_time(self) -> bool:
        """Whether there is a gate that a device may come within by waiting."""
        limits = (self.max_temperature_mdegc, self.max_thermal_status, self.max_foreign_load_cores)
        return any(limit is not None for limit in limits)

    @classmethod
    def of(cls, profile: ProfileGates, **more: Any) -> Gates:
        """A profile's gates, with more."""
        return cls.model_validate({**profile.model_dump(exclude_unset=True), **more})


@dataclass(frozen=True, slots=True)
class Refusal:
    """One reason not to measure now.

    Args:
        what: which reading it is about.
        value: what was read, with its unit.
        limit: what it should be.
        advice: what to do about it.
        passing: whether waiting may help.
    """

    what: str
    value: str
    limit: str
    advice: str
    passing: bool = False

    def __str__(self) -> str:
        return f"{self.what} is {self.value}, not {self.limit}"
