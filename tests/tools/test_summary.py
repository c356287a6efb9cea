"""A workspace in a terminal: 80 columns, every reason, and one measurement from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.overview import Overview, overview, rows
from profiles import units
from profiles.findings import Figure, Reason
from profiles.records import Condition
from tests import showcase
from tests.measurements import measurement
from tests.tools.conftest import Lab
from tools.device_lab.summary import print_overview

LONG = "s1b1:k3e1 s1b2:skip s2b1:k5e1 s2b2:k3e1 s3b1:k3e1 s3b2:skip"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return showcase.showcase(tmp_path_factory.mktemp("summary") / "work")


def words(text: str) -> str:
    return " ".join(text.split())


def test_how_a_variant_was_made_is_told_in_80_columns(capsys: pytest.CaptureFixture[str]):
    text = "int8: 0.61 times as fast as FP32 (0.60 to 0.62); slower, and the least slow of all"
    note = {"variant": "int8", "format": "onnx", "device": "board", "text": text}
    print_overview(Overview("net", (), {"notes": [note]}))
    said = capsys.readouterr().out
    assert f"int8 onnx on board: {text}" in words(said)
    assert max(map(len, said.splitlines())) <= 80


def test_the_overview_keeps_to_80_columns(root: Path, capsys: pytest.CaptureFixture[str]):
    print_overview(overview(root))
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    rows_ = {tuple(line.split()[:2]): line.split()[2:] for line in said.splitlines()}
    assert rows_["int8", "onnx"][-1] != "slower", "the last such line is the Pareto front's"
    table = said.partition("Pareto front")[0]
    (slower,) = [line for line in table.splitlines() if line.startswith(" int8     onnx")]
    assert slower.split()[2:] == [
        "1050",
        "90.6",
        "2.94",
        "±0.2",
        "%",
        "0.81x",
        "1.10x",
        "-",
        "*slower",
    ]
    (known,) = [line for line in table.splitlines() if line.startswith(" fp32     onnx")]
    assert known.split()[-4:] == ["1.00x", "1.31x", "3.49", "*†"]


def test_the_overview_explains_what_is_missing(root: Path, capsys: pytest.CaptureFixture[str]):
    print_overview(overview(root))
    said = words(capsys.readouterr().out)
    found = [row.measurement for row in overview(root).rows]
    remarks = {f"{m.variant} {m.format}": m.remarks for m in found}
    for m in found:
        if m.status != "accepted":
            assert f"{m.variant} {m.format} is {m.status}: {m.reason}" in said
    for name, code in (("fp32 onnx", "not-stationary"), ("fp32 tflite", "foreign-load")):
        (remark,) = [r for r in remarks[name] if r.code == code]
        assert f"† {code} of {name}: {remark.text} ({remark.advice})" in said
    assert "energy is unknown: board tells no power: no meter" in said


@pytest.mark.parametrize("emulated", [True, False])
def test_the_widest_overview_still_fits(emulated: bool, capsys: pytest.CaptureFixture[str]):
    """Two devices, two thread counts, everything known, long names, and a search's candidates."""
    found = [
        measurement(
            variant=variant,
            format="executorch",
            device=device,
            emulated=emulated,
            condition=Condition(threads=threads),
            median_ns=123_456_789.0 + number,
            size_bytes=123_456_789,
            role="candidate" if variant == LONG else "variant",
            app_ratio=Figure(12.34, (12.0, 13.0), 90, 3),
        )
        for number, variant in enumerate(["fp32", "int8-perchannel", LONG])
        for device in ("board", "a-phone-of-ours")
        for threads in (1, 4)
    ]
    print_overview(Overview("net", tuple(rows(found)), {}))
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert ("emulated" in said) is emulated
    assert said.count("net: ") == 4


def test_results_are_listed_with_their_trials(lab: Lab, root: Path):
    said = lab("results", "-w", root)
    assert max(map(len, said.out.splitlines())) <= 80
    for row in overview(root).rows:
        m = row.measurement
        (line,) = [
            line
            for line in said.out.splitlines()
            if line.split()[:3] == [m.trial[:8] or "-", m.variant, m.format]
        ]
        assert units.format_ms(m.median_ns) in line.split()
        assert line.split()[-1].rstrip("†") == m.status


