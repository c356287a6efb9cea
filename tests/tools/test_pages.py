"""A measurement's page: its figures are the measurement's, and what is refused shows no figure."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.overview import read_material, read_measurements
from pipeline.profile.record import write_profile
from profiles import units
from profiles.bootstrap import studentised_interval
from profiles.findings import Measurement
from profiles.quality import counting_runs, disturbance
from profiles.records import Run, Trial
from profiles.store import Store
from tests import builders, showcase
from tests.page import Page, browse, needs_chromium
from tools.report import write_report
from tools.report.drawing import MOST_POINTS, NOT_COUNTED

HOSTILE = "</script><img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return showcase.showcase(tmp_path_factory.mktemp("pages") / "work")


@pytest.fixture(scope="module")
def page(root: Path) -> Page:
    return Page(write_report(root).read_text(encoding="utf-8"))


def found(root: Path, variant: str, format_: str) -> Measurement:
    (m,) = [m for m in read_measurements(root) if (m.variant, m.format) == (variant, format_)]
    return m


def id_of(m: Measurement) -> str:
    return f"m-{(m.trial or m.artifact_sha256)[:12]}"


def trial_of(root: Path, m: Measurement) -> Trial:
    with Store(root / "store.db") as store:
        (trial,) = store.trials([m.trial])
    return trial


def test_every_measurement_has_a_page_a_link_and_a_choice(root: Path, page: Page):
    ids = {id_of(m) for m in read_measurements(root)}
    sections = {a["id"] for tag, a in page.tags if tag == "section"}
    links = {a["href"] for tag, a in page.tags if tag == "a"} - {"#"}
    choices = {a["value"] for tag, a in page.tags if tag == "option"} - {"#"}
    assert len(ids) == 6
    assert sections == ids
    assert links == choices == {f"#{id_}" for id_ in ids}


def test_figures_are_those_of_the_measurement(root: Path, page: Page):
    accepted = [m for m in read_measurements(root) if m.status == "accepted"]
    assert len(accepted) == 3
    for m in accepted:
        cells = {row[0]: row[1:] for row in page.section(id_of(m)).cells() if len(row) == 3}
        assert cells["median"][0] == f"{units.format_ms(m.median_ns)} ms"
        assert units.format_interval_ms(m.ci95_ns) in cells["median"][1]
        assert f"{m.runs} runs" in cells["median"][1]
        for name, value_ns in (
            ("mean", m.mean_ns),
            ("p90", m.p90_ns),
            ("minimum", m.min_ns),
            ("MAD", m.mad_ns),
            ("first call", m.first_ns),
            ("load", m.load_ns),
        ):
            assert cells[name][0] == f"{units.format_ms(value_ns)} ms", name
        assert cells["calls"][0] == f"{m.n:,}"
        assert m.stopped in page.section(id_of(m)).words
        (median,) = page.data(f"data-{id_of(m)}")["median"]
        assert median[1] == pytest.approx((m.median_ns or 0) / 1e6, rel=1e-5)
        assert (median[0], median[2]) == pytest.approx([ns / 1e6 for ns in m.ci95_ns or ()], 1e-5)


def test_the_median_has_a_second_opinion(root: Path, page: Page):
    m = found(root, "fp32", "onnx")
    rows = {row[0]: row[1] for row in page.section(id_of(m)).cells() if len(row) == 3}
    runs = [run.samples_ns for run in counting_runs(trial_of(root, m))]
    assert rows["median, bootstrap"] == units.format_interval_ms(
        studentised_interval(runs, resamples=5_000)
    )


def test_p99_is_told_of_a_thousand_calls_and_more(root: Path, page: Page):
    m = found(root, "fp32", "onnx")
    assert m.n >= 1000
    rows = {row[0]: row[1] for row in page.section(id_of(m)).cells() if len(row) == 3}
    assert rows["p99"] == f"{units.format_ms(m.p99_ns)} ms"


def test_what_is_known_beside_the_latency_is_on_the_page(root: Path, page: Page):
    m = found(root, "fp32", "onnx")
    assert m.energy and m.memory and m.app_ns and m.app_ratio and m.sustained_ns
    rows = {row[0]: " ".join(row[1:]).strip() for row in page.section(id_of(m)).cells()}
    energy, memory = m.energy, m.memory
    assert rows["net per call"].startswith(f"{units.format_mj(energy.net_uj.value)} mJ 95 % ")
    assert units.format_interval_mj(energy.net_uj.ci95) in rows["net per call"]
    assert rows["gross per call"].startswith(f"{units.format_mj(energy.gross_uj.value)} mJ")
    assert rows["idle power"].startswith(f"{units.format_mw(energy.idle_uw.value)} mW")
    assert rows["meter"] == "ina219 (hwmon)"
    assert rows["covers"] == energy.covers
    assert rows["method"] == energy.method
    assert rows["coverage"].startswith("100.0 %")
    assert rows["peak"].startswith(units.format_bytes(memory.peak_bytes))
    assert rows["base"].startswith(units.format_bytes(memory.base_bytes))
    assert rows["loaded"].startswith(units.format_bytes(memory.loaded_bytes))
    assert rows["file-mapped"].startswith(units.format_bytes(memory.file_bytes))
    assert rows["application loop"].startswith(units.format_ms(m.app_ns.value))
    assert rows["application / bench"].startswith(units.format_ratio(m.app_ratio.value))
    assert rows["sustained"].startswith(units.format_ms(m.sustained_ns.value))


def test_unknown_is_said_with_its_reason_and_is_never_nothing(root: Path, page: Page):
    m = found(root, "int8", "onnx")
    rows = {row[0]: row[1:] for row in page.section(id_of(m)).cells()}
    assert rows["per call"] == ["unknown", "board tells no power: no meter"]
    assert rows["sustained"] == ["unknown", "not measured"]
    assert "power" not in page.data(f"data-{id_of(m)}")
    assert "Energy is unknown: board tells no power: no meter (board)." in page.words
    for row in page.cells():
        for cell in row:
            assert not re.fullmatch(r"0(\.0+)? (ms|mJ|mW|kB|MB)", cell), row


def test_what_is_refused_shows_why_and_no_figure(root: Path, page: Page):
    refused = [m for m in read_measurements(root) if m.status == "refused" and m.trial]
    assert len(refused) == 2
    for m in refused:
        section = page.section(id_of(m))
        assert {reason.code for reason in m.reasons} >= {"too-few-runs"}
        for reason in m.reasons:
            assert reason.text in section.words
            assert reason.advice.lower() in section.words.lower()
        assert not {"median", "mean", "p90", "minimum"} & {row[0] for row in section.cells()}
        data = page.data(f"data-{id_of(m)}")
        assert not {"median", "bins"} & data.keys()
        assert {point[4] for point in data["points"]} == {NOT_COUNTED}


def test_a_refused_row_of_the_table_has_no_latency_and_its_reason_below(root: Path, page: Page):
    m = found(root, "sparse", "onnx")
    rows = [row for row in page.cells() if row[:2] == ["sparse", "onnx"] and len(row) == 15]
    assert len(rows) == 1
    assert rows[0][7:13] == ["unknown", "unknown", "-", "unknown", "unknown", "unknown"]
    assert rows[0][14] == "refused"
    assert f"sparse onnx on board: refused ; {m.reasons[0].text} (" in page.words


def test_the_table_has_gap_energy_and_memory(root: Path, page: Page):
    m = found(root, "fp32", "onnx")
    assert m.app_ratio and m.energy and m.memory
    (row,) = [row for row in page.cells() if row[:2] == ["fp32 †", "onnx"] and len(row) == 15]
    assert row[10].startswith(units.format_ratio(m.app_ratio.value))
    assert row[11] == units.format_mj(m.energy.net_uj.value)
    assert row[12] == units.format_bytes(m.memory.peak_bytes)
    (slower,) = [row for row in page.cells() if row[:2] == ["int8", "onnx"] and len(row) == 15]
    assert slower[9].endswith(" slower")
    assert slower[11] == "unknown"


def test_remarks_are_marked_and_explained(root: Path, page: Page):
    m = found(root, "fp32", "tflite")
    assert [remark.code for remark in m.remarks] == ["foreign-load"]
    assert f"fp32 tflite on board: {m.remarks[0].text} ( {m.remarks[0].advice} )" in page.words
    assert m.remarks[0].text in page.section(id_of(m)).words


def test_runs_that_do_not_count_are_grey_and_named(root: Path, page: Page):
    interrupted, busy = found(root, "fp32", "onnx"), found(root, "fp32", "tflite")
    states = {
        id_of(m): [row[6] for row in page.section(id_of(m)).cells() if len(row) == 7][1:]
        for m in (interrupted, busy)
    }
    assert states[id_of(interrupted)].count("counts") == 15
    assert states[id_of(interrupted)][7] == "interrupted, or of an earlier setting"
    assert states[id_of(busy)].count("counts") == 5
    assert states[id_of(busy)][2].startswith("refused: others kept ")
    for m, number in ((interrupted, 8), (busy, 3)):
        data = page.data(f"data-{id_of(m)}")
        grey = {point[3] for point in data["points"] if point[4] == NOT_COUNTED}
        assert grey == {number}
        assert [span[0] for span in data["spans"] if span[3] == NOT_COUNTED] == [
            f"{number}\N{MULTIPLICATION SIGN}"
        ]
        marked = {p[5] for p in data["points"] if p[3] == number}
        assert "timed" not in marked and "not counted" in marked


def test_points_are_calls_as_they_were_made(root: Path, page: Page):
    m = found(root, "fp32", "onnx")
    trial = trial_of(root, m)
    calls = np.concatenate([np.concatenate([r.warmup_ns, r.samples_ns]) for r in trial.runs])
    data = page.data(f"data-{id_of(m)}")
    points = data["points"]
    assert len(calls) == 15 * 220 + 110
    assert 0.8 * MOST_POINTS < len(points) <= MOST_POINTS
    assert f"{len(points):,} of {len(calls):,} calls are drawn" in page.section(id_of(m)).words
    for call, shown, ms, *_ in points:
        assert ms == pytest.approx(calls[call] / 1e6, rel=1e-5)
        assert shown <= ms
    assert max(p[2] for p in points) == pytest.approx(calls.max() / 1e6, rel=1e-5)
    assert min(p[2] for p in points) == pytest.approx(calls.min() / 1e6, rel=1e-5)
    kinds = {p[5] for p in points}
    assert kinds >= {"timed", "outlier", "off the scale", "not counted"}
    warm = [p for p in points if p[0] - data["spans"][p[3] - 1][1] < 20]
    assert {p[5] for p in warm} <= {"warm-up", "off the scale"}


def test_all_calls_are_drawn_where_they_are_few(root: Path, page: Page):
    m = found(root, "int8", "onnx")
    assert len(page.data(f"data-{id_of(m)}")["points"]) == 5 * 220
    assert "All 1,100 calls are drawn." in page.section(id_of(m)).words


def test_the_histogram_is_of_every_call_that_counts(root: Path, page: Page):
    for variant, format_ in (("fp32", "onnx"), ("fp32", "tflite")):
        m = found(root, variant, format_)
        bins = page.data(f"data-{id_of(m)}")["bins"]
        assert sum(count for *_, count in bins) == m.n


def test_medians_and_clocks_are_of_the_runs(root: Path, page: Page):
    m = found(root, "sparse", "onnx")
    trial, data = trial_of(root, m), page.data(f"data-{id_of(m)}")
    assert [median for _, median, _ in data["medians"]] == pytest.approx(
        [float(np.median(run.samples_ns)) / 1e6 for run in trial.runs], rel=1e-5
    )
    assert {mhz for _, mhz, *_ in data["clocks"]} == {1800, 1200}
    assert [call for call, *_ in data["clocks"]][:4] == [70, 120, 170, 220]
    assert len(data["changes"]) >= 5
    assert all(abs(call % 220 - 120) <= 8 for (call,) in data["changes"])


def test_power_is_drawn_with_its_stretches(root: Path, page: Page):
    data = page.data(f"data-{id_of(found(root, 'fp32', 'onnx'))}")
    assert [what for *_, what in data["stretches"]] == ["idle", "active", "idle"] * 5
    times = [seconds for seconds, *_ in data["power"]]
    assert times == sorted(times)
    for begin, end, what in data["stretches"]:
        inside = [mw for seconds, mw, *_ in data["power"] if begin + 0.1 < seconds < end - 0.1]
        assert np.mean(inside) == pytest.approx(3400 if what == "active" else 1900, rel=0.05)
    assert len(data["power"]) <= MOST_POINTS


def test_a_gap_in_the_readings_is_no_power(tmp_path: Path):
    run = showcase.energy_run(0, 2e6)
    run.details["trace"]["covered"][300:420] = [False] * 120
    with Store(tmp_path / "store.db") as store:
        store.put_artifact(builders.artifact(sha256="1" * 64), builders.parity())
        latency = [showcase.run_of(n, 2e6) for n in range(5)]
        showcase.add_trial(store, showcase.trial_of("1" * 64, "onnx"), latency, "accepted", "")
        energy = showcase.trial_of("1" * 64, "onnx", showcase.ENERGY)
        showcase.add_trial(store, energy, [run], "refused", "coverage")
    (m,) = read_measurements(tmp_path)
    data = Page(write_report(tmp_path).read_text()).data(f"data-{id_of(m)}")
    assert {mw is None for _, mw, *_ in data["power"]} == {True, False}
    assert {hue for *_, hue in data["power"]} == {NOT_COUNTED}


def test_sustained_calls_are_drawn_over_the_device_s_time(root: Path, page: Page):
    rows = page.data(f"data-{id_of(found(root, 'fp32', 'onnx'))}")["sustained"]
    first = [(seconds, ms) for seconds, ms, run, _ in rows if run == 1]
    assert 0 <= first[0][0] < 1 and 18 < first[-1][0] < 25
    assert first[-1][1] > 1.1 * first[0][1]


def test_the_environment_is_told(root: Path, page: Page):
    section = page.section(id_of(found(root, "fp32", "onnx")))
    rows = {row[0]: row[1:] for row in section.cells()}
    assert rows["kernel"][0].startswith("Linux 6.6.31")
    assert rows["serial"] == ["10000000abcdef01"]
    assert rows["governor"] == ["schedutil"]
    assert rows["clock source"] == ["clock_gettime(CLOCK_MONOTONIC)"]
    assert rows["power source"] == ["mains"]
    assert rows["runtime version"] == ["1.31.1"]
    assert "rel-1.31.1" in rows["runtime build"][0]
    assert rows["core clocks, MHz"] == ["600 to 1800"] * 3
    assert rows["hottest zone, °C"] == ["48.0", "52.0", "53.0"]
    assert rows["work of others, cores"] == ["0.00"]
    busy = page.section(id_of(found(root, "int8", "tflite")))
    share = {row[0]: row[1:] for row in busy.cells()}["work of others, cores"][0]
    assert 1.5 < float(share.split(" to ")[0]) <= 2.0


def test_a_device_that_tells_nothing_is_unknown_throughout(tmp_path: Path):
    with Store(tmp_path / "store.db") as store:
        store.put_artifact(builders.artifact(), builders.parity())
        runs = [builders.run(n, [1_000_000 + n, 1_100_000, 1_050_000]) for n in range(3)]
        bare = [replace(run, environment={}) for run in runs]
        showcase.add_trial(store, builders.trial(), bare, "accepted", "")
    (m,) = read_measurements(tmp_path)
    rows = {
        row[0]: row[1:]
        for row in Page(write_report(tmp_path).read_text()).section(id_of(m)).cells()
    }
    for name in ("kernel", "cores", "clock source", "runtime build", "work of others, cores"):
        assert rows[name] == ["unknown"], name
    assert rows["core clocks, MHz"] == ["unknown"] * 3


def test_artifacts_of_the_same_bytes_share_a_page(tmp_path: Path):
    with Store(tmp_path / "store.db") as store:
        for variant in ("fp32", "plain"):
            store.put_artifact(builders.artifact(variant=variant), builders.parity())
        runs = [builders.run(n, [1_000_000 + n, 1_100_000, 1_050_000]) for n in range(3)]
        showcase.add_trial(store, builders.trial(), runs, "accepted", "")
    shown = Page(write_report(tmp_path).read_text())
    (section,) = [a["id"] for tag, a in shown.tags if tag == "section"]
    assert "fp32, plain onnx on board" in shown.section(section or "").words


def test_it_needs_no_network_and_text_stays_text(tmp_path: Path):
    root = showcase.showcase(tmp_path / "work")
    lost = replace(showcase.lacking_profile(), remarks=(HOSTILE,), variant=HOSTILE)
    write_profile(root, lost)
    with Store(root / "store.db") as store:
        store.put_artifact(
            builders.artifact(sha256=showcase.sha_of(3), variant=HOSTILE, model="net")
        )
    shown = Page(write_report(root).read_text())
    assert HOSTILE in shown.words
    assert not [tag for tag, _ in shown.tags if tag in ("img", "link", "iframe", "object", "base")]
    for tag, attributes in shown.tags:
        for name in {"src", "href", "srcset", "action"} & attributes.keys():
            assert (attributes[name] or "").startswith("#"), f"{tag} {name}"


def test_twenty_measurements_fit_into_six_megabytes(root: Path, page: Page):
    """The largest page twenty times, and everything else once."""
    sections = re.findall(r"<section .*?</section>", page.source, re.DOTALL)
    assert len(sections) == 6
    assert len(page.source) + 20 * max(map(len, sections)) < 6_000_000


def test_the_material_is_in_the_order_asked_for(root: Path):
    wanted = [
        found(root, "int8", "tflite"),
        found(root, "sparse", "tflite"),
        found(root, "fp32", "onnx"),
    ]
    refused, unmeasured, complete = read_material(root, wanted)
    assert refused.trials["latency"].key == wanted[0].trial
    assert refused.counted["latency"] == ()
    assert unmeasured.trials == {}
    assert set(complete.trials) == {"latency", "app", "sustained", "memory", "energy"}
    assert len(complete.counted["latency"]) == 15


def test_runs_of_a_refused_trial_do_not_count_however_good_they_are(tmp_path: Path):
    steady = [showcase.run_of(n, 2e6) for n in range(5)]
    with Store(tmp_path / "store.db") as store:
        store.put_artifact(builders.artifact(sha256="1" * 64), builders.parity())
        showcase.add_trial(store, showcase.trial_of("1" * 64, "onnx"), steady, "refused", "drift")
    (m,) = read_measurements(tmp_path)
    (material,) = read_material(tmp_path, [m])
    assert material.counted["latency"] == ()
    section = Page(write_report(tmp_path).read_text()).section(id_of(m))
    states = [row[6] for row in section.cells() if len(row) == 7][1:]
    assert states == ["does not count: the measurement is refused"] * 5


def page_of(folder: Path, runs: list[Run]) -> Page:
    """The page of an accepted trial with these runs."""
    with Store(folder / "store.db") as store:
        store.put_artifact(builders.artifact(sha256="1" * 64), builders.parity())
        showcase.add_trial(store, showcase.trial_of("1" * 64, "onnx"), runs, "accepted", "")
    (m,) = read_measurements(folder)
    return Page(write_report(folder).read_text()).section(id_of(m))


def test_what_a_run_is_refused_for_is_what_the_verdict_says(tmp_path: Path):
    """A clock that is not the others', and a reason that was tolerated."""
    runs = [showcase.run_of(number, 2e6) for number in range(7)]
    runs[6] = replace(runs[6], details={"slices": showcase.slices(runs[6].samples_ns, 600_000)})
    busy = showcase.environment(foreign_ms=2_000)
    busy["preflight"]["limits"]["tolerate"] = ["foreign-load"]
    runs[5] = replace(runs[5], environment=busy)
    states = [row[6] for row in page_of(tmp_path, runs).cells() if len(row) == 7][1:]
    assert states[:6] == ["counts"] * 6
    assert states[6].startswith("refused: it ran at 600 MHz, others at ")


