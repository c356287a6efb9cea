"""The quantizer for ONNX Runtime: what really fuses, and what is rightly left alone."""

from __future__ import annotations

import collections
import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import nn

from pipeline.compress import silence_telemetry
from pipeline.compress.ort_quantizer import OrtQuantizer
from pipeline.export import write_artifact
from profiles.errors import ModelError
from tests.pipeline.annotating import (
    IMAGE,
    SAMPLES,
    F,
    Net,
    Sample,
    annotated,
    conv,
    export,
    images,
    specs,
    unit,
)

pytestmark = pytest.mark.filterwarnings(
    # PyTorch's exporter, of its own tree utilities.
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)

#: So small networks are thin all over.
INTEGER_FROM_THE_START = functools.partial(OrtQuantizer, start="integer")


def inverted(narrow: int, wide: int, stride: int) -> nn.Module:
    hidden = 4 * narrow
    body = nn.Sequential(
        unit(narrow, hidden, 1, nn.ReLU6),
        unit(hidden, hidden, 3, nn.ReLU6, stride=stride, groups=hidden),
        unit(hidden, wide, 1, nn.Identity),
    )
    if stride == 1 and narrow == wide:
        return Net(lambda self, x: x + self.body(x), body=body)
    return body


def basic(narrow: int, wide: int, stride: int) -> nn.Module:
    def connect(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        out = self.body(x)
        out += self.shortcut(x)
        return F.relu(out, inplace=True)

    same = stride == 1 and narrow == wide
    return Net(
        connect,
        body=nn.Sequential(
            unit(narrow, wide, 3, nn.ReLU, stride=stride), unit(wide, wide, 3, nn.Identity)
        ),
        shortcut=nn.Identity() if same else unit(narrow, wide, 1, nn.Identity, stride=stride),
    )


def mobilenet() -> nn.Module:
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(32, 10)]
    blocks = [inverted(8, 16, 2), inverted(16, 16, 1), inverted(16, 16, 1)]
    last = unit(16, 32, 1, nn.ReLU6)
    return nn.Sequential(unit(3, 8, 3, nn.ReLU6, stride=2), *blocks, last, *head)


def resnet() -> nn.Module:
    blocks = [basic(8, 8, 1), basic(8, 16, 2), basic(16, 16, 1)]
    stem = [unit(3, 8, 7, nn.ReLU, stride=2), nn.MaxPool2d(3, 2, 1)]
    body = nn.Sequential(*stem, *blocks)
    return Net(lambda s, x: s.head(s.body(x).mean((2, 3))), body=body, head=nn.Linear(16, 10))


def mlp() -> nn.Module:
    hidden = [nn.Linear(96, 32), nn.BatchNorm1d(32), nn.ReLU6()]
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), *hidden, nn.Linear(32, 10))


