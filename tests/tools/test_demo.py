"""The demo's path, on less of everything: a real sshd and adbd that it starts and ends itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from devices.endpoints.sshd import find_sshd
from tests.projects import device_lab

ROOT = Path(__file__).parents[2]
LESS = (
    "variants=[fp32]",
    "formats=[onnx]",
    "search=null",
    "model.train.epochs=1",
    "measure.runs=3",
    "measure.max_runs=3",
    "measure.iterations=20",
)


@pytest.mark.slow
@pytest.mark.sshd
@pytest.mark.skipif(find_sshd() is None, reason="no OpenSSH server on this machine")
def test_the_demo_measures_over_ssh_and_adb_and_leaves_no_server(tmp_path: Path, _adbd: None):
    workspace = tmp_path / "demo"
    settings = [part for setting in LESS for part in ("--set", setting)]
    done = subprocess.run(
        [sys.executable, "-m", "tools.demo", "--workspace", str(workspace), *settings],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Pareto front" in done.stdout
    assert f"report: {workspace}/report/index.html" in done.stdout
    rows = json.loads(device_lab("results", "--json", "--workspace", workspace).stdout)
    assert [(row["device"], row["transport"], row["emulated"]) for row in rows] == [
        ("board", "ssh", False),
        ("phone", "adb", True),
    ]
    assert len({row["artifact_sha256"] for row in rows}) == 1
    assert [row["agent"] for row in rows] == ["python", "native"]
    assert [(row["status"], row["n"]) for row in rows] == [("accepted", 60)] * 2
    # sshd takes its pid file away when it ends.
    assert not (workspace / "lab/board/sshd.pid").exists()
