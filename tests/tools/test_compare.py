"""``device-lab compare``: verdicts on scripted devices whose truth is known."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from devices.transport.truth import NAME
from profiles.canonical import file_sha256
from profiles.errors import ConnectionLost
from profiles.records import Condition, Plan
from profiles.store import Store, trial_key
from tests import builders
from tests.builders import build_tiny_model
from tests.projects import scripted_device
from tests.tools.conftest import Lab
from tools.device_lab.output import print_table

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
    assert said.code == 1
    found = {each["variant"]: each for each in json.loads(said.out)}
    assert set(found) == {"v0", "gone", "new", "bad"}
    assert found["gone"]["change"]["reason"] == f"it was not measured in {now}"
    assert found["bad"]["change"]["reason"] == f"it was refused in {now}: throttled"
    assert (found["bad"]["status"], found["gone"]["status"]) == ("refused", "")
    assert found["new"]["change"]["reason"] == f"it was not measured in {before}"
    assert (found["gone"]["now_ns"], found["new"]["before_ns"]) == (None, None)
    assert found["gone"]["change"]["effect"] is None
    text = lab(*against([before], now)).out
    assert "unknown" in text


@pytest.mark.parametrize(
    ("status", "code"), [("refused", 1), ("failed", 1), ("open", 0), ("accepted", 0)]
)
def test_what_had_a_latency_and_has_none_now_is_exit_code_1(
    lab: Lab, tmp_path: Path, status: str, code: int
):
    before = visit(tmp_path / "before", medians(1, {"v0": 1e6, "v1": 1e6}))
    now = visit(tmp_path / "now", medians(2, {"v0": 1e6}))
    visit(now, medians(3, {"v1": 1e6}), status=status)
    assert lab(*against([before], now)).code == code
    # And not that of what had none before.
    assert lab(*against([now], before)).code == 0


def test_everything_refused_is_no_usage_error(lab: Lab, tmp_path: Path):
    before = visit(tmp_path / "before", medians(1, {"v0": 1e6}))
    now = visit(tmp_path / "now", medians(2, {"v0": 1e6}), status="refused")
    said = lab(*against([before], now))
    assert said.code == 1
    assert f"it was refused in {now}: throttled" in " ".join(said.out.split())


def test_a_refusal_by_parity_is_told(lab: Lab, tmp_path: Path):
    before = visit(tmp_path / "before", medians(1, {"v0": 1e6, "v1": 1e6}))
    now = visit(tmp_path / "now", medians(2, {"v0": 1e6}))
    with Store(now / "store.db") as store:
        bad = builders.parity(passed=False, reason="cosine 0.1")
        store.put_artifact(builders.artifact(sha256="d" * 64, variant="v1"), bad)
    said = lab(*against([before], now), "--json")
    found = {each["variant"]: each for each in json.loads(said.out)}
    assert found["v1"]["change"]["reason"] == f"it was refused in {now}: parity: cosine 0.1"
    assert said.code == 1


def new_build(root: Path, status: str) -> str:
    """A second build of v0, measured after the first; the artifact's sha256."""
    sha, plan = "e" * 64, replace(PLAN, seed=9)
    with Store(root / "store.db") as store:
        store.put_artifact(builders.artifact(sha256=sha, variant="v0"), builders.parity())
        trial = builders.trial(
            sha256=sha, condition=Condition(governor="performance"), plan_=plan, device_serial="S1"
        )
        time.sleep(0.002)  # the store tells trials apart by the millisecond
        store.open_trial(trial)
        for number in range(5):
            store.add_run(trial.key, builders.run(number, [3_000_000] * 3))
        store.close_trial(trial.key, status, "too hot" if status == "refused" else "")
    return trial.key


def last_run(root: Path, *trials: str) -> None:
    rows = [[trial, "tiny", "v0"] for trial in trials]
    content = {"name": "tiny", "search": None, "measurements": rows}
    (root / "run.json").write_text(json.dumps(content))


@pytest.mark.parametrize("with_summary", [False, True])
def test_a_refused_build_is_not_stood_in_for_by_an_older_one(
    lab: Lab, tmp_path: Path, with_summary: bool
):
    before = visit(tmp_path / "before", medians(1, {"v0": 1e6}))
    now = visit(tmp_path / "now", medians(2, {"v0": 1e6}))
    trial = new_build(now, "refused")
    if with_summary:
        last_run(now, trial)
    said = lab(*against([before], now), "--json")
    [found] = json.loads(said.out)
    assert found["now_ns"] is None
    assert found["change"]["reason"] == f"it was refused in {now}: too hot"
    assert said.code == 1


