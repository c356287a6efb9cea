"""What an artifact says of itself, what is recorded of it, and why one cannot be made."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compress.quantize import quantize
from pipeline.export import export_stage, told, write_artifact
from pipeline.export.parity import host_outputs
from pipeline.export.placement import Operator, placement
from pipeline.inspect import read_artifact
from pipeline.model import trace
from pipeline.programs import save_program
from pipeline.stage import Workspace
from profiles.errors import ExportError, StageError
from profiles.export import Export
from profiles.records import FORMATS, SUFFIX_OF

if TYPE_CHECKING:
    from torch.export import ExportedProgram

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:torch",
    "ignore::DeprecationWarning:torch",
)

SAYS = {
    "model": "small",
    "compression": {"method": "int8"},
    "normalisation": {"mean": [0.5], "std": None},
}


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 1, 8, 8)).astype(np.float32)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4)
    ).eval()


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return trace(small(), torch.from_numpy(images(1)))


@pytest.fixture(scope="module")
def made(program: ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """INT8 in every format: the file, what is read of it, and what was recorded."""
    folder = tmp_path_factory.mktemp("artifacts")
    found = {}
    for format_ in FORMATS:
        path = folder / f"model{SUFFIX_OF[format_]}"
        record = write_artifact(
            quantize(program, format_, images(8)), format_, path, Export(), SAYS
        )
        found[format_] = (path, read_artifact(path), record)
    return found


@pytest.mark.parametrize("format_", FORMATS)
def test_a_file_says_what_it_is(made: dict, format_: str):
    _, artifact, record = made[format_]
    says = artifact.details["says"]
    assert {key: says[key] for key in SAYS} == SAYS
    assert (says["made_by"], says["batch"]) == ("edgeloop", 1)
    assert (says["inputs"], says["outputs"]) == (["input"], ["output"])
    assert says["layout"]["weights"][0]["dtype"] == record["layout"]["weights"][0]["dtype"]
    assert [spec.name for spec in (*artifact.io.inputs, *artifact.io.outputs)] == [
        "input",
        "output",
    ]


@pytest.mark.parametrize("format_", FORMATS)
def test_the_layout_of_the_integers_is_recorded(made: dict, format_: str):
    layout = made[format_][2]["layout"]
    weights, activations = layout["weights"][0], layout["activations"][0]
    assert (weights["dtype"], weights["symmetric"]) == ("int8", True)
    assert weights["granularity"] == "per-channel"
    assert activations["granularity"] == "per-tensor"
    assert activations["dtype"] == ("uint8" if format_ == "onnx" else "int8")
    assert sum(each["tensors"] for each in layout["weights"]) >= 2


@pytest.mark.parametrize("format_", FORMATS)
def test_the_record_counts_what_runs_in_integers(made: dict, format_: str):
    placed = made[format_][2]["placement"]
    assert placed["integer"] >= 3
    assert placed["inside"] <= placed["operators"]
    assert placed["share"] == placed["inside"] / placed["operators"]
    assert placed["macs_share"] == 1


def test_a_file_that_need_not_say_anything_does_not(program: ExportedProgram, tmp_path: Path):
    for format_ in ("onnx", "executorch"):
        path = tmp_path / f"plain{SUFFIX_OF[format_]}"
        write_artifact(program, format_, path)
        assert b"edgeloop" not in path.read_bytes()
        assert read_artifact(path).details == {}


def test_tflite_buffers_lie_where_kernels_may_read_them(made: dict):
    """The schema wants multiples of 16 bytes, which the generated classes forget."""
    from litert_converter import schema_py_generated as schema

    content = made["tflite"][0].read_bytes()
    model = schema.Model.GetRootAs(content, 0)
    for index in range(model.BuffersLength()):
        data = model.Buffers(index).DataAsNumpy()
        if not isinstance(data, builtins.int):
            start = data.__array_interface__["data"][0]
            whole = np.frombuffer(content, np.uint8).__array_interface__["data"][0]
            assert (start - whole) % 16 == 0


class Two(nn.Module):
    def forward(self, picture: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (picture * weight).mean((2, 3))


@pytest.mark.parametrize("format_", FORMATS)
def test_several_inputs_keep_the_names_of_their_arguments(tmp_path: Path, format_: str):
    inputs = (torch.ones(1, 2, 4, 4), torch.ones(1, 2, 1, 1))
    program = torch.export.export(Two(), inputs, strict=False)
    path = tmp_path / f"two{SUFFIX_OF[format_]}"
    write_artifact(program, format_, path, None, {"model": "two"})
    artifact = read_artifact(path)
    assert [spec.name for spec in artifact.io.inputs] == ["picture", "weight"]
    assert [spec.shape for spec in artifact.io.inputs] == [(1, 2, 4, 4), (1, 2, 1, 1)]


class Summed(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.cumsum(-1)


class Interrupted(nn.Module):
    """Two convolutions, and between them what XNNPACK does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(1, 4, 3), nn.Sequential(Summed())
        self.last = nn.Conv2d(4, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.inner(self.first(x))).mean((2, 3))


@pytest.mark.parametrize(
    ("format_", "operator"), [("executorch", "aten.cumsum.default"), ("tflite", "CUMSUM")]
)
def test_what_fell_out_is_named_with_its_module(tmp_path: Path, format_, operator: str):
    program = trace(Interrupted().eval(), torch.from_numpy(images(1)))
    record = write_artifact(program, format_, tmp_path / "model")
    placed = record["placement"]
    assert placed["partitions"] == 2
    fell_out = {(each["operator"], each["module"]) for each in placed["outside"]}
    assert fell_out >= {(operator, "model.inner.0")}
    assert placed["macs_share"] == 1
    assert 0 < placed["share"] < 1


