"""What the readings of a calibration tell of sign and scale, and when they tell nothing."""

from __future__ import annotations

import subprocess
from typing import Any

import numpy as np
import pytest

from devices.meter import busy
from devices.meter.calibrate import judged
from devices.meter.kinds import build
from devices.meter.wanted import Wanted
from devices.transport.base import Completed
from profiles.errors import MeterError
from tests.meters import KINDS, PMIC, battery, pmic_text

SECONDS = 30
VOLTAGE_UV = 4_000_000


def readings(
    *,
    idle_ma: float = 300,
    loaded_ma: float = 900,
    after_ma: float | None = None,
    sign: int = 1,
    unit_ua: int = 1000,
    noise_ma: float = 2,
    status: str = "Discharging",
    charge_uah: float | None = None,
    charge_step_uah: float = 100,
    watts: bool = False,
) -> dict[str, Any]:
    """A calibration's readings of a battery whose current is known, four a second."""
    random = np.random.default_rng(5)
    at_ns = np.arange(0, 3 * SECONDS * 4) * 250_000_000
    levels = (idle_ma, loaded_ma, idle_ma if after_ma is None else after_ma)
    current_ma = np.repeat(levels, SECONDS * 4)
    left_uah = (charge_uah or 0) - np.cumsum(current_ma) * 1000 * 0.25 / 3600
    told = np.round((current_ma + noise_ma * random.standard_normal(len(at_ns))) * 1000 / unit_ua)
    values = []
    for current, left in zip(told, left_uah, strict=True):
        row = [f"{sign * current:.0f}", f"{VOLTAGE_UV}", status, "0"]
        row = [f"{sign * current * 4000:.0f}", status, "0"] if watts else row
        if charge_uah is not None:
            row.append(f"{np.floor(left / charge_step_uah) * charge_step_uah:.0f}")
        values.append([f" {text}\n" for text in row])
    marks = [
        {
            "what": what,
            "start_ns": place * SECONDS * 10**9,
            "end_ns": (place + 1) * SECONDS * 10**9 - 1,
            "calls": 1,
        }
        for place, what in enumerate(("idle-before", "active", "idle-after"))
    ]
    return {"marks": marks, "power": {"at_ns": at_ns.tolist(), "values": values}}


def found(reference_mw: float | None = None, **changes: Any):
    entry = battery("power_now", "status") if changes.get("watts") else battery()
    meter = build([entry], Wanted(current_sign=1, current_ua=1, covers="all"))
    counted = changes.get("charge_uah") is not None
    return judged(meter, readings(**changes), SECONDS, reference_mw, counted)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("unit_ua", [1, 1000])
def test_a_bench_meter_tells_the_scale_and_the_load_the_sign(sign, unit_ua):
    """Busy, it is 900 mA at 4 V."""
    told = found(3400, sign=sign, unit_ua=unit_ua)
    assert (told.current_sign, told.current_ua) == (sign, unit_ua)
    assert told.loaded_mw == pytest.approx(3600, rel=0.01)
    assert told.idle_mw == pytest.approx(1200, rel=0.01)
    assert told.off == pytest.approx(3600 / 3400 - 1, abs=0.01)
    assert told.scale_from == "a bench meter"
    assert 0 < told.noise_mw < 30
    assert (told.readings, told.seconds, told.remarks) == (360, 30, ())
    assert told.entry == (
        f"meter: {{kind: power_supply, name: battery, current_sign: {sign}, current_ua: {unit_ua}}}"
    )


@pytest.mark.parametrize("unit_ua", [1, 1000])
def test_the_charge_counter_tells_the_scale(unit_ua):
    told = found(unit_ua=unit_ua, charge_uah=3_000_000)
    assert (told.current_ua, told.scale_from) == (unit_ua, "its charge counter")
    assert told.off is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, "it has no charge counter"),
        ({"charge_uah": 3_000_000, "charge_step_uah": 5000}, "moved only"),
        ({"charge_uah": 3_000}, "does not count µAh"),
        ({"charge_uah": 3_000_000, "unit_ua": 20}, "fits neither µA nor mA"),
    ],
)
def test_a_scale_that_nothing_tells_stays_unknown(changes, why):
    told = found(**changes)
    assert (told.current_sign, told.current_ua, told.scale_from) == (1, None, "")
    (remark,) = told.remarks
    assert why in remark and "--reference-mw" in remark
    assert told.entry == "meter: {kind: power_supply, name: battery, current_sign: 1}"


@pytest.mark.parametrize("reference_mw", [100, 20_000])
def test_a_reference_that_fits_no_scale_is_refused(reference_mw):
    with pytest.raises(MeterError, match="neither as µA nor as mA"):
        found(reference_mw)