def test_what_the_last_run_has_is_compared(lab: Lab, tmp_path: Path):
    """Back to the first build: nothing is measured again, and the second is no longer now."""
    before = visit(tmp_path / "before", medians(1, {"v0": 1e6}))
    now = visit(tmp_path / "now", medians(2, {"v0": 1e6}))
    with Store(now / "store.db") as store:
        [first] = store.trials()
    new_build(now, "accepted")
    last_run(now, first.key)
    [found] = json.loads(lab(*against([before], now), "--json").out)
    assert found["now_ns"] == pytest.approx(1e6, rel=0.05)


def test_an_accepted_latency_stays_when_a_longer_one_of_it_is_refused(lab: Lab, tmp_path: Path):
    before = visit(tmp_path / "before", medians(1, {"v0": 1e6}))
    now = visit(tmp_path / "now", medians(2, {"v0": 1e6}))
    time.sleep(0.002)
    visit(now, medians(3, {"v0": 9e6}), plan=replace(PLAN, seed=1), status="refused")
    [found] = json.loads(lab(*against([before], now), "--json").out)
    assert found["now_ns"] == pytest.approx(1e6, rel=0.05)


def test_what_was_measured_in_turns_is_no_latency_of_the_workspace(lab: Lab, tmp_path: Path):
    before = visit(tmp_path / "before", medians(1, {"v0": 1e6}))
    now = visit(tmp_path / "now", medians(2, {"v0": 1e6}))
    time.sleep(0.002)
    visit(now, medians(3, {"v0": 9e6}), plan=replace(PLAN, turns="profile-1"))
    [found] = json.loads(lab(*against([before], now), "--json").out)
    assert found["now_ns"] == pytest.approx(1e6, rel=0.05)
    listed = json.loads(lab("results", "-w", now, "--json").out)
    assert [m["turns"] for m in listed] == [""]
    everything = json.loads(lab("results", "-w", now, "--all", "--json").out)
    assert sorted(m["turns"] for m in everything) == ["", "profile-1"]
    [in_turns] = [m["trial"] for m in everything if m["turns"]]
    assert lab("results", in_turns, "-w", now).code == 0


def test_a_noisy_device_in_the_same_workspace_hides_nothing(lab: Lab, tmp_path: Path):
    before = [tmp_path / f"night{night}" for night in range(3)]
    random = np.random.default_rng(8)
    for night, root in enumerate([*before, tmp_path / "now"]):
        slower = 1.06 if night == 3 else 1.0
        visit(root, medians(night, {**dict.fromkeys(names(6), 1e6), "v2": slower * 1e6}))
        shift = np.exp(random.normal(0, 0.2))
        phone = medians(50 + night, dict.fromkeys(names(6), 1e6 * shift))
        visit(root, phone, serial="S2")
    found = json.loads(lab(*against(before, tmp_path / "now"), "--json").out)
    assert len(found) == 12
    assert [one["variant"] for one in found if one["change"]["outcome"] == "slower"] == ["v2"]


def test_numbers_are_never_broken_in_two(lab: Lab, tmp_path: Path):
    """Nor are names said twice, or more of them than a reader takes in."""
    long = [f"structured-pruning-and-int8-{number}-of-many" for number in range(9)]
    before = [
        visit(tmp_path / f"n{night}", medians(night, dict.fromkeys(long, 123.456e6)))
        for night in range(3)
    ]
    now = visit(tmp_path / "now", medians(9, dict.fromkeys(long, 123.456e6)))
    for root in (*before, now):
        visit(root, medians(4, {long[0]: 1e6}), serial="S2")
    said = lab(*against(before, now))
    lines = said.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if "tiny, " in line]
    number = r" +[\d.]+"
    cells = rf"onnx({number}){{3}} +[\d.]+-[\d.]+ +(undecided|slower|faster)"
    rows = [line for line in lines if re.search(cells, line)]
    assert len(rows) == 10, said.out
    told = " ".join(said.out.split()).partition("undecided: structured")[2]
    assert told.count("-of-many onnx") == 6
    assert told.count("int8-0-of-many onnx") == 1
    assert "and 3 more: the difference may be chance" in told


