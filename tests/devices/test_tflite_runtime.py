"""tflite-runtime in environments of its own, as on Raspberry Pi OS: with the numpy it needs, and
with one that only lets it import."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from devices.inventory import Device
from devices.recorder import RunRecorder
from devices.session import Job
from devices.visit import visit
from profiles.records import Condition, Io, TensorSpec
from tests.builders import device, plan

pytestmark = pytest.mark.slow

VENVS = Path.home() / ".cache/edgeloop/venvs"
VERSION = "2.14.0"  # the last one; its wheels end at Python 3.11
REPOSITORY = Path(__file__).parents[2]


def environment(name: str, *packages: str) -> Path:
    """The Python of a cached environment with these packages; it has its name only when whole."""
    VENVS.mkdir(parents=True, exist_ok=True)
    folder = VENVS / name
    with FileLock(VENVS / f"{name}.lock"):
        if not folder.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=VENVS))
            try:
                _fill(aside, packages)
                aside.replace(folder)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    return folder / "bin/python"


def _fill(folder: Path, packages: tuple[str, ...]) -> None:
    made = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python"), "install"]
    options = ["--quiet", "--only-binary=:all:", "--retries=1", "--timeout=15"]
    command = [*pip, *options, *packages]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        pytest.skip(f"pip cannot install {' '.join(packages)}: {said[-1]}")


@pytest.fixture(scope="module")
def python() -> Path:
    """As Raspberry Pi OS has it."""
    return environment(f"tflite-{VERSION}-numpy1", f"tflite-runtime=={VERSION}", "numpy<2")


@pytest.fixture(scope="module")
def python_with_numpy_2() -> Path:
    """What a plain upgrade of numpy makes of it."""
    return environment(f"tflite-{VERSION}-numpy2", f"tflite-runtime=={VERSION}", "numpy>=2")


@dataclass(frozen=True)
class Exported:
    """A model as our exporter writes it, with one input and what PyTorch makes of that."""

    path: Path
    input_file: Path
    expected: np.ndarray

    def job(self) -> Job:
        io = Io(
            inputs=(TensorSpec("x", (1, 3, 32, 32), "float32"),),
            outputs=(TensorSpec("y", (1, 10), "float32"),),
        )
        return Job("net", self.path, io, (self.input_file,))


@pytest.fixture(scope="module")
def exported(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small convolutional network; made only where there is a Python to run it."""
    import torch
    from torch import nn

    from pipeline.export import write_artifact
    from pipeline.quiet import quiet

    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 7 * 7, 10)),
    ).eval()
    x = torch.randn(1, 3, 32, 32)
    folder = tmp_path_factory.mktemp("exported")
    with quiet():
        write_artifact(torch.export.export(net, (x,)), "tflite", folder / "net.tflite")
    x.numpy().tofile(folder / "x.bin")
    with torch.no_grad():
        return Exported(folder / "net.tflite", folder / "x.bin", net(x).numpy())


def board(python: Path, folder: Path) -> Device:
    return device(address="local:", python=str(python), root=str(folder / "root"))


def test_a_model_of_ours_is_measured_with_tflite_runtime(python, exported, tmp_path):
    recorder = RunRecorder(["net"])
    with visit(board(python, tmp_path)) as session:
        found = session.probe(["litert"])["litert"]
        session.run(
            "litert",
            [exported.job()],
            condition=Condition(threads=1),
            plan=plan(iterations=50),
            seed=0,
            deadline_s=120,
            recorder=recorder,
        )
    assert found["version"] == recorder.version == f"tflite_runtime {VERSION}"
    recording = recorder.recordings["net"]
    assert len(recording.samples_ns()) == 50
    assert recording.samples_ns().min() > 0
    assert recording.delegates == ("XNNPACK",)
    assert recorder.done


# What the agent's engine makes of a model, in whatever Python runs this.
_INFER = """
import sys
import numpy
from devices.agent.engines import LiteRtEngine
engine = LiteRtEngine(sys.argv[1], 1)
engine.feed([numpy.fromfile(sys.argv[2], dtype="float32").reshape(1, 3, 32, 32)])
engine.prepare()
engine.call()
engine.outputs()[0].tofile(sys.argv[3])
"""


def test_what_is_measured_computes_what_pytorch_computes(python, exported, tmp_path):
    command = [str(python), "-c", _INFER, *map(str, (exported.path, exported.input_file))]
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*command, str(tmp_path / "y.bin")], check=True, env=env, timeout=60)
    found = np.fromfile(tmp_path / "y.bin", dtype="float32").reshape(1, 10)
    np.testing.assert_allclose(found, exported.expected, atol=1e-5)


def test_a_numpy_it_only_imports_with_is_told_before_anything_is_measured(
    python_with_numpy_2, tmp_path
):
    imports = [str(python_with_numpy_2), "-c", "import tflite_runtime.interpreter"]
    subprocess.run(imports, check=True, capture_output=True, timeout=60)
    with visit(board(python_with_numpy_2, tmp_path)) as session:
        found = session.probe(["litert"])["litert"]
    assert "version" not in found
    assert found["missing"]
    assert "'numpy<2'" in found["hint"]
