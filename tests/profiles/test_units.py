"""Numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.units import (
    UNKNOWN,
    format_bytes,
    format_celsius,
    format_half_width,
    format_interval_mj,
    format_interval_ms,
    format_interval_mw,
    format_mhz,
    format_mj,
    format_ms,
    format_mw,
    format_ratio,
    format_significant,
)


@pytest.mark.parametrize(
    ("latency_ns", "text"),
    [
        (None, UNKNOWN),
        (1_000_000, "1.00"),
        (1_234_567, "1.23"),
        (12_345_678, "12.3"),
        (123_456_789, "123"),
        (1_234_567_890, "1235"),
        (123, "0.000123"),
        (0, "0"),
        (9_996_000, "10.0"),
        (999_600, "1.00"),
    ],
)
def test_milliseconds(latency_ns, text):
    assert format_ms(latency_ns) == text


def test_unknown_is_never_a_number():
    assert format_ms(None) == format_bytes(None) == format_interval_ms(None) == "unknown"


def test_intervals():
    assert format_interval_ms((1_000_000, 1_250_000)) == "1.00-1.25"
    assert format_interval_ms((1_000_000, 1_002_000)) == "1.000-1.002"
    assert format_interval_ms((1_000_000, 1_000_100)) == "1.0000-1.0001"
    assert format_interval_ms((1_000_000, 1_000_000)) == "1.00-1.00"


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0.0 kB"), (1_500, "1.5 kB"), (999_900, "999.9 kB"), (1_000_000, "1.00 MB")],
)
def test_bytes(size_bytes, text):
    assert format_bytes(size_bytes) == text


@given(
    st.floats(min_value=1e-12, max_value=1e15),
    st.sampled_from([1, -1]),
    st.integers(min_value=1, max_value=6),
)
def test_significant_digits(magnitude, sign, digits):
    """As close as that many digits can come, no digit too many, and never an exponent."""
    text = format_significant(sign * magnitude, digits)
    assert "e" not in text
    assert abs(float(text) - sign * magnitude) <= 0.5001 * 10.0 ** (1 - digits) * magnitude
    shown = text.lstrip("-").replace(".", "").lstrip("0")
    assert len(shown) == digits or ("." not in text and len(shown) > digits)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (format_mj(1_234), "1.23"),
        (format_mj(12), "0.0120"),
        (format_mj(-500), "-0.500"),
        (format_interval_mj((-1_000, 2_000)), "-1.00 to 2.00"),
        (format_mw(2_345_678), "2346"),
        (format_interval_mw((1_000, 1_500)), "1.00 to 1.50"),
        (format_celsius(45_678), "45.7"),
        (format_celsius(-5_000), "-5.0"),
        (format_mhz(1_800_000), "1800"),
        (format_ratio(0.789), "0.79x"),
        (format_half_width(100.0, (98.8, 101.2)), "±1.2 %"),
        (format_half_width(1_000.0, (500.0, 1_700.0)), "±60 %"),
        (format_half_width(100.0, (99.9, 100.1)), "±0.1 %"),
        (format_half_width(100.0, (99.96, 100.04)), "±0.04 %"),
        (format_half_width(-100.0, (-110.0, -90.0)), "±10 %"),
    ],
)
def test_energy_power_clocks_and_heat(text, expected):
    assert text == expected


def test_what_is_unknown_has_no_unit_and_no_number():
    for unknown in (
        *(form(None) for form in (format_mj, format_mw, format_celsius, format_mhz, format_ratio)),
        *(form(None) for form in (format_interval_mj, format_interval_mw)),
        format_half_width(None, (1.0, 2.0)),
        format_half_width(1.0, None),
        format_half_width(0.0, (-1.0, 1.0)),
    ):
        assert unknown == UNKNOWN
