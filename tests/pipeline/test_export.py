"""One convolutional network in every variant and format: the same function, really compressed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compress.module import module_of, program_of
from pipeline.compress.quantize import quantize
from pipeline.export import export_stage, write_artifact
from pipeline.export.parity import host_outputs
from pipeline.export.tensors import io_of
from pipeline.inspect import read_artifact
from pipeline.model import reference_outputs, trace
from pipeline.programs import save_program
from pipeline.stage import Workspace
from pipeline.supernet.base import recalibrate
from profiles.errors import UsageError
from profiles.records import FORMATS, SUFFIX_OF, Artifact

if TYPE_CHECKING:
    from torch.export import ExportedProgram

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:torch",
    "ignore::DeprecationWarning:torch",
)

SHAPE = (3, 24, 24)
CLASSES = 10
SPARSITY = 0.6
VARIANTS = ("fp32", "int8", "sparse")
EVERY = [(variant, format_) for variant in VARIANTS for format_ in FORMATS]


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(x + self.second(nn.functional.relu(self.norm(self.first(x)))))


def network() -> nn.Module:
    """Convolutions, batch norm, ReLU, a residual and a linear layer: 86,000 parameters."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 64, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        Residual(64),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, CLASSES),
    )
    return recalibrate(module, images(64))


def images(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, not noise: quantization is made for what looks like something."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.standard_normal((count, 3, 4, 4)).astype(np.float32))
    return nn.functional.interpolate(coarse, SHAPE[1:], mode="bilinear").numpy()


@dataclass(frozen=True)
class Made:
    """A program, the file it was lowered to, and what the exporter recorded."""

    program: ExportedProgram
    artifact: Artifact
    record: dict


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("artifacts")


@pytest.fixture(scope="module")
def original() -> ExportedProgram:
    return trace(network(), torch.from_numpy(images(1)))


@pytest.fixture(scope="module")
def pruned() -> ExportedProgram:
    """Without the smallest weights of each layer."""
    module = module_of(trace(network(), torch.from_numpy(images(1))))
    with torch.no_grad():
        for weight in (value for value in module.parameters() if value.ndim > 1):
            weight[weight.abs() < weight.abs().quantile(SPARSITY)] = 0
    return program_of(module, torch.from_numpy(images(1)))


@pytest.fixture(scope="module")
def made(
    folder: Path, original: ExportedProgram, pruned: ExportedProgram
) -> dict[tuple[str, str], Made]:
    """Every variant in every format."""
    found = {}
    for variant, format_ in EVERY:
        program = {"fp32": original, "sparse": pruned}.get(variant)
        if program is None:
            program = quantize(original, format_, images(16))
        path = folder / f"{variant}{SUFFIX_OF[format_]}"
        record = write_artifact(program, format_, path)
        found[variant, format_] = Made(program, read_artifact(path), dict(record))
    return found


@pytest.fixture(scope="module")
def outputs(made: dict[tuple[str, str], Made]) -> dict[tuple[str, str], np.ndarray]:
    return {place: host_outputs(one.artifact, images(24, seed=1))[0] for place, one in made.items()}


def eager() -> np.ndarray:
    with torch.no_grad():
        return network()(torch.from_numpy(images(24, seed=1))).numpy()


@pytest.mark.parametrize("format_", FORMATS)
def test_fp32_computes_what_pytorch_does(outputs: dict, format_: str):
    np.testing.assert_allclose(outputs["fp32", format_], eager(), atol=1e-4)


@pytest.mark.parametrize("format_", FORMATS)
def test_sparse_computes_what_its_own_program_does(
    outputs: dict, pruned: ExportedProgram, format_: str
):
    expected = reference_outputs(pruned, images(24, seed=1))
    np.testing.assert_allclose(outputs["sparse", format_], expected, atol=1e-4)
    assert np.abs(expected - eager()).max() > 1e-3, "nothing was pruned"


@pytest.mark.parametrize("format_", FORMATS)
def test_int8_computes_nearly_the_same(outputs: dict, format_: str):
    got, expected = outputs["int8", format_], eager()
    cosine = (
        (got * expected).sum(1) / np.linalg.norm(got, axis=1) / np.linalg.norm(expected, axis=1)
    )
    assert cosine.mean() > 0.98
    assert np.abs(got - expected).max() > 1e-4, "nothing was quantized"


@pytest.mark.parametrize("format_", FORMATS)
def test_int8_is_less_than_half_as_large(made: dict, format_: str):
    ratio = made["fp32", format_].artifact.size_bytes / made["int8", format_].artifact.size_bytes
    assert ratio > 2


def test_int8_onnx_runs_integer_kernels(made: dict, tmp_path: Path):
    import onnx
    import onnxruntime

    def kernels(variant: str) -> Counter[str]:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / f"{variant}.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(
            str(made[variant, "onnx"].artifact.path), options, providers=["CPUExecutionProvider"]
        )
        return Counter(n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node)

    found = kernels("int8")
    assert found["QLinearConv"] == 3
    assert found["QLinearAdd"] == 1
    assert not {"Conv", "FusedConv", "Gemm", "MatMul", "Add"} & set(found)
    assert not any("Linear" in name for name in kernels("fp32"))


