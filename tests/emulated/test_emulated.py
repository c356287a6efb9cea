"""Aarch64 devices are measured like any other, and what they say is labelled emulated."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from devices.inventory import load_inventory
from devices.visit import serial_of, visit
from tests.builders import device
from tests.emulated.conftest import Measure, tiny_file
from tests.projects import device_lab
from tools.endpoints import lab

pytestmark = [pytest.mark.emulated, pytest.mark.root]


def libraries(arm_rootfs) -> dict[str, str]:
    return {runtime: str(path) for runtime, path in arm_rootfs.libraries().items()}


def delivered(recorder) -> bool:
    return recorder.done and len(recorder.recordings["tiny"].samples) == 10


@pytest.mark.parametrize(
    ("environment", "runtime", "version"),
    [
        ("current", "onnxruntime", "1.31.1"),
        ("current", "litert", "ai_edge_litert 2.3.0"),
        ("tflite", "litert", "tflite_runtime 2.14.0"),
    ],
)
def test_the_python_agent_measures(arm_board, measure: Measure, environment, runtime, version):
    board = device(**arm_board.inventory_entry("arm-board", environment))
    with visit(board) as session:
        found = session.probe([runtime])[runtime]
        recorder = measure(session, runtime)
    assert session.facts["machine"] == "aarch64"
    assert found["version"] == recorder.version == version
    assert recorder.agent == "python"
    assert delivered(recorder)


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_the_native_agent_measures(arm_rootfs, arm_board, measure: Measure, runtime):
    entry = arm_board.inventory_entry("arm-board") | {"libraries": libraries(arm_rootfs)}
    with visit(device(**entry)) as session:
        assert "version" in session.probe([runtime])[runtime]
        recorder = measure(session, runtime)
    assert recorder.agent == "native"
    assert delivered(recorder)


@pytest.mark.adbd
@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_a_phone_is_measured_by_the_native_agent(arm_rootfs, arm_phone, measure: Measure, runtime):
    phone = device(**arm_phone, libraries=libraries(arm_rootfs))
    assert phone.is_emulated
    with visit(phone) as session:
        recorder = measure(session, runtime)
    assert (session.facts["machine"], session.facts["system"]) == ("aarch64", "android")
    assert recorder.agent == "native"
    assert delivered(recorder)


def test_its_figures_are_labelled_emulated_everywhere(arm_board, tmp_path: Path):
    """What a user types, from ``devices.yaml`` on."""
    entry: dict[str, Any] = arm_board.inventory_entry("arm-board", "tflite")
    (tmp_path / "devices.yaml").write_text(yaml.safe_dump({"devices": [entry]}))

    def answer(*words: str) -> str:
        done = device_lab(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    artifact = str(tiny_file(tmp_path, "litert"))
    often = ("--runs", "3", "--iterations", "5", "--tolerate", "foreign-load")  # its server's, too
    measured = json.loads(answer("measure", artifact, "-d", "arm-board", *often, "--json"))
    kept = json.loads(answer("results", "--json"))
    for rows in (measured, kept):
        assert [row["emulated"] for row in _measurements(rows)] == [True]
    listed = answer("results").split()  # in one cell, but on two lines
    assert {"arm-board", "(emulated)"} <= set(listed)
    answer("report", "--output", "report.html")
    page = (tmp_path / "report.html").read_text()
    assert re.search(r'arm-board\s*<b class="bad">emulated</b>', page)
    (listed,) = json.loads(answer("devices", "list", "--json"))
    assert listed["emulated"] is True


@pytest.mark.sshd
@pytest.mark.adbd
def test_a_lab_for_anyone_to_try_has_them_too(arm_rootfs, tmp_path: Path):
    with lab(tmp_path / "lab", emulated=True) as path:
        devices = {one.id: one for one in load_inventory(path).devices}
        said = device_lab("devices", "list", "--inventory", path, "--json", cwd=tmp_path)
        with visit(devices["arm-phone"]) as session:
            assert session.facts["machine"] == "aarch64"
        serials = {serial_of(device) for device in devices.values()}
    assert list(devices) == ["board", "phone", "arm-board", "arm-phone"]
    emulated = {row["id"]: row["emulated"] for row in json.loads(said.stdout)}
    assert emulated == {"board": False, "phone": True, "arm-board": True, "arm-phone": True}
    assert len(serials) == 4


def _measurements(told: Any) -> list[dict[str, Any]]:
    return told if isinstance(told, list) else told["measurements"]
