"""Unstructured magnitude pruning with NNCF.

Zeros do not make a dense kernel faster: they serve size after compression, and sparse kernels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pipeline.compress import silence_telemetry
from pipeline.compress.workbench import Workbench
from pipeline.quiet import quiet
from profiles.compression import Sparse
from profiles.errors import StageError

DEFAULT_SPARSITY = 0.5


def apply(
    module: nn.Module, settings: Sparse, bench: Workbench
) -> tuple[nn.Module, dict[str, Any]]:
    """Set the smallest weights of a model to zero."""
    return prune(module, settings.sparsity or DEFAULT_SPARSITY, bench.example)


def prune(
    module: nn.Module, sparsity: float, example: torch.Tensor
) -> tuple[nn.Module, dict[str, Any]]:
    """Set the smallest weights of convolutions and linear layers, over the whole model, to zero.

    Args:
        module: of :func:`pipeline.compress.module.module_of`.
        sparsity: share of those weights to set to zero.
        example: one input.

    Returns:
        The pruned module, and its record: the sparsity asked for and found.

    Raises:
        StageError: if the model has no such layer.
    """
    try:
        with quiet():
            silence_telemetry()
            import nncf

            masked = nncf.prune(
                _Plain(module),
                mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL,
                ratio=sparsity,
                examples_inputs=example,
            )
            stripped = nncf.strip(
                masked, strip_format=nncf.StripFormat.IN_PLACE, example_input=example
            )
            pruned = stripped.module
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise StageError(f"NNCF cannot prune the model: {reason}") from error
    weights = [p for p in pruned.parameters() if p.ndim > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    found = zeros / sum(weight.numel() for weight in weights)
    return pruned, {"sparsity_asked": sparsity, "sparsity_found": found}


class _Plain(nn.Module):
    """A module around a graph: NNCF refuses to prune a bare one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input: torch.Tensor) -> Any:
        """The graph's own forward pass."""
        return self.module(input)
