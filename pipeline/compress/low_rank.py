"""Low rank: layers as products of two smaller ones, as small as a budget asks for.

How small each becomes is decided for all at once (:mod:`pipeline.compress.allocation`) by what it
does to the network's output, measured, and what it saves: counted, or measured on a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pipeline.compress.allocation import Curve, demand_reachable
from pipeline.compress.costs import Counted, Measured, Options
from pipeline.compress.distortion import SAMPLES, Build, Distortion, Model, few_samples
from pipeline.compress.factors import (
    Factors,
    Layer,
    Responses,
    factorable,
    product,
    ranks_of,
    replace,
    replaced,
    responses,
)
from pipeline.compress.workbench import Workbench
from pipeline.training import Callback
from profiles.compression import Budget, LowRank
from profiles.errors import StageError, UsageError


def apply(
    module: nn.Module, settings: LowRank, bench: Workbench
) -> tuple[nn.Module, dict[str, Any]]:
    """Replace layers by two smaller ones each, to a budget.

    Args:
        module: from :func:`pipeline.compress.module.module_of`; changed in place.
        settings: how.
        bench: with what.

    Returns:
        The module, where ``path`` has become ``path.0`` and ``path.1``, and the record: each
        layer's curve and rank, the share of the cost that remains, whether distortions add up.

    Raises:
        StageError: if no layer can be factorised, the model gives values that are not finite, or
            the budget cannot be met, with the nearest that can.
        DeviceError: if a device that measures costs cannot be reached or leaves.
    """
    layers = factorable(module)
    if not layers:
        raise StageError("the model has no convolution or linear layer that two would be less than")
    meter = Distortion(module, bench.calibration)
    seen = responses(module, layers, bench.calibration[:SAMPLES])
    factors = {path: _factors(layers[path], its) for path, its in seen.items()}
    options = {path: (layers[path], *its) for path, its in factors.items()}
    costs = _costs(module, options, seen, settings.budget, bench)
    demand_reachable(list(costs.of.values()), costs.whole, settings.budget)
    levels = {path: (_full(layers[path]), *map(float, ranks_of(layers[path]))) for path in seen}
    build = _factorised(module, levels, options)
    distortions = meter.curves(levels, build, bench.progress)
    curves = [Curve(path, levels[path], distortions[path], costs.of[path]) for path in seen]
    choice, found = costs.settle(curves, settings.budget)
    record = {
        **found,
        "layers": {curve.name: _described(curve, choice.options[curve.name]) for curve in curves},
        "additivity": meter.additivity(curves, choice, build),
        **few_samples(len(bench.calibration)),
    }
    chosen = {path: factors[path][number - 1] for path, number in choice.options.items() if number}
    near = Nearness({path: layers[path] for path in chosen}, chosen, settings.perturb)
    replace(module, chosen)
    record["validation_accuracy_untrained"] = bench.accuracy(module)
    if settings.train:
        callbacks = [near] if settings.perturb else []
        record |= bench.fine_tune(
            module, settings.train, settings.distil, settings.name, callbacks=callbacks
        )
    return module, record


def _full(layer: Layer) -> float:
    """The rank that a layer has as it is, at most."""
    return float(min(layer.weight.shape[0], layer.weight[0].numel()))


def _factors(layer: Layer, seen: Responses) -> tuple[nn.Sequential, ...]:
    """A layer's factors of each rank."""
    factors = Factors(layer, seen)
    return tuple(factors.of_rank(rank) for rank in ranks_of(layer))


def _factorised(
    module: nn.Module, levels: Mapping[str, tuple[float, ...]], options: Options
) -> Build:
    def build(asked: Mapping[str, float]) -> Model:
        layers = {path: options[path][levels[path].index(level)] for path, level in asked.items()}

        def model(x: torch.Tensor) -> torch.Tensor:
            with replaced(module, layers):
                outputs: torch.Tensor = module(x)
                return outputs

        return model

    return build


def _costs(
    module: nn.Module,
    options: Options,
    seen: Mapping[str, Responses],
    budget: Budget,
    bench: Workbench,
) -> Counted | Measured:
    if not budget.is_measured:
        return Counted(budget.cost, module, options, seen, bench.example)
    if bench.gauge is None:
        raise UsageError(f"budget: {budget.cost}: no device to measure it on")
    return Measured(bench.gauge, module, options, seen, bench.example)


def _described(curve: Curve, option: int) -> dict[str, Any]:
    """A layer's line in the record."""
    return {
        "rank": int(curve.levels[option]),
        "factorised": option > 0,
        "cost_share": curve.costs[option] / curve.costs[0],
        "ranks": [int(level) for level in curve.levels],
        "distortions": list(curve.distortions),
        "costs": list(curve.costs),
    }


class Nearness(Callback):
    """Keeps factors near what they stand for, while they are trained.

    Source: Guo et al., "PELA: Learning Parameter-Efficient Models with Low-Rank Approximation"
    (2023): regularised weight perturbation.

    Args:
        originals: the layers, by path.
        factors: their two factors each, by path.
        strength: of the term: the mean over layers of the product's squared distance from the
            original weight, as a share of that weight's squares.
    """

    def __init__(
        self,
        originals: Mapping[str, Layer],
        factors: Mapping[str, nn.Sequential],
        strength: float,
    ) -> None:
        self._pairs = [
            (layer.weight.detach().flatten(1).clone(), factors[path])
            for path, layer in originals.items()
        ]
        self._strength = strength

    def penalty(self) -> torch.Tensor | None:
        """The term of the loss."""
        if not self._pairs:
            return None
        distances = [
            (product(pair) - weight).square().sum() / weight.square().sum()
            for weight, pair in self._pairs
        ]
        return self._strength * torch.stack(distances).mean()
