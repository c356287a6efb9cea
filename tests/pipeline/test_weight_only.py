"""Weights in INT8 and INT4: the file is small, its runtime multiplies integers, little is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from devices.agent.engines import ENGINES
from pipeline.compress.variants import compress, original
from pipeline.compress.weight_only import limits, nearest, weight_only
from pipeline.export import write_artifact
from pipeline.export.integer_weights import integer_weights, with_float_weights
from pipeline.export.layout import layout_of
from pipeline.model import trace
from pipeline.programs import load_program, save_program
from pipeline.stage import Workspace
from profiles.compression import Weights
from profiles.errors import StageError, UsageError
from profiles.records import RUNTIME_OF, ArtifactFormat
from tests.pipeline import gratings

pytestmark = pytest.mark.filterwarnings(
    # PyTorch's exporter, of its own tree utilities.
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)

WIDTH = 128
TOKENS = 9


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Tokens(nn.Module):
    """A transformer without attention: linear layers over rows, and one over a single row."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.head = nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(x).mean(1))


def samples(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, TOKENS, WIDTH)).astype(np.float32)


TESTS = samples(6, seed=1)
CALIBRATION = samples(8, seed=2)


def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return trace(Tokens(), torch.from_numpy(TESTS[:1]))


def computed(given: torch.export.ExportedProgram) -> np.ndarray:
    module = given.module()
    with torch.no_grad():
        return np.concatenate([module(torch.from_numpy(x[None])).numpy() for x in TESTS])


def run(path: Path, format_: ArtifactFormat) -> np.ndarray:
    engine = ENGINES[RUNTIME_OF[format_]](str(path), 1)
    rows = []
    for x in TESTS:
        engine.feed([x[None]])
        engine.prepare()
        engine.call()
        rows.append(engine.outputs()[0].copy())
    return np.concatenate(rows)


def cosine(found: np.ndarray, expected: np.ndarray) -> float:
    return float((found * expected).sum() / np.linalg.norm(found) / np.linalg.norm(expected))


@pytest.mark.parametrize(
    ("format_", "bits", "options", "smaller", "likeness"),
    [
        ("onnx", 8, {}, 3.4, 0.9998),
        ("onnx", 4, {"group_size": 32, "symmetric": False}, 5.0, 0.99),
        ("tflite", 8, {}, 3.4, 0.9998),
        ("tflite", 4, {}, 5.5, 0.98),
        ("executorch", 8, {}, 3.3, 0.9998),
        ("executorch", 4, {"group_size": 32}, 5.0, 0.99),
    ],
)
def test_files_are_small_and_their_runtimes_compute_the_same(
    tmp_path, format_, bits, options, smaller, likeness
):
    made, details = weight_only(program(), format_, bits, samples=CALIBRATION, **options)
    save_program(made, tmp_path / "model.pt2")
    loaded = load_program(tmp_path / "model.pt2")
    path = tmp_path / "artifact"
    # A recipe's export has the file say what it is, and stores its record: both as JSON.
    record = write_artifact(loaded, format_, path, None, {"model": "tokens"})
    stored = json.loads(json.dumps({k: v for k, v in record.items() if k != "io"}))
    (way,) = stored["layout"]["weights"]
    assert (way["dtype"], way["tensors"]) == ("int8", 3)
    wanted = options.get("group_size")
    assert (way["granularity"], way.get("group_size"), way.get("axis")) == (
        ("per-group", wanted, None) if wanted else ("per-channel", None, 0)
    )
    assert way["symmetric"] is options.get("symmetric", True)
    steps = np.concatenate([held.scale.ravel() for held in integer_weights(made)])
    parameters = stored["layout"]["parameters"]
    assert parameters["tensors"] == 3
    assert parameters["scales"] == [float(steps.min()), float(steps.max())]
    # What is described is the file as it is, with its integers.
    placed = record["placement"]
    assert placed["integer"] >= 3
    assert placed["macs_share"] == 1

    floats = sum(4 * parameter.numel() for parameter in Tokens().parameters())
    assert floats / path.stat().st_size > smaller
    # What the runtime adds is activations that become INT8 within its kernels.
    assert cosine(run(path, format_), computed(made)) > 0.9998
    assert cosine(run(path, format_), computed(program())) > likeness
    assert details["bits"] == bits
    assert details["layers"] == 3
    if format_ == "executorch":
        assert not any("dequantize" in name for name in record["outside_delegate"])


