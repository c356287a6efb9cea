"""Units: one internal unit per quantity, written in every name, and how people read them.

Latency is ``_ns``, size ``_bytes``, temperature ``_mdegc``; all integers.  Only the file that
touches a device converts from another unit, and only the functions here convert to text.
"""

from __future__ import annotations

NS_PER_MS = 1_000_000

UNKNOWN = "unknown"


def format_ms(latency_ns: float | None, digits: int = 3) -> str:
    """Milliseconds with ``digits`` significant digits, or ``unknown``."""
    return UNKNOWN if latency_ns is None else format_significant(latency_ns / NS_PER_MS, digits)


def format_interval_ms(interval_ns: tuple[float, float] | None) -> str:
    """An interval in milliseconds, or ``unknown``."""
    if interval_ns is None:
        return UNKNOWN
    low, high = interval_ns
    return f"{format_ms(low)}-{format_ms(high)}"


def format_bytes(size_bytes: int | None) -> str:
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
