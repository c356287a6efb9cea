"""The whole loop through the real command: twice, killed in every stage, and with a bad format.

The device is scripted, so two runs must agree in every number.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.projects import DEVICE_LAB, SEARCH, Project, device_lab, environment, make_project

pytestmark = pytest.mark.slow

#: What standard error says when a stage begins, in the order they come.
STAGES = (
    "model ...",
    "int8 ...",
    "sparse ...",
    "export-executorch ...",
    "parity ...",
    "measure: connecting",  # the variants
    "supernet ...",
    "block ...",
    "block-parity ...",
    "measure: connecting",  # the table's blocks
    "search-round ...",
    "candidate ...",
    "measure: connecting",  # the first round's candidates
    "search-round ...",
    "measure: connecting",  # the second's
    "vectors ...",
)


def run(project: Project, workspace: Path) -> subprocess.CompletedProcess[str]:
    return device_lab("run", project.recipe, "--workspace", workspace)


def outcome(workspace: Path) -> tuple[list[Any], dict[str, Any]]:
    """Everything a run has to say, less the folder it was said in."""
    listed = device_lab("results", "--all", "--json", "--workspace", workspace)
    summary = (workspace / "run.json").read_text().replace(str(workspace), "WORKSPACE")
    return json.loads(listed.stdout), json.loads(summary)


def kill_at(marker: str, project: Project, workspace: Path) -> bool:
    """Run until the marker is seen, then kill -9; false if it never came."""
    process = subprocess.Popen(
        [DEVICE_LAB, "run", str(project.recipe), "--workspace", str(workspace)],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr
    try:
        for line in process.stderr:
            if marker in line:
                time.sleep(0.05)  # into the stage, not before it
                return True
        return False
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("project"), search=dict(SEARCH))


@pytest.fixture(scope="module")
def finished(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace in which the recipe ran undisturbed."""
    workspace = tmp_path_factory.mktemp("finished") / "work"
    done = run(project, workspace)
    assert done.returncode == 0, done.stderr
    return workspace


def test_a_run_measures_every_artifact_and_closes_the_loop(finished: Path):
    rows, summary = outcome(finished)
    variants = [row for row in rows if row["role"] == "variant"]
    assert {(row["variant"], row["format"]) for row in variants} == {
        (variant, format_)
        for variant in ("fp32", "int8", "sparse")
        for format_ in ("executorch", "onnx", "tflite")
    }
    assert all(row["status"] == "accepted" and row["parity"]["passed"] for row in variants)
    assert all(row["emulated"] and row["transport"] == "scripted" for row in rows)
    assert all(row["runs"] == 3 and row["n"] == 30 for row in rows)
    candidates = summary["search"]["candidates"]
    assert {candidate["round"] for candidate in candidates} == {1, 2}
    assert len({tuple(candidate["genome"]) for candidate in candidates}) == len(candidates)


def test_a_second_run_does_nothing_again(project: Project, finished: Path):
    def state() -> dict[str, int]:
        files = [p for p in finished.rglob("*") if "report" not in p.parts and p.is_file()]
        # SQLite's shared memory and the lock are touched by whoever opens the workspace.
        kept = [p for p in files if p.suffix not in (".db-shm", ".db-wal", "") and p.stem != "run"]
        return {str(p): p.stat().st_mtime_ns for p in kept}

    before, told = state(), outcome(finished)
    again = run(project, finished)
    assert again.returncode == 0
    assert "measure" not in again.stderr
    changed = {path for path in before if state().get(path) != before[path]}
    # The store and the tables are written again with the same content.
    tables = {"stripes-board-onnx-1t.json", "stripes-board-onnx-1t-calibrated.json"}
    assert {Path(path).name for path in changed} <= {"store.db", *tables}
    assert set(state()) == set(before)
    assert outcome(finished) == told


def test_killed_in_every_stage_it_comes_to_the_same(
    project: Project, finished: Path, tmp_path: Path
):
    workspace = tmp_path / "work"
    killed = [marker for marker in STAGES if kill_at(marker, project, workspace)]
    assert killed == list(STAGES)
    done = run(project, workspace)
    assert done.returncode == 0, done.stderr
    assert outcome(workspace) == outcome(finished)


def test_what_one_format_cannot_express_does_not_stop_the_others(tmp_path: Path):
    project = make_project(
        tmp_path / "project",
        model={"factory": "stripes:Spectrum"},
        variants=["fp32"],
        formats=["tflite", "onnx"],
    )
    done = run(project, tmp_path / "work")
    assert done.returncode == 1
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed:")]
    assert len(failed) == 1
    assert failed[0].startswith("failed: export: fp32 tflite: ")
    assert "Traceback" not in done.stderr
    listed = json.loads(device_lab("results", "--json", "--workspace", tmp_path / "work").stdout)
    assert [(row["format"], row["status"]) for row in listed] == [("onnx", "accepted")]
