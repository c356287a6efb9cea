"""Verdicts that are right as often as they say, and never from a single number."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from profiles.regression import Nights, Rounds, regressions

ARTIFACTS = 50
#: See the module's documentation: what finds 3 % at 2 % between runs.
ENOUGH_ROUNDS = 21
ENOUGH_RUNS, ENOUGH_NIGHTS, BETWEEN_NIGHTS = 16, 10, 0.003


def rounds(
    random: np.random.Generator, *, slowdown: float = 0.0, count: int = ENOUGH_ROUNDS
) -> list[Rounds]:
    """Fifty artifacts, runs that vary by 2 %; the first is slower."""
    medians = 1e6 * np.exp(random.normal(0, 0.02, (ARTIFACTS, 2, count)))
    medians[0, 1] *= 1 + slowdown
    return [
        Rounds(str(number), tuple(before), tuple(after))
        for number, (before, after) in enumerate(medians)
    ]


def nights(
    random: np.random.Generator, *, slowdown: float = 0.0, count: int = ENOUGH_NIGHTS
) -> list[Nights]:
    shifts = random.normal(0, BETWEEN_NIGHTS, (ARTIFACTS, count + 1, 1))
    medians = 1e6 * np.exp(shifts + random.normal(0, 0.02, (ARTIFACTS, count + 1, ENOUGH_RUNS)))
    medians[0, -1] *= 1 + slowdown
    return [
        Nights(str(number), tuple(map(tuple, each[:-1])), tuple(each[-1]))
        for number, each in enumerate(medians)
    ]


# The two figures


@pytest.mark.parametrize("design", [rounds, nights])
def test_without_a_change_few_campaigns_report_any(design):
    random = np.random.default_rng(11)
    alarms = [
        any(change.outcome != "undecided" for change in regressions(design(random)))
        for _ in range(1000)
    ]
    assert np.mean(alarms) < 0.05


@pytest.mark.parametrize("design", [rounds, nights])
def test_one_artifact_of_fifty_that_is_3_percent_slower_is_found(design):
    random = np.random.default_rng(12)
    found = [regressions(design(random, slowdown=0.03))[0].outcome == "slower" for _ in range(400)]
    assert np.mean(found) > 0.9


def test_few_nights_have_power_because_the_artifacts_share_their_variance():
    random = np.random.default_rng(13)
    cases = [nights(random, slowdown=0.04, count=3) for _ in range(60)]
    together = [regressions(each)[0].outcome == "slower" for each in cases]
    alone = [regressions(each[:1])[0].outcome == "slower" for each in cases]
    assert np.mean(together) > 0.8
    assert np.mean(together) > np.mean(alone) + 0.2


def test_a_whole_device_that_varies_between_nights_is_no_regression():
    """Many runs a night do not make the night's own shift any smaller."""
    random = np.random.default_rng(14)
    alarms = 0
    for _ in range(200):
        shift = random.normal(0, 0.02, (1, 6, 1))
        medians = np.exp(shift + random.normal(0, 0.003, (10, 6, 15)))
        cases = [
            Nights(str(number), tuple(map(tuple, each[:-1])), tuple(each[-1]))
            for number, each in enumerate(medians)
        ]
        alarms += any(change.outcome != "undecided" for change in regressions(cases))
    assert alarms / 200 < 0.06


def test_a_new_night_of_few_runs_is_given_its_own_doubt():
    random = np.random.default_rng(15)
    alarms = 0
    for _ in range(120):
        cases = [dataclasses.replace(case, night=case.night[:3]) for case in nights(random)]
        alarms += any(change.outcome != "undecided" for change in regressions(cases))
    assert alarms / 120 < 0.06


# Verdicts


def test_faster_slower_and_in_between():
    random = np.random.default_rng(1)
    base = 1e6 * np.exp(random.normal(0, 0.005, (4, 2, 10)))
    factors = (1.2, 0.8, 1.0, 1.0)
    cases = [
        Rounds(name, tuple(before), tuple(factor * after))
        for name, factor, (before, after) in zip("abcd", factors, base, strict=True)
    ]
    slower, faster, *same = regressions(cases)
    assert (slower.name, slower.outcome, slower.reason) == ("a", "slower", "")
    assert (faster.name, faster.outcome, faster.reason) == ("b", "faster", "")
    assert slower.effect.ratio == pytest.approx(1.2, rel=0.01)
    assert slower.effect.ci95[0] < slower.effect.ratio < slower.effect.ci95[1]
    assert [each.outcome for each in same] == ["undecided"] * 2
    assert same[0].reason == "the difference may be chance"


