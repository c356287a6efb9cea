"""Attention written out: the same numbers, and nothing outside the delegate but what must be."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attend

from pipeline.export import write_artifact
from pipeline.export.attention import write_out_attention
from pipeline.model import trace

ATTENTION = torch.ops.aten.scaled_dot_product_attention.default


class Heads(nn.Module):
    """Attention over what a linear layer gives, with PyTorch's own settings."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.settings = settings

    def forward(self, x):
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        return attend(q, k, v, **self.settings).transpose(1, 2).flatten(2)


def operators(program) -> set:
    return {node.target for node in program.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize("settings", [{}, {"scale": 0.3}])
def test_attention_without_a_mask_becomes_products(settings):
    torch.manual_seed(0)
    network, x = Heads(**settings).eval(), torch.randn(1, 5, 8)
    program = write_out_attention(trace(network, x))
    assert ATTENTION not in operators(program)
    torch.testing.assert_close(program.module()(x), network(x))


@pytest.mark.parametrize("settings", [{"is_causal": True}, {"attn_mask": torch.ones(5, 5) > 0}])
def test_attention_with_a_mask_stays_what_it_is(settings):
    network, x = Heads(**settings).eval(), torch.randn(1, 5, 8)
    program = write_out_attention(trace(network, x))
    assert ATTENTION in operators(program)
    torch.testing.assert_close(program.module()(x), network(x))


def test_a_program_without_attention_is_handed_on():
    program = trace(nn.Linear(3, 2).eval(), torch.randn(1, 3))
    assert write_out_attention(program) is program


def test_no_operator_of_attention_is_outside_the_delegate(tmp_path):
    torch.manual_seed(0)
    record = write_artifact(
        trace(Heads().eval(), torch.randn(1, 5, 8)), "executorch", tmp_path / "heads.pte"
    )
    outside = {each["operator"] for each in record["placement"]["outside"]}
    assert outside <= {"aten.squeeze_copy.dims", "aten.view_copy.default"}