def test_onnx_runtime_gets_its_own_operator_and_no_floats(tmp_path):
    made, _ = weight_only(program(), "onnx", 8)
    write_artifact(made, "onnx", tmp_path / "artifact")
    graph = onnx.load(tmp_path / "artifact").graph
    assert sum(node.op_type == "MatMulNBits" for node in graph.node) == 3
    assert not any(node.op_type in ("MatMul", "Gemm") for node in graph.node)
    floats = sum(
        np.prod(i.dims) for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT
    )
    assert floats < 0.05 * sum(np.prod(i.dims) for i in graph.initializer)


def test_tflite_integers_lie_where_kernels_may_read_them(tmp_path):
    """At multiples of 16 bytes, as the schema wants it."""
    from litert_converter import schema_py_generated as schema

    made, _ = weight_only(program(), "tflite", 8)
    write_artifact(made, "tflite", tmp_path / "artifact")
    content = np.frombuffer((tmp_path / "artifact").read_bytes(), np.uint8)
    model = schema.Model.GetRootAs(content, 0)
    buffers = [model.Buffers(index) for index in range(model.BuffersLength())]
    held = [buffer.DataAsNumpy() for buffer in buffers if buffer.DataLength()]
    start = content.__array_interface__["data"][0]
    assert len(held) > 3
    assert {(data.__array_interface__["data"][0] - start) % 16 for data in held} == {0}


def test_parameters_tell_two_quantizations_of_one_layout_apart():
    first, second = (
        layout_of(weight_only(program(), "onnx", 4, samples=given)[0])
        for given in (None, CALIBRATION * np.linspace(0.01, 3, WIDTH, dtype=np.float32))
    )
    assert first and second
    assert first["weights"] == second["weights"]
    assert first["parameters"]["sha256"] != second["parameters"]["sha256"]
    again = layout_of(weight_only(program(), "onnx", 4)[0])
    assert again == first


