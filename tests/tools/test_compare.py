"""``device-lab compare``: verdicts on scripted devices whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from devices.transport.truth import NAME
from profiles.canonical import file_sha256
from profiles.records import Condition, Plan
from profiles.store import Store, trial_key
from tests import builders
from tests.builders import build_tiny_model
from tests.projects import scripted_device
from tests.tools.conftest import Lab

PLAN = Plan(runs=5, max_runs=5, iterations=20)


def visit(
    root: Path,
    medians_ns: dict[str, list[float]],
    *,
    status: str = "accepted",
    serial: str = "S1",
    condition: Condition | None = None,
    plan: Plan = PLAN,
) -> Path:
    """A workspace with a latency for each of some variants: their run medians."""
    condition = condition or Condition(governor="performance")
    with Store(root / "store.db") as store:
        for variant, medians in medians_ns.items():
            sha = variant.encode().hex().ljust(64, "0")
            store.put_artifact(builders.artifact(sha256=sha, variant=variant), builders.parity())
            trial = builders.trial(sha256=sha, condition=condition, plan_=plan)
            trial = replace(
                trial,
                key=trial_key(sha, f"{serial}{root}", "onnxruntime", condition, plan),
                device_serial=serial,
            )
            store.open_trial(trial)
            for number, median in enumerate(medians):
                store.add_run(trial.key, builders.run(number, [round(median)] * 3))
            store.close_trial(trial.key, status, "throttled" if status == "refused" else "")
    return root


def nights(folder: Path, count: int, artifacts: int = 6) -> list[Path]:
    """Visits that vary by half a percent, runs by one."""
    return [
        visit(folder / f"night{night}", medians(night, dict.fromkeys(names(artifacts), 1e6)))
        for night in range(count)
    ]


def names(artifacts: int) -> list[str]:
    return [f"v{number}" for number in range(artifacts)]


def medians(seed: int, levels_ns: dict[str, float]) -> dict[str, list[float]]:
    random = np.random.default_rng(seed)
    return {
        name: list(level * np.exp(random.normal(0, 0.005) + random.normal(0, 0.01, 5)))
        for name, level in levels_ns.items()
    }


def against(before: list[Path], now: Path) -> list[Any]:
    *history, baseline = before
    words = [word for root in history for word in ("--history", root)]
    return ["compare", "--baseline", baseline, "--workspace", now, *words]


# Workspaces


def test_a_slower_artifact_is_found_among_unchanged_ones(lab: Lab, tmp_path: Path):
    levels = {**dict.fromkeys(names(6), 1e6), "v2": 1.08e6, "v4": 0.9e6}
    now = visit(tmp_path / "now", medians(99, levels))
    said = lab(*against(nights(tmp_path, 3), now), "--json")
    assert said.code == 1, said.err
    found = {each["variant"]: each for each in json.loads(said.out)}
    outcomes = {name: each["change"]["outcome"] for name, each in found.items()}
    expected = {**dict.fromkeys(names(6), "undecided"), "v2": "slower", "v4": "faster"}
    assert outcomes == expected
    slower = found["v2"]
    assert slower["change"]["effect"]["ratio"] == pytest.approx(1.08, rel=0.02)
    low, high = slower["change"]["effect"]["ci95"]
    assert 1 < low < slower["change"]["effect"]["ratio"] < high
    assert slower["now_ns"] / slower["before_ns"] == pytest.approx(
        slower["change"]["effect"]["ratio"]
    )
    assert (slower["visits"], slower["runs"], slower["device"]) == (3, 5, "board")
    assert found["v0"]["change"]["reason"] == "the difference may be chance"


def test_no_change_is_exit_code_0_and_fits_the_terminal(lab: Lab, tmp_path: Path):
    *before, now = nights(tmp_path, 4)
    said = lab(*against(before, now))
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    table = [line for line in lines if " v" in line or "verdict" in line]
    assert len(table) >= 7
    assert max(map(len, table)) <= 80
    assert all(word in said.out for word in ("before ms", "now ms", "ratio", "95 %", "1.0"))
    reason = " ".join(said.out.split()).partition("undecided: v0 onnx, ")[2]
    assert reason.endswith("v5 onnx: the difference may be chance")


def test_one_visit_before_is_shown_and_is_no_verdict(lab: Lab, tmp_path: Path):
    """However far apart two single visits are: nobody knows how visits differ."""
    before = visit(tmp_path / "before", medians(1, {"v0": 1e6}))
    now = visit(tmp_path / "now", medians(2, {"v0": 2e6}))
    said = lab(*against([before], now), "--json")
    assert said.code == 0, said.err
    [found] = json.loads(said.out)
    change = found["change"]
    assert change["outcome"] == "undecided"
    assert change["effect"]["ratio"] == pytest.approx(2.0, rel=0.05)
    assert change["effect"]["ci95"][0] < change["effect"]["ratio"] < change["effect"]["ci95"][1]
    assert change["reason"] == (
        "the history has 1 of the 3 visits needed; the interval is of these two visits alone"
    )


def test_a_pilot_decides_the_interval_where_it_decided_the_number_of_runs(lab: Lab, tmp_path: Path):
    runs = [1e6, 1.001e6, 0.999e6, 1.1e6, 0.9e6, 1.1e6, 0.9e6]
    short = Plan(runs=3, max_runs=9, iterations=20)
    before = visit(tmp_path / "before", {"v0": runs}, plan=short)
    now = visit(tmp_path / "now", {"v0": runs}, plan=short)
    said = lab(*against([before], now), "--json")
    low, high = json.loads(said.out)[0]["change"]["effect"]["ci95"]
    assert high / low < 1.01


def test_what_only_one_side_has_is_listed(lab: Lab, tmp_path: Path):
    before = visit(tmp_path / "before", medians(1, {"v0": 1e6, "gone": 1e6}))
    now = visit(tmp_path / "now", medians(2, {"v0": 1e6, "new": 1e6}))
    visit(now, medians(3, {"bad": 1e6}), status="refused")
    visit(before, medians(3, {"bad": 1e6}))
    said = lab(*against([before], now), "--json")
    assert said.code == 0
    found = {each["variant"]: each for each in json.loads(said.out)}
    assert set(found) == {"v0", "gone", "new", "bad"}
    assert found["gone"]["change"]["reason"] == f"it was not measured in {now}"
    assert found["bad"]["change"]["reason"] == f"it was not measured in {now}"
    assert found["new"]["change"]["reason"] == f"it was not measured in {before}"
    assert (found["gone"]["now_ns"], found["new"]["before_ns"]) == (None, None)
    assert found["gone"]["change"]["effect"] is None
    text = lab(*against([before], now)).out
    assert "unknown" in text


@pytest.mark.parametrize(
    "changes", [{"serial": "S2"}, {"condition": Condition(threads=2, governor="performance")}]
)
def test_another_unit_or_condition_is_never_compared(lab: Lab, tmp_path: Path, changes: Any):
    before = visit(tmp_path / "before", medians(1, {"v0": 1e6}))
    now = visit(tmp_path / "now", medians(2, {"v0": 2e6}), **changes)
    said = lab(*against([before], now))
    assert said.code == 2
    assert "no accepted latency in common" in said.problem


def test_the_latest_of_several_in_a_workspace_counts(lab: Lab, tmp_path: Path):
    before = visit(tmp_path / "before", medians(1, {"v0": 1e6}))
    now = visit(tmp_path / "now", medians(2, {"v0": 9e6}))
    visit(now, medians(3, {"v0": 1e6}), plan=replace(PLAN, seed=1))
    [found] = json.loads(lab(*against([before], now), "--json").out)
    assert found["now_ns"] == pytest.approx(1e6, rel=0.05)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "there is nothing to compare"),
        (["-b", "gone", "-w", "now"], "is no workspace"),
        (["-b", "now", "-w", "now"], "named twice"),
        (["-b", "now", "-w", "gone", "--history", "now"], "named twice"),
        (["a.onnx"], "two files are compared on a device"),
        (["a.onnx", "b.onnx"], "two files are compared on a device"),
        (["a.onnx", "b.onnx", "c.onnx", "-d", "board"], "two files are compared on a device"),
        (["a.onnx", "b.onnx", "-d", "board", "-b", "now"], "two files or a baseline, not both"),
        (["a.onnx", "b.onnx", "-d", "board"], "there is no file b.onnx"),
        (["a.onnx", "a.onnx", "-d", "board"], "the same file, byte for byte"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], complaint: str
):
    monkeypatch.chdir(tmp_path)
    visit(tmp_path / "now", medians(1, {"v0": 1e6}))
    (tmp_path / "a.onnx").write_bytes(b"a")
    said = lab("compare", *words)
    assert said.code == 2
    assert complaint in said.problem


# Files in turns


def another_build(path: Path, name: str) -> Path:
    """The same model with other bytes."""
    import onnx

    model = onnx.load(path)
    model.doc_string = name
    onnx.save(model, path.with_name(f"{name}.onnx"))
    return path.with_name(f"{name}.onnx")


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two models that differ, and an inventory with a scripted device, in the current folder."""
    monkeypatch.chdir(tmp_path)
    old = build_tiny_model(tmp_path).path
    new = another_build(old, "new")
    inventory = {"devices": [scripted_device(tmp_path / "device")]}
    (tmp_path / "devices.yaml").write_text(yaml.safe_dump(inventory))
    return old, new