@dataclass(frozen=True)
class Quantized:
    """Operator counts of the graph ONNX Runtime runs, and outputs before and after."""

    operators: collections.Counter[str]
    before: np.ndarray
    after: np.ndarray

    def cosine(self) -> float:
        """Of what differs from sample to sample: a constant offset would flatter the rest."""
        mean = self.before.mean(0)
        a, b = (self.before - mean).ravel(), (self.after - mean).ravel()
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def settle(model: nn.Module, samples: list[Sample]) -> nn.Module:
    """Give batch norms the statistics of the samples, so that a random network keeps a signal."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.cat([x for (x,) in samples]))
    return model.eval()


def outputs(model: Path, samples: list[Sample]) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = [dict(zip(names, (x.numpy() for x in sample), strict=True)) for sample in samples]
    rows = [session.run(None, feed) for feed in feeds]
    return np.stack([np.concatenate([y.ravel() for y in row]) for row in rows]).astype(np.float64)


@pytest.fixture
def quantize(tmp_path: Path) -> Callable[..., Quantized]:
    silence_telemetry()
    import nncf
    from nncf.experimental.torch.fx import quantize_pt2e
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    nncf.set_log_level(logging.ERROR)

    def work(
        model: nn.Module,
        samples: list[Sample],
        quantizer: OrtQuantizer | None = None,
        *,
        functional: bool = False,
    ) -> Quantized:
        graph = export(model, samples[0], functional=functional)
        with torch.no_grad():
            before = np.stack([graph(*sample).numpy().ravel() for sample in samples])
        graph = quantize_pt2e(
            graph,
            quantizer or INTEGER_FROM_THE_START(),
            nncf.Dataset(samples, lambda sample: sample if len(sample) > 1 else sample[0]),
            subset_size=len(samples),
            fast_bias_correction=None,
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
        )
        path = tmp_path / "after.onnx"
        write_artifact(torch.export.export(graph, samples[0], strict=False), "onnx", path)
        after = outputs(path, samples)
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
        return Quantized(collections.Counter(n.op_type for n in nodes), before, after)

    return work


@pytest.mark.parametrize(
    ("build", "shape", "additions"),
    [(mobilenet, IMAGE, 2), (resnet, IMAGE, 3), (mlp, (1, 64), 0)],
    ids=["mobilenet", "resnet", "mlp"],
)
def test_every_operator_fuses_and_the_integers_are_never_left(quantize, build, shape, additions):
    torch.manual_seed(0)
    samples = images(shape)
    model = settle(build(), samples)
    layers = collections.Counter(type(layer) for layer in model.modules())

    result = quantize(model, samples)

    expected = collections.Counter(
        {
            "QLinearConv": layers[nn.Conv2d],
            "QGemm": layers[nn.Linear],
            "QLinearAdd": additions,
            "QLinearAveragePool": int(build is not mlp),
            "Reshape": int(build is not mlp),
            "MaxPool": int(build is resnet),
            "QuantizeLinear": 1,
        }
    )
    assert result.operators == +expected  # logits come out of the last layer in FP32
    assert result.cosine() > 0.98


def test_a_value_with_many_readers_is_quantized_once(quantize):
    torch.manual_seed(0)

    def connect(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        return self.b(y) + self.c(y) + torch.tanh(y)

    model = Net(connect, a=conv(3, 8), b=conv(8, 8), c=conv(8, 8))
    result = quantize(model, images())
    assert result.operators["QLinearConv"] == 3
    assert result.operators["Conv"] == 0
    assert result.operators["QLinearAdd"] == 1
    assert result.cosine() > 0.98


def test_what_changes_in_place_changes_for_every_reader(quantize):
    torch.manual_seed(0)

    def connect(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        changed = torch.relu_(y)
        return self.b(changed) + y  # y is not what a() returned any more

    result = quantize(Net(connect, a=conv(3, 8), b=conv(8, 8)), images())
    assert result.operators["QLinearConv"] == 2
    assert result.operators["QLinearAdd"] == 1
    assert result.cosine() > 0.98


def test_assigning_to_a_part_of_a_tensor_is_refused_until_it_is_functional(quantize):
    torch.manual_seed(0)

    def connect(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        y[:, :4] *= 0.5
        return self.b(y)

    model, samples = Net(connect, a=conv(3, 8), b=conv(8, 8)), images()
    with pytest.raises(ModelError, match=r"parts of tensors: copy_ \(.*run_decompositions"):
        quantize(model, samples)
    result = quantize(model, samples, functional=True)
    assert result.operators["QLinearConv"] == 2
    assert result.cosine() > 0.98


def test_pooling_by_maximum_passes_the_integers_on(quantize):
    torch.manual_seed(0)
    layers = [conv(3, 8), nn.MaxPool2d(2), conv(8, 8), nn.MaxPool2d(2), nn.Flatten()]
    result = quantize(nn.Sequential(*layers, nn.Linear(512, 4)), images())
    assert result.operators["MaxPool"] == 2
    assert result.operators["QuantizeLinear"] == 1


def test_a_layer_over_tokens_fuses_though_its_clamp_does_not(quantize):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    result = quantize(model, images((1, 5, 8)))
    assert result.operators["QGemm"] == 2
    assert result.operators["Gemm"] + result.operators["MatMul"] == 0
    assert result.cosine() > 0.98


def gated() -> nn.Module:
    def connect(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.hardswish(self.a(x))
        return self.b(y * F.hardsigmoid(self.gate(F.adaptive_avg_pool2d(y, 1))))

    return Net(connect, a=conv(3, 8), gate=conv(8, 8, 1), b=conv(8, 8, groups=8))


def test_hardswish_and_gates_become_integers(quantize):
    torch.manual_seed(0)
    result = quantize(gated(), images())
    expected = {"QLinearConv": 3, "QLinearAdd": 1, "QLinearMul": 2, "QLinearAveragePool": 1}
    assert {name: count for name, count in result.operators.items() if "QL" in name} == expected
    assert result.operators["QuantizeLinear"] == result.operators["DequantizeLinear"] == 1
    assert not {"HardSigmoid", "HardSwish", "Clip", "Add", "Mul"} & result.operators.keys()
    assert result.cosine() > 0.98


def test_hardswish_and_gates_can_stay_float_between_integer_convolutions(quantize):
    torch.manual_seed(0)
    result = quantize(gated(), images(), INTEGER_FROM_THE_START(swish="float"))
    assert result.operators["QLinearConv"] == 3
    assert result.operators["HardSigmoid"] == 2  # hardswish is x * hardsigmoid(x)
    assert result.operators["QLinearMul"] == 0
    assert result.cosine() > 0.98


@pytest.mark.parametrize(
    "choices",
    [
        pytest.param({}, id="thin"),
        pytest.param({"start": "integer", "skip": ["model.0"]}, id="skipped"),
        pytest.param({"start": "integer", "swish": "float"}, id="as it is told"),
    ],
)
def test_hardswish_of_a_float_convolution_is_not_taken_apart(choices):
    model = nn.Sequential(nn.Sequential(conv(3, 8), nn.Hardswish()), conv(8, 8))
    graph = annotated(model, images()[0], **choices)
    assert "aten.hardswish.default" in [str(node.target) for node in graph.graph.nodes]
    assert "conv2d_1" in specs(graph)


def test_an_attention_layer_is_integer_where_that_pays(quantize):
    torch.manual_seed(0)
    norms = {"norm": nn.LayerNorm(16), "last": nn.LayerNorm(16)}

    def connect(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).reshape(1, 5, 3, 2, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(1, 5, 16)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.last(x))))

    layers = {"qkv": (16, 48), "out": (16, 16), "up": (16, 32), "down": (32, 16)}
    model = Net(connect, **norms, **{name: nn.Linear(*sizes) for name, sizes in layers.items()})
    result = quantize(model, images((1, 5, 16)))
    assert result.operators["QGemm"] == 4
    assert result.operators["QuantizeLinear"] == 4
    # What linear layers give is FP32 already.
    assert result.operators["DequantizeLinear"] == 0
    assert result.cosine() > 0.98


@pytest.mark.parametrize("shape", [(1, 8), (1, 5, 8)], ids=["rows", "tokens"])
def test_a_linear_layer_without_bias_gives_float_too(quantize, shape):
    torch.manual_seed(0)
    layers = [nn.Linear(8, 16, bias=False), nn.GELU(), nn.Linear(16, 8, bias=False)]
    result = quantize(nn.Sequential(*layers), images(shape))
    assert result.operators["QuantizeLinear"] == 2
    assert result.operators["DequantizeLinear"] == 0
    assert result.operators["QGemm"] + result.operators["MatMulIntegerToFloat"] == 2
    assert result.cosine() > 0.98


def test_integer_inputs_are_not_touched(quantize):
    torch.manual_seed(0)
    model = Net(
        lambda s, ids, x: s.last(torch.relu(s.table(ids + 1).flatten(1) + s.first(x))),
        table=nn.Embedding(50, 4),
        first=nn.Linear(8, 16),
        last=nn.Linear(16, 4),
    )
    ids = [torch.randint(0, 40, (1, 4)) for _ in range(SAMPLES)]
    result = quantize(model, [(i, *x) for i, x in zip(ids, images((1, 8)), strict=True)])
    assert result.operators["QGemm"] == 2
    assert result.operators["Add"] == 2  # the integers', and one of two floats
    assert result.cosine() > 0.98


def test_nothing_to_quantize_changes_nothing(quantize):
    result = quantize(Net(lambda _, x: F.layer_norm(x, (8,)) * torch.softmax(x, 1)), images((1, 8)))
    assert not {name for name in result.operators if "Quantize" in name or "QLinear" in name}
    np.testing.assert_allclose(result.after, result.before, atol=1e-6)


def test_skipped_modules_stay_float(quantize):
    torch.manual_seed(0)
    block = nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8))
    model = nn.Sequential(conv(3, 8), block, conv(8, 8))
    result = quantize(model, images(), INTEGER_FROM_THE_START(skip=["model.1"]))
    assert result.operators["QLinearConv"] == 2
    assert result.operators["Conv"] + result.operators["FusedConv"] == 2
