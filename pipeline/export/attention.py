"""Attention written out as the products and the softmax that a delegate takes.

PyTorch's own decomposition of attention guards its softmax against rows that a mask leaves empty,
and broadcasts four-dimensional products.  Without a mask no row is empty, and both cost much more
than they do: in ExecuTorch some forty operators of a four-layer transformer stay outside XNNPACK,
each a hand-over and a copy, and take half of its time (``BENCHMARKS.md``).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


def write_out_attention(program: ExportedProgram) -> ExportedProgram:
    """A program whose attentions without a mask are matrix products and a softmax.

    Args:
        program: is left as it is.  What is masked, causal, grouped or drops values stays what it
            is: PyTorch's decomposition knows all of that.

    Returns:
        A program that computes the same; the given one where it has no attention.
    """
    import torch

    from pipeline.quiet import quiet

    attention = torch.ops.aten.scaled_dot_product_attention.default
    if all(node.target != attention for node in program.graph.nodes):
        return program
    with quiet():  # it copies a tree of a kind that PyTorch itself calls deprecated
        return program.run_decompositions({attention: _attention})


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """``softmax(query key^T scale) value``, over all heads of all examples in one dimension.

    Args:
        query, key, value: shapes ``(..., length, width)``.
        attn_mask, dropout_p, is_causal, scale, enable_gqa: as PyTorch's.

    Returns:
        Shape ``(..., length, width of value)``, or ``NotImplemented`` for what is not this.
    """
    import torch

    outer = query.shape[:-2]
    like_query = key.shape[:-2] == outer and value.shape[:-2] == outer
    if attn_mask is not None or dropout_p or is_causal or enable_gqa or not like_query:
        return NotImplemented
    width = query.shape[-1]
    q, k, v = (each.reshape(-1, *each.shape[-2:]) for each in (query, key, value))
    q = q * (1 / math.sqrt(width) if scale is None else scale)
    weights = torch.softmax(torch.bmm(q, k.transpose(1, 2)), -1)
    return torch.bmm(weights, v).reshape(*outer, *query.shape[-2:-1], value.shape[-1])
