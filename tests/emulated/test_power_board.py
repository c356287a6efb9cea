"""The kernel's own sensor drivers are read right, over SSH, through the code that reads a board's.

The registers below the drivers are set while the agent samples; what comes out is compared with
what was set, on the board's own clock.  For the nightly: it takes minutes.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.endpoints.power_board import POWER_BOARD, SET_WORDS, PowerBoard, serve
from devices.inventory import Device
from devices.meter import find_meter, understood
from devices.recorder import MARKS, RunRecorder
from devices.visit import visit
from pipeline.campaign import Subject, measure
from pipeline.stage import Workspace
from profiles.canonical import file_sha256
from profiles.energy import EnergyRun, Trace, energy_of_run, energy_reasons
from profiles.errors import MeterError
from profiles.measure import Measure
from profiles.records import Condition, Plan, Trial
from tests.builders import TinyModel, artifact, device, plan
from tests.emulated.conftest import board_image_of, tiny_job

pytestmark = [pytest.mark.board, pytest.mark.root]

_INA = {"name": "ina219", "kind": "iio", "update_ms": 100}
_BATTERY = {"name": "sbs-0-000b", "kind": "power_supply", "update_ms": 100}
#: As `calibrate-meter` would find it: this driver keeps to the ABI.
_CALIBRATED = {**_BATTERY, "current_sign": -1, "current_ua": 1}
_CURVE = ("at_ns", "energy_uj", "covered")
_BUS_UV = 5_000_000
# The board's own load, as the sensor of a real one would see it: its second argument while another
# program runs, its first while none does; four looks must agree, for the agent's sampler runs now
# and then.  Times would not do: what the host does meanwhile, the board takes for idle.
_FOLLOW = f"""{SET_WORDS}
told, looks = None, []
while not os.path.exists("/tmp/enough"):
    running = open("/proc/loadavg").read().split()[3].partition("/")[0]
    looks = [*looks[-3:], running != "1"]
    word = int(sys.argv[2 if looks[-1] else 1])
    if word != told and len(set(looks)) == 1:
        set_words(0x40, {{3: word}})
        told = word
    time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def power(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PowerBoard]:
    image = board_image_of(POWER_BOARD)
    with serve(image, tmp_path_factory.mktemp("power-board")) as board:
        yield board


def entry(power: PowerBoard, meter: Mapping[str, Any]) -> Device:
    """The board as the inventory has it, with one of its sensors."""
    return device(**power.inventory_entry("power-board"), meter=meter)