def test_a_sure_but_tiny_difference_is_no_change():
    before = tuple(1e6 + np.arange(10.0))
    [change] = regressions([Rounds("a", before, tuple(1.009 * np.array(before)))])
    assert change.q < 1e-6
    assert (change.outcome, change.reason) == ("undecided", "the difference is less than 1 %")
    [change] = regressions([Rounds("a", before, tuple(1.011 * np.array(before)))])
    assert change.outcome == "slower"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (Rounds("a", (1.0, 1.0), (9.0, 9.0)), "2 of the 3 rounds needed"),
        (Rounds("a", (1.0,) * 5, (9.0,) * 4), "5 runs before and 4 after are no rounds"),
        (Nights("a", ((1.0,) * 9,) * 2, (9.0,) * 9), "the history has 2 of the 3 visits needed"),
        (
            Nights("a", ((1.0,) * 9, (1.0,) * 9, ()), (9.0,) * 9),
            "the history has 2 of the 3 visits needed",
        ),
        (Nights("a", ((1.0,) * 9,) * 5, (9.0, 9.0)), "the new visit has 2 of the 3 runs needed"),
    ],
)
def test_too_little_is_undecided_with_the_reason(case, reason):
    enough = Rounds("b", (1.0, 1.1, 1.2), (9.0, 9.1, 9.3))
    change, other = regressions([case, enough])
    assert (change.outcome, change.q, change.reason) == ("undecided", None, reason)
    assert change.effect.ratio == pytest.approx(9.0)
    assert (change.effect.ci95, change.effect.p) == (None, None)
    assert other.outcome == "slower"


def test_verdicts_come_in_the_order_of_the_cases():
    fast = Nights("fast", ((4.0, 4.1, 4.2), (4.1, 4.0, 4.2), (4.2, 4.1, 4.0)), (2.0, 2.1, 2.2))
    slow = Rounds("slow", (1.0, 1.1, 1.2), (2.0, 2.2, 2.3))
    short = Rounds("short", (1.0,), (2.0,))
    found = regressions([fast, short, slow])
    assert [(each.name, each.outcome) for each in found] == [
        ("fast", "faster"),
        ("short", "undecided"),
        ("slow", "slower"),
    ]


def test_a_visit_that_missed_an_artifact_still_counts_for_the_others():
    random = np.random.default_rng(9)
    cases = nights(random, slowdown=0.06, count=4)[:8]
    gaps = [
        dataclasses.replace(
            case,
            history=tuple(() if visit == place % 3 else v for visit, v in enumerate(case.history)),
        )
        for place, case in enumerate(cases)
    ]
    never = [dataclasses.replace(case, history=((), *case.history)) for case in gaps]
    found, same = regressions(gaps), regressions(never)
    assert found == same
    assert found[0].outcome == "slower"
    logs = [np.log(visit).mean() for visit in gaps[0].history if visit]
    ratio = np.exp(np.log(gaps[0].night).mean() - np.mean(logs))
    assert found[0].effect.ratio == pytest.approx(ratio)


def test_nothing_before_has_no_ratio_either():
    [change] = regressions([Nights("a", (), (1.0, 1.0, 1.0))])
    assert (change.effect, change.outcome) == (None, "undecided")
    assert regressions([]) == []


def test_looking_at_many_artifacts_asks_for_more():
    random = np.random.default_rng(4)
    one = Rounds(
        "a", tuple(np.exp(random.normal(0, 0.02, 8))), tuple(np.exp(random.normal(0.05, 0.02, 8)))
    )
    others = rounds(random, count=8)
    [alone], among = regressions([one]), regressions([one, *others])[0]
    assert alone.q == pytest.approx(alone.effect.p)
    assert among.q > among.effect.p


# Places


def at_two_places(
    random: np.random.Generator, slowdown: float
) -> tuple[list[Nights], list[Nights]]:
    """Ten artifacts on a quiet board, the first of them slower; ten on a phone that is not."""
    found = []
    for place, between, slower in (("board", 0.001, slowdown), ("phone", 0.05, 0.0)):
        shifts = random.normal(0, between, (1, 6, 1))
        medians = 1e6 * np.exp(shifts + random.normal(0, 0.005, (10, 6, 15)))
        medians[0, -1] *= 1 + slower
        found.append(
            [
                Nights(f"{place} {number}", tuple(map(tuple, each[:-1])), tuple(each[-1]), place)
                for number, each in enumerate(medians)
            ]
        )
    board, phone = found
    return board, phone


def test_a_noisy_device_does_not_hide_what_a_quiet_one_shows():
    random = np.random.default_rng(16)
    found = {"alone": 0, "beside": 0, "alarms": 0}
    for _ in range(100):
        board, phone = at_two_places(random, 0.03)
        beside = regressions([*phone, *board])
        found["alone"] += regressions(board)[0].outcome == "slower"
        found["beside"] += beside[len(phone)].outcome == "slower"
        found["alarms"] += any(each.outcome != "undecided" for each in beside[: len(phone)])
    assert found["beside"] >= 90, found
    assert abs(found["alone"] - found["beside"]) <= 8, found
    assert found["alarms"] <= 10, found


def test_several_places_without_a_change_report_none():
    random = np.random.default_rng(17)
    alarms = 0
    for _ in range(300):
        board, phone = at_two_places(random, 0.0)
        alarms += any(each.outcome != "undecided" for each in regressions([*board, *phone]))
    assert alarms / 300 < 0.06


def test_an_effect_is_its_own_place_s_and_the_adjustment_is_for_all():
    board, phone = at_two_places(np.random.default_rng(18), 0.03)
    alone, together = regressions(board), regressions([*board, *phone])[: len(board)]
    assert [each.effect for each in together] == [each.effect for each in alone]
    assert together[0].q > alone[0].q
