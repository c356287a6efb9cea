"""How sparse each layer should be: much where the network's output hardly feels it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator
from torch import nn
from torch.func import functional_call

from pipeline.compress.allocation import Choice, Curve, choose, least_cost
from pipeline.compress.distortion import Build, Distortion, Model, few_samples
from pipeline.compress.masks import local, prunable
from pipeline.compress.workbench import Workbench
from profiles.errors import StageError

#: Sparsities at which a layer's distortion is measured.
MEASURED = (0.0, 0.25, 0.5, 0.65, 0.8, 0.9, 0.95, 0.98, 0.995)
#: Sparsities that may be chosen; between those measured the curve is interpolated.
OFFERED = (*(i / 100 for i in range(98)), *(i / 1000 for i in range(980, 996)))


def sparsities(
    module: nn.Module, sparsity: float, bench: Workbench
) -> tuple[dict[str, float], dict[str, Any]]:
    """Spread a sparsity over the layers so that the network's output changes least.

    Args:
        module: from :func:`pipeline.compress.module.module_of`.
        sparsity: share of the weights of all convolutions and linear layers to set to zero.
        bench: its calibration data is what distortion is measured on.

    Returns:
        By path in the module, each layer's sparsity; and the record: the measured curves, what was
        chosen, and whether distortions add up.

    Raises:
        StageError: if the model has no such layer, gives values that are not finite, or cannot
            become so sparse.

    *Source*: Xu et al., "Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep
    Neural Networks" (2023).
    """
    weights = prunable(module)
    if not weights:
        raise StageError("the model has no convolution and no linear layer: nothing to prune")
    total = sum(weight.numel() for weight in weights.values())
    meter = Distortion(module, bench.calibration)
    build = _masked(module, weights)
    measured = meter.curves(dict.fromkeys(weights, MEASURED), build, bench.progress)
    curves = [
        Curve(path, OFFERED, _interpolated(measured[path]), _kept(weight))
        for path, weight in weights.items()
    ]
    choice = _choose(curves, sparsity, total)
    record = {
        "layers": {
            path: {
                "weights": weight.numel(),
                "sparsity": choice.levels[path],
                "curve": [list(pair) for pair in zip(MEASURED, measured[path], strict=True)],
            }
            for path, weight in weights.items()
        },
        "sparsity_allocated": 1 - choice.cost / total,
        "additivity": meter.additivity(curves, choice, build),
        **few_samples(len(bench.calibration)),
    }
    return dict(choice.levels), record


def _masked(module: nn.Module, weights: Mapping[str, torch.Tensor]) -> Build:
    """Builds the network with its layers' smallest weights at zero."""

    def build(levels: Mapping[str, float]) -> Model:
        kept = local({path: weights[path] for path in levels}, levels)
        masked = {f"{path}.weight": weights[path].detach() * kept[path] for path in levels}
        return lambda x: functional_call(module, masked, (x,))

    return build


def _interpolated(distortions: tuple[float, ...]) -> tuple[float, ...]:
    """Distortions at all sparsities offered; their roots are smoother, and never overshoot here."""
    roots: NDArray[np.float64] = PchipInterpolator(MEASURED, np.sqrt(distortions))(OFFERED)
    return tuple(float(root) ** 2 for root in roots)


def _kept(weight: torch.Tensor) -> tuple[float, ...]:
    count = weight.numel()
    return tuple(float(count - round(count * sparsity)) for sparsity in OFFERED)


def _choose(curves: list[Curve], sparsity: float, total: int) -> Choice:
    highest = 1 - least_cost(curves) / total
    if sparsity > highest:
        raise StageError(
            f"sparsity: {sparsity:g} cannot be met: the nearest that can is {highest:.4f}",
            "ask for less",
        )
    return choose(curves, (1 - sparsity) * total)
