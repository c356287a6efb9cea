"""Which power sensor a device's energy is measured with; what the doctor says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from devices import visit as visit_module
from devices.doctor import examine
from devices.facts import parse
from devices.inventory import Device
from devices.meter import find_meter
from devices.meter.replay import Replay
from devices.meter.selection import to_calibrate
from profiles.catalog import load_profile, profile_names
from profiles.errors import ConfigError, MeterError
from tests.builders import device
from tests.meters import KINDS, battery

FACTS = Path(__file__).parent.parent / "golden/facts"
CALIBRATED = {"current_sign": -1, "current_ua": 1}


def facts_of(name: str) -> dict[str, Any]:
    return json.loads((FACTS / f"{name}.json").read_text())


def entry(profile: str, **meter: Any) -> Device:
    return device(profile=profile, meter=meter)


def chosen(profile: str, facts: dict[str, Any] | None = None, **meter: Any) -> tuple[str, str]:
    about = find_meter(entry(profile, **meter), facts or facts_of(profile)).about
    return about.title, about.covers


@pytest.mark.parametrize(
    ("profile", "title", "covers"),
    [
        ("jetson-orin-nano", "ina3221 (hwmon)", "the whole module"),
        ("pixel-7", "s2mpg12-odpm (odpm)", "the big, middle and little cores"),
        ("raspberry-pi-5", "vcgencmd (pmic)", load_profile("raspberry-pi-5").meters[0].covers),
    ],
)
def test_the_profiles_sensor_is_used(profile, title, covers):
    assert chosen(profile) == (title, covers)


def test_what_a_profile_sums_up_does_not_contain_another():
    meter = find_meter(entry("jetson-orin-nano"), facts_of("jetson-orin-nano"))
    assert [file.rpartition("/")[2] for file in meter.sampling().files] == [
        "in1_input",
        "curr1_input",
    ]


@pytest.mark.parametrize("profile", ["raspberry-pi-4", "pixel-8", "galaxy-s23", "debian-container"])
def test_a_device_without_a_sensor_says_so(profile):
    known = profile if profile in profile_names() else "linux-x86_64"
    with pytest.raises(MeterError, match="it shows no power sensor") as caught:
        find_meter(entry(known), facts_of(profile))
    assert (caught.value.hint, caught.value.device) == ("energy stays unknown", "board")


def test_what_a_charger_may_give_is_no_power():
    with pytest.raises(MeterError, match="no sensor is known to tell its power") as caught:
        find_meter(entry("rock-5b"), facts_of("rock-5b"))
    assert "tcpm-source-psy-4-0022 (power_supply)" in caught.value.hint
    named = {"name": "tcpm-source-psy-4-0022", **CALIBRATED}
    with pytest.raises(MeterError, match="no battery"):
        find_meter(entry("rock-5b", **named), facts_of("rock-5b"))


def test_the_kernels_own_units_need_nobody_to_say_so():
    facts = facts_of("laptop")
    assert chosen("linux-x86_64", facts)[0] == "package-0 (powercap)"
    soldered = {**facts, "meters": [*facts["meters"], *KINDS["ina219"].entries]}
    assert chosen("linux-x86_64", soldered)[0] == "ina219 (hwmon)"


def test_the_inventory_comes_first():
    facts = facts_of("pixel-7")
    title, covers = chosen("pixel-7", name="battery", **CALIBRATED)
    assert title == "battery (power_supply)"
    assert covers == "the whole phone while it runs from its battery"
    assert chosen("pixel-7", name="battery", covers="all of it", **CALIBRATED)[1] == "all of it"
    assert chosen("pixel-7", kind="power_supply", **CALIBRATED)[0] == "battery (power_supply)"
    one = find_meter(entry("pixel-7", rails=["S5M_VDD_INT"]), facts)
    assert one.about.kind == "odpm" and one.rails == ("S5M_VDD_INT",)  # type: ignore[attr-defined]
    assert find_meter(entry("pixel-7", update_ms=250), facts).about.update_ns == 250_000_000


def test_one_that_is_named_and_cannot_be_used_is_not_replaced():
    with pytest.raises(MeterError, match="not calibrated") as caught:
        find_meter(entry("pixel-7", name="battery"), facts_of("pixel-7"))
    assert caught.value.hint == "run device-lab devices calibrate-meter board"
    with pytest.raises(MeterError, match="no power sensor ina219") as caught:
        find_meter(entry("pixel-7", name="ina219"), facts_of("pixel-7"))
    assert "s2mpg12-odpm (odpm), battery (power_supply)" in caught.value.hint


def test_the_next_is_used_where_the_first_cannot_be_read():
    facts = facts_of("pixel-7")
    facts["meters"][0]["unreadable"] = True
    with pytest.raises(MeterError, match=r"may not be read.*; sign and scale.*") as caught:
        find_meter(entry("pixel-7"), facts)
    assert "root" in caught.value.hint and "calibrate-meter board" in caught.value.hint
    facts["meters"].append(KINDS["ina219"].entries[0])
    assert find_meter(entry("pixel-7"), facts).about.title == "ina219 (hwmon)"


def test_a_battery_in_hwmons_clothes_is_no_sensor_of_its_own():
    with pytest.raises(MeterError, match="not calibrated"):
        find_meter(entry("linux-x86_64", name="BAT0"), facts_of("laptop"))
    facts = {"meters": [{**battery(), "name": "sbs-0"}, {**KINDS["ina219"].entries[0]}]}
    facts["meters"][1] |= {"name": "sbs_0"}
    with pytest.raises(MeterError, match="no power sensor sbs_0"):
        find_meter(entry("linux-x86_64", name="sbs_0"), facts)


def test_a_zone_of_powercap_can_be_named():
    facts = {"meters": list(KINDS["powercap"].entries)}
    meter = find_meter(entry("linux-x86_64", name="psys"), facts)
    assert meter.sampling().files == ("/sys/class/powercap/intel-rapl:2/energy_uj",)
    assert len(find_meter(entry("linux-x86_64"), facts).sampling().files) == 2


def test_unreadable_files_are_told_by_the_device():
    text = (
        (FACTS / "laptop.txt")
        .read_text()
        .replace(
            "@@@ interpreter",
            "@@@ unreadable\n /sys/class/powercap/intel-rapl:0/energy_uj\n@@@ interpreter",
        )
    )
    with pytest.raises(MeterError, match=r"package-0 \(powercap\) may not be read by this login"):
        find_meter(entry("linux-x86_64"), parse(text, "@@@"))


# --- several alike ------------------------------------------------------------------------------


def ina226(number: int, label: str = "", device: str = "") -> dict[str, Any]:
    more = {"texts": {"power1_label": label}, "rails": [label]} if label else {"texts": {}}
    return {
        "kind": "hwmon",
        "name": "ina226",
        "path": f"/sys/class/hwmon/hwmon{number}",
        "files": ["power1_input"],
        **more,
        **({"device": device} if device else {}),
    }


def file_of(meters: list[dict[str, Any]], **meter: Any) -> str:
    """What is read, in whichever order the sensors are listed."""
    (found,) = {
        find_meter(entry("linux-x86_64", **meter), {"meters": order}).sampling().files
        for order in (meters, meters[::-1])
    }
    return found[0]


TWO = [ina226(0, "VDD_CPU", "1-0040"), ina226(1, "VDD_SOC", "1-0041")]


@pytest.mark.parametrize(
    "meter",
    [
        {},
        {"name": "ina226"},
        {"kind": "hwmon"},
        {"name": "ina226", "kind": "hwmon"},
        {"name": "ina226", "rails": ["VDD_GPU"]},
        {"rails": ["power1"]},
    ],
)
def test_of_several_alike_none_is_taken(meter):
    board = entry("linux-x86_64", **meter)
    for ask in (find_meter, to_calibrate):
        with pytest.raises(MeterError, match="2 of its power sensors fit alike") as caught:
            ask(board, {"meters": TWO})
        assert "ina226 (hwmon, 1-0041: VDD_SOC)" in caught.value.message
        assert "'device:'" in caught.value.hint and "'rails:'" in caught.value.hint
        assert caught.value.device == "board"
    bare = [ina226(0), ina226(1)]
    with pytest.raises(MeterError, match=r"ina226 \(hwmon, no device told: no labels\)"):
        find_meter(board, {"meters": bare})


def test_one_of_several_is_told_by_what_stays():
    second = "/sys/class/hwmon/hwmon1/power1_input"
    assert file_of(TWO, name="ina226", rails=["VDD_SOC"]) == second
    assert file_of(TWO, rails=["VDD_SOC"]) == second
    assert file_of(TWO, name="ina226", device="1-0041") == second
    assert file_of(TWO, device="1-0041") == second
    other = [TWO[0], {**TWO[1], "name": "ina219"}]
    assert file_of(other, name="ina219") == second
    with pytest.raises(MeterError, match="fit alike"):
        file_of(other)
    with pytest.raises(MeterError, match="no power sensor 1-0042"):
        file_of(TWO, device="1-0042")


def test_a_profiles_sensor_is_the_one_that_has_its_rails():
    facts = facts_of("jetson-orin-nano")
    (own,) = facts["meters"]
    labels = {name: f"{text}_B" for name, text in own["texts"].items() if "label" in name}
    path = own["path"].replace(own["path"][-1], "9")
    stranger = {**own, "path": path, "texts": labels, "rails": list(labels.values())}
    for meters in ([stranger, own], [own, stranger]):
        found = find_meter(entry("jetson-orin-nano"), {"meters": meters})
        assert found.sampling().files[0].startswith(own["path"])
    with pytest.raises(MeterError, match="fit alike"):
        find_meter(entry("jetson-orin-nano"), {"meters": [own, {**own, "path": path}]})


def test_sensors_of_another_name_do_not_change_places():
    """The first by name that can be used, where only the kind is told."""
    first, last = battery(), {**battery(), "name": "bms", "path": "/sys/class/power_supply/bms"}
    files = {
        find_meter(entry("linux-x86_64", kind="power_supply", **CALIBRATED), {"meters": order})
        .sampling()
        .files[0]
        for order in ([first, last], [last, first])
    }
    assert files == {"/sys/class/power_supply/battery/current_now"}


# --- the inventory ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meter", "message"),
    [
        ({"current_sign": 2}, "current_sign"),
        ({"current_sign": 0}, "current_sign"),
        ({"current_ua": 100}, "current_ua"),
        ({"update_ms": 0}, "update_ms"),
        ({"kind": "clamp"}, "kind"),
        ({"name": ""}, "name"),
        ({"sign": 1}, "no such key"),
        ({"replay": "nowhere.json"}, "there is no file"),
        ({"replay": __file__}, "for scripted addresses only"),
    ],
)
def test_mistakes_are_told(meter, message):
    with pytest.raises(ConfigError, match=message):
        entry("pixel-7", **meter)


def test_another_calibration_is_another_measurement(tmp_path):
    words = {
        entry("pixel-7", **meter).meter_word()
        for meter in (
            {},
            {"name": "battery"},
            {"name": "battery", "current_sign": -1},
            {"name": "battery", "current_sign": 1},
            {"name": "battery", "current_sign": 1, "current_ua": 1000},
            {"rails": ["S5M_VDD_INT"]},
            {"device": "1-0040"},
        )
    }
    assert len(words) == 7
    assert entry("pixel-7", covers="a").meter_word() == entry("pixel-7").meter_word()
    assert entry("pixel-8").meter_word() != entry("pixel-7").meter_word()


def test_a_scripted_device_replays(tmp_path):
    path = tmp_path / "recording.json"
    path.write_text(json.dumps({"meter": KINDS["ina219"].entries[0]}))
    board = device(address=f"scripted:{tmp_path}/home", meter={"replay": str(path)})
    meter = find_meter(board, {})
    assert isinstance(meter, Replay)
    assert meter.about.title == "ina219 (replay of hwmon)"
    with pytest.raises(MeterError, match="a replay needs no calibration"):
        to_calibrate(board, {})
    word = board.meter_word()
    path.write_text(json.dumps({"meter": KINDS["ina3221"].entries[0]}))
    assert board.meter_word() != word


# --- what a calibration is of -------------------------------------------------------------------


def test_a_battery_is_calibrated_before_all_else():
    assert to_calibrate(entry("pixel-7"), facts_of("pixel-7")).about.title == (
        "battery (power_supply)"
    )
    laptop = to_calibrate(entry("linux-x86_64"), facts_of("laptop"))
    assert laptop.about.title == "BAT0 (power_supply)"
    named = entry("pixel-7", name="s2mpg12-odpm")
    assert to_calibrate(named, facts_of("pixel-7")).about.kind == "odpm"
    assert to_calibrate(entry("raspberry-pi-5"), facts_of("raspberry-pi-5")).about.kind == "pmic"
    with pytest.raises(MeterError, match="no power sensor"):
        to_calibrate(entry("raspberry-pi-4"), facts_of("raspberry-pi-4"))


# --- the doctor -----------------------------------------------------------------------------------


def said(
    monkeypatch, tmp_path, meters: list[dict[str, Any]], meter: dict[str, Any], **more: Any
) -> tuple[Any, str, str]:
    look = visit_module.look
    monkeypatch.setattr(
        visit_module, "look", lambda transport: {**look(transport), "meters": meters, **more}
    )
    board = device(address="local:", root=str(tmp_path / "root"), meter=meter)
    monkeypatch.setattr("devices.doctor._runtimes", lambda session: iter(()))
    (check,) = (check for check in examine(board).checks if check.name == "energy")
    return check.ok, check.detail, check.remedy


def test_the_doctor_says_which_sensor_is_used(monkeypatch, tmp_path):
    ok, detail, _ = said(monkeypatch, tmp_path, list(KINDS["ina219"].entries), {})
    assert ok is True
    assert detail == "ina219 (hwmon): what ina219 is wired to; stretches of at least 2.0 s"


def test_the_doctor_says_why_energy_is_unknown(monkeypatch, tmp_path):
    ok, detail, remedy = said(monkeypatch, tmp_path, [], {})
    assert (ok, detail) == (None, "unknown: it shows no power sensor")
    ok, detail, remedy = said(monkeypatch, tmp_path, [battery()], {"name": "battery"})
    assert ok is None and "not calibrated" in detail and "calibrate-meter board" in remedy


def test_the_doctor_says_that_a_charged_battery_tells_nothing(monkeypatch, tmp_path):
    meter = {"name": "battery", **CALIBRATED}
    ok, detail, remedy = said(monkeypatch, tmp_path, [battery()], meter, power_source="mains")
    assert ok is None and "refused while it is on its charger" in detail and "unplug" in remedy
    ok, _, _ = said(monkeypatch, tmp_path, [battery()], meter, power_source="battery")
    assert ok is True