def tflite_operators(path: Path) -> list[tuple[str, set[int]]]:
    """Each operator's name and the types of its inputs and outputs, biases apart."""
    from litert_converter import schema_py_generated as schema

    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (graph,) = model.subgraphs
    found = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        tensors = [*operator.inputs[:2], *operator.outputs]
        types = {graph.tensors[index].type for index in tensors}
        found.append((names[max(code.builtinCode, code.deprecatedBuiltinCode)], types))
    return found


def test_int8_tflite_runs_integer_kernels(made: dict):
    from litert_converter import schema_py_generated as schema

    operators = tflite_operators(made["int8", "tflite"].artifact.path)
    heavy = [types for name, types in operators if name in ("CONV_2D", "FULLY_CONNECTED", "ADD")]
    assert len(heavy) == 5
    assert all(types == {schema.TensorType.INT8} for types in heavy)
    plain = tflite_operators(made["fp32", "tflite"].artifact.path)
    assert schema.TensorType.INT8 not in set.union(*(types for _, types in plain))


def test_int8_tflite_converts_at_its_borders_alone(made: dict):
    names = [name for name, _ in tflite_operators(made["int8", "tflite"].artifact.path)]
    assert names[0] == "QUANTIZE"
    assert names[-1] == "DEQUANTIZE"
    assert names.count("DEQUANTIZE") == 1


def test_int8_executorch_is_delegated_whole_with_integer_weights(made: dict):
    one = made["int8", "executorch"]
    assert one.record["delegates"] == 1
    # What stays outside turns the input to INT8 and the output back, and does no arithmetic.
    assert all("quantize_per_tensor" in name for name in one.record["outside_delegate"])
    content = one.artifact.path.read_bytes()
    integers = [
        value
        for value in (*one.program.state_dict.values(), *one.program.constants.values())
        if getattr(value, "dtype", None) == torch.int8
    ]
    convolutions = [value for value in integers if value.ndim == 4]
    assert len(convolutions) == 3
    for weight in convolutions:  # XNNPACK keeps channels last
        assert weight.permute(0, 2, 3, 1).contiguous().numpy().tobytes() in content


@pytest.mark.parametrize("format_", FORMATS)
def test_fp32_executes_in_one_piece(made: dict, format_: str):
    record = made["fp32", format_].record
    if format_ == "executorch":
        assert (record["delegates"], record["outside_delegate"]) == (1, [])
    elif format_ == "tflite":
        assert record["quantized"] is False
    else:
        assert record["opset"] >= 18
    assert record["batch"] == 1
    assert "layout" not in record
    placed = record["placement"]
    assert (placed["partitions"], placed["share"], placed["macs_share"]) == (1, 1, 1)
    assert (placed["integer"], placed["outside"]) == (0, [])
    assert placed["operators"] >= 6