def hide(folder: Path, truth_ns: dict[Path, int], **truth: Any) -> None:
    home = folder / "device"
    home.mkdir(exist_ok=True)
    known = {file_sha256(path): ns for path, ns in truth_ns.items()}
    content = {"between_runs": [0.01, 0.01], "within": 0.002, "truth_ns": known, **truth}
    (home / NAME).write_text(json.dumps(content))


def test_a_slower_file_is_found_from_rounds(lab: Lab, tmp_path: Path, pair: tuple[Path, Path]):
    old, new = pair
    hide(tmp_path, {old: 1_000_000, new: 1_050_000})
    words = ["-d", "board", "--iterations", "20"]
    said = lab("compare", old, new, *words, "--json")
    assert said.code == 1, said.err
    [found] = json.loads(said.out)
    assert (found["change"]["outcome"], found["runs"]) == ("slower", 12)
    assert (found["before"], found["now"]) == (str(old), str(new))
    low, high = found["change"]["effect"]["ci95"]
    assert 1.03 < low < high < 1.08
    assert found["change"]["effect"]["p"] == found["change"]["q"]
    back = lab("compare", new, old, *words, "--json")
    assert back.code == 0
    assert json.loads(back.out)[0]["change"]["outcome"] == "faster"
    # Found again, not measured again: the device may be gone.
    (tmp_path / "device" / NAME).unlink()
    assert lab("compare", old, new, *words, "--json").out == said.out


