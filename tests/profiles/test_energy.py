"""From a curve of energy to what a call takes, and when that is not to be believed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.energy import EnergyRun, Trace, energy_of_run, energy_reasons, summarise_energy

SECOND = 1_000_000_000
#: Idle, active, idle: 4 s each, a second between.
STRETCHES = (("idle-before", 0), ("active", 5), ("idle-after", 10))


def details(
    before: float = 1e6,
    active: float = 3e6,
    after: float = 1e6,
    *,
    noise: float = 0.0,
    update_ms: int = 100,
    lost: tuple[float, float] = (0, 0),
    charging: bool = False,
    calls: int = 200,
    lag_s: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """A run whose powers in µW are known, read every 50 ms; what is lost is a gap in s."""
    at_ns = np.arange(-20, 15 * 20 + 1) * SECOND // 20
    middle_s = (at_ns[1:] + at_ns[:-1]) / 2e9 - lag_s
    power_uw = np.select([middle_s < 5, middle_s < 9], [before, active], after)
    power_uw = power_uw + noise * np.random.default_rng(seed).standard_normal(len(power_uw))
    covered = (middle_s < lost[0]) | (middle_s >= lost[1])
    steps_uj = np.where(covered, power_uw, 0) * np.diff(at_ns) / 1e9
    marks = [
        {
            "what": what,
            "start_ns": start * SECOND,
            "end_ns": (start + 4) * SECOND,
            "calls": calls if what == "active" else 0,
        }
        for what, start in STRETCHES
    ]
    meter = {"name": "ina219 (hwmon)", "covers": "the board", "method": "trapezoid"}
    return {
        "marks": marks,
        "meter": {**meter, "update_ns": update_ms * 1_000_000, "trouble": ""},
        "trace": {
            "at_ns": at_ns.tolist(),
            "energy_uj": np.concatenate([[0], np.cumsum(steps_uj)]).tolist(),
            "covered": covered.tolist(),
            "charging": charging,
        },
    }


def codes(run: EnergyRun) -> list[str]:
    return [reason.code for reason in energy_reasons(run)]


def test_energy_of_a_call():
    """2 W above idle for 4 s, of 200 calls."""
    run = energy_of_run(details())
    assert run.net_uj == pytest.approx(40_000)
    assert run.gross_uj == pytest.approx(60_000)
    assert (run.idle_uw, run.active_uw, run.net_uw) == pytest.approx((1e6, 3e6, 2e6))
    assert (run.calls, run.window_ns, run.coverage, run.periods) == (200, 4 * SECOND, 1, 40)
    assert (run.meter, run.covers, run.method) == ("ina219 (hwmon)", "the board", "trapezoid")
    assert not run.charging and energy_reasons(run) == ()


def test_both_idle_stretches_count():
    run = energy_of_run(details(before=1.0e6, after=1.1e6))
    assert run.net_uw == pytest.approx(3e6 - 1.05e6)
    assert (run.idle_before_uw, run.idle_after_uw) == pytest.approx((1.0e6, 1.1e6))


def test_a_sensor_that_is_late_by_an_update_takes_nothing_from_the_energy():
    run = energy_of_run(details(lag_s=0.1))
    assert run.net_uj == pytest.approx(40_000, rel=1e-6)


@given(
    st.floats(1e5, 1e7),
    st.floats(1.05, 20),
    st.integers(1, 10**6),
    st.floats(0, 0.02),
)
def test_any_powers(idle, factor, calls, noise):
    run = energy_of_run(
        details(idle, factor * idle, idle, calls=calls, noise=noise * (factor - 1) * idle)
    )
    assert run.net_uj == pytest.approx((factor - 1) * idle * 4 / calls, rel=0.01)
    assert run.gross_uj == pytest.approx(factor * idle * 4 / calls, rel=0.01)
    assert energy_reasons(run) == ()


def test_stretches_are_all_needed():
    for missing in range(3):
        whole = details()
        del whole["marks"][missing]
        with pytest.raises(ValueError, match=f"no {STRETCHES[missing][0]}"):
            energy_of_run(whole)
    with pytest.raises(ValueError, match="has calls"):
        energy_of_run(details(calls=0))


# --- reasons ----------------------------------------------------------------------------------


def test_a_gap_takes_nothing_from_the_mean_but_is_told():
    run = energy_of_run(details(lost=(6, 7)))
    assert run.net_uj == pytest.approx(40_000)
    assert run.coverage == pytest.approx(0.75)
    assert codes(run) == ["meter-coverage"]
    assert "75%" in energy_reasons(run)[0].text


@pytest.mark.parametrize(("lost", "fine"), [((6, 6.2), True), ((6, 6.25), False)])
def test_how_much_coverage_is_enough(lost, fine):
    assert (codes(energy_of_run(details(lost=lost))) == []) is fine


def test_a_gap_in_an_idle_stretch_counts_too():
    assert codes(energy_of_run(details(lost=(1, 2)))) == ["meter-coverage"]


def test_a_sensor_that_said_nothing():
    run = energy_of_run(details(lost=(-2, 20)))
    assert (run.net_uj, run.gross_uj, run.idle_uw, run.coverage) == (None, None, None, 0)
    assert codes(run) == ["meter-coverage"]
    empty = details()
    empty["trace"] |= {"at_ns": [], "energy_uj": [], "covered": []}
    empty["meter"]["trouble"] = "ina219 says 'x', which is no power"
    run = energy_of_run(empty)
    assert (run.net_uj, run.coverage) == (None, 0)
    assert [reason.text for reason in energy_reasons(run)] == ["ina219 says 'x', which is no power"]


@pytest.mark.parametrize(("update_ms", "fine"), [(200, True), (201, False), (1000, False)])
def test_a_stretch_has_twenty_updates(update_ms, fine):
    assert (codes(energy_of_run(details(update_ms=update_ms))) == []) is fine


def test_a_charged_battery_is_refused():
    assert codes(energy_of_run(details(charging=True))) == ["charging"]


def test_a_device_that_gives_power_is_refused():
    (reason,) = energy_reasons(energy_of_run(details(-1e6, -3e6, -1e6)))
    assert reason.code == "charging"
    assert "gives 3000 mW" in reason.text and "calibrate-meter" in reason.advice


@pytest.mark.parametrize(("after", "fine"), [(1.19e6, True), (1.25e6, False), (0.78e6, False)])
def test_idle_that_moves_by_more_than_a_tenth(after, fine):
    run = energy_of_run(details(after=after))
    assert codes(run) == ([] if fine else ["idle-moved"])


def test_idle_that_seems_to_move_by_chance_is_not_called_moved():
    """The net power is a few times its noise: idle differs by more than a tenth of it by chance."""
    seen = set()
    for seed in range(20):
        seen.update(codes(energy_of_run(details(active=1.02e6, noise=3e4, seed=seed))))
    assert "idle-moved" not in seen


def test_what_is_no_more_than_noise_is_no_energy():
    run = energy_of_run(details(active=1.005e6, noise=5e4))
    (reason,) = energy_reasons(run)
    assert reason.code == "meter-coverage"
    assert "mW above idle" in reason.text and "chance alone" in reason.text
    assert codes(energy_of_run(details(active=1e6))) == ["meter-coverage"]
    assert codes(energy_of_run(details(active=0.9e6))) == ["meter-coverage"]


def test_pure_noise_hardly_ever_passes():
    passed = [
        not codes(energy_of_run(details(active=1e6, noise=5e4, seed=seed))) for seed in range(300)
    ]
    assert sum(passed) <= 2


def test_the_noise_is_that_of_blocks():
    """Four standard errors of 80 readings of 50 mW each, of all three stretches."""
    found = [energy_of_run(details(noise=5e4, seed=seed)).noise_uw for seed in range(200)]
    expected = 4 * 5e4 / np.sqrt(78) * np.sqrt(1.5)
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(expected, rel=0.08)


# --- over runs --------------------------------------------------------------------------------


def runs(*active: float) -> list[EnergyRun]:
    return [energy_of_run(details(active=power)) for power in active]


def test_an_interval_over_runs():
    energy = summarise_energy(runs(2.9e6, 3.0e6, 3.1e6))
    assert energy.net_uj.value == pytest.approx(40_000)
    # Student's t with two degrees of freedom: 4.3027 * 2000 / sqrt(3).
    half = 4.302653 * 2000 / np.sqrt(3)
    assert energy.net_uj.ci95 == pytest.approx((40_000 - half, 40_000 + half))
    assert (energy.net_uj.n, energy.net_uj.runs) == (600, 3)
    assert energy.gross_uj.value == pytest.approx(60_000)
    assert energy.idle_uw.value == pytest.approx(1e6)
    assert (energy.meter, energy.covers, energy.coverage) == ("ina219 (hwmon)", "the board", 1)
    assert energy.method == "trapezoid"


def test_two_runs_have_no_interval():
    assert summarise_energy(runs(2.9e6, 3.0e6)).net_uj.ci95 is None


def test_the_least_coverage_is_told():
    some = runs(3e6, 3e6, 3e6)
    assert summarise_energy([*some, replace(some[0], coverage=0.96)]).coverage == 0.96


def test_nothing_is_no_energy():
    with pytest.raises(ValueError, match="at least one run"):
        summarise_energy([])
    with pytest.raises(ValueError, match="without power"):
        summarise_energy([*runs(3e6, 3e6), energy_of_run(details(lost=(-2, 20)))])


def test_intervals_cover_the_truth():
    random, covered = np.random.default_rng(3), 0
    for _ in range(300):
        some = runs(*(3e6 + 1e5 * random.standard_normal(5)))
        low, high = summarise_energy(some).net_uj.ci95 or (0, 0)
        covered += low <= 40_000 <= high
    assert 0.91 <= covered / 300 <= 0.985


# --- a curve ----------------------------------------------------------------------------------


def test_energy_between_two_moments():
    trace = Trace(
        np.array([0, 10, 20, 30]), np.array([0.0, 100, 100, 300]), np.array([True, False, True])
    )
    assert trace.between(0, 30) == pytest.approx((300, 2 / 3))
    assert trace.between(5, 25) == pytest.approx((150, 0.5))
    assert trace.between(-10, 40) == pytest.approx((300, 0.4))
    assert trace.between(12, 18) == pytest.approx((0, 0))
    assert trace.between(40, 50) == pytest.approx((0, 0))
