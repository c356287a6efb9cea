"""Measurements side by side: what is slower than FP32 says so only where the intervals do."""

from __future__ import annotations

import pytest

from pipeline.overview import rows
from profiles.records import Condition
from tests.measurements import measurement


@pytest.mark.parametrize(
    ("median_ns", "ci95_ns", "slower"),
    [
        (1.30e6, (1.28e6, 1.32e6), True),
        (1.05e6, (1.00e6, 1.10e6), False),
        (1.30e6, (1.009e6, 1.60e6), False),
        (1.30e6, None, True),
        (0.70e6, (0.69e6, 0.71e6), False),
    ],
)
def test_slower_is_what_is_slower_beyond_both_intervals(median_ns, ci95_ns, slower):
    baseline = measurement(variant="fp32", median_ns=1e6)
    assert baseline.ci95_ns == (0.99e6, 1.01e6)
    other = measurement(variant="int8", median_ns=median_ns, ci95_ns=ci95_ns)
    first, second = rows([baseline, other])
    assert (first.speedup, first.slower) == (1.0, False)
    assert second.speedup == pytest.approx(1e6 / median_ns)
    assert second.slower is slower


def test_without_a_baseline_or_a_figure_nothing_is_slower():
    alone = measurement(variant="int8")
    refused = measurement(variant="int8", median_ns=None, status="refused")
    elsewhere = measurement(variant="fp32", device="other")
    for found in ([alone], [measurement(), refused], [elsewhere, alone]):
        assert [row.slower for row in rows(found)] == [False] * len(found)
        assert rows(found)[-1].speedup is None


@pytest.mark.parametrize(
    "changes",
    [
        {"condition": Condition(governor="powersave")},
        {"condition": Condition(power_source="battery")},
        {"condition": Condition(threads=4)},
        {"device": "other"},
    ],
)
def test_only_what_was_measured_alike_is_compared(changes):
    slow, fast = measurement(), measurement(variant="int8", median_ns=5e5)
    alike = rows([slow, fast])
    assert (alike[1].speedup, [row.on_front for row in alike]) == (2.0, [False, True])
    apart = rows([slow, measurement(variant="int8", median_ns=5e5, **changes)])
    assert (apart[1].speedup, [row.on_front for row in apart]) == (None, [True, True])


@pytest.mark.parametrize(
    "changes", [{"agent": "native"}, {"condition": Condition(delegate="xnnpack")}]
)
def test_agents_and_delegates_are_chosen_among_and_no_speedup(changes):
    fast = measurement(variant="int8", median_ns=5e5, **changes)
    found = rows([measurement(), fast])
    assert (found[1].speedup, [row.on_front for row in found]) == (None, [False, True])