def test_one_measurement_is_told_from_end_to_end(lab: Lab, root: Path):
    m = next(row.measurement for row in overview(root).rows if row.measurement.energy)
    assert m.energy
    said = lab("results", m.trial[:6], "-w", root)
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    for text in (
        f"trial {m.trial}",
        f"accepted: {m.stopped}",
        f"median {units.format_ms(m.median_ns)} ms 95 % {units.format_interval_ms(m.ci95_ns)}",
        f"p99 {units.format_ms(m.p99_ns)} ms",
        f"net per call {units.format_mj(m.energy.net_uj.value)} mJ",
        "Environment of 15 runs",
        "kernel Linux 6.6.31+rpt-rpi-v8",
        "core clocks, MHz 600 to 1800, then 600 to 1800, then 600 to 1800",
        "hottest zone, °C 48.0, then 52.0, then 53.0",
    ):
        assert text in words(said.out), text


def test_one_refused_measurement_says_why_and_has_no_figure(lab: Lab, root: Path):
    m = next(
        row.measurement
        for row in overview(root).rows
        if row.measurement.trial and row.measurement.status == "refused"
    )
    said = words(lab("results", m.trial, "-w", root).out)
    assert f"refused: {m.reason}" in said
    assert "median" not in said
    assert "per call unknown not measured" in said


def test_one_measurement_as_json(lab: Lab, root: Path):
    m = next(row.measurement for row in overview(root).rows if row.measurement.energy)
    (row,) = json.loads(lab("results", m.trial[:10], "-w", root, "--json").out)
    assert row["trial"] == m.trial
    assert row["energy"]["net_uj"]["value"] == m.energy.net_uj.value if m.energy else None
    assert row["memory"]["peak_bytes"] == 79_800_000


@pytest.mark.parametrize("beginning", ["zz", "", "0123456789abcdef"])
def test_a_trial_that_is_not_there_is_a_mistake(lab: Lab, root: Path, beginning: str):
    said = lab("results", beginning, "-w", root)
    assert said.code == 2
    assert f"no measurement begins with {beginning!r}" in said.problem


def test_a_beginning_of_several_trials_is_a_mistake(
    lab: Lab, root: Path, monkeypatch: pytest.MonkeyPatch
):
    import pipeline.overview

    found = [measurement(trial="ab1" + "0" * 61), measurement(trial="ab2" + "0" * 61)]
    monkeypatch.setattr(pipeline.overview, "read_measurements", lambda *_, **__: found)
    said = lab("results", "ab", "-w", root)
    assert said.code == 2
    assert "2 measurements begin with 'ab'" in said.problem


def test_a_remark_on_many_is_said_once(capsys: pytest.CaptureFixture[str]):
    busy = Reason("foreign-load", "2 of 3 runs concerned", "end it")
    found = [measurement(variant=name, remarks=(busy, busy)) for name in ("fp32", "int8")]
    print_overview(Overview("net", tuple(rows(found)), {}))
    said = words(capsys.readouterr().out)
    assert said.count("2 of 3 runs concerned") == 1
    assert "† foreign-load of fp32 onnx, int8 onnx: 2 of 3 runs concerned (end it)" in said


def test_places_that_differ_in_their_state_alone_say_so(capsys: pytest.CaptureFixture[str]):
    saving = Condition(governor="powersave", power_source="battery")
    found = [measurement(), measurement(variant="int8", condition=saving, median_ns=5e5)]
    print_overview(Overview("tiny", tuple(rows(found)), {}))
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert words(said).count("governor unknown, power unknown") == 2
    assert words(said).count("governor powersave, power battery") == 2
    assert "2.00x" not in said
    print_overview(Overview("tiny", tuple(rows(found[:1])), {}))
    assert "governor" not in capsys.readouterr().out
