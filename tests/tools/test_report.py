"""The report: one file, everything that was measured in it, and nothing that is not said to be."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from profiles import units
from profiles.errors import UsageError
from profiles.records import RUNTIME_OF, Condition, Plan, Trial
from profiles.statistics import agreement
from profiles.store import Store
from tests import builders
from tests.page import Page, browse, needs_chromium
from tools.report import write_report

HOSTILE = "<script>alert('owned')</script> & \"quotes\""
#: (variant, format) to median, ns.
LATENCY_NS = {
    ("fp32", "executorch"): 2_345_000,
    ("fp32", "onnx"): 1_234_000,
    ("int8", "executorch"): 617_000,
    ("int8", "onnx"): 1_567_000,
}
PLAN = Plan(runs=3, iterations=4)


def fill(root: Path, *, emulated: bool = True, search: bool = True) -> Path:
    """A workspace as a run leaves it: variants, one refused, one failed, and candidates."""
    root.mkdir(parents=True)
    own = [["", "net", "sparse"]]  # [trial, model, variant]; what was refused has no trial
    with Store(root / "store.db") as store:
        for number, ((variant, format_), ns) in enumerate(LATENCY_NS.items()):
            sha = f"{number:064x}"
            key = add(store, sha, ns, emulated, variant=variant, format=format_, model="net")
            own.append([key, "net", variant])
        store.put_artifact(
            builders.artifact(sha256="c" * 64, model="net", variant="sparse", format="tflite"),
            builders.parity(passed=False, reason="cosine 0.5 < 0.98"),
        )
        broken = builders.artifact(sha256="d" * 64, model="net", variant="int8", format="tflite")
        store.put_artifact(broken, builders.parity())
        trial = builders.trial(sha256="d" * 64, runtime="litert", plan_=PLAN, emulated=emulated)
        store.open_trial(trial)
        store.close_trial(trial.key, "failed", HOSTILE)
        own.append([trial.key, "net", "int8"])
        if search:
            for candidate in candidates():
                name = candidate["description"]
                ns, sha = candidate["measured_ns"], candidate["artifact_sha256"]
                add(store, sha, ns, emulated, variant=name, model="net-search", role="candidate")
    found = {
        "space_size": 74088,
        "evaluated": 321,
        "table_path": "table.json",
        "candidates": candidates(),
        "agreement": [asdict(agreement([1.0, 2.0, 3.0], [1.1, 2.0, 2.9], "search candidates"))],
        "failures": [],
    }
    failures = [
        {"stage": "export", "what": "fp32 tflite", "reason": "no tflite: " + HOSTILE},
        {"stage": "measure", "what": "int8 tflite on board", "reason": HOSTILE},
    ]
    summary = {
        "name": "net",
        "accuracy": 0.987,
        "parameters": 123456,
        "measurements": own,
        "search": found if search else None,
        "failures": failures,
        "notes": [
            {"variant": "int8", "format": "onnx", "device": None, "text": "slower " + HOSTILE}
        ],
    }
    (root / "run.json").write_text(json.dumps(summary))
    return root


def add(store: Store, sha: str, ns: float, emulated: bool, **artifact: Any) -> str:
    made = builders.artifact(sha256=sha, **artifact)
    store.put_artifact(made, builders.parity())
    trial = trial_of(sha, runtime=RUNTIME_OF[made.format], emulated=emulated)
    store.open_trial(trial)
    for number in range(PLAN.runs):
        samples = [round(ns * factor) for factor in (0.999, 1, 1, 1.001)]
        store.add_run(trial.key, builders.run(number, samples))
    store.close_trial(trial.key, "accepted")
    return trial.key


def trial_of(sha: str, **changes: Any) -> Trial:
    return builders.trial(sha256=sha, plan_=PLAN, condition=Condition(threads=4), **changes)


def candidates() -> list[dict[str, Any]]:
    return [
        {
            "round": 1 + index // 2,
            "genome": [0, index],
            "description": f"s1b1:k3e{index + 1}",
            "artifact_sha256": f"{0xE0 + index:064x}",
            "trial": trial_of(f"{0xE0 + index:064x}").key,
            "predicted_ns": 400_000.0 + 50_000 * index,
            "measured_ns": 421_000.0 + 51_000 * index,
            "ci95_ns": [415_000.0 + 51_000 * index, 427_000.0 + 51_000 * index],
            "validation_accuracy": 0.9,
            "accuracy": 0.88 + 0.01 * index,
            "size_bytes": 10_000 + index,
        }
        for index in range(4)
    ]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("report") / "work")


@pytest.fixture(scope="module")
def path(workspace: Path) -> Path:
    return write_report(workspace)


@pytest.fixture(scope="module")
def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def test_it_is_one_file_in_the_workspace(workspace: Path, path: Path):
    assert path == workspace / "report" / "index.html"
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]


def test_it_needs_no_network(path: Path, page: Page):
    loads = {"src", "href", "srcset", "data", "action", "poster"}
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base"), tag
        for name in loads & attributes.keys():
            value = attributes[name] or ""
            assert value.startswith(("#", "data:")), f"{tag} {name}={value}"
    assert len(page.scripts) >= 2
    ours = page.scripts[-1]
    assert not re.search(r"\bimport\s*\(|\bfetch\s*\(|\"url\"", ours)
    (style,) = re.findall(r"<style>(.*?)</style>", path.read_text(), re.DOTALL)
    assert not re.search(r"@import|url\(", style)


def test_every_accepted_median_is_in_it_with_its_interval(page: Page):
    for ns in LATENCY_NS.values():
        assert units.format_ms(ns) in page.words
    for candidate in candidates():
        assert candidate["description"] in page.words
        assert units.format_ms(candidate["measured_ns"]) in page.words
        assert units.format_ms(candidate["predicted_ns"]) in page.words
        assert units.format_interval_ms(tuple(candidate["ci95_ns"])) in page.words


def test_what_is_slower_than_fp32_says_so(page: Page):
    assert "0.79x" in page.words
    assert "3.80x" in page.words
    assert re.search(r"Slower than FP32 in the same runtime: int8 onnx \(0.79x\)", page.words)


def test_what_is_emulated_says_so_everywhere(page: Page, tmp_path: Path):
    assert page.words.count("board emulated") >= len(LATENCY_NS)
    real = Page(write_report(fill(tmp_path / "real", emulated=False)).read_text())
    assert "emulated" not in real.words


def test_failures_are_listed_with_their_reasons(page: Page):
    assert "export, fp32 tflite: no tflite: " + HOSTILE in page.words
    assert "measure, int8 tflite on board: " + HOSTILE in page.words
    assert "refused: parity: cosine 0.5 < 0.98" in page.words
    assert "failed: " + HOSTILE in page.words


def test_how_a_variant_was_made_is_told_and_its_row_marked(page: Page):
    assert "int8 onnx: slower " + HOSTILE in page.words
    assert "int8\N{DOUBLE DAGGER}" in page.words.replace(" ", "")
    assert "fp32\N{DOUBLE DAGGER}" not in page.words.replace(" ", "")


def test_hostile_text_stays_text(path: Path, page: Page):
    assert "<script>alert" not in path.read_text()
    assert not any("owned" in script for script in page.scripts)


def test_hostile_names_cannot_leave_the_script_they_are_drawn_by(tmp_path: Path):
    root = fill(tmp_path / "work")
    summary = json.loads((root / "run.json").read_text())
    summary["search"]["candidates"][0]["description"] = "</script><img src=x onerror=alert(1)>"
    summary["name"] = "<b>bold</b>"
    (root / "run.json").write_text(json.dumps(summary))
    found = Page(write_report(root).read_text())
    assert not [tag for tag, _ in found.tags if tag == "img"]
    assert "<b>bold</b> on device" in found.words


def test_the_search_is_told_with_its_population_and_its_numbers(page: Page):
    assert "321 of 74,088 networks were evaluated" in page.words
    assert "search candidates 3 " in page.words


def test_what_the_numbers_stand_on_is_in_it(page: Page):
    assert "4 threads as-shipped" in page.words
    assert "onnxruntime" in page.words
    assert "3 x 4" in page.words


def test_without_a_search_or_a_summary_it_is_written_all_the_same(tmp_path: Path):
    plain = Page(write_report(fill(tmp_path / "plain", search=False)).read_text())
    assert "Search" not in plain.words
    root = fill(tmp_path / "bare")
    (root / "run.json").unlink()
    bare = Page(write_report(root).read_text())
    assert units.format_ms(LATENCY_NS["fp32", "onnx"]) in bare.words


def test_an_empty_workspace_has_a_report(tmp_path: Path):
    (tmp_path / "work").mkdir()
    Store(tmp_path / "work" / "store.db").close()
    assert write_report(tmp_path / "work").exists()


def test_what_an_earlier_recipe_measured_is_not_in_it(tmp_path: Path):
    root = fill(tmp_path / "work")
    with Store(root / "store.db") as store:
        add(store, "9" * 64, 7_777_000, True, variant="old", model="net")
    assert "7.78" not in Page(write_report(root).read_text()).words


def test_another_file_can_be_named(workspace: Path, tmp_path: Path):
    target = tmp_path / "there" / "mine.html"
    assert write_report(workspace, target) == target
    assert [p.name for p in target.parent.iterdir()] == ["mine.html"]


def test_no_workspace_no_report(tmp_path: Path):
    with pytest.raises(UsageError, match="is no workspace"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@needs_chromium
def test_a_browser_draws_both_plots(path: Path, tmp_path: Path):
    drawn, problems = browse(path.as_uri(), tmp_path)
    for plot in ("pareto", "prediction"):
        svg = re.search(rf'<div id="{plot}".*?<svg.*?</svg>', drawn, re.DOTALL)
        assert svg, f"{plot} was not drawn"
        assert len(re.findall(r'aria-roledescription="point"', svg[0])) >= 4
    assert problems == []
