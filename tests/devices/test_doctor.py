"""The doctor: what a device lacks, said so that one can act on it."""

from __future__ import annotations

import shlex

import pytest

from devices.doctor import Report, _remedy, examine
from tests.builders import device
from tests.devices import fake_runtime
from tests.devices.test_session import over_ssh, wrapped_python


def found(report: Report) -> dict[str, bool | None]:
    return {check.name: check.ok for check in report.checks}


def test_a_healthy_device(tmp_path):
    report = examine(device(root=str(tmp_path / "root")))
    assert report.healthy
    assert {name for name, ok in found(report).items() if ok} >= {
        *("connection", "identity", "files", "executorch", "onnxruntime", "litert")
    }


def test_a_half_equipped_device(loopback, tmp_path):
    """What is there is found all the same, and the command that mends the rest can be typed."""
    python = wrapped_python(tmp_path, env=fake_runtime.install_broken(tmp_path / "fake"))
    board = over_ssh(loopback, tmp_path, python=python)
    report = examine(board)
    assert not report.healthy
    assert found(report)["onnxruntime"] is False
    assert found(report)["litert"] is True
    (check,) = (check for check in report.checks if check.name == "onnxruntime")
    assert "libgomp" in check.detail
    assert check.remedy == board.typed(f"{python} -m pip install onnxruntime")
    assert f"-p {loopback.port} {loopback.user}@127.0.0.1" in check.remedy


@pytest.mark.parametrize("python", ["python3", "/usr/bin/python3.11"])
def test_a_systems_own_python_is_left_alone(python):
    """Debian's refuses to be installed into."""
    board = device(address="ssh://pi@192.0.2.7", python=python)
    said = _remedy(board, "pip install ai-edge-litert, or tflite-runtime with 'numpy<2'")
    command, rest = said.split(", ", 1)
    assert shlex.split(command)[-1] == (
        f"{python} -m venv ~/edge && ~/edge/bin/pip install ai-edge-litert"
    )
    assert rest.startswith("or tflite-runtime with 'numpy<2'; ")
    assert "'python: edge/bin/python'" in rest


def test_a_device_without_a_usable_python(tmp_path):
    report = examine(device(root=str(tmp_path / "root"), python="/nowhere/python3"))
    assert [check.ok for check in report.checks if check.name == "onnxruntime"] == [False]
    assert any("/nowhere/python3" in check.detail for check in report.checks)


def test_a_dead_device():
    report = examine(device(address="ssh://nobody@127.0.0.1:9", python=None))
    assert [(check.name, check.ok) for check in report.checks] == [("connection", False)]
    assert "no connection" in report.checks[0].detail
    assert "sshd" in report.checks[0].remedy


def test_a_wrong_profile_is_pointed_out(tmp_path):
    report = examine(device(root=str(tmp_path / "root"), profile="linux-aarch64"))
    (check,) = (check for check in report.checks if check.name == "profile")
    assert check.ok is None
    assert "aarch64" in check.detail
    assert report.healthy  # it can measure


def test_bytes_that_rot_on_the_device_are_dropped(tmp_path):
    board = device(root=str(tmp_path / "root"))
    examine(board)
    (victim,) = (tmp_path / "root" / "store").glob("*.pyz")
    content = bytearray(victim.read_bytes())
    content[100] ^= 1
    victim.chmod(0o700)
    victim.write_bytes(content)
    report = examine(board)
    assert found(report)["files"] is None
    assert found(report)["onnxruntime"] is True, "what was dropped is sent again"