def test_weights_become_integers_where_nothing_else_is_imported():
    """PyTorch has the operator once a module is imported; a process may begin with this."""
    code = (
        "import torch; from pipeline.compress.weight_only import weight_only;"
        "example = (torch.ones(1, 32),);"
        "given = torch.export.export(torch.nn.Linear(32, 4), example, strict=False);"
        "print(weight_only(given, 'onnx', 8)[1]['layers'])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "1", done.stderr


def test_litert_multiplies_integers_within_its_delegate(tmp_path):
    from ai_edge_litert.interpreter import Interpreter

    made, _ = weight_only(program(), "tflite", 4)
    path = tmp_path / "artifact"
    write_artifact(made, "tflite", path)
    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    operators = [operator["op_name"] for operator in interpreter._get_ops_details()]
    assert operators.count("DELEGATE") == 1
    assert "DEQUANTIZE" not in operators


@pytest.mark.parametrize(
    ("format_", "bits", "options", "error", "message"),
    [
        ("tflite", 4, {"group_size": 32}, StageError, "tflite cannot express INT4 .* in groups"),
        ("tflite", 8, {"symmetric": False}, StageError, "tflite cannot .* zero points"),
        ("executorch", 8, {"group_size": 32}, StageError, "executorch .* INT8 weights in groups"),
        ("executorch", 4, {"group_size": 16}, StageError, "groups of 16"),
        ("onnx", 3, {}, UsageError, "3 bits"),
        ("onnx", 4, {"group_size": 48}, UsageError, "powers of two"),
        ("onnx", 4, {"group_size": 256}, StageError, "model.block.up has 128 inputs"),
        ("onnx", 4, {"keep": ("model.blok",)}, UsageError, "model.blok"),
        ("onnx", 4, {"keep": ("model",)}, StageError, "no linear layer"),
    ],
)
def test_what_cannot_be_is_refused(format_, bits, options, error, message):
    with pytest.raises(error, match=message):
        weight_only(program(), format_, bits, **options)


def test_kept_layers_stay_in_fp32_and_are_named(tmp_path):
    made, details = weight_only(program(), "onnx", 8, keep=("model.block",))
    assert details["layers"] == 1
    assert details["float_layers"] == ["model.block.down", "model.block.up"]
    (held,) = integer_weights(made)
    assert held.integers.shape == (10, WIDTH)
    path = tmp_path / "artifact"
    write_artifact(made, "onnx", path)
    assert cosine(run(path, "onnx"), computed(program())) > 0.9999


def test_steps_are_searched_with_regard_to_the_inputs():
    """With one input a thousand times larger, its weights are hit better than without samples."""
    loud = CALIBRATION.copy()
    loud[..., 0] *= 1000
    torch.manual_seed(0)
    module = nn.Linear(WIDTH, 64, bias=False)
    given = trace(module, torch.from_numpy(loud[:1]))
    weights = module.weight.detach().numpy()
    errors = []
    for inputs in (None, loud):
        made, _ = weight_only(given, "onnx", 4, samples=inputs)
        (held,) = integer_weights(made)
        errors.append(float(np.square(held.floats - weights)[:, 0].sum()))
    assert errors[1] < 0.5 * errors[0]


def test_a_file_that_lost_its_weights_is_refused(tmp_path, monkeypatch):
    import pipeline.export.onnx_weights as writer

    monkeypatch.setattr(writer, "matching", lambda *_: None)
    made, _ = weight_only(program(), "onnx", 8)
    with pytest.raises(StageError, match="only 0 of 3 layers"):
        write_artifact(made, "onnx", tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


def test_float_weights_compute_the_same():
    made, _ = weight_only(program(), "onnx", 4, group_size=32)
    assert integer_weights(with_float_weights(made)) == []
    np.testing.assert_array_equal(computed(with_float_weights(made)), computed(made))


@settings(deadline=None, max_examples=40)
@given(
    bits=st.sampled_from([4, 8]),
    symmetric=st.booleans(),
    offset=st.floats(-3, 3),
    seed=st.integers(0, 1000),
    empty=st.booleans(),
)
def test_no_weight_is_further_than_half_a_step_from_its_integer(
    bits: int, symmetric: bool, offset: float, seed: int, empty: bool
) -> None:
    values = torch.randn(3, 32, generator=torch.Generator().manual_seed(seed)) + offset
    if empty:
        values[1] = 0
    integers, scale, zero = nearest(values, bits, 16, symmetric, None)
    low, high = limits(bits, symmetric)
    assert integers.dtype == torch.int8
    assert low <= int(integers.min()) and int(integers.max()) <= high
    back = (integers.reshape(3, 2, 16) - zero[..., None]) * scale[..., None]
    error: Any = (back - values.reshape(3, 2, 16)).abs()
    inside = (integers.reshape(3, 2, 16) > low) & (integers.reshape(3, 2, 16) < high)
    assert bool((error <= scale[..., None] * 0.501)[inside].all())
    if bits == 8:  # nothing is cut off
        assert bool((error <= scale[..., None] * 1.001).all())


def test_a_recipe_s_variant_says_how_it_was_made(tmp_path):
    workspace = Workspace.open(tmp_path / "work")
    try:
        job = gratings.job(tmp_path, workspace, {})
        asked = Weights(name="small", method="weight-only", bits=4)
        (made,) = compress(job, asked, original(job, "tflite"))
        assert made.details["bits"] == 4
        assert len(made.details["calibration_sha256"]) == 64
        assert integer_weights(load_program(made.program))
        asked = Weights(name="small", method="weight-only", bits=4, group_size=32)
        with pytest.raises(StageError, match="tflite"):
            compress(job, asked, original(job, "tflite"))
    finally:
        workspace.close()
