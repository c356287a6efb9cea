"""``devices stock``: the model goes there, the tool runs there, and figures say whose they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner, Result

from profiles.canonical import file_sha256
from profiles.errors import AgentError, UsageError
from tests.builders import device
from tools.device_lab.stock import stock

GOLDEN = Path(__file__).parents[1] / "golden/stock"
APP = typer.Typer()
APP.command("stock")(stock)
APP.command("another")(lambda: None)


@pytest.fixture(params=["local", pytest.param("ssh", marks=pytest.mark.sshd)])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with an inventory, a model and a program that prints what benchmark_model did."""
    if request.param == "ssh":
        server = request.getfixturevalue("loopback")
        entry = server.inventory_entry("board", str(tmp_path / "root"))
    else:
        entry = {"id": "board", "address": "local:", "root": str(tmp_path / "root")}
    full = {**device().model_dump(mode="json", exclude_none=True), **entry, "emulated": True}
    full = {name: value for name, value in full.items() if value not in (None, {}, [])}
    (tmp_path / "devices.yaml").write_text(yaml.safe_dump({"devices": [full]}))
    (tmp_path / "model.tflite").write_bytes(b"TFL3")
    program = tmp_path / "benchmark_model"
    program.write_text(
        f'#!/bin/sh\n[ -f "${{1#--graph=}}" ] || exit 4\necho "$*" > "{tmp_path}/asked"\n'
        f'cat "{GOLDEN}/benchmark_model/median-two-delegates.txt" >&2\n'
    )
    program.chmod(0o755)
    return tmp_path


def run(lab: Path, *more: str) -> Result:
    where = ["--inventory", str(lab / "devices.yaml"), "--program", str(lab / "benchmark_model")]
    return CliRunner().invoke(
        APP, ["stock", "board", str(lab / "model.tflite"), *where, *more], catch_exceptions=False
    )


def test_figures_are_shown_as_the_tools_own(lab):
    result = run(lab, "--threads", "2")
    assert result.exit_code == 0
    assert "benchmark_model on board (emulated) says" in result.stdout
    for words in (["timed", "calls", "50"], ["mean", "(ms)", "309"], ["median", "(ms)", "308"]):
        assert any(line.split() == words for line in result.stdout.splitlines())
    assert ["peak", "memory", "unknown"] in [line.split() for line in result.stdout.splitlines()]
    assert "not stored" in result.stderr
    asked = (lab / "asked").read_text()
    name = f"{file_sha256(lab / 'model.tflite')}.tflite"
    assert f"--graph={lab}/root/store/{name} --num_threads=2" in asked


def test_figures_for_machines(lab):
    given = json.loads(run(lab, "--json", "--delegate", "gpu").stdout)
    assert (given["tool"], given["runtime"], given["n"]) == ("benchmark_model", "litert", 50)
    assert (given["mean_ns"], given["p50_ns"]) == (309_350_000, 307_968_000)
    assert (given["samples_ns"], given["peak_bytes"]) == (None, None)
    assert (given["device"], given["emulated"], given["stored"]) == ("board", True, False)


def test_a_fallback_names_the_device(lab):
    with pytest.raises(AgentError, match="whole model") as caught:
        run(lab, "--delegate", "nnapi")
    assert caught.value.device == "board"


def test_wrong_input_is_told_before_the_device_is_taken(lab, monkeypatch):
    monkeypatch.setattr("devices.visit.visit", lambda *_: pytest.fail("the device was taken"))
    with pytest.raises(UsageError, match="no device 'pixel'"):
        CliRunner().invoke(
            APP,
            ["stock", "pixel", "m", "--program", "p", "-i", str(lab / "devices.yaml")],
            catch_exceptions=False,
        )
    (lab / "model.tflite").rename(lab / "model.bin")
    with pytest.raises(UsageError, match="there is no file"):
        run(lab)
    (lab / "model.tflite").mkdir()
    with pytest.raises(UsageError, match="there is no file"):
        run(lab)
