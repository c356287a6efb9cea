"""The quantizer for ONNX Runtime: which values it marks, whatever becomes of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.compress.ort_quantizer import ACTIVATION, THIN, WEIGHT, OrtQuantizer
from profiles.errors import UsageError
from tests.pipeline.annotating import IMAGE, F, Net, annotated, conv, export, images, specs

pytestmark = pytest.mark.filterwarnings(
    # PyTorch's exporter, of its own tree utilities.
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",
)


def test_skipping_what_is_not_there_names_every_mistake():
    quantizer = OrtQuantizer(skip=["model.0", "model.9", "features.*"])
    graph = quantizer.annotate(export(nn.Sequential(conv(3, 4)), images()[0]))
    with pytest.raises(UsageError, match=r"under features\.\*, model\.9 \("):
        quantizer.validate(graph)


def test_units_read_and_give_unsigned_activations_and_signed_weights():
    model = nn.Sequential(conv(3, 6, groups=3), nn.ReLU6())
    graph = annotated(model, images()[0], start="integer")
    clamp, convolution = specs(graph)["hardtanh"], specs(graph)["conv2d"]
    assert list(convolution.input_qspec_map.values()) == [ACTIVATION, WEIGHT]
    assert convolution.output_qspec is None  # the clamp's output is the unit's
    assert clamp.output_qspec == ACTIVATION
    assert (ACTIVATION.dtype, ACTIVATION.qscheme) == (torch.uint8, torch.per_tensor_affine)
    assert (WEIGHT.dtype, WEIGHT.qscheme) == (torch.int8, torch.per_channel_symmetric)
    assert (WEIGHT.quant_min, WEIGHT.quant_max, WEIGHT.ch_axis) == (-127, 127, 0)


@pytest.mark.parametrize(
    "connect",
    [
        pytest.param(lambda s, x: torch.tanh(x) + torch.tanh(s.a(x)), id="float on both sides"),
        pytest.param(lambda s, x: torch.tanh(torch.tanh(x) + s.a(x)), id="float before and after"),
        pytest.param(lambda s, x: s.b(s.a(x) + 1.0), id="a number in the code"),
        pytest.param(lambda s, x: s.b(torch.add(s.a(x), s.b(x), alpha=2)), id="scaled"),
        pytest.param(lambda s, x: s.b(s.a(x) + s.bias), id="a constant"),
        pytest.param(lambda s, x: s.a(x) + s.a(x).shape[0] * s.a(x).long(), id="integers"),
    ],
)
def test_an_addition_is_not_quantized_for(connect):
    model = Net(connect, a=conv(3, 3), b=conv(3, 3))
    model.register_buffer("bias", torch.ones(3, 1, 1))
    names = specs(annotated(model, images()[0], start="integer"))
    assert "conv2d" in names
    assert not {name for name in names if name.startswith("add")}


def test_the_residual_stream_of_a_transformer_stays_float():
    def connect(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.a, self.b):
            x = x + layer(self.norm(x))
        return self.norm(x)

    model = Net(connect, a=nn.Linear(8, 8), b=nn.Linear(8, 8), norm=nn.LayerNorm(8))
    found = specs(annotated(model, images((1, 5, 8))[0]))
    assert found.keys() == {"linear", "linear_1"}
    assert not [unit for unit in found.values() if unit.output_qspec]


@pytest.mark.parametrize(
    "connect",
    [
        pytest.param(lambda s, x, w: F.conv2d(x, w), id="computed weights"),
        pytest.param(lambda s, x, w: F.conv2d(x, s.w, w[:, 0, 0, 0]), id="computed bias"),
        pytest.param(lambda s, x, w: F.conv2d(x.double(), s.w64), id="float64"),
        pytest.param(lambda s, x, w: F.conv_transpose2d(x, s.w), id="transposed"),
    ],
)
def test_a_convolution_without_an_integer_kernel_is_left_alone(connect):
    model = Net(connect)
    model.register_buffer("w", torch.randn(3, 3, 3, 3))
    model.register_buffer("w64", torch.randn(3, 3, 3, 3).double())
    sample = (torch.randn(IMAGE), torch.randn(3, 3, 3, 3))
    assert not specs(annotated(model, sample, start="integer"))


def first(*layers: nn.Module) -> list[str]:
    """Names of the convolutions that become integers; those of the others have none."""
    graph = annotated(nn.Sequential(*layers), images()[0])
    return [name for name in specs(graph) if name.startswith("conv")]


def test_a_thin_first_convolution_stays_float():
    widest = (THIN - 1) // 27
    assert first(conv(3, widest), nn.ReLU(), conv(widest, 8)) == ["conv2d_1"]
    assert first(conv(3, widest + 1), nn.ReLU(), conv(widest + 1, 8)) == ["conv2d", "conv2d_1"]


def test_a_depthwise_convolution_behind_it_stays_float_and_no_other():
    stem = [conv(3, 8), nn.Hardswish(inplace=True)]
    assert first(*stem, conv(8, 8, groups=8), nn.ReLU(), conv(8, 8)) == ["conv2d_2"]
    assert first(*stem, conv(8, 8, groups=4)) == ["conv2d_1"]
    assert first(conv(3, 3, groups=3), conv(3, 64), conv(64, 64, groups=64)) == [
        "conv2d_1",
        "conv2d_2",
    ]


def test_what_is_added_to_it_ends_the_float_start():
    def connect(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.a(x) + self.b(x))

    model = Net(connect, a=conv(3, 8), b=conv(3, 8, 7), c=conv(8, 8, groups=8))
    found = specs(annotated(model, images()[0]))
    assert {name for name in found if name.startswith("conv")} == {"conv2d_1", "conv2d_2"}
