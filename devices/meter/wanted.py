"""What is asked of a power sensor: by the inventory first, by the profile else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from devices.meter.base import About
from profiles.errors import MeterError


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is known of a sensor beyond what the device shows; see the inventory's ``meter``."""

    rails: tuple[str, ...] = ()
    covers: str = ""
    current_sign: int | None = None
    current_ua: int | None = None
    update_ms: int | None = None

    def about(
        self,
        entry: Mapping[str, Any],
        method: str,
        usual_update_ns: int,
        *,
        documented: bool,
        calibration: Mapping[str, Any] | None = None,
    ) -> About:
        """What a meter is.

        Args:
            entry: of the device's facts.
            method: how its readings become an energy.
            usual_update_ns: of such sensors, where nobody says more.
            documented: whether a document says that.
            calibration: what its numbers are taken for.
        """
        return About(
            name=str(entry["name"]),
            kind=str(entry["kind"]),
            covers=self.covers or f"what {entry['name']} is wired to",
            method=method,
            update_ns=usual_update_ns if self.update_ms is None else self.update_ms * 1_000_000,
            update_known=documented or self.update_ms is not None,
            calibration=calibration or {},
        )

    def of_all(self, entry: Mapping[str, Any], labels: Sequence[str]) -> tuple[str, ...]:
        """The labels of the channels that are summed up, where none contains another.

        Args:
            entry: of the device's facts.
            labels: of all channels that tell a power.

        Raises:
            MeterError: if one is asked for that is not there, or there is none.
        """
        name, known = entry["name"], ", ".join(labels)
        missing = [rail for rail in self.rails if rail not in labels]
        if missing:
            hint = f"it has {known or 'none'}: name some of these under 'meter:', 'rails:'"
            raise MeterError(f"{name} has no channel {', '.join(missing)} that tells power", hint)
        if not labels:
            raise MeterError(f"{name} has no channel that tells power")
        return tuple(self.rails or labels)

    def of_some(self, entry: Mapping[str, Any], labels: Sequence[str]) -> tuple[str, ...]:
        """The same where one may contain another, as Jetson's VDD_IN is the whole module.

        Raises:
            MeterError: also if there are several and it is not said which.
        """
        chosen = self.of_all(entry, labels)
        if not self.rails and len(chosen) > 1:
            hint = f"name some under 'meter:', 'rails:' in its entry: {', '.join(labels)}"
            raise MeterError(
                f"{entry['name']} has several channels, which may contain each other", hint
            )
        return chosen
