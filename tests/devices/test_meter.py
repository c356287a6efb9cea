"""What is particular to each kind of power sensor: recordings with a known integral, and traps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.meter import understood
from devices.meter.android import channels
from devices.meter.base import Sampling
from devices.meter.curve import number
from devices.meter.kinds import build
from devices.meter.pmic import rails
from devices.meter.replay import events, replay
from devices.meter.understanding import seen
from devices.meter.wanted import Wanted
from profiles.errors import MeterError
from tests.meters import (
    KINDS,
    ODPM,
    RAILS,
    START_NS,
    battery,
    constant,
    odpm_text,
    pmic_text,
    ramp,
    truth_uj,
    zone,
)

GOLDEN = Path(__file__).parent.parent / "golden/meters"
RECORDINGS = sorted(GOLDEN.glob("*.json"))
SECOND = 1_000_000_000


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recordings_have_their_known_integral(path: Path):
    recording, meter = json.loads(path.read_text()), replay(path)
    power = recording["power"]
    trace = meter.trace(np.array(power["at_ns"]), power["values"])
    for window in recording["windows"]:
        energy_uj, coverage = trace.between(window["start_ns"], window["end_ns"])
        assert energy_uj == pytest.approx(window["energy_uj"], rel=0.01)
        lost = window["lost_ns"] / (window["end_ns"] - window["start_ns"])
        assert coverage == pytest.approx(1 - lost, abs=0.01)


def test_there_is_a_recording_of_every_kind():
    kinds = {json.loads(path.read_text())["meter"][0]["kind"] for path in RECORDINGS}
    assert kinds == {kind.entries[0]["kind"] for kind in KINDS.values()}
    assert len(RECORDINGS) == len(KINDS)


# --- numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [("12\n", 12), (" -7", -7), ("0.2500", 0.25), ("", None), ("0x10", None), ("1e3", None)]
    + [(text, None) for text in ("nan", "inf", "--1", "1.", ".5", "1 2", "٣", "1" * 19)],
)
def test_numbers(text, value):
    assert number(text) == value


@given(st.text(max_size=30))
def test_what_is_no_number_is_none(text):
    value = number(text)
    assert value is None or float(text) == value


@given(st.text(max_size=200))
def test_texts_of_many_lines_hold_only_numbers(text):
    assert all(np.isfinite(watts) for watts in rails(text).values())
    assert all(0 <= energy < 2**63 for _, energy in channels(text).values())


@given(st.integers(0, 10**12), st.integers(0, 2**64 - 1), st.text("ABC_0", min_size=1, max_size=9))
def test_a_channel_says_what_it_says(since_boot_ms, energy, rail):
    line = f"CH3(T={since_boot_ms})[{rail}], {energy}\n"
    assert channels(line) == ({rail: (since_boot_ms, energy)} if energy < 2**63 else {})


def test_powers_of_rails():
    watts = rails(pmic_text(4e6))
    assert watts == pytest.approx({"3V3_SYS": 1.0, "VDD_CORE": 3.0})
    assert rails("VDD_CORE_A volt(1)=1.0V\nVDD_CORE_V volt(1)=1.0V") == {}


# --- sysfs ------------------------------------------------------------------------------------


def at(*seconds: float) -> np.ndarray:
    return START_NS + np.round(np.array(seconds) * SECOND).astype(np.int64)


def test_a_sensor_is_read_twice_for_each_new_value():
    assert Sampling.of(40_000_000) == Sampling(20_000_000, 2_000_000_000)
    assert Sampling.of(1_000_000, ["/a"]) == Sampling(20_000_000, 2_000_000_000, ("/a",))
    assert Sampling.of(SECOND, command=["x"]) == Sampling(500_000_000, 21 * SECOND, command=("x",))


def test_files_are_found_by_labels():
    ina3221 = KINDS["ina3221"]
    folder = ina3221.entries[0]["path"]
    assert ina3221.meter(rails=("VDD_IN",)).sampling().files == (
        f"{folder}/in1_input",
        f"{folder}/curr1_input",
    )
    assert ina3221.meter(rails=("VDD_SOC",)).sampling().files[0] == f"{folder}/in3_input"
    for of_shunts in ("sum of shunt voltages", "in4"):
        with pytest.raises(MeterError, match=f"no channel {of_shunts}"):
            ina3221.meter(rails=(of_shunts,))
    with pytest.raises(MeterError, match="may contain each other") as caught:
        ina3221.meter(rails=())
    assert "VDD_IN, VDD_CPU_GPU_CV, VDD_SOC" in caught.value.hint


def test_a_power_is_better_than_volts_and_amperes():
    assert KINDS["ina219"].meter().sampling().files == ("/sys/class/hwmon/hwmon3/power1_input",)
    averaging = {**KINDS["ina219"].entries[0], "files": ["power1_average", "curr1_input"]}
    assert build([averaging], Wanted()).sampling().files[0].endswith("power1_average")
    assert KINDS["iio power"].meter().sampling().files == (
        "/sys/bus/iio/devices/iio:device0/in_power2_raw",
    )


def test_what_has_no_voltage_tells_no_power():
    hot = {**KINDS["ina219"].entries[0], "files": ["curr1_input", "in0_input"]}
    with pytest.raises(MeterError, match="no channel that tells power"):
        build([hot], Wanted())


def test_a_scale_that_is_no_number_is_refused():
    entry = KINDS["iio power"].entries[0]
    texts = {**entry["texts"], "in_power2_scale": "plenty"}
    with pytest.raises(MeterError, match="'plenty' for the scale of its power"):
        build([{**entry, "texts": texts}], Wanted())


@pytest.mark.parametrize(
    ("kind", "scale", "of"),
    [
        ("iio power", "in_power2_scale", "power2"),
        ("iio volts and amperes", "in_voltage_scale", "voltage1"),
        ("iio volts and amperes", "in_current1_scale", "current1"),
    ],
)
def test_a_scale_that_is_not_told_is_not_taken_for_one(kind, scale, of):
    entry = KINDS[kind].entries[0]
    texts = {name: text for name, text in entry["texts"].items() if name != scale}
    with pytest.raises(MeterError, match=f"ina219 does not tell the scale of its {of}"):
        build([{**entry, "texts": texts}], Wanted())
    offsets = {name: text for name, text in entry["texts"].items() if "offset" not in name}
    (channel,) = build([{**entry, "texts": offsets}], Wanted()).channels  # type: ignore[attr-defined]
    assert set(channel.offsets) == {0.0}


def test_a_scale_of_a_channel_that_does_not_count_is_nobodys_business():
    entry = KINDS["iio power"].entries[0]
    files, texts = [*entry["files"], "in_power3_raw"], entry["texts"]
    meter = build([{**entry, "files": files, "texts": texts}], Wanted(rails=("power2",)))
    assert meter.sampling().files == (f"{entry['path']}/in_power2_raw",)


def test_one_who_may_not_read_is_told():
    with pytest.raises(MeterError, match="may not be read by this login"):
        build([{**KINDS["ina219"].entries[0], "unreadable": True}], Wanted())


def test_a_negative_power_counts():
    meter = KINDS["ina219"].meter()
    trace = meter.trace(at(0, 0.02, 0.04), [["-50000"], ["-50000"], ["50000"]])
    assert trace.energy_uj.tolist() == pytest.approx([0, -1000, -1000])


# --- powercap ---------------------------------------------------------------------------------


def counter(range_uj: int = 1_000_000_000):
    return build([zone("intel-rapl:0", "package-0", range_uj)], Wanted())


def test_a_counter_wraps():
    trace = counter().trace(at(0, 0.1, 0.2), [["999900000"], ["999990000"], ["80000"]])
    assert trace.energy_uj.tolist() == pytest.approx([0, 90_000, 180_000])
    assert trace.covered.all()


def test_a_counter_that_began_anew_did_not_wrap():
    """From 10 J to 1 J in 0.1 s: as a wrap these were 2.6 MW."""
    meter = counter(262_143_328_850)
    trace = meter.trace(at(0, 0.1, 0.2), [["10000000"], ["1000000"], ["1100000"]])
    assert trace.covered.tolist() == [False, True]
    assert trace.energy_uj.tolist() == pytest.approx([0, 0, 100_000])


def test_a_gap_in_which_a_counter_may_have_wrapped_is_not_covered():
    """At most 2 kW: 1 J is gone in half a millisecond, 1 kJ in half a second."""
    readings = at(0, 0.1, 0.2, 0.9, 1.0), [["0"], ["5000"], ["9000"], ["20000"], ["30000"]]
    assert counter(10**9).trace(*readings).covered.tolist() == [True, True, False, True]
    assert counter(10**12).trace(*readings).covered.all()


def test_a_number_beyond_the_range_is_none():
    trace = counter().trace(at(0, 0.1, 0.2), [["0"], ["1000000001"], ["100"]])
    assert trace.energy_uj.tolist() == pytest.approx([0, 50, 100])


@given(st.lists(st.integers(0, 10**8), min_size=2, max_size=50), st.integers(0, 10**9 - 1))
def test_wraps_lose_nothing(steps, first):
    counts = np.cumsum([first, *steps])
    times = START_NS + np.arange(len(counts)) * SECOND // 10
    trace = counter().trace(times, [[str(count % 10**9)] for count in counts])
    assert trace.energy_uj[-1] == pytest.approx(sum(steps))
    assert trace.covered.all()


def test_packages_are_summed_up_without_what_they_contain():
    entries = KINDS["powercap"].entries
    meter = build(entries, Wanted())
    root = "/sys/class/powercap/intel-rapl"
    assert meter.sampling().files == (f"{root}:0/energy_uj", f"{root}:1/energy_uj")
    chosen = build(entries, Wanted(rails=("psys",)))
    assert chosen.sampling().files == (f"{root}:2/energy_uj",)
    with pytest.raises(MeterError, match="no zone gpu"):
        build(entries, Wanted(rails=("gpu",)))
    with pytest.raises(MeterError, match="when its counter wraps"):
        build([{**entries[0], "texts": {}}], Wanted())


def test_a_gap_of_one_package_is_a_gap_of_all():
    zones = [zone("intel-rapl:0", "package-0"), zone("intel-rapl:1", "package-1")]
    values = [["1000000", "9000000"], ["1100000", "0"], ["1200000", "50000"]]
    trace = build(zones, Wanted()).trace(at(0, 0.1, 0.2), values)
    assert trace.covered.tolist() == [False, True]
    assert trace.energy_uj.tolist() == pytest.approx([0, 0, 150_000])


# --- a Pixel ----------------------------------------------------------------------------------


def odpm():
    return build([ODPM], Wanted(rails=RAILS))


def told(*readings: tuple[float, int]) -> list[list[str]]:
    return [[odpm_text(energy_uj, since_boot_ms)] for energy_uj, since_boot_ms in readings]


def test_the_chips_own_clock_says_when():
    """A value that stands still is old, not a pause: 1 W all the time."""
    readings = told((0, 1000), (100_000, 1100), (100_000, 1100), (300_000, 1300), (400_000, 1400))
    trace = odpm().trace(at(0, 0.1, 0.2, 0.3, 0.4), readings)
    assert trace.energy_uj.tolist() == pytest.approx([0, 100_000, 200_000, 300_000, 400_000])
    assert trace.covered.all()


def test_a_reboot_is_a_gap():
    readings = told((5e6, 9000), (5.1e6, 9100), (1e4, 30), (1.1e5, 130), (2.1e5, 230))
    trace = odpm().trace(at(0, 0.1, 0.2, 0.3, 0.4), readings)
    assert trace.covered.tolist() == [True, False, True, True]
    assert trace.energy_uj[-1] == pytest.approx(300_000)


def test_sleep_is_a_gap():
    """The chip's clock goes on in sleep, ours stands still."""
    readings = told((0, 1000), (1e5, 1100), (2e5, 1200), (3e5, 9300), (4e5, 9400))
    trace = odpm().trace(at(0, 0.1, 0.2, 0.3, 0.4), readings)
    assert trace.covered.tolist() == [True, True, False, True]
    assert trace.energy_uj[-1] == pytest.approx(300_000)


