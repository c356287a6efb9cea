"""Networks cut into blocks: the blocks in a row are the network, in FP32 and in integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compress.quantize import quantize
from pipeline.examples.digits import network as digits_network
from pipeline.examples.resnet20 import ResNet20
from pipeline.export import write_artifact
from pipeline.model import trace
from pipeline.profile import cut as cutting
from pipeline.profile.cut import Cut, chained, cut
from pipeline.profile.grouping import group, is_dequantize, is_quantize
from profiles.errors import StageError, UsageError
from profiles.records import FORMATS
from tests.pipeline.networks import MobileLike, Tangled, VitLike, image, settled

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:torch",
    "ignore::FutureWarning:copyreg",
    "ignore::DeprecationWarning:torch",
)


def tensor(channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(image(channels, seed=seed))


NETWORKS = {
    "resnet20": (ResNet20, 3),
    "digits": (lambda: digits_network(16), 1),
    "mobile": (MobileLike, 3),
    "vit": (VitLike, 3),
}


@pytest.fixture(scope="module")
def programs():
    return {
        name: trace(settled(build(), channels), tensor(channels))
        for name, (build, channels) in NETWORKS.items()
    }


@pytest.fixture(scope="module")
def quantized(programs):
    """The MobileNet-like network as each runtime's quantizer makes it."""
    samples = image(count=4, seed=3)
    # With every convolution between integers, also those that ONNX Runtime likes better in FP32.
    choices = {"onnx": {"start": "integer"}}
    return {
        format_: quantize(programs["mobile"], format_, samples, choices=choices.get(format_))
        for format_ in FORMATS
    }


def names(parts: Cut) -> list[str]:
    return [block.name for block in parts.blocks]


def reproduced(program, parts: Cut, inputs: Sequence[torch.Tensor]) -> float:
    """The largest difference between network and blocks, on another input than it was cut with."""
    with torch.no_grad():
        expected = program.module()(*inputs)
    expected = expected if isinstance(expected, tuple) else (expected,)
    found = chained(parts, inputs)
    return max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "resnet20",
            ["conv1", *(f"layer{s}.{b}" for s in (1, 2, 3) for b in (0, 1, 2)), "linear"],
        ),
        ("digits", ["0", "3", "4", "7", "10"]),
        ("mobile", [*(f"features.{i}" for i in range(6)), "classifier.0", "classifier.3"]),
        ("vit", ["patch", "blocks.0", "blocks.1", "blocks.2", "head"]),
    ],
)
def test_blocks_are_the_networks_own_modules_and_compute_the_same(programs, name, expected):
    program, channels = programs[name], NETWORKS[name][1]
    parts = cut(program, (tensor(channels),))
    assert names(parts) == expected
    assert reproduced(program, parts, (tensor(channels, seed=5),)) <= 1e-5
    assert parts.repeated == 0
    assert all(len(block.reads) == len(block.gives) == 1 for block in parts.blocks)


def test_kinds_are_classes_and_pooling_belongs_to_the_layer_behind(programs):
    blocks = cut(programs["resnet20"], (tensor(),)).blocks
    assert [block.kind for block in blocks] == ["Conv2d", *["BasicBlock"] * 9, "Linear"]
    assert blocks[-1].inputs[0].shape == (1, 64, 8, 8)
    assert blocks[1].inputs[0].min() == 0, "the activation is not with its convolution"


@pytest.mark.parametrize(("depth", "count"), [(1, 3), (3, 8), (4, 20)])
def test_another_depth_has_other_blocks_and_several_tensors_may_cross(programs, depth, count):
    parts = cut(programs["vit"], (tensor(),), depth)
    assert (parts.depth, len(parts.blocks)) == (depth, count)
    assert reproduced(programs["vit"], parts, (tensor(seed=5),)) <= 1e-5
    widest = max(len(block.reads) for block in parts.blocks)
    assert (widest > 1) == (depth > 2)


def test_inputs_are_of_a_real_forward_pass(programs):
    x = tensor()
    parts = cut(programs["digits"], (x[:, :1],))
    assert torch.equal(parts.blocks[0].inputs[0], x[:, :1])
    for before, after in zip(parts.blocks, parts.blocks[1:], strict=False):
        assert before.gives == after.reads
        assert torch.equal(before.outputs[0], after.inputs[0])


def test_blocks_that_differ_in_weights_alone_have_one_signature(programs):
    by_name = {b.name: b.signature for b in cut(programs["resnet20"], (tensor(),)).blocks}
    assert by_name["layer1.0"] == by_name["layer1.1"] == by_name["layer1.2"]
    assert by_name["layer2.1"] == by_name["layer2.2"]
    assert len(set(by_name.values())) == 7


def test_a_setting_makes_another_signature():
    def signatures(**changes):
        module = nn.Sequential(
            nn.Conv2d(3, 4, 3, **changes), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        )
        return [b.signature for b in cut(trace(module, tensor()), (tensor(),)).blocks]

    plain, dilated = signatures(padding=1), signatures(padding=2, dilation=2)
    assert plain[0] != dilated[0]  # shapes and weights alike
    assert plain[1:] == dilated[1:]
    assert plain[1] == plain[2]