def test_the_work_of_others_is_that_of_the_verdict(tmp_path: Path):
    """Of a timed part too short for the counters it is the whole process'."""
    runs = []
    for number in range(5):
        run = showcase.run_of(number, 2e6)
        short = showcase.environment(lasted_ns=50 * showcase.MS)
        short["before"] |= {"busy_ms": short["warm"]["busy_ms"] - 3_000}
        runs.append(replace(run, environment=short))
    rows = {row[0]: row[1:] for row in page_of(tmp_path, runs).cells()}
    seen = disturbance(runs[0])
    assert seen.foreign_cores is not None and seen.foreign_cores > 1
    assert rows["work of others, cores"] == [f"{seen.foreign_cores:.2f}"]


def test_a_zone_in_another_unit_is_no_temperature(tmp_path: Path):
    runs = [showcase.run_of(number, 2e6) for number in range(5)]
    for run in runs:
        run.environment["warm"]["temperatures_mdegc"] = [4_200_000, 51_000]
        run.environment["after"]["temperatures_mdegc"] = [4_200_000, 0]
    rows = {row[0]: row[1:] for row in page_of(tmp_path, runs).cells()}
    assert rows["hottest zone, °C"] == ["48.0", "51.0", "unknown"]


@needs_chromium
def test_a_browser_draws_the_charts_of_the_page_its_address_names(
    root: Path, page: Page, tmp_path: Path
):
    id_ = id_of(found(root, "fp32", "onnx"))
    address = (root / "report" / "index.html").as_uri()
    drawn, problems = browse(f"{address}#{id_}", tmp_path)
    opened = Page(drawn)
    charts = re.findall(r'data-chart="([\w-]+)"', page.section(id_).source)
    assert [name.partition("-")[0] for name in charts] == [
        "samples",
        "histogram",
        "medians",
        "clocks",
        "sustained",
        "power",
    ]
    section = opened.section(id_).source
    assert len(re.findall(r"<svg", section)) == len(charts)
    (samples,) = re.findall(r'data-chart="samples".*?</svg>', section, re.DOTALL)
    points = len(page.data(f"data-{id_}")["points"])
    assert samples.count('aria-roledescription="point"') == points
    other = opened.section(id_of(found(root, "int8", "onnx"))).source
    assert "<svg" not in other, "a page that is not open is not drawn"
    assert problems == []
