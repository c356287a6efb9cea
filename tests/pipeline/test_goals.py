"""Objectives and limits over several devices."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.search.goals import Goals, Limit, Objective, front
from profiles.errors import UsageError

KNOWN = {
    ("error", None): np.array([0.3, 0.2, 0.1, 0.1]),
    ("latency_ms", "pi"): np.array([10.0, 20.0, 40.0, np.nan]),
    ("latency_ms", "phone"): np.array([12.0, 16.0, 8.0, 8.0]),
}


def test_the_worst_device_counts_and_an_unknown_one_is_unknown():
    goals = Goals((Objective("error"), Objective("latency_ms", ("pi", "phone"))))
    scores = goals.scores(KNOWN)
    np.testing.assert_array_equal(scores.values[:, 1], [12, 20, 40, np.nan])
    assert scores.violation.tolist() == [0, 0, 0, np.inf]


def test_weights_are_shares():
    goals = Goals((Objective("latency_ms", ("pi", "phone"), (3.0, 1.0)),))
    np.testing.assert_allclose(goals.scores(KNOWN).values[:3, 0], [10.5, 19, 32])


def test_limits_are_missed_by_shares_that_add_up():
    limits = (Limit("latency_ms", 10.0, "pi"), Limit("latency_ms", 8.0, "phone"))
    goals = Goals((Objective("error"),), limits)
    assert goals.scores(KNOWN).violation.tolist() == [0.5, 2.0, 3.0, np.inf]
    columns = np.column_stack([KNOWN[of] for of in goals.needs()])
    np.testing.assert_array_equal(goals.of_columns(columns).violation, [0.5, 2, 3, np.inf])


def test_limits_that_nothing_meets_give_the_nearest_and_say_so():
    goals = Goals((Objective("error"),), (Limit("latency_ms", 8.0, "pi"),))
    found = front(goals.scores(KNOWN))
    assert found.rows.tolist() == [0]
    assert found.words == "no network meets the limits; the nearest misses them by 25.0%"


def test_limits_that_some_meet_give_their_front():
    goals = Goals(
        (Objective("error"), Objective("latency_ms", ("pi",))),
        (Limit("latency_ms", 20.0, "pi"),),
    )
    found = front(goals.scores(KNOWN))
    assert found.rows.tolist() == [0, 1]
    assert found.words == "2 networks on the front meet the limits"


def test_a_front_of_failures_is_empty_and_says_so():
    scores = Goals((Objective("error"),)).scores({("error", None): np.array([np.nan])})
    assert front(scores).words == "no network could be measured"


def test_all_that_is_wrong_is_told_at_once():
    with pytest.raises(UsageError) as refused:
        Goals(
            (Objective("speed"), Objective("latency_ms", ("pi",), (1.0, -1.0))),
            (Limit("size_mb", 0.0),),
        )
    for words in ("speed is none of", "a weight for each", "weights are above 0", "size_mb is 0.0"):
        assert words in str(refused.value)
    with pytest.raises(UsageError, match="there is no objective"):
        Goals(())


def test_what_nothing_tells_is_named():
    goals = Goals((Objective("energy_mj", ("pi",)),), (Limit("size_mb", 3.0),))
    with pytest.raises(UsageError, match="nothing tells energy_mj on pi, size_mb"):
        goals.scores(KNOWN)