def test_a_table_that_is_too_wide_breaks_names(capsys: pytest.CaptureFixture[str]):
    rows = [["a-name-of-some-length", "12345678901.25", "0.123-0.456"]]
    print_table("", ["name", ">number", ">95 %"], rows, width=38)
    assert re.search(r" 12345678901\.25 +0\.123-0\.456", capsys.readouterr().out)


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
        (["--history", "now"], "there is nothing to compare"),
        (["-b", "now", "-d", "board"], "--device: only of use with two files"),
        (["-b", "now", "-i", "d.yaml"], "--inventory: only of use with two files"),
        (["-b", "now", "--rounds", "12"], "--rounds: only of use with two files"),
        (["-b", "now", "--iterations", "9"], "--iterations: only of use with two files"),
        (
            ["-b", "now", "--threads", "1", "--tolerate", "frequency"],
            "--threads, --tolerate: only of use with two files",
        ),
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
    """The link breaks while the second file has its turn: its runs are numbered one further on.

    What it makes again, in another visit, stands beside nothing; later rounds are pairs again.
    """
    from devices.inventory import Device
    from devices.transport.scripted import ScriptedTransport
    from pipeline import campaign

    old, new = pair
    connect, asked = Device.connect, []

    class Drifting(ScriptedTransport):
        def run(self, argv: Any, **options: Any) -> Any:
            if options.get("on_line") is None:
                return super().run(argv, **options)
            plan = json.loads((self._home / argv[-1]).read_text())
            asked.append(plan["seed"])
            # Each round of each visit is another level: neighbours have nothing in common.
            truth(1_000_000 * (1 + plan["seed"] % 3 + 5 * (len(asked) > 4)))
            done = super().run(argv, **options)
            if len(asked) == 4:
                raise ConnectionLost("cut")
            return done

    def truth(level: int) -> None:
        none = {"between_runs": [0.0, 0.0], "within": 0.0}
        hide(tmp_path, {old: level, new: round(1.1 * level)}, **none)

    def connecting(device: Device) -> Drifting:
        inner = connect(device)
        assert isinstance(inner, ScriptedTransport)
        return Drifting(inner._home, inner._scripts)

    monkeypatch.setattr(Device, "connect", connecting)
    monkeypatch.setattr(campaign, "PAUSES_S", (0.0,))
    words = ["-d", "board", "--iterations", "20", "--rounds", "5"]
    said = lab("compare", old, new, *words, "--tolerate", "not-stationary", "--json")
    [compared] = json.loads(said.out)
    with Store(tmp_path / "workspace/store.db") as store:
        trials = store.trials()
    assert sorted(len(trial.runs) for trial in trials) == [5, 6]
    when = [run.environment["preflight"] for trial in trials for run in trial.runs]
    assert len({each["fence"] for each in when}) == 2
    assert {each["round"] for each in when} == {0, 1, 2, 3, 4}
    assert compared["runs"] == 4
    assert compared["change"]["effect"]["ci95"] == pytest.approx((1.1, 1.1), rel=1e-3)


def test_a_file_that_was_refused_is_measured_again_beside_the_other(
    lab: Lab, tmp_path: Path, pair: tuple[Path, Path]
):
    """Alone it would be compared with another day."""
    old, new = pair
    words = ["-d", "board", "--iterations", "40", "--rounds", "4", "--json"]
    hide(tmp_path, {old: 2_000_000, new: 2_100_000})
    assert lab("compare", old, new, *words).code in (0, 1)
    with Store(tmp_path / "workspace/store.db") as store:
        second = next(t for t in store.trials() if t.artifact_sha256 == file_sha256(new))
        store.close_trial(second.key, "refused", "throttled", fence=second.fence)
    hide(tmp_path, {old: 1_000_000, new: 1_000_000})
    [found] = json.loads(lab("compare", old, new, *words).out)
    assert found["runs"] == 4
    assert found["change"]["effect"]["ratio"] == pytest.approx(1, rel=0.05)
    assert found["before_ns"] == pytest.approx(1_000_000, rel=0.05)


def test_refused_data_is_not_compared(lab: Lab, tmp_path: Path, pair: tuple[Path, Path]):
    old, new = pair
    hide(tmp_path, {old: 1_000_000, new: 2_000_000}, khz=[[1_000_000, 500_000]])
    said = lab("compare", old, new, "-d", "board", "--iterations", "100", "--rounds", "4", "--json")
    assert said.code == 1
    [found] = json.loads(said.out)
    assert found["change"]["outcome"] == "undecided"
    assert found["change"]["effect"] is None
    assert "new.onnx is refused: " in found["change"]["reason"]