def test_a_placement_counts_operators_and_their_work():
    operators = [
        Operator("conv", "a", 300, True, True),
        Operator("sort", "b", 0, False, False),
        Operator("sort", "b", 0, False, False),
        Operator("linear", "c", 100, False, False),
    ]
    found = placement("X", 1, operators)
    assert (found["operators"], found["inside"], found["share"]) == (4, 1, 0.25)
    assert (found["macs_share"], found["integer"]) == (0.75, 1)
    assert found["outside"] == [
        {"operator": "linear", "module": "c", "count": 1},
        {"operator": "sort", "module": "b", "count": 2},
    ]
    assert placement("X", 0, [])["macs_share"] is None


def test_a_record_of_the_compression_and_one_of_the_export_both_stay(
    program: ExportedProgram, tmp_path: Path
):
    path = tmp_path / "int8.pt2"
    save_program(quantize(program, "onnx", images(8)), path)
    own = {"quantization": {"float_layers": ["model.0"]}}
    workspace = Workspace.open(tmp_path / "workspace")
    try:
        artifact = export_stage(
            workspace, path, "onnx", model="small", variant="int8", dtype="int8", details=own
        )
    finally:
        workspace.close()
    assert artifact.details["quantization"] == own["quantization"]
    layout = artifact.details["layout"]
    assert layout["weights"][0]["granularity"] == "per-channel"
    least, greatest = layout["parameters"]["scales"]
    assert 0 < least < greatest
    assert layout["parameters"]["tensors"] >= 5
    assert told(artifact)["details"]["layout"] == layout


def test_a_parameter_s_name_makes_no_tflite_file_quantized(tmp_path: Path):
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.quantize_per = nn.Conv2d(1, 2, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.quantize_per(x)

    program = trace(Named().eval(), torch.from_numpy(images(1)))
    assert write_artifact(program, "tflite", tmp_path / "model")["quantized"] is False


# Partitioners


def test_without_a_partitioner_nothing_is_delegated(program: ExportedProgram, tmp_path: Path):
    path = tmp_path / "plain.pte"
    record = write_artifact(program, "executorch", path, Export(partitioner="none"))
    assert (record["delegates"], record["placement"]["share"]) == (0, 0)
    assert {each["module"] for each in record["placement"]["outside"]} >= {"model.0", "model.4"}
    outputs, delegates = host_outputs(read_artifact(path), images(2))
    assert delegates == ("portable",)
    with torch.no_grad():
        np.testing.assert_allclose(outputs, small()(torch.from_numpy(images(2))), atol=1e-5)


def test_another_partitioner_is_offered_and_its_absence_here_said(
    program: ExportedProgram, tmp_path: Path
):
    from dataclasses import replace

    path = tmp_path / "model.pte"
    record = write_artifact(program, "executorch", path, Export(partitioner="vulkan"))
    assert (record["partitioner"], record["delegates"]) == ("vulkan", 1)
    artifact = replace(read_artifact_of(path), details=record)
    with pytest.raises(StageError, match="this host has no VulkanBackend") as refusal:
        host_outputs(artifact, images(1))
    assert "\n" not in str(refusal.value)


def read_artifact_of(path: Path):
    """As :func:`read_artifact`, of a file that this host's runtime cannot load."""
    from profiles.canonical import file_sha256
    from tests import builders

    return builders.artifact(sha256=file_sha256(path), path=path, format="executorch")


def test_a_partitioner_that_is_not_installed_is_refused_with_the_package(
    program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import sys

    monkeypatch.setitem(sys.modules, "executorch.backends.apple.coreml.partition", None)
    with pytest.raises(
        ExportError, match="no executorch: the partitioner coreml is not"
    ) as refusal:
        write_artifact(program, "executorch", tmp_path / "a", Export(partitioner="coreml"))
    assert refusal.value.hint == "pip install coremltools"
    assert "\n" not in str(refusal.value)


def test_qnn_without_its_sdk_is_refused_before_anything_is_fetched(
    program: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("QNN_SDK_ROOT", raising=False)
    with pytest.raises(ExportError, match="QNN_SDK_ROOT is not set"):
        write_artifact(program, "executorch", tmp_path / "a", Export(partitioner="qnn"))


# Operators without a lowering


class Spectrum(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft2(x).abs()


class Bessel(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


class Distance(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, x)


class Net(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(1, 2, 1), inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.stem(x)).mean((2, 3))


@pytest.mark.parametrize(
    ("format_", "inner", "operator"),
    [
        ("onnx", Distance(), "aten.cdist"),
        ("onnx", Bessel(), "aten.special_bessel_j0"),
        ("executorch", Bessel(), "aten.special_bessel_j0"),
        ("tflite", Bessel(), "aten.special_bessel_j0"),
        ("tflite", Spectrum(), "aten.fft_rfft2"),
    ],
)
def test_an_operator_without_a_lowering_is_named_with_its_place(
    tmp_path: Path, format_, inner: nn.Module, operator: str
):
    program = trace(Net(inner).eval(), torch.from_numpy(images(1)))
    with pytest.raises(ExportError) as refusal:
        write_artifact(program, format_, tmp_path / "model")
    message = str(refusal.value)
    kind = type(inner).__name__
    assert f"no {format_}: {operator} in model.inner ({kind}), test_export_record.py:" in message
    assert "cannot be lowered: " in message
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []
