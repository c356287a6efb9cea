"""Channels padded for the integer depthwise kernel: the same function, and what hangs together."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.compress.padding import MULTIPLE, pad_depthwise


class Gated(nn.Module):
    """An inverted residual block with a gate, of any width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(8, width, 1)
        self.deep = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.down, self.up = nn.Conv2d(width, 4, 1), nn.Conv2d(4, width, 1, bias=False)
        self.narrow = nn.Conv2d(width, 8, 1)
        self.scale = nn.Parameter(torch.rand(1, width, 1, 1))

    def forward(self, x):
        y = nn.functional.relu6(self.deep(nn.functional.hardswish(self.widen(x))))
        gate = self.up(torch.relu(self.down(nn.functional.adaptive_avg_pool2d(y, 1))))
        return x + self.narrow(y * torch.sigmoid(gate) * self.scale)


class Shared(nn.Module):
    """A convolution that reads padded channels and makes some; one filter serves two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 24, 1)
        self.deep = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.mix = nn.Conv2d(24, 24, 1)
        self.last = nn.Conv2d(24, 3, 1)

    def forward(self, x):
        y = self.deep(self.first(x))
        y = y + self.mix(y)
        return self.last(y + self.mix(y))


class Flat(nn.Module):
    """Channels that reach a linear layer by way of a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(8, 24, 1)
        self.deep = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.head = nn.Linear(24 * 25, 3)

    def forward(self, x):
        return self.head(self.deep(self.first(x)).flatten(1))


class Joined(nn.Module):
    """Channels that are the network's output, or stand beside others."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first = nn.Conv2d(8, 24, 1)
        self.deep = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.last = nn.Conv2d(48 if how == "cat" else 24, 3, 1)
        self.bias = nn.Parameter(torch.rand(24, 1, 1))

    def forward(self, x):
        y = self.deep(self.first(x))
        if self.how == "output":
            return y
        return self.last(torch.cat([y, y], 1) if self.how == "cat" else y + self.bias)


def padded(network: nn.Module, size: int = 5):
    """A network's graph before and after padding, and an input."""
    torch.manual_seed(0)
    x = torch.randn(1, 8, size, size)
    graph = torch.export.export(network.eval(), (x,), strict=False).module()
    before = graph(x)
    layers = [node for node in graph.graph.nodes if "conv2d" in str(node.target)]
    pad_depthwise(graph, [node for node in layers if node.op == "call_function"])
    graph.graph.lint()
    return graph, x, before


def widths(graph) -> list[int]:
    return [
        int(node.meta["val"].shape[1])
        for node in graph.graph.nodes
        if node.op == "call_function" and "conv2d" in str(node.target)
    ]


@pytest.mark.parametrize("width", [9, 24, 40, 88])
def test_a_gated_block_computes_the_same_with_padded_channels(width):
    graph, x, before = padded(Gated(width))
    torch.testing.assert_close(graph(x), before)
    full = -(-width // MULTIPLE) * MULTIPLE
    assert widths(graph) == [full, full, 4, full, 8]


def test_shapes_that_a_graph_notes_are_those_that_it_computes():
    graph, x, _ = padded(Gated(24))
    seen = {}

    class Look(torch.fx.Interpreter):
        def run_node(self, node):
            seen[node] = super().run_node(node)
            return seen[node]

    Look(graph).run(x)
    for node, value in seen.items():
        if isinstance(value, torch.Tensor) and "val" in node.meta:
            assert tuple(node.meta["val"].shape) == tuple(value.shape), node


def test_a_layer_may_read_and_make_padded_channels_and_filters_may_serve_two_layers():
    graph, x, before = padded(Shared())
    torch.testing.assert_close(graph(x), before)
    assert widths(graph) == [32, 32, 32, 32, 3]


@pytest.mark.parametrize(
    ("network", "why"),
    [
        (Gated(32), "a width that the kernel takes well"),
        (Gated(7), "more copies than there are channels"),
        (Flat(), "channels that are no channels further on"),
        (Joined("output"), "the network's output"),
        (Joined("cat"), "a concatenation"),
        (Joined("constant"), "a constant of another rank"),
    ],
)
def test_what_cannot_be_padded_stays_as_it_is(network, why):
    graph, x, before = padded(network)
    assert torch.equal(graph(x), before), why
    assert not [name for name, _ in graph.named_buffers() if "padded" in name], why


def test_no_constant_is_left_that_nothing_reads():
    graph, *_ = padded(Gated(24))
    assert all(node.users for node in graph.graph.nodes if node.op == "get_attr")


def test_padded_channels_reach_the_artifact_as_integers(tmp_path):
    import onnx
    import onnxruntime

    from pipeline.compress.quantize import quantize
    from pipeline.export import write_artifact
    from pipeline.model import trace

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.ReLU(), Gated(24)).eval()
    samples = torch.randn(8, 3, 64, 64)
    path = tmp_path / "int8.onnx"
    program = quantize(trace(network, samples[:1]), "onnx", samples.numpy())
    write_artifact(program, "onnx", path)
    shapes = {tuple(each.dims) for each in onnx.load(path).graph.initializer}
    assert (32, 1, 3, 3) in shapes and (24, 1, 3, 3) not in shapes
    session = onnxruntime.InferenceSession(path)
    for sample in samples.split(1):
        given = {session.get_inputs()[0].name: sample.numpy()}
        expected = network(sample).detach()
        found = torch.from_numpy(session.run(None, given)[0])
        assert torch.nn.functional.cosine_similarity(found.ravel(), expected.ravel(), 0) > 0.995
