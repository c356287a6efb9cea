"""One suite for every kind of power sensor, the public fake included."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.meter import understood
from devices.meter.base import Meter
from devices.meter.replay import replay
from profiles.energy import energy_of_run, energy_reasons
from profiles.errors import MeterError
from tests.meters import KINDS, START_NS, WAVES, Kind, Wave, constant, marks, steps, truth_uj

NAMES = [*KINDS, "replay"]


@pytest.fixture(params=NAMES)
def kind(request) -> Kind:
    return KINDS["ina3221" if request.param == "replay" else request.param]


@pytest.fixture
def meter(request, kind: Kind, tmp_path: Path) -> Meter:
    if request.node.callspec.params["kind"] != "replay":
        return kind.meter()
    recording = {"meter": list(kind.entries), "wanted": asdict(kind.wanted)}
    path = tmp_path / "recording.json"
    path.write_text(json.dumps(recording))
    return replay(path)


def test_it_says_what_it_is_and_what_to_read(meter: Meter):
    about, sampling = meter.about, meter.sampling()
    assert all((about.name, about.kind, about.covers, about.method))
    assert about.update_ns > 0
    assert bool(sampling.files) != bool(sampling.command)
    assert sampling.window_ns >= max(20 * about.update_ns, 2_000_000_000)
    assert 0 < sampling.period_ns <= max(about.update_ns, 20_000_000)
    json.dumps(dict(about.calibration))


@pytest.mark.parametrize("wave", WAVES)
def test_a_known_integral_is_right_within_one_percent(meter: Meter, kind: Kind, wave: str):
    at_ns = kind.times()
    trace = meter.trace(at_ns, kind.values(WAVES[wave], at_ns))
    assert trace.covered[1:-2].all()
    assert (np.diff(trace.at_ns) > 0).all()
    for start_s, end_s in ((0.5, 59.0), (3.3, 41.7), (12.0, 49.0)):
        start_ns, end_ns = START_NS + round(start_s * 1e9), START_NS + round(end_s * 1e9)
        energy_uj, coverage = trace.between(start_ns, end_ns)
        assert energy_uj == pytest.approx(truth_uj(WAVES[wave], start_ns, end_ns), rel=0.01)
        assert coverage == 1


def energy_of(meter: Meter, kind: Kind, wave: Wave, change=lambda values: values):
    at_ns = kind.times()
    values = change(kind.values(wave, at_ns))
    power = {"at_ns": at_ns.tolist(), "values": values}
    details = {"power": power, "marks": list(marks(kind.length_s)), "samples": "kept"}
    stored = json.loads(json.dumps(understood(meter, details)))
    assert {key: stored[key] for key in details} == details
    return energy_of_run(stored)


def test_a_run_says_the_energy_of_a_call(meter: Meter, kind: Kind):
    """2 W more for 21.5 s, of a thousand calls: 43 mJ each."""
    run = energy_of(meter, kind, steps((21.75, 43.75)))
    assert run.net_uj == pytest.approx(43_000, rel=0.01)
    assert run.gross_uj == pytest.approx(64_500, rel=0.01)
    assert run.idle_uw == pytest.approx(1e6, rel=0.01)
    assert run.meter == f"{meter.about.name} ({meter.about.kind})"
    assert (run.covers, run.charging) == (meter.about.covers, False)
    assert 0.97 < run.coverage <= 1
    assert energy_reasons(run) == ()


def test_power_that_does_not_rise_is_no_energy(meter: Meter, kind: Kind):
    run = energy_of(meter, kind, constant())
    assert [reason.code for reason in energy_reasons(run)][-1] == "meter-coverage"


GARBAGE = ["", "garbage", "nan", "-", "1e3", "9" * 30, "\x00", "12 34"]


def test_what_cannot_be_understood_is_a_gap(meter: Meter, kind: Kind):
    at_ns = kind.times()
    values = kind.values(constant(), at_ns)
    middle = len(values) // 2
    for hole, text in enumerate(GARBAGE, start=middle):
        values[hole] = [text] * len(values[hole])
    trace = meter.trace(at_ns, values)
    assert trace.covered[1 : middle - 2].all() and trace.covered[middle + 10 : -3].all()
    start_ns, end_ns = int(at_ns[5]), int(at_ns[-6])
    energy_uj, coverage = trace.between(start_ns, end_ns)
    if kind.counts:  # a counter loses nothing while nobody looks
        assert coverage == 1
    else:
        hole_ns = at_ns[middle + 8] - at_ns[middle - 1]
        assert coverage == pytest.approx(1 - hole_ns / (end_ns - start_ns), abs=1e-9)
        assert not trace.covered[middle - 1 : middle + 8].any()
    share = truth_uj(constant(), start_ns, end_ns) * coverage
    assert energy_uj == pytest.approx(share, rel=0.01)


@pytest.mark.parametrize("text", ["", "garbage"])
def test_a_sensor_that_says_nothing_is_told(meter: Meter, kind: Kind, text: str):
    run = energy_of(meter, kind, constant(), lambda values: [[text] * len(r) for r in values])
    assert (run.net_uj, run.gross_uj, run.idle_uw) == (None, None, None)
    (reason,) = energy_reasons(run)
    assert reason.code == "meter-coverage" and reason.advice
    assert meter.about.name in reason.text


def test_fewer_texts_than_files_are_a_gap(meter: Meter, kind: Kind):
    at_ns = kind.times()
    values = kind.values(constant(), at_ns)
    values[20] = []
    assert kind.counts or not meter.trace(at_ns, values).covered[19:21].any()
    assert meter.trace(at_ns, values).covered[25:100].all()


@pytest.mark.parametrize("change", ["too few", "a clock that runs back"])
def test_readings_without_an_order_are_refused(meter: Meter, kind: Kind, change: str):
    at_ns = kind.times()[:40]
    at_ns = at_ns[:1] if change == "too few" else at_ns[::-1]
    with pytest.raises(MeterError, match="twice, or by a clock that went back"):
        meter.trace(at_ns, kind.values(constant(), np.sort(at_ns)))


def test_a_long_silence_is_not_covered_unless_it_counts(meter: Meter, kind: Kind):
    at_ns = kind.times()
    # Longer than three periods of the slowest sensor, and than of its readings.
    keep = np.ones(len(at_ns), dtype=bool)
    keep[40:52] = False
    values = kind.values(steps(), at_ns)
    told = [row for row, kept in zip(values, keep, strict=True) if kept]
    trace = meter.trace(at_ns[keep], told)
    silent = trace.between(int(at_ns[39]), int(at_ns[52]))
    assert (silent[1] > 0.99) == kind.counts
    assert (silent[0] > 0) == kind.counts
    assert trace.covered[1:38].all() and trace.covered[42:80].all()


def test_only_a_battery_can_be_charged(meter: Meter, kind: Kind):
    at_ns = kind.times()[:10]
    values = kind.values(constant(), at_ns)
    assert meter.charging(values) is False
    values[7] = [text.replace("Discharging", "Charging") for text in values[7]]
    assert meter.charging(values) is not kind.downstream


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.text(max_size=40), max_size=5), min_size=2, max_size=6))
def test_no_text_breaks_it(meter: Meter, kind: Kind, values):
    at_ns = kind.times()[: len(values)]
    try:
        trace = meter.trace(at_ns, values)
    except MeterError as error:
        assert error.message
    else:
        assert np.isfinite(trace.energy_uj).all()
        assert not np.diff(trace.energy_uj)[~trace.covered].any()
    try:
        assert meter.charging(values) in (False, True)
    except (
        MeterError
    ) as error:  # a battery that nobody could tell of is not known not to be charged
        assert error.message


def test_it_can_be_replayed(tmp_path: Path, kind: Kind):
    at_ns = kind.times()
    recording = {
        "meter": list(kind.entries),
        "wanted": asdict(kind.wanted),
        "marks": list(marks(kind.length_s)),
        "power": {"at_ns": at_ns.tolist(), "values": kind.values(steps(), at_ns)},
    }
    path = tmp_path / "recording.json"
    path.write_text(json.dumps(recording))
    played = replay(path)
    assert played.sampling() == replace(kind.meter().sampling(), files=(str(path),), command=())
    first = played.trace(at_ns, recording["power"]["values"])
    assert (
        first.energy_uj.tolist()
        == kind.meter().trace(at_ns, recording["power"]["values"]).energy_uj.tolist()
    )