def test_a_step_no_larger_than_the_noise_is_refused():
    with pytest.raises(MeterError, match="idle alone moves it"):
        found(3600, loaded_ma=302, noise_ma=40)
    with pytest.raises(MeterError, match="idle alone moves it"):
        found(3600, loaded_ma=600, idle_ma=300, after_ma=850)
    with pytest.raises(MeterError, match="hardly anything new"):
        found(3600, loaded_ma=300, noise_ma=0)


def test_a_charged_battery_is_refused():
    with pytest.raises(MeterError, match="is charged") as caught:
        found(3600, status="Charging")
    assert "unplug" in caught.value.hint
    with pytest.raises(MeterError, match="does not discharge"):
        found(None, idle_ma=-900, loaded_ma=-300)


def test_a_sensor_that_says_nothing_is_told():
    meter = build([battery()], Wanted(current_sign=1, current_ua=1))
    details = readings()
    details["power"]["values"] = [["", "", "", ""] for _ in details["power"]["values"]]
    with pytest.raises(MeterError, match="cannot be read"):
        judged(meter, details, SECONDS, None, False)


def test_watts_need_a_sign_only():
    told = found(None, watts=True)
    assert (told.current_sign, told.current_ua) == (1, 1)
    assert told.loaded_mw == pytest.approx(3600, rel=0.01)
    assert found(3500, watts=True).off == pytest.approx(3600 / 3500 - 1, abs=0.01)


def test_a_slow_gauge_is_told_with_its_period():
    details = readings()
    rows = details["power"]["values"]
    details["power"]["values"] = [rows[place // 12 * 12] for place in range(len(rows))]
    meter = build([battery()], Wanted(current_sign=1, current_ua=1))
    told = judged(meter, details, SECONDS, 3600, False)
    assert told.entry.endswith("current_ua: 1000, update_ms: 3000}")


def test_a_sensor_whose_unit_is_fixed_is_compared():
    meter = build([PMIC], Wanted(covers="rails"))
    details = readings()
    levels = [1e6] * 120 + [3e6] * 120 + [1e6] * 120
    noise = np.random.default_rng(1).standard_normal(360)
    details["power"]["values"] = [
        [pmic_text(level + 1e3 * some)] for level, some in zip(levels, noise, strict=True)
    ]
    told = judged(meter, details, SECONDS, 2900, False)
    assert (told.current_sign, told.current_ua, told.entry) == (None, None, "")
    assert told.loaded_mw == pytest.approx(3000, rel=0.01)
    assert told.off == pytest.approx(3000 / 2900 - 1, abs=0.01)
    assert "nothing to calibrate" in told.remarks[0]
    assert "--reference-mw" in judged(meter, details, SECONDS, None, False).remarks[0]


def test_a_shell_that_sleeps_whole_seconds_calibrates_too():
    """Of an INA a gap of 120 ms is too long elsewhere."""
    details = readings()
    levels = np.repeat([1e6, 3e6, 1e6], SECONDS)
    noise = np.random.default_rng(1).standard_normal(len(levels))
    details["power"] = {
        "at_ns": (np.arange(3 * SECONDS) * 10**9).tolist(),
        "values": [[f"{one:.0f}"] for one in levels + 1e3 * noise],
    }
    told = judged(KINDS["ina219"].meter(), details, SECONDS, None, False)
    assert told.idle_mw == pytest.approx(1000, rel=0.01)
    assert told.loaded_mw == pytest.approx(3000, rel=0.01)


# --- what the script prints -----------------------------------------------------------------------

PRINTED = """greeting
@@ begin idle-before 10.00
@@ at 10.00
@@ file
 CH1(T=1)[A], 5
 CH2(T=1)[B], 6
@@ file
@@ end 11.00
@@ done
"""


def test_readings_are_told_apart(tmp_path):
    class Canned:
        def run(self, argv, *, deadline_s, on_line=None):
            nonce = argv[4]
            assert argv[-2:] == ["/more", "/last"] or argv[-1] == "pmic_read_adc"
            return Completed(PRINTED.replace("@@", nonce).encode(), b"", 0)

    meter = KINDS["ina219"].meter()
    details = busy.observed(Canned(), meter, seconds=1, cores=1, more=["/more", "/last"])
    assert details["marks"] == [
        {"what": "idle-before", "start_ns": 10**10, "end_ns": 11 * 10**9, "calls": 1}
    ]
    assert details["power"] == {
        "at_ns": [10**10],
        "values": [[" CH1(T=1)[A], 5\n CH2(T=1)[B], 6\n", ""]],
    }
    busy.observed(Canned(), KINDS["pmic"].meter(), seconds=1, cores=1)


def test_a_last_line_without_its_end_is_read_too(tmp_path):
    (tmp_path / "power").write_text("one\n two")
    functions = busy._SCRIPT.partition("observe idle-before")[0]
    argv = ["sh", "-c", f'{functions}\nlines < "$1"', "sh", *"12345", str(tmp_path / "power")]
    done = subprocess.run(argv, capture_output=True, check=True, text=True, timeout=60)
    assert done.stdout == " one\n  two\n"
