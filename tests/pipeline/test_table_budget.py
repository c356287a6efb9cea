"""What a table takes, and what fits into its minutes."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.table.budget import (
    FEWEST_ITERATIONS,
    MOST_ITERATIONS,
    cost_of,
    iterations_within,
    seconds,
)
from profiles.errors import UsageError
from profiles.records import Plan

PLAN = Plan(runs=5, warmup_iterations=5, warmup_ns=20_000_000)
CALLS = st.lists(st.floats(1e3, 1e8), min_size=1, max_size=100)


@given(st.floats(1, 3600), CALLS)
def test_what_is_called_fits_and_more_would_not(measure_s: float, calls_ns: list[float]):
    try:
        found = iterations_within(measure_s, PLAN, calls_ns)
    except UsageError as error:
        needed = int(re.findall(r"takes (\d+)", error.message)[0])
        assert 60 * needed > measure_s
        assert iterations_within(60 * needed, PLAN, calls_ns) >= FEWEST_ITERATIONS
        return
    assert seconds(PLAN, calls_ns, found) <= measure_s * (1 + 1e-9)
    assert found == MOST_ITERATIONS or seconds(PLAN, calls_ns, found + 1) > measure_s * (1 - 1e-9)


@given(CALLS, st.integers(0, 1000))
def test_more_calls_take_longer(calls_ns: list[float], iterations: int):
    assert seconds(PLAN, calls_ns, iterations) < seconds(PLAN, calls_ns, iterations + 1)


@given(st.integers(1, 300), st.integers(10, 100))
def test_the_minutes_that_are_said_to_be_needed_are_enough(blocks: int, networks: int):
    with pytest.raises(UsageError, match="are too few") as refused:
        cost_of(blocks, networks, "tflite", "int8", PLAN, 0.01)
    needed = int(re.findall(r"takes about (\d+)", refused.value.message)[0])
    found = cost_of(blocks, networks, "tflite", "int8", PLAN, needed)
    assert found.export_s + found.measure_s == pytest.approx(60 * needed)
    with pytest.raises(UsageError):
        cost_of(blocks, networks, "tflite", "int8", PLAN, needed - 1)


def test_the_cost_is_told_before_it_is_paid():
    told = cost_of(38, 40, "onnx", "float32", PLAN, 15).describe()
    assert told == (
        "38 blocks and 40 networks, 1.5 s each to export: about 1.9 min; then 13.1 min on the"
        " device in 5 runs"
    )
