"""In which state a device was while it was measured, in words; for the report and the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from profiles import units
from profiles.quality import disturbance, plausible
from profiles.records import Run, Trial

_MOMENTS = ("before", "warm", "after")


def settings(trial: Trial, runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What stayed as it was: name and value, ``unknown`` where the device did not tell.

    Args:
        trial: that was measured.
        runs: of it, whose words count.
    """
    device = [_mapping(_mapping(run.environment.get("preflight")).get("device")) for run in runs]
    condition = trial.condition
    return [
        ("device", trial.device_id),
        ("serial", trial.device_serial),
        ("kernel", _each(one.get("kernel") for one in device)),
        ("OS build", _known(trial.device_build)),
        ("cores", _each(one.get("cores") for one in device)),
        ("governor", _governors(trial, runs)),
        ("power source", condition.power_source),
        ("clock source", _each(_clock(run) for run in runs)),
        ("transport", trial.transport),
        ("agent", trial.agent),
        ("runtime", trial.runtime),
        ("runtime version", trial.runtime_version),
        ("runtime build", _each(run.environment.get("runtime_build") for run in runs)),
        ("delegates", ", ".join(trial.delegates) or units.UNKNOWN),
        ("delegate asked for", condition.delegate or "the runtime's default"),
        ("threads asked for", str(condition.threads)),
        ("threads used", _each(run.environment.get("threads") for run in runs)),
        ("core mask", condition.core_mask or "none"),
        ("mode", condition.mode),
    ]


def states(runs: Sequence[Run]) -> list[tuple[str, str, str, str]]:
    """What moves: name, and the range over the runs before loading, once warm, and after.

    Where the device told nothing there is ``unknown``.
    """
    rows: list[tuple[str, Callable[[Mapping[str, Any]], Iterable[float]], Callable[[float], str]]]
    rows = [
        ("core clocks, MHz", lambda e: e.get("frequencies_khz") or (), units.format_mhz),
        ("hottest zone, °C", _hottest, units.format_celsius),
        ("load, 1 min", lambda e: _one(e.get("load_1min")), lambda load: f"{load:.2f}"),
    ]
    found = []
    for name, values, form in rows:
        before, warm, after = (
            _range([value for run in runs for value in values(_at(run, moment))], form)
            for moment in _MOMENTS
        )
        found.append((name, before, warm, after))
    return found


def shares(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What others took of the time that each run is judged by: name and range over the runs."""
    seen = [disturbance(run) for run in runs]
    told = [
        ("work of others, cores", [one.foreign_cores for one in seen]),
        ("taken by a hypervisor, cores", [one.stolen_cores for one in seen]),
        ("waiting for a core, cores", [one.waited_cores for one in seen]),
    ]
    return [(name, _range(_some(values), _hundredths)) for name, values in told]


def _governors(trial: Trial, runs: Sequence[Run]) -> str:
    told = {
        governor
        for run in runs
        for moment in _MOMENTS
        for governor in _at(run, moment).get("governors") or ()
    }
    return ", ".join(sorted(told)) or trial.condition.governor


def _clock(run: Run) -> Any:
    return next((clock for m in _MOMENTS if (clock := _at(run, m).get("clock"))), None)


def _hottest(event: Mapping[str, Any]) -> list[float]:
    return _one(max(plausible(event.get("temperatures_mdegc")), default=None))


def _at(run: Run, moment: str) -> Mapping[str, Any]:
    return _mapping(run.environment.get(moment))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _one(value: Any) -> list[float]:
    return [] if value is None else [value]


def _some(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _each(values: Iterable[Any]) -> str:
    """All the different answers, in the order given."""
    told = dict.fromkeys(str(value) for value in values if value not in (None, "", units.UNKNOWN))
    return "; ".join(told) or units.UNKNOWN


def _known(value: str) -> str:
    return value or units.UNKNOWN


def _range(values: Sequence[float], form: Callable[[float], str]) -> str:
    if not values:
        return units.UNKNOWN
    low, high = form(min(values)), form(max(values))
    return low if low == high else f"{low} to {high}"


def _hundredths(value: float) -> str:
    return f"{value:.2f}"