def test_equal_files_are_no_regression(lab: Lab, tmp_path: Path, pair: tuple[Path, Path]):
    old, new = pair
    hide(tmp_path, {old: 1_000_000, new: 1_000_000})
    said = lab("compare", old, new, "-d", "board", "--iterations", "20", "--rounds", "6")
    assert said.code == 0, said.err
    assert "undecided: file onnx: the difference may be chance" in said.out


def test_files_are_measured_in_turns_even_if_one_was_measured_before(
    lab: Lab, tmp_path: Path, pair: tuple[Path, Path]
):
    """On another day the device was twice as slow: that must not be compared with today."""
    old, new = pair
    other = another_build(old, "other")
    words = ["-d", "board", "--iterations", "10", "--rounds", "5"]
    hide(tmp_path, {old: 2_000_000, other: 2_000_000})
    assert lab("compare", old, other, *words).code == 0
    hide(tmp_path, {old: 1_000_000, new: 1_000_000})
    [found] = json.loads(lab("compare", old, new, *words, "--json").out)
    assert found["change"]["effect"]["ratio"] == pytest.approx(1, rel=0.05)


def test_runs_are_paired_by_their_round(
    lab: Lab, tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    """A round that one of them lost is left out: its neighbours are not moved up."""
    import pipeline.compare

    old, new = pair
    rounds_ns = np.array([1e6, 2e6, 1.2e6, 1.9e6, 1.1e6, 2.2e6])
    found = []
    with Store(tmp_path / "workspace/store.db") as store:
        for path, factor, lost in ((old, 1.0, 1), (new, 1.1, 3)):
            sha = file_sha256(path)
            store.put_artifact(builders.artifact(sha256=sha, path=path), builders.parity())
            trial = builders.trial(sha256=sha, plan_=Plan(runs=5, max_runs=5, iterations=3))
            store.open_trial(trial)
            for number, level in enumerate(rounds_ns):
                made = builders.run(number, [round(factor * level)] * 3, complete=number != lost)
                store.add_run(trial.key, made)
            store.close_trial(trial.key, "accepted")
        found = store.measurements()
    monkeypatch.setattr(pipeline.compare, "measure_files", lambda *given: found)
    said = lab("compare", old, new, "-d", "board", "--json")
    [compared] = json.loads(said.out)
    assert compared["runs"] == 4
    assert compared["change"]["effect"]["ci95"] == pytest.approx((1.1, 1.1), rel=1e-4)


def test_refused_data_is_not_compared(lab: Lab, tmp_path: Path, pair: tuple[Path, Path]):
    old, new = pair
    hide(tmp_path, {old: 1_000_000, new: 2_000_000}, khz=[[1_000_000, 500_000]])
    said = lab("compare", old, new, "-d", "board", "--iterations", "100", "--rounds", "4", "--json")
    assert said.code == 1
    [found] = json.loads(said.out)
    assert found["change"]["outcome"] == "undecided"
    assert found["change"]["effect"] is None
    assert "new.onnx is refused: " in found["change"]["reason"]
