"""Files that change while they are read: a real sampler, a real load, a thread for the hardware."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices import visit as visit_module
from devices.meter import find_meter, understood
from devices.meter.busy import _SCRIPT, observed
from devices.recorder import RunRecorder
from devices.transport.local import LocalTransport
from devices.visit import visit
from profiles.energy import energy_of_run
from profiles.errors import ConnectionLost
from profiles.records import Condition
from tests.builders import device, plan
from tests.meters import KINDS, battery
from tests.processes import eventually
from tests.tools.conftest import lab  # noqa: F401 - a fixture

SECOND = 1_000_000_000


def write(path: Path, text: str) -> None:
    """Whole or not at all, as the kernel does."""
    aside = path.with_suffix(".new")
    aside.write_text(text)
    aside.replace(path)


@contextlib.contextmanager
def hardware(step: Callable[[], None], every_s: float) -> Iterator[None]:
    over = threading.Event()

    def go() -> None:
        while not over.wait(every_s):
            step()

    step()
    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def shown(monkeypatch: pytest.MonkeyPatch, entry: dict[str, Any], folder: Path) -> None:
    """The device shows a sensor whose files are in a folder of the test's."""
    look, there = visit_module.look, {**entry, "path": str(folder), "chargers": []}
    monkeypatch.setattr(
        visit_module, "look", lambda transport: {**look(transport), "meters": [there], "cores": 1}
    )


def test_a_run_is_sampled_while_its_power_changes(monkeypatch, tmp_path, tiny_model):
    """Power that jumps between 1 W and 3 W, as a thread sets it; its clock is the sampler's."""
    told, path = list[tuple[int, float]](), tmp_path / "sensor/power1_input"
    path.parent.mkdir()

    def jump() -> None:
        power_uw = 1e6 if len(told) % 2 else 3e6
        write(path, f"{power_uw:.0f}\n")
        told.append((time.monotonic_ns(), power_uw))

    shown(monkeypatch, KINDS["ina219"].entries[0], path.parent)
    board = device(address="local:", root=str(tmp_path / "root"))
    recorder = RunRecorder(["tiny"])
    with visit(board) as session, hardware(jump, 0.31):
        meter = session.meter()
        sampling = replace(meter.sampling(), window_ns=600_000_000)
        session.run(
            "onnxruntime",
            [tiny_model.job()],
            condition=Condition(),
            plan=plan(kind="energy"),
            seed=0,
            deadline_s=60,
            recorder=recorder,
            sampling=sampling,
        )
    assert sampling.files == (str(path),)
    details = json.loads(json.dumps(understood(meter, recorder.details("tiny"))))
    run = energy_of_run(details)
    assert run.calls >= 20 and run.coverage > 0.8 and run.trouble == ""
    # What the thread had set while the sampler read.
    at_ns = np.array(details["trace"]["at_ns"])
    covered = np.array(details["trace"]["covered"])
    jumps_ns, powers = (np.array(each) for each in zip(*told, strict=True))
    fine_ns = np.arange(at_ns[0], at_ns[-1], SECOND // 1000)
    set_uw = powers[np.maximum(np.searchsorted(jumps_ns, fine_ns, side="right") - 1, 0)]
    seen = covered[np.minimum(np.searchsorted(at_ns, fine_ns, side="right") - 1, len(covered) - 1)]
    truth_uj = float(set_uw[seen].sum()) / 1000
    assert details["trace"]["energy_uj"][-1] == pytest.approx(truth_uj, rel=0.03)


# --- calibrate-meter ------------------------------------------------------------------------------


def busy(folder: Path) -> set[int]:
    """Processes that read files of a folder, the loops they started among them."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in (process / "cmdline").read_bytes():
                found.add(int(process.name))
    return found - {os.getpid()}


class Gauge:
    """A battery that gives more while somebody's loop runs; mA, positive while it discharges."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.before, self.idle = folder, set[int](), set[int]()
        self.number = 0
        folder.mkdir()
        write(folder / "voltage_now", "4000000\n")
        write(folder / "status", "Discharging\n")

    def __call__(self) -> None:
        now = busy(self.folder)
        lasting = now & self.before
        self.idle = self.idle or lasting  # of those that read, the first that are there
        self.before, self.number = now, self.number + 1
        current = (900 if lasting - self.idle else 300) + self.number % 3
        write(self.folder / "current_now", f"{current}\n")


def inventory(folder: Path, **meter: Any) -> Path:
    entry = {
        "id": "board",
        "profile": "linux-x86_64",
        "address": "local:",
        "root": str(folder / "root"),
        "meter": meter,
    }
    path = folder / "devices.yaml"
    path.write_text(json.dumps({"devices": [entry]}))
    return path


def test_sign_and_scale_by_a_load_of_our_own(monkeypatch, tmp_path, lab):  # noqa: F811
    import yaml

    gauge = Gauge(tmp_path / "battery")
    shown(monkeypatch, battery(), gauge.folder)
    path = inventory(tmp_path, update_ms=150)
    with hardware(gauge, 0.12):
        said = lab(
            *("devices", "calibrate-meter", "board", "--inventory", path),
            *("--seconds", "2", "--reference-mw", "3500"),
        )
    assert said.code == 0, said.err
    line = said.out.strip().splitlines()[-1]
    entry = yaml.safe_load(line)["meter"]
    assert entry == {
        "kind": "power_supply",
        "name": "battery",
        "current_sign": 1,
        "current_ua": 1000,
    }
    assert "by a bench meter" in said.out
    assert eventually(lambda: not busy(tmp_path))
    # What is printed is what the device's entry takes.
    board = device(address="local:", meter=entry)
    facts = {"meters": [{**battery(), "path": str(gauge.folder)}]}
    assert find_meter(board, facts).about.calibration == {"current_sign": 1, "current_ua": 1000}


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
def test_a_load_ends_with_who_asked_for_it(tmp_path, ending):
    write(tmp_path / "power1_input", "1000000\n")
    numbers = ["1", "0.05", "2", "files", str(tmp_path / "power1_input")]
    process = subprocess.Popen(
        ["sh", "-c", _SCRIPT, "sh", "nonce", *numbers],
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert eventually(lambda: len(busy(tmp_path)) >= 3)
        process.send_signal(ending)
        process.wait(10)
        assert eventually(lambda: not busy(tmp_path))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_an_answer_that_is_cut_off_is_none(tmp_path):
    meter = find_meter(device(), {"meters": [KINDS["ina219"].entries[0]]})

    class Broken(LocalTransport):
        def run(self, argv, *, deadline_s, on_line=None):
            return super().run(["echo", "nonce begin idle-before 1.0"], deadline_s=deadline_s)

    with pytest.raises(ConnectionLost, match="to the end"):
        observed(Broken(tmp_path), meter, seconds=2, cores=2)
