"""The benchmarks run as documented, and say what they should."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_documented_benchmarks_exist():
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"python -m (tools\.[\w.]+)", text)
    assert found
    for module in found:
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


def test_the_readme_has_a_figure_for_every_runtime():
    table = (ROOT / "README.md").read_text().partition("agent / bare loop")[2]
    assert len(re.findall(r"^\| [\w ]+ \| [\d.]+ \| [\d.]+ to [\d.]+ \|$", table, re.M)) == 3


@pytest.mark.slow
def test_the_harness_reports_every_runtime():
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench.harness", "--json", "--rounds", "6"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = {item["runtime"]: item for item in json.loads(done.stdout)}
    assert set(found) == {"executorch", "onnxruntime", "litert"}
    for item in found.values():
        low, high = item["ci95"]
        assert low <= item["ratio"] <= high
        # A harness that timed something else than the call would be off by far more.
        assert 0.7 < item["ratio"] < 1.4
