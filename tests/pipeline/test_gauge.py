"""What a device says programs cost: known latencies and energy, answers kept, reasons named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from devices.inventory import Device
from pipeline.compress.module import program_of
from pipeline.profile import gauge as of_gauge
from pipeline.profile.gauge import DeviceGauge, gauge_for
from pipeline.stage import Workspace
from profiles.energy import energy_of_run
from profiles.errors import StageError
from profiles.export import Export
from profiles.measure import Measure
from profiles.recipe import Tolerances
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


@pytest.mark.parametrize("above_idle_mw", [(1, 1, 1, 1, 200), (-5, -5, -4, -5, -5)])
def test_an_energy_that_may_be_nothing_is_a_reason(workspace, tmp_path, monkeypatch, above_idle_mw):
    above = iter(above_idle_mw)
    monkeypatch.setattr(
        of_gauge,
        "energy_of_run",
        lambda told: replace(energy_of_run(told), active_uw=1e6 + 1e3 * next(above)),
    )
    meter = {"replay": str(recording(tmp_path))}
    gauge = DeviceGauge(workspace, scripted(tmp_path, meter=meter), "onnx", SETTINGS, cost="energy")
    with pytest.raises(StageError, match="narrow: its energy is too small to be told from idle"):
        gauge.measure({"narrow": network(8)})


def job(workspace: Workspace, **export: Any) -> Any:
    recipe = SimpleNamespace(
        measure=SETTINGS, tolerances=Tolerances(), name="net", export=Export(**export)
    )
    return SimpleNamespace(workspace=workspace, recipe=recipe)


def test_what_is_measured_is_lowered_as_what_is_shipped(workspace, tmp_path):
    shipped = job(workspace, partitioner="none", batch="dynamic")
    gauge = gauge_for(shipped, scripted(tmp_path), "executorch", "latency")
    gauge.measure({"shipped": network(8)})
    artifacts = {trial.artifact_sha256 for trial in workspace.store.trials()}
    with workspace.store._engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "select sha256, details from artifact where format = 'executorch'"
        ).all()
    assert len(rows) == 2 and {sha256 for sha256, _ in rows} <= artifacts
    assert {json.loads(details)["partitioner"] for _, details in rows} == {"none"}


def test_choices_for_a_larger_batch_are_not_measured_with_one_example(workspace, tmp_path):
    with pytest.raises(StageError, match=r"with one example, and export\.batch is 4"):
        gauge_for(job(workspace, batch=4), scripted(tmp_path), "onnx", "latency")


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
