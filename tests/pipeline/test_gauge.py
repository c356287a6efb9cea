"""What a device says programs cost: known latencies and energy, answers kept, reasons named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from devices.inventory import Device
from pipeline.compress.module import program_of
from pipeline.profile.gauge import DeviceGauge
from pipeline.stage import Workspace
from profiles.errors import StageError
from profiles.measure import Measure
from tests import builders

SETTINGS = Measure(runs=3, iterations=8, warmup_seconds=0)
#: What the scripted device takes for a file of no bytes.
BASE_NS = 20_000
METERS = Path(__file__).parent.parent / "golden/meters"


def network(width: int) -> Any:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))
    return program_of(module, torch.randn(1, 8))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def workspace(root: Path, said: list[str]) -> Iterator[Workspace]:
    opened = Workspace.open(root, said.append)
    yield opened
    opened.close()


def scripted(folder: Path, **entry: Any) -> Device:
    """Calls take 20 µs and 1 ns for each byte of the file, every time."""
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (home / "scripted.json").write_text(json.dumps({"between_runs": [0.0, 0.0]}))
    return builders.device(id=folder.name, address=f"scripted:{home}", **entry)


def size_of(workspace: Workspace, variant: str) -> int:
    with workspace.store._engine.connect() as connection:
        row = connection.exec_driver_sql(
            "select size_bytes from artifact where variant = ?", (variant,)
        )
        return int(row.scalar_one())


def test_programs_cost_what_the_device_takes_and_are_not_measured_twice(workspace, tmp_path, said):
    gauge = DeviceGauge(workspace, scripted(tmp_path), "onnx", SETTINGS)
    programs = {"narrow": network(8), "wide": network(64)}
    found = gauge.measure(programs)
    assert set(found) == {"narrow", "wide", "call"}
    for name in programs:
        size = size_of(workspace, f"{name} whole")
        assert found[name] == pytest.approx(BASE_NS + size, rel=1e-6)
    assert found["call"] < found["narrow"] < found["wide"]
    trials = workspace.store.trials()
    (turns,) = {trial.plan.turns for trial in trials}
    assert len(trials) == 3 and turns.startswith("gauge-")
    assert any("wide to onnx (2/2)" in line for line in said)
    said.clear()
    assert gauge.measure({"narrow": network(8), "wide": network(64)}) == found
    assert not any(line.startswith("measure") or line.endswith("...") for line in said), said


def test_energy_is_that_of_the_meter(workspace, tmp_path):
    meter = {"replay": str(recording(tmp_path))}
    gauge = DeviceGauge(workspace, scripted(tmp_path, meter=meter), "onnx", SETTINGS, cost="energy")
    assert gauge.measure({"narrow": network(8)}) == {
        "narrow": pytest.approx(2e6 * 9.9 / 1000, rel=0.01)
    }


def test_without_a_meter_there_is_a_reason_and_a_way_out(workspace, tmp_path):
    gauge = DeviceGauge(workspace, scripted(tmp_path), "onnx", SETTINGS, cost="energy")
    with pytest.raises(StageError, match=r"no energy of onnx on .*narrow: unknown: .*meter") as e:
        gauge.measure({"narrow": network(8)})
    assert "macs or parameters" in (e.value.hint or "")


def test_a_program_that_cannot_be_exported_is_named_and_the_others_are_measured(
    workspace, tmp_path
):
    class Strange(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).real

    gauge = DeviceGauge(workspace, scripted(tmp_path), "onnx", SETTINGS)
    programs = {"narrow": network(8), "strange": program_of(Strange(), torch.randn(4, 4))}
    found = gauge.attempt(programs)
    assert isinstance(found["narrow"], float) and "onnx" in str(found["strange"])
    with pytest.raises(StageError, match="strange: no onnx"):
        gauge.measure(programs)


def recording(folder: Path) -> Path:
    """An INA219 at 1 W, 3 W while there are calls, and 1 W again."""
    at_ns = np.arange(0, 30_000_000_000, 20_000_000)
    busy = (at_ns >= 10_000_000_000) & (at_ns < 20_000_000_000)
    marks = [
        {
            "what": what,
            "start_ns": place * 10_000_000_000,
            "end_ns": (place + 1) * 10_000_000_000 - 100_000_000,
            "calls": 1000 if what == "active" else 0,
        }
        for place, what in enumerate(("idle-before", "active", "idle-after"))
    ]
    values = [[str(3_000_000 if each else 1_000_000)] for each in busy]
    sensor = json.loads((METERS / "ina219.json").read_text())
    power = {"at_ns": at_ns.tolist(), "values": values}
    path = folder / "recording.json"
    path.write_text(json.dumps({**sensor, "marks": marks, "power": power}))
    return path
