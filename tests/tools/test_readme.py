"""The README's own path, command by command: a new user's model on a board, here this machine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from devices.endpoints.adbd import Phone
from devices.inventory import Device
from devices.transport.adb import AdbTransport
from profiles.config import parse
from profiles.recipe import Recipe

RECORDED = Path(__file__).parents[1] / "golden/stock/benchmark_model/2024-xnnpack.txt"
README = Path(__file__).parents[2] / "README.md"
DEVICE_LAB = Path(sys.executable).with_name("device-lab")

MODEL = """
from torch import nn

from pipeline.supernet.elastic import ElasticConvNet, StagePlan


def build():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )


def elastic():
    return ElasticConvNet(
        input_shape=(3, 8, 8), stem_width=8, stem_stride=1, stages=[StagePlan(8, depth=2)],
        kernels=[3], expands=[1, 2], classes=4,
    )
"""
SEARCH = """
search:
  supernet: mymodel:elastic
  train: {epochs: 1}
  measure:
    {runs: 3, iterations: 20, warmup_seconds: 0, tolerate: [foreign-load, not-stationary]}
  population: 4
  generations: 2
  candidates: 2
"""
# The machine of a test is not its own; application loops and memory have tests elsewhere.
TOLERANT = "tolerate: [foreign-load, not-stationary], app: false, memory: false"
# The README's settings are a user's; these are the same with less of everything.
SMALLER = {
    "formats: [executorch, onnx, tflite]": "formats: [onnx]",
    "{runs: 5, iterations: 200, threads: [1, 4]}": f"{{runs: 3, iterations: 20, {TOLERANT}}}",
    "ssh://pi@192.0.2.7     # or local: for this machine": "'local:'",
    "key_file: ~/.ssh/id_ed25519     # optional: else your agent and default keys": "",
    "edge/bin/python         # on the board": f"{sys.executable}\n    root: ROOT",
}
# The recorded output of a real one, with the counts it is asked for.
BENCHMARK_MODEL = f"""#!/bin/sh
cat {RECORDED}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def commands() -> list[str]:
    lines = "".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.startswith("device-lab ")]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the README tells a user to write."""
    folder = tmp_path_factory.mktemp("project")
    devices, _phone, recipe, _variants = blocks("yaml")
    for ours, smaller in SMALLER.items():
        assert ours in devices + recipe, f"the README no longer says {ours!r}"
        devices, recipe = devices.replace(ours, smaller), recipe.replace(ours, smaller)
    machine = f"linux-{os.uname().machine}"
    devices = devices.replace("raspberry-pi-5", machine).replace("ROOT", str(folder / "board"))
    (folder / "devices.yaml").write_text(devices)
    (folder / "recipe.yaml").write_text(recipe + SEARCH)
    (folder / "mymodel.py").write_text(MODEL)
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("test", 20)):
        x = rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", x=x, y=rng.integers(0, 4, count))
    genes = rng.integers(0, 4, (60, 4))
    rows = [f"{a},{b},{c},{d},{1 + a + 2 * b + c / 4 + d}" for a, b, c, d in genes]
    (folder / "nets.csv").write_text("\n".join(["g0,g1,g2,g3,ms", *rows]))
    np.savez(folder / "calibration.npz", x=rng.standard_normal((16, 3, 8, 8)).astype("f4"))
    script = (
        "import torch, mymodel; from safetensors.torch import save_model;"
        "from pathlib import Path; from pipeline.model import trace;"
        "from pipeline.programs import save_program;"
        "from pipeline.export import write_artifact; m = mymodel.build().eval();"
        "save_model(m, 'mymodel.safetensors'); p = trace(m, torch.zeros(1, 3, 8, 8));"
        "save_program(p, Path('model.pt2')); write_artifact(p, 'onnx', Path('model.onnx'));"
        "write_artifact(p, 'onnx', Path('old.onnx')); torch.manual_seed(1);"
        "p = trace(mymodel.build().eval(), torch.zeros(1, 3, 8, 8));"
        "write_artifact(p, 'onnx', Path('new.onnx'))"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, check=True)
    return folder


def as_here(command: str, project: Path) -> list[str]:
    """The words of a command, with what a test on one machine cannot have."""
    if "night1" in command:  # workspaces of other nights
        for night in range(1, 5):
            shutil.copytree(project / "work", project / f"night{night}", dirs_exist_ok=True)
    command = command.replace("--train 600 --seeds 5", "--train 30 --seeds 2")
    # A verdict takes more runs than a README's test has time for, and a machine of its own.
    little = {"new.onnx": " --rounds 3 --iterations 20", "profile": " --runs 3 --iterations 20"}
    for word, options in {**little, "measure": ""}.items():
        if word in command.partition(" --")[0]:
            command += f"{options} --tolerate foreign-load --tolerate not-stationary"
    return shlex.split(command)[1:]


#: The phone of the README is not there; tests of its own calibrate a battery.
ELSEWHERE = {"device-lab devices calibrate-meter pixel --reference-mw 4100": "no device 'pixel'"}


@pytest.mark.slow
def test_every_command_of_the_readme_works_in_its_order(project: Path, phone: Phone) -> None:
    """With a phone attached, and one of LiteRT's benchmark tools on the board."""
    home = project / "home"
    (home / "bin").mkdir(parents=True)
    (home / "bin/benchmark_model").write_text(BENCHMARK_MODEL)
    (home / "bin/benchmark_model").chmod(0o755)
    AdbTransport(phone.serial, phone.server).close()  # now the adb server knows it
    port = str(phone.server[1])
    environment = {**os.environ, "HOME": str(home), "ANDROID_ADB_SERVER_PORT": port}
    assert len(commands()) >= 15
    for command in commands():
        done = subprocess.run(
            [DEVICE_LAB, *as_here(command, project)],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if command in ELSEWHERE:
            assert ELSEWHERE[command] in done.stderr
            continue
        # Of two builds that are the same one may be called slower by chance: that is no failure.
        fine = (0, 1) if " compare " in command else (0,)
        assert done.returncode in fine, f"{command}\n{done.stdout}\n{done.stderr}"
    assert "<html" in (project / "report.html").read_text()[:200]


def test_the_phone_of_the_readme_is_one(tmp_path: Path) -> None:
    _devices, text, *_ = blocks("yaml")
    (entry,) = yaml.safe_load(text)["devices"]
    for library in entry["libraries"].values():
        (tmp_path / library).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / library).touch()
    phone = parse(Device, entry, "README", tmp_path)
    assert phone.transport_name == "adb"
    assert {phone.agent_for(runtime) for runtime in phone.details().runtimes} == {"native"}


@pytest.mark.slow
def test_the_python_of_the_readme_works(project: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"^int8 onnx [\d.]+ \(", done.stdout, flags=re.MULTILINE)


def test_the_variants_of_the_readme_are_a_recipe_s():
    *_, recipe, variants = blocks("yaml")
    plain = {**yaml.safe_load(recipe), **yaml.safe_load(variants)}
    known = {key: plain[key] for key in ("name", "variants", "devices")}
    source = {"model": {"factory": "a:b"}, "data": {"factory": "a:b"}}
    found = parse(Recipe, {**known, **source}, "README.md", Path())
    assert [variant.after for variant in found.variants if variant.after] == ["half"]
