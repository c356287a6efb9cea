"""Unstructured magnitude pruning with NNCF.

Zeros do not make a dense kernel faster: they serve size after compression, and sparse kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from pipeline.compress import silence_telemetry
from pipeline.model import trace_graph
from pipeline.quiet import quiet
from profiles.errors import StageError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_ATEN = torch.ops.aten
# NNCF finds weights by the Python functions that use them, not by ATen operators.
_FUNCTIONS = {
    _ATEN.conv2d.default: nn.functional.conv2d,
    _ATEN.linear.default: nn.functional.linear,
}


def prune(
    program: ExportedProgram, sparsity: float, example: torch.Tensor
) -> tuple[ExportedProgram, dict[str, Any]]:
    """Set the smallest weights of convolutions and linear layers, over the whole model, to zero.

    Args:
        program: in FP32.
        sparsity: share of those weights to set to zero.
        example: one input.

    Returns:
        The pruned program, and its record: the sparsity asked for and found.

    Raises:
        StageError: if the model has no such layer.
    """
    try:
        with quiet():
            silence_telemetry()
            import nncf

            masked = nncf.prune(
                _Functional(program),
                mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL,
                ratio=sparsity,
                examples_inputs=example,
            )
            baked = nncf.strip(
                masked, strip_format=nncf.StripFormat.IN_PLACE, example_input=example
            )
            pruned = trace_graph(baked.graph_module, example)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise StageError(f"NNCF cannot prune the model: {reason}") from error
    weights = [p for p in baked.graph_module.parameters() if p.ndim > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    found = zeros / sum(weight.numel() for weight in weights)
    return pruned, {
        "sparsity_asked": sparsity,
        "sparsity_found": found,
    }


class _Functional(nn.Module):
    """A program as a module that calls Python functions, as NNCF's tracing expects."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        exported = program.module()
        graph = exported.graph
        for node in graph.nodes:
            if node.op == "call_function":
                node.target = _FUNCTIONS.get(node.target, node.target)
        self.graph_module = torch.fx.GraphModule(exported, graph)

    def forward(self, input: torch.Tensor) -> Any:
        """The program's own forward pass."""
        return self.graph_module(input)