def test_a_counter_that_shrinks_is_a_gap():
    trace = odpm().trace(at(0, 0.1, 0.2), told((5e6, 1000), (1e6, 1100), (1.1e6, 1200)))
    assert trace.covered.tolist() == [False, True]


def test_a_channel_that_cannot_be_read_is_not_believed():
    values = [[odpm_text(1e5 * n, 1000 + 100 * n)] for n in range(5)]
    modem = build([ODPM], Wanted(rails=("VSYS_PWR_MODEM",)))
    with pytest.raises(MeterError, match="nothing of VSYS_PWR_MODEM"):
        modem.trace(at(0, 0.1, 0.2, 0.3, 0.4), values)
    every = build([ODPM], Wanted())
    with pytest.raises(MeterError, match="VSYS_PWR_MODEM"):
        every.trace(at(0, 0.1, 0.2, 0.3, 0.4), values)
    values[2] = [odpm_text(2e5, 1200).replace("200000", str(2**64 - 1))]
    assert odpm().trace(at(0, 0.1, 0.2, 0.3, 0.4), values).covered.all()


def test_a_late_first_reading_is_no_sleep():
    readings = told((0, 400), (0, 400), (6e5, 1000), (7e5, 1100))
    assert odpm().trace(at(0.9, 0.95, 1.0, 1.1), readings).covered[1:].all()