def test_tangled_networks_are_cut_right_though_they_write_in_place():
    program = trace(Tangled().eval(), tensor())
    parts = cut(program, (tensor(),))
    assert names(parts) == ["first", "shared", "shared (2)", "last"]
    assert reproduced(program, parts, (tensor(seed=5),)) <= 1e-5
    mutating = [
        str(node.target)
        for block in parts.blocks
        for node in block.module.graph.nodes
        if node.op == "call_function"
        and getattr(node.target, "_schema", None)
        and node.target._schema.is_mutable
    ]
    assert mutating == []


def test_no_border_is_where_something_else_than_floats_would_cross():
    class Chooser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            mask = y > 0
            return self.c(torch.where(mask, self.b(y), y))

    parts = cut(trace(Chooser().eval(), tensor()), (tensor(),))
    assert names(parts) == ["a to b", "c"]
    assert all(value.dtype == torch.float32 for block in parts.blocks for value in block.inputs)


def test_a_network_of_no_modules_is_one_block():
    class Plain(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.relu().mean((2, 3))

    assert len(cut(trace(Plain(), tensor()), (tensor(),)).blocks) == 1


def test_long_rows_of_layers_are_joined_evenly():
    program = trace(nn.Sequential(*(nn.Linear(2, 2) for _ in range(90))), torch.ones(1, 2))
    groups, _ = group(program.module(check_guards=False).graph)
    assert len(groups) == 30
    assert groups[0].name == "0 to 2"


def test_other_inputs_are_the_users_mistake(programs):
    with pytest.raises(UsageError, match=r"does not take inputs of shape \(1, 3, 32, 32\)"):
        cut(programs["digits"], (tensor(),))


def test_blocks_that_compute_something_else_are_not_used(programs, monkeypatch):
    def wrong(parts, inputs):
        return tuple(value + 1e-3 for value in chained(parts, inputs))

    monkeypatch.setattr(cutting, "chained", wrong)
    with pytest.raises(StageError, match="differ from the network"):
        cut(programs["digits"], (tensor(1),))


@pytest.mark.parametrize("depth", [None, 4])
@pytest.mark.parametrize("format_", FORMATS)
def test_quantized_blocks_compute_exactly_what_the_network_does(quantized, format_, depth):
    program = quantized[format_]
    parts = cut(program, (tensor(),), depth)
    assert reproduced(program, parts, (tensor(seed=5),)) == 0
    assert parts.repeated > 0
    assert all(
        value.dtype == torch.float32
        for block in parts.blocks
        for value in (*block.inputs, *block.outputs)
    )


@pytest.mark.parametrize("format_", FORMATS)
def test_every_convolution_stays_between_integers(quantized, format_):
    """What a convolution reads is dequantized inside its own block, and what it gives quantized."""

    def surroundings(graphs):
        read, given = 0, 0
        for graph in graphs:
            for node in graph.nodes:
                if node.op != "call_function" or "conv2d" not in str(node.target):
                    continue
                read += is_dequantize(node.args[0])
                after = next(iter(node.users))
                while not is_quantize(after) and len(after.users) == 1:
                    after = next(iter(after.users))
                given += is_quantize(after)
        return read, given

    program = quantized[format_]
    blocks = [block.module.graph for block in cut(program, (tensor(),), 4).blocks]
    assert surroundings(blocks) == surroundings([program.graph])
    assert surroundings(blocks)[0] > 10


def test_integer_kernels_of_the_blocks_are_those_of_the_network(tmp_path):
    import onnx
    import onnxruntime

    def kernels(programs) -> dict[str, int]:
        found: dict[str, int] = {}
        for program in programs:
            path = tmp_path / "model.onnx"
            write_artifact(program, "onnx", path)
            options = onnxruntime.SessionOptions()
            options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
            options.log_severity_level = 3
            onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            for node in onnx.load(options.optimized_model_filepath).graph.node:
                found[node.op_type] = found.get(node.op_type, 0) + 1
        return found

    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(6272, 4)]
    program = trace(nn.Sequential(*layers).eval(), tensor())
    program = quantize(program, "onnx", image(count=2), choices={"start": "integer"})
    whole = kernels([program])
    parts = cut(program, (tensor(),))
    assert parts.repeated == 2
    blocks = kernels([block.program() for block in parts.blocks])
    for name, count in {"QLinearConv": 2, "QGemm": 1, "Conv": None, "Gemm": None}.items():
        assert blocks.get(name) == whole.get(name) == count, name
    assert blocks["QuantizeLinear"] == whole["QuantizeLinear"] + parts.repeated


def test_scales_make_no_other_signature(quantized):
    found = {b.name: b.signature for b in cut(quantized["onnx"], (tensor(),)).blocks}
    assert found["features.3"] == found["features.4"]
    assert len(set(found.values())) == len(found) - 1


def test_constants_that_blocks_share_are_in_each_of_them():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4, bias=False) for _ in range(3))
            self.scale = nn.Parameter(torch.randn(4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = self.scale.exp()
            return self.c(self.b(self.a(x) * scale) * scale) * scale

    x = torch.from_numpy(np.ones((1, 4), np.float32))
    program = trace(Shared().eval(), x)
    parts = cut(program, (x,))
    assert names(parts) == ["a", "b", "c"]
    assert [len(block.reads) for block in parts.blocks] == [1, 1, 1]
    assert reproduced(program, parts, (2 * x,)) <= 1e-5
