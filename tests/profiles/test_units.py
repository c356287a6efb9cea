"""Numbers as people read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.units import (
    UNKNOWN,
    format_bytes,
    format_interval_ms,
    format_ms,
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