@contextmanager
def meanwhile(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Something done in a thread of its own until the block ends; its error is this test's."""
    enough, errors = threading.Event(), list[BaseException]()

    def go() -> None:
        try:
            work(enough)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
    if errors:
        raise errors[0]


def energy_run(device_: Device, folder: Path, window_ns: int = 0) -> dict[str, Any]:
    """One run of kind energy: what was recorded, and what its readings mean."""
    recorder = RunRecorder(["tiny"])
    with visit(device_) as session:
        meter = find_meter(device_, session.facts)
        session.run(
            "onnxruntime",
            [tiny_job(folder, "onnxruntime")],
            condition=Condition(),
            plan=plan(kind="energy", runs=1, max_runs=1, iterations=10, window_ns=window_ns),
            seed=0,
            deadline_s=200,
            recorder=recorder,
            sampling=meter.sampling(),
        )
    return understood(meter, recorder.details("tiny"))


def energy_run_of(device_: Device, folder: Path, window_ns: int = 0) -> EnergyRun:
    return energy_of_run(energy_run(device_, folder, window_ns))


def codes(run: EnergyRun) -> list[str]:
    return [reason.code for reason in energy_reasons(run)]


def test_the_board_shows_its_sensors(power):
    board = entry(power, {})
    with visit(board) as session:
        facts = session.facts
    assert board.is_emulated
    assert (facts["machine"], facts["emulated"]) == ("x86_64", True)
    assert facts["power_source"] == "battery"
    shown = {(meter["kind"], meter["name"]) for meter in facts["meters"]}
    assert shown >= {("iio", "ina219"), ("power_supply", "sbs-0-000b"), ("hwmon", "sbs_0_000b")}


def test_a_battery_is_not_believed_before_it_is_calibrated(power):
    board = entry(power, _BATTERY)
    with visit(board) as session, pytest.raises(MeterError, match="not calibrated"):
        find_meter(board, session.facts)


def test_a_battery_that_discharges_tells_the_power_of_the_board(power, tmp_path):
    power.set_battery(voltage_uv=3_850_000, current_ua=-1_234_000)
    run = energy_run_of(entry(power, _CALIBRATED), tmp_path)
    for told_uw in (run.idle_before_uw, run.active_uw, run.idle_after_uw):
        assert told_uw == pytest.approx(3.850 * 1_234_000, rel=0.01)
    # The same power with calls and without: none of it is theirs, and that is said.
    assert codes(run) == ["meter-coverage"]


def test_a_battery_that_is_charged_in_mid_run_is_refused(power, tmp_path):
    power.set_battery(voltage_uv=3_850_000, current_ua=-1_000_000)

    def plug_in(enough: threading.Event) -> None:
        enough.wait(10)
        power.set_battery(voltage_uv=4_100_000, current_ua=800_000)

    with meanwhile(plug_in):
        run = energy_run_of(entry(power, _CALIBRATED), tmp_path, window_ns=6_000_000_000)
    power.set_battery(voltage_uv=3_850_000, current_ua=-1_000_000)
    assert run.charging
    assert "charging" in codes(run)


def test_steps_of_the_ina219_have_the_integral_that_was_set(power, tmp_path):
    steps: list[tuple[int, float]] = []

    def step(enough: threading.Event) -> None:
        for current_ua in itertools.cycle((400_000, 1_200_000, 2_000_000)):
            begun_ns, ended_ns = power.set_ina(_BUS_UV, current_ua)
            steps.append(((begun_ns + ended_ns) // 2, _BUS_UV * current_ua / 1e6))
            if enough.wait(1.5):
                return

    with meanwhile(step):
        details = energy_run(entry(power, _INA), tmp_path, window_ns=9_000_000_000)
    trace = Trace(*(np.asarray(details["trace"][name]) for name in _CURVE))
    assert [mark["what"] for mark in details["marks"]] == list(MARKS)
    for mark in details["marks"]:
        energy_uj, coverage = trace.between(mark["start_ns"], mark["end_ns"])
        wanted_uj = integral_uj(steps, trace, mark["start_ns"], mark["end_ns"])
        assert coverage > 0.9  # a busy host holds the whole board up now and then
        assert energy_uj == pytest.approx(wanted_uj, rel=0.01)


def integral_uj(
    steps: Sequence[tuple[int, float]], trace: Trace, start_ns: int, end_ns: int
) -> float:
    """What was taken in a stretch, as far as it is covered.

    Args:
        steps: from which moment on each power in µW was set; the first before the stretch.
        trace: says what is covered.
        start_ns, end_ns: of the stretch.
    """
    assert steps[0][0] < start_ns
    begins = [at_ns for at_ns, _ in steps]
    ends = [*begins[1:], max(end_ns, begins[-1])]
    covered = [
        (max(begin, start_ns), min(end, end_ns))
        for begin, end, known in zip(trace.at_ns, trace.at_ns[1:], trace.covered, strict=False)
        if known
    ]
    return sum(
        power_uw * max(0, min(end, last) - max(begin, first)) / 1e9
        for begin, end, (_, power_uw) in zip(begins, ends, steps, strict=True)
        for first, last in covered
    )


@contextmanager
def load_followed(power: PowerBoard, idle_uw: int, busy_uw: int) -> Iterator[None]:
    """The INA219 sees one power while the board computes, and another while it does not."""
    words = [
        str(int.from_bytes((uw // 20_000).to_bytes(2, "big"), "little"))
        for uw in (idle_uw, busy_uw)
    ]
    follower, line = (entry(power, {}).connect() for _ in range(2))
    line.run(["rm", "-f", "/tmp/enough"], deadline_s=30)

    def follow(enough: threading.Event) -> None:
        done = follower.run(["python3", "-c", _FOLLOW, *words], deadline_s=900)
        assert done.exit_code == 0, done.stderr

    try:
        with meanwhile(follow):
            try:
                yield
            finally:
                line.run(["touch", "/tmp/enough"], deadline_s=30)
    finally:
        follower.close()
        line.close()


def energy_trial(board: Device, folder: Path, model: TinyModel) -> Trial:
    """A campaign that is after nothing but the energy of the tiny model."""
    made = artifact(sha256=file_sha256(model.path), path=model.path)
    energy = Plan(kind="energy", runs=3, max_runs=3, iterations=10, window_ns=6_000_000_000)
    workspace = Workspace.open(folder / "work")
    try:
        workspace.store.put_artifact(made)
        subjects = [Subject(made, (model.input_file,))]
        (trial,) = measure(workspace, board, subjects, Measure(runs=3), plans=[energy])
    finally:
        workspace.close()
    return trial


def test_a_campaign_finds_the_energy_of_a_call(power, tmp_path, tiny_model):
    power.set_ina(_BUS_UV, 400_000)
    with load_followed(power, idle_uw=2_000_000, busy_uw=5_000_000):
        trial = energy_trial(entry(power, _INA), tmp_path, tiny_model)
    assert trial.emulated
    assert (trial.status, trial.plan.kind) == ("accepted", "energy"), trial.reason
    runs = [energy_of_run(run.details) for run in trial.runs if run.complete]
    good = [run for run in runs if not energy_reasons(run)]
    assert len(good) >= 3
    for run in good:  # the sensor follows a little late
        assert run.net_uw == pytest.approx(3_000_000, rel=0.15)


def test_a_campaign_refuses_a_power_that_does_not_know_of_calls(power, tmp_path, tiny_model):
    power.set_ina(_BUS_UV, 400_000)
    trial = energy_trial(entry(power, _INA), tmp_path, tiny_model)
    assert trial.status == "refused"
    assert "above idle" in trial.reason
    assert trial.emulated
