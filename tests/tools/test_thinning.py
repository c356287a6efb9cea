"""Fewer points, and a histogram: nothing that stands out is lost, nothing is counted twice."""

from __future__ import annotations

import itertools
import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tools.report.charts import script_safe
from tools.report.thinning import histogram, thin

LATENCIES = st.lists(st.integers(1, 10**12), min_size=1, max_size=400).map(np.array)


@given(LATENCIES, st.integers(2, 60))
def test_thinning_keeps_the_extremes_and_the_order(values, most):
    kept = thin(values, most)
    assert len(kept) <= max(most, 2)
    assert (np.diff(kept) > 0).all()
    assert values[kept].min() == values.min()
    assert values[kept].max() == values.max()
    if len(values) <= most:
        assert len(kept) == len(values)


@given(LATENCIES, st.integers(2, 60))
def test_thinning_keeps_the_extremes_of_every_stretch(values, most):
    kept = set(thin(values, most).tolist())
    if len(values) <= most:
        return
    for stretch in np.array_split(np.arange(len(values)), most // 2):
        drawn = [values[index] for index in stretch if index in kept]
        assert (min(drawn), max(drawn)) == (values[stretch].min(), values[stretch].max())


@given(LATENCIES)
def test_every_sample_is_in_one_bin(values):
    bins = histogram(values)
    assert sum(count for _, _, count in bins) == len(values)
    assert bins[0][0] <= values.min()
    assert bins[-1][1] >= values.max()
    for (_, end, _), (start, _, _) in itertools.pairwise(bins):
        assert end == start
    assert all(low < high for low, high, _ in bins)


def test_bins_are_where_the_samples_are():
    values = np.concatenate([np.full(90, 100.0), np.full(10, 1000.0)])
    bins = [(low, high, count) for low, high, count in histogram(values) if count]
    assert [count for _, _, count in bins] == [90, 10]
    assert bins[0][0] <= 100.0 <= bins[0][1]
    assert bins[1][0] <= 1000.0001
    assert histogram(np.array([])) == []


def test_a_bulk_is_told_apart_however_long_its_tail_is():
    rng = np.random.default_rng(0)
    bulk = rng.normal(100, 1, 1000)
    bins = histogram(np.concatenate([bulk, [500.0]]))
    assert sum(1 for low, high, count in bins if count and 97 < low < high < 103) >= 8


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_json_cannot_leave_its_script(value):
    text = script_safe(value)
    assert json.loads(text) == value
    assert "<" not in text


def test_a_closing_tag_and_a_comment_stay_text():
    assert script_safe("</script><!--") == '"\\u003c/script>\\u003c!--"'
