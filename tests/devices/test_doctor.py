"""The doctor reports a device's faults, and never fails because of them."""

from __future__ import annotations

import sys

from devices.doctor import examine
from tests.builders import device
from tests.devices import fake_runtime


def test_a_healthy_device(tmp_path):
    report = examine(device(address=f"scripted:{tmp_path}/home"))
    assert report.healthy
    assert [check.name for check in report.checks] == [
        *("connection", "agent", "executorch", "onnxruntime", "litert")
    ]
    assert all(check.detail and not check.remedy for check in report.checks)


def test_a_missing_runtime_comes_with_its_remedy(tmp_path):
    folder = tmp_path / "fake"
    fake_runtime.install_broken(folder)
    for name in ("executorch", "ai_edge_litert", "tflite_runtime", "torch"):
        (folder / f"{name}.py").write_text('raise ImportError("not here")\n')
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    report = examine(device(root=str(tmp_path / "root"), python=str(python)))
    assert not report.healthy
    failed = {check.name: check for check in report.checks if not check.ok}
    assert set(failed) == {"executorch", "onnxruntime", "litert"}
    assert "libgomp" in failed["onnxruntime"].detail
    assert "pip install onnxruntime" in failed["onnxruntime"].remedy


def test_a_board_without_python(tmp_path):
    report = examine(device(root=str(tmp_path / "root"), python="/nowhere/python3"))
    (connection, agent) = report.checks
    assert (connection.ok, agent.name, agent.ok) == (True, "agent", False)
    assert "python" in agent.remedy


def test_a_stranger(loopback, tmp_path):
    (tmp_path / "empty").touch()
    entry = loopback.inventory_entry("board", str(tmp_path / "root"))
    report = examine(device(**{**entry, "known_hosts": str(tmp_path / "empty")}))
    (check,) = report.checks
    assert (check.name, check.ok) == ("connection", False)
    assert "ssh-keyscan" in check.remedy


def test_nobody_at_home(loopback, tmp_path):
    entry = loopback.inventory_entry("board", str(tmp_path / "root"))
    report = examine(device(**{**entry, "address": f"ssh://{loopback.user}@127.0.0.1:1"}))
    (check,) = report.checks
    assert (check.name, check.ok) == ("connection", False)
    assert check.remedy