# --- a battery --------------------------------------------------------------------------------


def test_a_battery_is_calibrated_or_not_used():
    for known in (Wanted(), Wanted(current_sign=-1), Wanted(current_ua=1)):
        with pytest.raises(MeterError, match="not calibrated") as caught:
            build([battery()], known)
        assert "calibrate-meter" in caught.value.hint


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (battery(type_="USB"), "no battery"),
        (battery("current_now", "status"), "both current and voltage"),
        ({**battery("current_now", "voltage_now"), "chargers": []}, "whether it is charged"),
    ],
)
def test_what_is_no_use_is_told(entry, message):
    with pytest.raises(MeterError, match=message):
        build([entry], Wanted(current_sign=-1, current_ua=1))


@pytest.mark.parametrize(
    ("status", "online", "charged"),
    [
        ("Discharging", "0", False),
        ("Discharging", "", False),
        ("Discharging", "1", True),
        ("Discharging", "2", True),
        ("", "2", True),
        ("", "0", False),
        ("Charging", "0", True),
        ("Not charging", "0", True),
        ("Full", "0", True),
        ("Unknown", "0", True),
    ],
)
def test_a_battery_is_charged_unless_it_says_otherwise(status, online, charged):
    meter = build([battery()], Wanted(current_sign=-1, current_ua=1))
    row = ["-1000000\n", "3900000\n", "Discharging\n", "0\n"]
    assert meter.charging([row, [*row[:2], f"{status}\n", f"{online}\n"], row]) is charged
    details = {"power": {"at_ns": at(0, 1).tolist(), "values": [row, [*row[:2], status, online]]}}
    assert understood(meter, details)["trace"]["charging"] is charged


