"""Units: one internal unit per quantity, written in every name, and how people read them.

Latency is ``_ns``, size ``_bytes``, energy ``_uj``, power ``_uw``, clocks ``_khz``, temperature
``_mdegc``; integers where they are read.  Only the file that touches a device converts from another
unit, and only the functions here convert to text.
"""

from __future__ import annotations

import math

NS_PER_MS = 1_000_000
UJ_PER_MJ = 1_000
UW_PER_MW = 1_000
KHZ_PER_MHZ = 1_000

UNKNOWN = "unknown"

# What is outside of these is no temperature; exactly 0 is what a sensor that is not there reads as
# (seen on Samsung's SUBBAT, on Pixels' VIRTUAL-USB-UI).
_COLDEST_MDEGC, _HOTTEST_MDEGC = -40_000, 150_000


def plausible_mdegc(value: float) -> int | None:
    """A temperature in m°C, or ``None`` for a number that cannot be one."""
    if not math.isfinite(value) or not _COLDEST_MDEGC <= value <= _HOTTEST_MDEGC:
        return None
    return round(value) or None


def format_ms(latency_ns: float | None, digits: int = 3) -> str:
    """Milliseconds with ``digits`` significant digits, or ``unknown``."""
    return UNKNOWN if latency_ns is None else format_significant(latency_ns / NS_PER_MS, digits)


def format_interval_ms(interval_ns: tuple[float, float] | None) -> str:
    """An interval in milliseconds, its ends told apart where six digits can, or ``unknown``."""
    if interval_ns is None:
        return UNKNOWN
    low, high = interval_ns
    digits = next((n for n in (3, 4, 5) if format_ms(low, n) != format_ms(high, n)), 6)
    digits = 3 if low == high else digits
    return f"{format_ms(low, digits)}-{format_ms(high, digits)}"


def format_mj(energy_uj: float | None, digits: int = 3) -> str:
    """Millijoules with ``digits`` significant digits, or ``unknown``."""
    return UNKNOWN if energy_uj is None else format_significant(energy_uj / UJ_PER_MJ, digits)


def format_interval_mj(interval_uj: tuple[float, float] | None) -> str:
    """An interval in millijoules, or ``unknown``; its ends may lie on both sides of 0."""
    if interval_uj is None:
        return UNKNOWN
    low, high = interval_uj
    return f"{format_mj(low)} to {format_mj(high)}"


def format_mw(power_uw: float | None, digits: int = 3) -> str:
    """Milliwatts with ``digits`` significant digits, or ``unknown``."""
    return UNKNOWN if power_uw is None else format_significant(power_uw / UW_PER_MW, digits)


def format_interval_mw(interval_uw: tuple[float, float] | None) -> str:
    """An interval in milliwatts, or ``unknown``."""
    if interval_uw is None:
        return UNKNOWN
    low, high = interval_uw
    return f"{format_mw(low)} to {format_mw(high)}"


def format_celsius(temp_mdegc: float | None) -> str:
    """Degrees Celsius to a tenth, or ``unknown``."""
    return UNKNOWN if temp_mdegc is None else f"{temp_mdegc / 1_000:.1f}"


def format_mhz(frequency_khz: float | None) -> str:
    """Megahertz, or ``unknown``."""
    return UNKNOWN if frequency_khz is None else f"{frequency_khz / KHZ_PER_MHZ:.0f}"


def format_ratio(ratio: float | None) -> str:
    """A ratio of two latencies, such as ``0.79x``, or ``unknown``."""
    return UNKNOWN if ratio is None else f"{ratio:.2f}x"


def format_half_width(value: float | None, interval: tuple[float, float] | None) -> str:
    """Half an interval's width as a share of the value, such as ``±1.2 %``, or ``unknown``."""
    if not value or interval is None:
        return UNKNOWN
    percent = 100 * (interval[1] - interval[0]) / (2 * abs(value))
    return f"±{format_significant(percent, 2 if percent >= 1 else 1)} %"


def format_bytes(size_bytes: float | None) -> str:
    """Bytes as kB or MB (powers of ten, as storage is sold), or ``unknown``."""
    if size_bytes is None:
        return UNKNOWN
    if size_bytes < 1_000_000:
        return f"{size_bytes / 1_000:.1f} kB"
    return f"{size_bytes / 1_000_000:.2f} MB"


def format_significant(value: float, digits: int = 3) -> str:
    """``value`` with that many significant digits and no exponent."""
    if value == 0:
        return "0"
    magnitude = f"{abs(value):.{digits - 1}e}"  # after rounding: 9.996 is 10.0, not 10.00
    exponent = int(magnitude.split("e")[1])
    return f"{value:.{max(digits - 1 - exponent, 0)}f}"
