"""What Torch-Pruning's dependency graph says: which layers hang on a layer's outputs.

Source: Fang et al., "DepGraph: Towards Any Structural Pruning" (2023).
"""

from __future__ import annotations

import torch
from torch import nn

from pipeline.quiet import quiet


def coupled_layers(module: nn.Module, example: torch.Tensor) -> dict[str, set[str]] | str:
    """For each convolution and linear layer, the layers whose channels go with its outputs.

    Args:
        module: in evaluation mode; its parameters need no gradients, and keep what they have.
        example: one input.

    Returns:
        Paths by path, or why Torch-Pruning cannot trace the module.
    """
    import torch_pruning

    paths = {layer: path for path, layer in module.named_modules()}
    roots = [layer for layer in paths if isinstance(layer, nn.Conv2d | nn.Linear)]
    asked = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        with quiet(), torch.enable_grad():
            module.requires_grad_()
            graph = torch_pruning.DependencyGraph().build_dependency(module, example)
            return {paths[root]: _coupled(graph, root, paths) for root in roots}
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        return f"{type(error).__name__}: {reason}"
    finally:
        for parameter, before in asked.items():
            parameter.requires_grad_(before)


def _coupled(graph: object, root: nn.Module, paths: dict[nn.Module, str]) -> set[str]:
    prune = graph.get_pruner_of_module(root).prune_out_channels  # type: ignore[attr-defined]
    group = graph.get_pruning_group(root, prune, idxs=[0])  # type: ignore[attr-defined]
    found = (dependency.target.module for dependency, _ in group)
    return {paths[layer] for layer in found if layer in paths}