@pytest.mark.parametrize("format_", FORMATS)
def test_zeros_arrive_in_the_file(made: dict, format_: str):
    import onnx

    def zeros(variant: str) -> float:
        content = made[variant, format_].artifact.path.read_bytes()
        if format_ == "onnx":  # whose numbers are not aligned in the file
            tensors = onnx.load_from_string(content).graph.initializer
            content = b"".join(onnx.numpy_helper.to_array(t).tobytes() for t in tensors)
        words = np.frombuffer(content[: len(content) // 4 * 4], dtype="<u4")
        return float(np.mean((words == 0) | (words == 0x80000000)))

    assert zeros("sparse") - zeros("fp32") > 0.9 * SPARSITY


@pytest.mark.parametrize("format_", FORMATS)
def test_every_variant_takes_and_gives_the_same_tensors(made: dict, format_: str):
    found = {variant: made[variant, format_].artifact.io for variant in VARIANTS}
    assert len(set(found.values())) == 1, found
    io = found["fp32"]
    assert [spec.shape for spec in io.inputs] == [(1, *SHAPE)]
    assert [spec.shape for spec in io.outputs] == [(1, CLASSES)]
    assert {spec.dtype for spec in (*io.inputs, *io.outputs)} == {"float32"}


@pytest.mark.parametrize(("variant", "format_"), EVERY)
def test_the_record_says_what_the_file_takes_and_gives(made: dict, variant: str, format_: str):
    one = made[variant, format_]
    recorded = io_of(one.program)
    assert [s.name for s in recorded.inputs] == ["input"]
    assert [s.name for s in recorded.outputs] == ["output"]
    for said, found in zip(
        (*recorded.inputs, *recorded.outputs),
        (*one.artifact.io.inputs, *one.artifact.io.outputs),
        strict=True,
    ):
        assert (said.shape, said.dtype) == (found.shape, found.dtype)
        if format_ == "onnx":
            assert said.name == found.name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_tflite_signature_names_its_floats(made: dict, variant: str):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(made[variant, "tflite"].artifact.path))
    (signature,) = interpreter.get_signature_list().values()
    runner = interpreter.get_signature_runner()
    (given,) = runner.get_input_details().values()
    assert given["dtype"] is np.float32
    x = images(1, seed=1)
    (got,) = runner(**{signature["inputs"][0]: x}).values()
    np.testing.assert_array_equal(got, host_outputs(made[variant, "tflite"].artifact, x)[0])


@pytest.mark.parametrize("format_", FORMATS)
def test_exporting_again_gives_the_same_bytes(made: dict, tmp_path: Path, format_: str):
    one = made["int8", format_]
    path = tmp_path / "again"
    write_artifact(one.program, format_, path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == one.artifact.sha256


@pytest.mark.parametrize(("variant", "format_"), EVERY)
def test_no_file_tells_where_it_was_made(made: dict, variant: str, format_: str):
    content = made[variant, format_].artifact.path.read_bytes()
    for trace_of in (str(Path(__file__).parents[2]), "site-packages", ".py", "Traceback", "File "):
        assert trace_of.encode() not in content


def test_onnx_is_one_file(made: dict, folder: Path):
    import onnx

    model = onnx.load(made["fp32", "onnx"].artifact.path, load_external_data=False)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert sorted(p.suffix for p in folder.iterdir()) == sorted(3 * list(SUFFIX_OF.values()))


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    opened = Workspace.open(tmp_path / "workspace")
    yield opened
    opened.close()


def test_the_stage_keeps_the_artifact_with_its_record(
    workspace: Workspace, original: ExportedProgram, made: dict, tmp_path: Path
):
    program = tmp_path / "model.pt2"
    save_program(original, program)
    arguments = {"model": "net", "variant": "fp32", "dtype": "float32", "details": {"a": 1}}
    one = export_stage(workspace, program, "onnx", **arguments)
    assert one == export_stage(workspace, program, "onnx", **arguments)
    assert one.sha256 == made["fp32", "onnx"].artifact.sha256
    assert one.path.read_bytes() == made["fp32", "onnx"].artifact.path.read_bytes()
    assert one.size_bytes == one.path.stat().st_size
    assert one.parent == hashlib.sha256(program.read_bytes()).hexdigest()
    assert one.toolchain["torch"] == torch.__version__
    assert one.details["a"] == 1
    assert one.details["opset"] >= 18
    assert len(list((workspace.root / "artifacts").iterdir())) == 1


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("model.bin", b"", "expected one of .pte, .onnx, .tflite"),
        ("model.onnx", b"no model", "cannot be loaded as onnx"),
        ("model.tflite", b"no model", "cannot be loaded as tflite"),
        ("model.pte", b"no model" * 100, "cannot be loaded as executorch"),
        ("model.pte", b"", "cannot be loaded as executorch"),
    ],
)
def test_a_file_that_is_no_artifact_is_refused_by_name(
    tmp_path: Path, name: str, content: bytes, expected: str
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=expected) as refusal:
        read_artifact(tmp_path / name)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_an_artifact_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(UsageError, match="there is no file"):
        read_artifact(tmp_path / "model.onnx")