@pytest.mark.parametrize("files", [("current_now", "voltage_now", "status"), ()])
def test_a_battery_that_never_says_whether_it_is_charged_is_in_trouble(files):
    meter = build([battery(*files)], Wanted(current_sign=-1, current_ua=1))
    rows = [["-1000000", "3900000", "\n", ""]] * 2
    details = {"power": {"at_ns": at(0, 1).tolist(), "values": rows}}
    found = understood(meter, details)
    assert "not whether it is charged" in found["meter"]["trouble"]
    assert found["trace"]["at_ns"] == []
    once = [*rows, ["-1000000", "3900000", "Discharging", ""]]
    assert meter.charging(once) is False


def test_a_battery_without_a_status_is_charged_by_its_chargers():
    meter = build([battery("power_now")], Wanted(current_sign=1))
    assert [meter.charging([["5", text]]) for text in ("0", "1", "2\n")] == [False, True, True]
    with pytest.raises(MeterError, match="not whether it is charged"):
        meter.charging([["5", ""], ["5", "\n"]])


def test_a_voltage_in_another_unit_is_not_believed():
    meter = build([battery()], Wanted(current_sign=1, current_ua=1))
    row = ["1000000", "3900", "Discharging", "0"]
    with pytest.raises(MeterError, match=r"says .*3900.* which is no power"):
        meter.trace(at(0, 1, 2), [row] * 3)


def test_the_calibration_is_told_with_the_run():
    meter = KINDS["battery in mA"].meter()
    details = {"power": {"at_ns": at(0, 1).tolist(), "values": [["1", "4000000", "", ""]] * 2}}
    told_ = understood(meter, details)["meter"]
    assert told_["calibration"] == {"current_sign": 1, "current_ua": 1000}
    assert told_["update_ns"] == SECOND


# --- how often it has something new -------------------------------------------------------------


def test_how_often_a_value_changes():
    times = START_NS + np.arange(60) * SECOND
    ina219 = KINDS["ina219"].meter()
    assert seen(ina219, times, [[str(second // 5)] for second in range(60)]) == 5 * SECOND
    assert seen(ina219, times, [[str(second)] for second in range(60)]) == SECOND
    assert seen(ina219, times, [["same"]] * 60) == 59 * SECOND
    assert seen(ina219, times[:1], [["once"]]) == 0
    # What has nothing to do with the power does not count, nor when it was asked.
    rows = [["5", "4000000", "Discharging", str(second % 2)] for second in range(60)]
    assert seen(KINDS["battery"].meter(), times, rows) == 59 * SECOND
    slow = [[odpm_text(1e5 * (s // 4), 1000 * (s // 4)) + f"t={s}"] for s in range(60)]
    assert seen(odpm(), times, slow) == 4 * SECOND


def test_a_slow_gauge_is_found_out_unless_somebody_knows_it():
    kind = KINDS["battery in watts"]
    times = START_NS + np.arange(120) * SECOND
    values = [[str(2_000_000 + second // 10), "Discharging", "0"] for second in range(120)]
    power = {"power": {"at_ns": times.tolist(), "values": values}}
    assert understood(kind.meter(), power)["meter"]["update_ns"] == 10 * SECOND
    known = kind.meter(update_ms=2000)
    assert understood(known, power)["meter"]["update_ns"] == 2 * SECOND
    assert known.sampling().window_ns == 42 * SECOND
    fixed = {"power": {"at_ns": times.tolist(), "values": [["2000000"]] * 120}}
    assert understood(KINDS["ina219"].meter(), fixed)["meter"]["update_ns"] == 40_000_000


# --- replay -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"meter": 1}',
        '{"meter": []}',
        '{"meter": {"kind": "x"}}',
        '{"meter": {"kind": "pmic", "name": "a", "rails": ["b"]}, "wanted": {"x": 1}}',
    ],
)
def test_what_is_no_recording_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "recording.json"
    path.write_text(text)
    with pytest.raises(MeterError, match="no recording of a power sensor"):
        replay(path)
    with pytest.raises(MeterError, match="no recording"):
        events(path)
    with pytest.raises(MeterError, match="no recording"):
        replay(tmp_path / "none")


def test_a_recorded_run_is_played_again(tmp_path: Path):
    mark = {"what": "active", "start_ns": 1, "end_ns": 2, "calls": 3}
    power = {"at_ns": [1], "values": [["2"]]}
    path = tmp_path / "recording.json"
    path.write_text(json.dumps({"marks": [mark], "power": power}))
    assert events(path) == [{"event": "mark", **mark}, {"event": "power", **power}]


# --- waves at other rates -----------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(10_000_000, 100_000_000), st.integers(0, 2**32))
def test_any_rate_of_reading_will_do(period_ns, seed):
    kind = replace(KINDS["ina219"], length_s=5.0)
    times = kind.times(seed, period_ns)
    trace = kind.meter().trace(times, kind.values(ramp(), times))
    first, last = int(times[0]), int(times[-1])
    assert trace.between(first, last)[0] == pytest.approx(truth_uj(ramp(), first, last), rel=0.002)
    between = first + (last - first) // 3, last - (last - first) // 7
    assert trace.between(*between)[0] == pytest.approx(truth_uj(ramp(), *between), rel=0.01)


def test_three_periods_are_the_longest_gap():
    meter = KINDS["ina219"].meter()
    times = at(0, 0.04, 0.04 + 0.12, 0.16 + 0.121)
    values = KINDS["ina219"].values(constant(), times)
    assert meter.trace(times, values).covered.tolist() == [True, True, False]


# --- readings that are rare ---------------------------------------------------------------------


@pytest.mark.parametrize("name", ["battery", "battery in watts", "pmic", "ina219"])
def test_a_sensor_faster_than_it_can_be_read_is_covered(name):
    """Of 5 ms; the shortest sampling period is 20 ms."""
    kind = replace(KINDS[name], length_s=3.0)
    meter = kind.meter(update_ms=5)
    times = kind.times(period_ns=meter.sampling().period_ns)
    assert meter.trace(times, kind.values(constant(), times)).covered.all()


def test_a_slow_command_is_judged_by_what_can_be_had():
    kind = replace(KINDS["pmic"], length_s=30.0)
    times = np.delete(kind.times(period_ns=700_000_000), [9, 10, 11])
    covered = kind.meter().trace(times, kind.values(constant(), times)).covered
    assert covered.tolist() == [place != 8 for place in range(len(times) - 1)]
    # A sensor that the agent can read as often as it must is not.
    ina219 = KINDS["ina219"]
    assert not ina219.meter().trace(times, ina219.values(constant(), times)).covered.any()
