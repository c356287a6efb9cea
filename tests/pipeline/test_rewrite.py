"""Rewritten graphs compute the same, and rewriting knows where it does not apply."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e.utils import _fuse_conv_bn_

from pipeline.compress.rewrite import decompose_hard_activations, pool_by_window
from pipeline.model import trace
from tests.pipeline.networks import MobileLike, image, settled

F = nn.functional
WIDTH = 6


class Net(nn.Module):
    """Two layers, and a function that connects them."""

    def __init__(self, connect: Callable[..., torch.Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.connect = connect
        torch.manual_seed(0)
        self.a, self.b = layers or (nn.Conv2d(3, WIDTH, 3), nn.Conv2d(3, WIDTH, 3, bias=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.connect(self, x)

    def twice(self, y: torch.Tensor) -> torch.Tensor:
        return y + F.hardswish(y)


def graph_of(module: nn.Module, x: torch.Tensor) -> torch.fx.GraphModule:
    torch.manual_seed(0)
    return trace(module, x[:1]).module(check_guards=False)


def targets(graph: torch.fx.GraphModule) -> list[str]:
    calls = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    return [str(target).removeprefix("aten.").partition(".")[0] for target in calls]


def rewritten(module: nn.Module, x: torch.Tensor) -> torch.fx.GraphModule:
    """Rewrite, and check that nothing changed but how it is computed."""
    graph = graph_of(module, x)
    expected = graph(x[:1])
    results = decompose_hard_activations(graph)
    assert all(node in graph.graph.nodes for node in results)
    # FP32 rounds a sum of 28 products to some millionths.
    torch.testing.assert_close(graph(x[:1]), expected, atol=1e-6, rtol=1e-5)
    return graph


@pytest.fixture
def x() -> torch.Tensor:
    # Large enough for both ends of the activations' ranges.
    return 6 * torch.from_numpy(image())


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("layer", ["a", "b"], ids=["bias", "no bias"])
def test_hardswish_becomes_an_addition_a_clamp_and_a_product(x, layer, inplace):
    net = Net(lambda s, x: F.hardswish(getattr(s, layer)(x), inplace=inplace))
    assert targets(rewritten(net, x)) == ["conv2d", "add", "clamp", "mul"]


@pytest.mark.parametrize("layer", ["a", "b"], ids=["bias", "no bias"])
def test_hardsigmoid_becomes_a_clamp(x, layer):
    net = Net(lambda s, x: F.hardsigmoid(getattr(s, layer)(x)))
    assert targets(rewritten(net, x)) == ["conv2d", "clamp"]


def test_layers_over_rows_take_factors_up_too(x):
    rows = x.flatten(1)[:, :64]
    net = Net(
        lambda s, x: F.hardsigmoid(s.b(F.hardswish(s.a(x)))), nn.Linear(64, 8), nn.Linear(8, 8)
    )
    expected = ["linear", "add", "clamp", "mul", "linear", "clamp"]
    assert targets(rewritten(net, rows)) == expected


def test_a_layer_called_twice_is_scaled_for_one_call_only(x):
    net = Net(lambda s, x: F.hardswish(s.a(x)) + s.a(x) + F.hardsigmoid(s.a(-x)))
    found = targets(rewritten(net, x))
    assert found.count("conv2d") == 3
    assert not [name for name in found if name.startswith("hard")]


@pytest.mark.parametrize(
    "connect",
    [
        pytest.param(lambda s, x: F.hardswish(x), id="the input"),
        pytest.param(lambda s, x: F.hardswish(s.a(x) + s.b(x)), id="a sum"),
        pytest.param(lambda s, x: s.a(x).mul(F.hardsigmoid(s.b(x) * 2)), id="a product"),
        pytest.param(lambda s, x: s.twice(s.a(x)), id="read twice"),
        pytest.param(lambda s, x: F.hardswish(F.conv2d(x, s.a.weight * 2)), id="computed weights"),
    ],
)
def test_others_stay(x, connect):
    found = targets(rewritten(Net(connect), x))
    assert len([name for name in found if name.startswith("hard")]) == 1
    assert "clamp" not in found


def test_only_what_is_meant_is_rewritten(x):
    graph = graph_of(Net(lambda s, x: F.hardswish(s.a(x)) * F.hardsigmoid(s.b(x))), x)
    decompose_hard_activations(graph, lambda node: "hardsigmoid" in node.name)
    assert targets(graph) == ["conv2d", "hardswish", "conv2d", "clamp", "mul"]


def test_a_whole_network_once_its_batch_norms_are_folded(x):
    torch.manual_seed(0)
    graph = graph_of(settled(MobileLike()), x)
    _fuse_conv_bn_(graph)
    expected = graph(x[:1])
    assert len(decompose_hard_activations(graph)) == 14
    found = targets(graph)
    assert not [name for name in found if name.startswith(("hard", "batch_norm"))]
    torch.testing.assert_close(graph(x[:1]), expected, atol=1e-6, rtol=1e-5)


def test_new_nodes_know_their_values_and_their_module(x):
    graph = graph_of(Net(lambda s, x: F.hardsigmoid(s.b(F.hardswish(s.a(x))[:, :3]))), x)
    decompose_hard_activations(graph)
    for node in graph.graph.nodes:
        if node.op == "call_function":
            assert node.meta["nn_module_stack"]
            assert node.meta["val"].shape[0] == 1
    (half,) = [node for node in graph.graph.nodes if str(node.target).endswith("half")]
    assert half.meta["val"].shape == ()


def test_global_pooling_becomes_pooling_by_a_window():
    x = torch.randn(2, 3, 6, 4)
    net = Net(lambda _, x: F.adaptive_avg_pool2d(x, 1)[..., 0, 0] * x.mean((-1, 2)))
    graph = torch.export.export(net, (x,), strict=False).module()
    expected = graph(x)
    assert targets(pool_by_window(graph)).count("avg_pool2d") == 2
    torch.testing.assert_close(graph(x), expected, atol=1e-6, rtol=1e-6)


def test_other_means_are_left_alone():
    x = torch.randn(2, 3, 6, 4)
    net = Net(lambda _, x: x.mean((1, 2)) + x.mean(1).mean(1) + F.adaptive_avg_pool2d(x, 2).sum())
    graph = torch.export.export(net, (x,), strict=False).module()
    assert "avg_pool2d" not in targets(pool_by_window(graph))
