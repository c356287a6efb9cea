"""Campaigns on scripted devices: artifacts that cost nothing, a truth that is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.inventory import Device
from devices.transport.base import Completed
from devices.transport.scripted import ScriptedTransport
from devices.transport.truth import NAME
from pipeline.campaign import Subject, measure
from pipeline.stage import Workspace
from profiles.canonical import file_sha256
from profiles.findings import Measurement
from profiles.measure import Measure
from profiles.records import Trial
from profiles.store import Store
from tests import builders

#: As many bytes, so many ns a call.
SIZE = 12
TRUTH_NS = 20_000 + SIZE


def settings(**changes: Any) -> Measure:
    """Nothing but the latency, without waiting."""
    quick = {"runs": 3, "iterations": 40, "warmup_iterations": 1, "warmup_seconds": 0}
    return Measure(**{"app": False, "memory": False, "energy": False, **quick, **changes})


@dataclass
class Bench:
    """A scripted device, a workspace and artifacts.

    ``asked`` has the plan of each run that was asked for.
    """

    folder: Path
    device: Device
    subjects: list[Subject]
    asked: list[dict[str, Any]] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return self.folder / "work/store.db"

    def truth(self, **values: Any) -> None:
        """Say what the device is to hide, and how."""
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        (home / NAME).write_text(
            json.dumps({"between_runs": [0.0, 0.0], "within": 0.002, **values})
        )

    def measure(self, given: Measure | None = None, **options: Any) -> list[Trial]:
        workspace = Workspace.open(self.folder / "work")
        try:
            for subject in self.subjects:
                workspace.store.put_artifact(subject.artifact)
            return measure(workspace, self.device, self.subjects, given or settings(), **options)
        finally:
            workspace.close()

    def measurements(self) -> list[Measurement]:
        with Store(self.store) as store:
            return store.measurements()


def bench(folder: Path, artifacts: int = 1, **entry: Any) -> Bench:
    """A bench with so many artifacts, all of one size and none alike."""
    values = folder / "x.bin"
    np.zeros(8, dtype=np.float32).tofile(values)
    subjects = []
    for number in range(artifacts):
        path = folder / f"{number}.onnx"
        path.write_bytes(f"model {number:6}".encode())
        made = builders.artifact(sha256=file_sha256(path), path=path, variant=f"v{number}")
        subjects.append(Subject(made, (values,)))
    device = builders.device(**{"address": f"scripted:{folder}/home", **entry})
    return Bench(folder, device, subjects)


def watch(
    made: Bench,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[dict[str, Any]], None] = lambda plan: None,
    afterwards: Callable[[dict[str, Any]], None] = lambda plan: None,
) -> None:
    """Keep the plan of each run that is asked for.

    ``trouble`` may break a run before it begins, ``afterwards`` once it has said everything.
    """
    connect = Device.connect

    class Watched(ScriptedTransport):
        def run(self, argv: Sequence[str], **options: Any) -> Completed:
            if options.get("on_line") is None:
                return super().run(argv, **options)
            plan = json.loads((self._home / argv[-1]).read_text())
            made.asked.append(plan)
            trouble(plan)
            done = super().run(argv, **options)
            afterwards(plan)
            return done

    def connecting(device: Device) -> Watched:
        inner = connect(device)
        assert isinstance(inner, ScriptedTransport)
        return Watched(inner._home, inner._scripts)

    monkeypatch.setattr(Device, "connect", connecting)


def covers(interval: tuple[float, float] | None, truth: float) -> bool:
    return interval is not None and interval[0] <= truth <= interval[1]
