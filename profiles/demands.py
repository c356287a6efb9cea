"""What a search demands of a latency table before it believes it."""

from __future__ import annotations

from profiles.errors import TableError, TableFileError
from profiles.statistics import Agreement
from profiles.table import UNKNOWN, LatencyTable

#: A mean error above this does not tell a table's choices apart.  Source: issue 6's own bar of 5 %
#: for tables that pass, doubled for one that may still be searched with.
MOST_MAPE = 0.10
#: Below this rank correlation a search goes astray.
LEAST_SPEARMAN = 0.9
#: A validation on fewer networks decides nothing.
FEWEST_VALIDATED = 10
#: Systems change under a table unseen; after so long it is measured anew.
MOST_AGE_DAYS = 90.0
_DAY_NS = 86_400 * 10**9


def demand(table: LatencyTable, *, device: str | None = None, runtime: str | None = None) -> None:
    """Refuse a table that is not of this device and runtime.

    Raises:
        TableFileError: names both sides of each difference.
    """
    key = table.key
    asked = (("device", device, key.device), ("runtime", runtime, key.runtime))
    wrong = [f"{name} {has}, not {want}" for name, want, has in asked if want not in (None, has)]
    if wrong:
        raise TableFileError(
            f"the table is of {' and of '.join(wrong)}", "name the table of what you ask for"
        )


def stale(
    table: LatencyTable,
    *,
    runtime_version: str | None = None,
    device_build: str | None = None,
    now_ns: int | None = None,
) -> list[str]:
    """Why a table may hold no longer, one clause each.

    Args:
        table: to judge.
        runtime_version, device_build: what is on the device now; ``None`` is not compared, nor is
            what either side does not know.
        now_ns: nanoseconds since 1970; ``None`` to leave its age alone.
    """
    found = []
    for name, has, now in (
        ("runtime version", table.key.runtime_version, runtime_version),
        ("device build", table.key.device_build, device_build),
    ):
        if now is not None and UNKNOWN not in (has, now) and has != now:
            found.append(f"its {name} is {has}, the device's is {now}")
    if now_ns is not None and table.measured_ns is not None:
        days = (now_ns - table.measured_ns) / _DAY_NS
        if days > MOST_AGE_DAYS:
            found.append(f"it is {days:.0f} days old, more than {MOST_AGE_DAYS:.0f}")
    return found


def failing(validation: Agreement) -> list[str]:
    """In what a validation fails, one clause each; one of too few networks fails in nothing."""
    if validation.n < FEWEST_VALIDATED:
        return []
    found = []
    if validation.mape > MOST_MAPE:
        found.append(f"MAPE {validation.mape:.1%} on {validation.population}")
    if validation.spearman is not None and validation.spearman < LEAST_SPEARMAN:
        found.append(f"Spearman {validation.spearman:.2f} on {validation.population}")
    return found


def demand_trusted(
    table: LatencyTable,
    *,
    runtime_version: str | None = None,
    device_build: str | None = None,
    now_ns: int | None = None,
) -> None:
    """Refuse a table that is stale, or whose last validation fails.

    Args: as :func:`stale`.

    Raises:
        TableError: with all that is wrong.
    """
    found = stale(table, runtime_version=runtime_version, device_build=device_build, now_ns=now_ns)
    found += failing(table.validation[-1]) if table.validation else []
    if found:
        raise TableError(
            f"the table is not to be trusted: {'; '.join(found)}",
            "measure it again, or say that it is to be used all the same",
            table.key.device,
        )
