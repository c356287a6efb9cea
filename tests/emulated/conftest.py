"""Emulated endpoints, built and started once; what cannot run here is skipped with its reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.agent.tiny import tiny_model
from devices.endpoints import machine, rootfs
from devices.endpoints.board import Hardware, missing
from devices.endpoints.emulated import EmulatedBoard, serve_board, serve_phone
from devices.endpoints.image import Image, board_image
from devices.endpoints.rootfs import AARCH64, Rootfs, System
from devices.recorder import RunRecorder
from devices.session import Job, Session
from profiles.errors import DeviceUnreachable
from profiles.records import Condition, Io, TensorSpec
from tests.builders import plan

_SUFFIXES = {"onnxruntime": ".onnx", "litert": ".tflite"}
_IO = Io((TensorSpec("x", (1, 4), "float32"),), (TensorSpec("y", (1, 4), "float32"),))

#: Runs one tiny model in a session and returns what was recorded.
Measure = Callable[[Session, str], RunRecorder]


def built_rootfs(system: System = AARCH64) -> Rootfs:
    """A system's folder, or a skipped test where there can be none."""
    reason = rootfs.missing()
    if reason:
        pytest.skip(f"no {system.machine} system: {reason}")
    try:
        return rootfs.rootfs(system=system)
    except DeviceUnreachable as error:
        pytest.skip(f"no {system.machine} system: {error}")


def board_image_of(hardware: Hardware) -> Image:
    """What a whole board starts from, or a skipped test where there can be none."""
    if os.environ.get("EDGELOOP_BOARD") != "1":
        pytest.skip("a whole board takes minutes: for the nightly (EDGELOOP_BOARD=1)")
    reason = missing(hardware)
    if reason:
        pytest.skip(f"no whole board: {reason}")
    return board_image(built_rootfs(hardware.system), hardware.drivers)


@pytest.fixture(scope="session")
def arm_rootfs() -> Rootfs:
    reason = machine.missing()
    if reason:
        pytest.skip(f"no aarch64 programs: {reason}")
    return built_rootfs()


@pytest.fixture(scope="session")
def arm_board(
    arm_rootfs: Rootfs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EmulatedBoard]:
    """An aarch64 SSH server, shared by all tests that do it no harm."""
    with serve_board(arm_rootfs, tmp_path_factory.mktemp("arm-board")) as board:
        yield board


@pytest.fixture(scope="session")
def arm_phone(
    arm_rootfs: Rootfs, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Any]]:
    """An aarch64 adbd with its adb server, as an entry of the inventory."""
    try:
        with serve_phone(arm_rootfs, tmp_path_factory.mktemp("arm-phone")) as phone:
            yield {"id": "arm-phone", "python": None, **phone}
    except DeviceUnreachable as error:
        pytest.skip(f"no aarch64 phone: {error}")


def tiny_file(folder: Path, runtime: str) -> Path:
    """Write the tiny model of a runtime."""
    path = folder / f"tiny{_SUFFIXES[runtime]}"
    path.write_bytes(tiny_model(runtime))
    return path


def tiny_job(folder: Path, runtime: str) -> Job:
    """The tiny model of a runtime as a job, with a value for its input."""
    values = folder / "x.bin"
    np.array([[-1, 2, -3, 4]], dtype=np.float32).tofile(values)
    return Job("tiny", tiny_file(folder, runtime), _IO, (values,))


@pytest.fixture
def measure(tmp_path: Path) -> Measure:
    def run(session: Session, runtime: str) -> RunRecorder:
        recorder = RunRecorder(["tiny"])
        session.run(
            runtime,
            [tiny_job(tmp_path, runtime)],
            condition=Condition(),
            plan=plan(iterations=10),
            seed=0,
            deadline_s=120,
            recorder=recorder,
        )
        return recorder

    return run
