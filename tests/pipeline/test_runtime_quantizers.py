"""INT8 for XNNPACK's two runtimes: nothing falls out of the integers that need not, and accuracy
is kept; and what is to stay in FP32, stays so in every format."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from devices.agent.engines import ENGINES
from pipeline.compress.quantize import quantize
from pipeline.compress.units import drop_idle_clamps
from pipeline.compress.xnnpack_quantizer import XnnpackQuantizer
from pipeline.export import write_artifact
from pipeline.model import trace
from profiles.errors import ModelError, UsageError
from profiles.records import RUNTIME_OF, ArtifactFormat
from tests.pipeline.networks import Gate, VitLike


def images(count: int, seed: int) -> np.ndarray:
    """Coarse patterns: unlike noise, they still differ after pooling."""
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((count, 3, 4, 4)).astype(np.float32)
    return np.ascontiguousarray(coarse.repeat(4, 2).repeat(4, 3))


SAMPLES = images(12, seed=3)
TESTS = images(6, seed=4)
KEY = "quantization_annotation"


class Small(nn.Module):
    """What makes MobileNetV3 hard: hardswish, a gate, a residual sum, a head with hardswish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish(inplace=True)
        )
        self.block = nn.Sequential(
            nn.Conv2d(16, 32, 1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU6(),
            nn.Conv2d(32, 32, 3, 1, 1, groups=32),
            nn.Hardswish(),
            Gate(32),
            nn.Conv2d(32, 16, 1),
        )
        self.head = nn.Sequential(nn.Linear(16, 256), nn.Hardswish(), nn.Linear(256, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Numbers(nn.Module):
    """Arithmetic with numbers between layers, and a layer norm over a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        z = self.b(y * 2 - 1)
        return nn.functional.relu(z) + y


def operators(path: Path) -> collections.Counter[str]:
    """What LiteRT executes: ``DELEGATE`` stands for one part that XNNPACK computes."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path))
    interpreter.allocate_tensors()
    return collections.Counter(op["op_name"] for op in interpreter._get_ops_details())


def layer_types(path: Path) -> dict[str, str]:
    """Data types of the results of TFLite operators, by kind and place: ``CONV_2D 0``."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = Interpreter(model_path=str(path), experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    types = {
        detail["index"]: detail["dtype"].__name__ for detail in interpreter.get_tensor_details()
    }
    counts: collections.Counter[str] = collections.Counter()
    found = {}
    for operator in interpreter._get_ops_details():
        name = operator["op_name"]
        found[f"{name} {counts[name]}"] = types[operator["outputs"][0]]
        counts[name] += 1
    return found


def outputs(path: Path, format_: ArtifactFormat) -> np.ndarray:
    engine = ENGINES[RUNTIME_OF[format_]](str(path), 1)
    rows = []
    for index in range(len(TESTS)):
        engine.feed([TESTS[index : index + 1]])
        engine.prepare()
        engine.call()
        rows.append(engine.outputs()[0].copy().ravel())
    return np.stack(rows).astype(np.float64)


def cosine(found: np.ndarray, expected: np.ndarray) -> float:
    """Of what differs from sample to sample: what they share would flatter the rest."""
    a, b = found - expected.mean(0), expected - expected.mean(0)
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def reference(module: nn.Module) -> np.ndarray:
    with torch.no_grad():
        rows = [module(torch.from_numpy(TESTS[i : i + 1])).ravel() for i in range(len(TESTS))]
    return torch.stack(rows).numpy().astype(np.float64)


def annotated(module: nn.Module, keep: tuple[str, ...] = (), size: int = 16) -> dict[str, bool]:
    """Whether it is computed in integers, for every node of the graph a module becomes."""
    program = trace(module.eval(), torch.zeros(1, 3, size, size))
    quantizer = XnnpackQuantizer(keep=keep)
    graph = quantizer.annotate(quantizer.transform_for_annotation(program.module()))
    quantizer.validate(graph)
    return {node.name: KEY in node.meta for node in graph.graph.nodes if node.op == "call_function"}


@pytest.fixture(scope="module")
def mobile() -> nn.Module:
    torch.manual_seed(1)
    network = Small()
    with torch.no_grad():
        network.train()(torch.from_numpy(SAMPLES))
    return network.eval()


@pytest.fixture(scope="module")
def made(
    mobile: nn.Module, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, dict[str, object]]]:
    """The small MobileNetV3 in INT8, a file per format and set of modules kept."""
    folder = tmp_path_factory.mktemp("int8")
    done: dict[object, tuple[Path, dict[str, object]]] = {}

    def make(format_: ArtifactFormat, *keep: str) -> tuple[Path, dict[str, object]]:
        if (format_, keep) not in done:
            program = trace(mobile, torch.from_numpy(SAMPLES[:1]))
            path = folder / f"{len(done)}.{format_}"
            record = write_artifact(quantize(program, format_, SAMPLES, keep=keep), format_, path)
            done[format_, keep] = path, dict(record)
        return done[format_, keep]

    return make


def test_litert_computes_a_mobilenet_v3_in_one_delegate_and_in_integers(made, mobile):
    path, _ = made("tflite")
    assert operators(path)["DELEGATE"] == 1
    floats = {name for name, dtype in layer_types(path).items() if dtype == "float32"}
    assert floats == {"DEQUANTIZE 0"}
    assert "HARD_SWISH 0" not in layer_types(path)
    assert cosine(outputs(path, "tflite"), reference(mobile)) > 0.95


def test_executorch_computes_a_mobilenet_v3_in_one_delegate(made, mobile):
    path, record = made("executorch")
    assert record["delegates"] == 1
    assert record["outside_delegate"] == []
    assert cosine(outputs(path, "executorch"), reference(mobile)) > 0.95


@pytest.mark.parametrize("format_", ["tflite", "executorch", "onnx"])
def test_kept_modules_stay_in_fp32_in_every_format(made, format_):
    everything, _ = made(format_)
    partly, _ = made(format_, "model.head")
    # Its weights take four bytes each instead of one.
    grown = partly.stat().st_size - everything.stat().st_size
    assert grown > 0.5 * 3 * (16 * 256 + 256 * 10)


def test_kept_submodules_are_computed_in_floats(made):
    path, _ = made("tflite", "model.head")
    types = layer_types(path)
    assert {types["FULLY_CONNECTED 0"], types["FULLY_CONNECTED 1"]} == {"float32"}
    assert types["CONV_2D 0"] == "int8"


@pytest.mark.parametrize("format_", ["tflite", "executorch", "onnx"])
def test_a_pattern_that_keeps_nothing_is_an_error(mobile, format_):
    program = trace(mobile, torch.from_numpy(SAMPLES[:1]))
    with pytest.raises(UsageError, match=r"model\.haed"):
        quantize(program, format_, SAMPLES[:1], keep=("model.haed",))


def test_numbers_take_part_in_integer_arithmetic():
    found = annotated(Numbers())
    assert set(found.values()) == {True}, found


@pytest.mark.parametrize(("format_", "written_out"), [("tflite", True), ("executorch", False)])
def test_hardswish_is_written_out_where_its_own_kernel_is_slow(mobile, format_, written_out):
    program = trace(mobile, torch.from_numpy(SAMPLES[:1]))
    found = quantize(program, format_, SAMPLES[:1])
    names = {str(node.target) for node in found.graph.nodes}
    assert any("hardswish" in name for name in names) != written_out
    assert not any("hardsigmoid" in name for name in names)


def test_what_is_kept_takes_no_part():
    found = annotated(Numbers(), keep=("model.b",))
    assert not found["conv2d_1"]
    assert found["conv2d"]


def test_sums_that_layer_norms_read_stay_float():
    found = annotated(VitLike(), size=32)
    assert not any(quantized for name, quantized in found.items() if name.startswith("add"))
    assert found["linear"]


def test_writing_into_parts_of_a_tensor_is_refused():
    class Writes(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 1.0
            y[:, :1] = 0
            return y

    program = torch.export.export(Writes(), (torch.randn(1, 3, 4, 4),), strict=False)
    with pytest.raises(ModelError, match="parts of tensors"):
        XnnpackQuantizer().transform_for_annotation(program.module())


@pytest.mark.parametrize(
    ("clamp", "scale", "zero", "idle"),
    [
        (nn.functional.relu6, 6 / 255, -128, True),
        (nn.functional.relu6, 5 / 255, -128, True),
        (nn.functional.relu6, 7 / 255, -128, False),
        (nn.functional.relu, 7 / 255, -128, True),
        (nn.functional.relu, 7 / 255, -120, False),
        (lambda x: torch.clamp(x, -1, 1), 2 / 255, 0, True),
        (lambda x: torch.clamp(x, max=1.0), 2 / 255, 0, True),
        (lambda x: torch.clamp(x, -0.5, 1), 2 / 255, 0, False),
        (nn.functional.hardtanh, 1 / 255, 0, True),
        (nn.functional.hardtanh, 4 / 255, 0, False),
    ],
)
def test_clamps_go_where_integers_saturate_as_they_do(clamp, scale, zero, idle):
    import torch.ao.quantization.fx._decomposed

    class Saturated(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.quantized_decomposed.quantize_per_tensor(
                clamp(x), scale, zero, -128, 127, torch.int8
            )

    x = torch.linspace(-9, 9, 4001)
    module = torch.export.export(Saturated(), (x,), strict=False).module()
    before, nodes = module(x), len(module.graph.nodes)
    drop_idle_clamps(module)
    assert (len(module.graph.nodes) == nodes - 1) == idle
    assert torch.equal(module(x), before)


class Shortcut(nn.Module):
    """A residual block whose shortcut takes every other position, and pads the channels."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value
        self.stem = nn.Conv2d(3, 8, 1)
        self.body = nn.Conv2d(8, 16, 3, 2, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        short = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4), value=self.value)
        return self.head(torch.relu(self.body(x) + short)).mean((2, 3))


@pytest.mark.parametrize("format_", ["tflite", "executorch"])
def test_zeros_are_padded_within_one_range(format_: ArtifactFormat, tmp_path: Path):
    """LiteRT's converter refuses some others.  The largest values stand where the shortcut does
    not look, so that its own range would be another."""
    torch.manual_seed(0)
    network = Shortcut().eval()
    samples = SAMPLES.copy()
    samples[:, :, 1::2, 1::2] *= 3
    program = quantize(trace(network, torch.from_numpy(samples[:1])), format_, samples)
    pad = next(node for node in program.graph.nodes if "aten.pad" in str(node.target))
    (given,) = pad.users
    assert pad.args[0].args[1:3] == given.args[1:3]
    path = tmp_path / f"model.{format_}"
    write_artifact(program, format_, path)
    for sample in samples[:4]:
        with torch.no_grad():
            expected = network(torch.from_numpy(sample[None])).numpy()
        engine = ENGINES[RUNTIME_OF[format_]](str(path), 1)
        engine.feed([sample[None]])
        engine.prepare()
        engine.call()
        assert np.abs(engine.outputs()[0] - expected).max() < 0.1 * np.abs(expected).max()


def test_other_values_around_an_image_have_a_range_of_their_own():
    network = Shortcut(value=100.0).eval()
    program = quantize(trace(network, torch.from_numpy(SAMPLES[:1])), "tflite", SAMPLES)
    pad = next(node for node in program.graph.nodes if "aten.pad" in str(node.target))
    (given,) = pad.users
    assert pad.args[0].args[1] < given.args[1] / 5
