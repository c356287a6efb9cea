"""Campaigns on a device that goes away, freezes, or is taken by another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from devices.inventory import Device
from devices.lab import DeviceState, Lab
from devices.lease import take_away
from devices.transport.scripted import ScriptedTransport
from pipeline import campaign
from pipeline.campaign import PAUSES_S, Subject, measure
from pipeline.stage import Workspace
from profiles.canonical import file_sha256
from profiles.errors import (
    ConnectionLost,
    DeadlineExceeded,
    DeviceError,
    DeviceUnreachable,
    LeaseLost,
)
from profiles.measure import Measure
from profiles.store import Store
from tests import builders

SETTINGS = Measure(
    runs=3, max_runs=3, iterations=10, warmup_seconds=0, app=False, memory=False, energy=False
)


class Bench:
    """A scripted device whose agent runs go as told, and a campaign on it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, subject: Subject) -> None:
        self.device = builders.device(address=f"scripted:{folder}/home")
        self.subject = subject
        self.pauses: list[float] = []
        self.visits = 0
        #: Called at each run of the agent with its number; what it raises breaks the run.
        self.trouble: Callable[[int], None] = lambda number: None
        self.runs = 0
        self.folder = folder
        monkeypatch.setattr(
            campaign, "time", SimpleNamespace(sleep=self.pauses.append, monotonic=time.monotonic)
        )
        connect, bench = Device.connect, self

        class Transport(ScriptedTransport):
            def run(self, argv: Sequence[str], **options: Any):
                measuring = options.get("on_line") is not None
                if not measuring:
                    return super().run(argv, **options)
                bench.runs += 1
                done = super().run(argv, **options)
                bench.trouble(bench.runs)
                return done

        def connecting(device: Device) -> Transport:
            inner = connect(device)
            assert isinstance(inner, ScriptedTransport)
            bench.visits += 1
            return Transport(inner._home, inner._scripts)

        monkeypatch.setattr(Device, "connect", connecting)

    def measure(self) -> Any:
        workspace = Workspace.open(self.folder / "work")
        try:
            workspace.store.put_artifact(self.subject.artifact)
            return measure(workspace, self.device, [self.subject], SETTINGS)[0]
        finally:
            workspace.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model) -> Bench:
    made = builders.artifact(sha256=file_sha256(tiny_model.path), path=tiny_model.path)
    return Bench(tmp_path, monkeypatch, Subject(made, (tiny_model.input_file,)))


def fail_at(error: DeviceError, *numbers: int) -> Callable[[int], None]:
    def trouble(number: int) -> None:
        if not numbers or number in numbers:
            raise error

    return trouble


def test_a_link_that_breaks_is_taken_up_again_and_the_broken_run_is_kept(bench: Bench):
    bench.trouble = fail_at(ConnectionLost("cut"), 2, 3)
    trial = bench.measure()
    assert trial.status == "accepted"
    assert [run.complete for run in trial.runs] == [True, False, False, True, True]
    assert [len(run.samples_ns) for run in trial.runs] == [10] * 5
    assert bench.pauses == list(PAUSES_S[:2])


def test_a_device_that_was_never_reached_is_not_waited_for(bench: Bench, monkeypatch):
    def unreachable(_device: Device) -> None:
        raise DeviceUnreachable("no route")

    monkeypatch.setattr(Device, "connect", unreachable)
    with pytest.raises(DeviceUnreachable, match="board: no route"):
        bench.measure()
    assert bench.pauses == []


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (DeadlineExceeded("frozen"), DeviceState.QUARANTINED),
        (ConnectionLost("cut"), DeviceState.READY),
    ],
)
def test_what_freezes_every_time_is_quarantined_and_what_is_merely_away_is_not(
    bench: Bench, error, state
):
    bench.trouble = fail_at(error)
    with pytest.raises(type(error)):
        bench.measure()
    assert bench.pauses == list(PAUSES_S)
    lab = Lab()
    assert lab.state_of(bench.device.address) is state
    if state is DeviceState.QUARANTINED:
        bench.trouble = fail_at(error, 0)
        with pytest.raises(DeviceError, match=r"quarantine.*frozen") as caught:
            bench.measure()
        assert "device-lab devices release" in caught.value.hint
        lab.release_quarantine(bench.device.address)
        assert bench.measure().status == "accepted"


def test_progress_between_breaks_starts_the_patience_anew(bench: Bench):
    bench.trouble = fail_at(ConnectionLost("cut"), 1, 3, 5)
    assert bench.measure().status == "accepted"
    assert bench.pauses == [PAUSES_S[0]] * 3


def test_results_of_a_device_that_was_taken_away_are_dropped(bench: Bench):
    def taken(number: int) -> None:
        if number == 2:
            take_away(Lab(), bench.device.address, "board")

    bench.trouble = taken
    with pytest.raises(LeaseLost, match="taken over"):
        bench.measure()
    trial = bench.measure()
    assert trial.status == "accepted"
    assert [run.complete for run in trial.runs] == [True] * 3
    assert bench.runs == 4


def test_a_lab_that_lost_its_memory_goes_on(bench: Bench, tmp_path, monkeypatch):
    """Its new leases are older, by their fences, than those of trials that were begun before."""
    bench.trouble = fail_at(LeaseLost("taken"), 2)
    with pytest.raises(LeaseLost):
        bench.measure()
    with Store(tmp_path / "work/store.db") as store:
        (trial,) = store.trials()
        store.open_trial(replace(trial, fence=trial.fence + 10_000))
    bench.trouble = lambda number: None
    trial = bench.measure()
    assert trial.status == "accepted"
    assert [run.complete for run in trial.runs] == [True] * 3


def test_a_complete_campaign_does_not_touch_the_device(bench: Bench):
    bench.measure()
    visits = bench.visits
    assert bench.measure().status == "accepted"
    assert bench.visits == visits
