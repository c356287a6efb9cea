"""Single weights set to zero: at once, or while training.

Zeros do not make a dense kernel faster: they serve size after compression, and sparse kernels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from pipeline.compress import masks as masking
from pipeline.compress import nncf_pruning
from pipeline.compress.batch_norms import settle
from pipeline.compress.masks import Masks, Weights, prunable
from pipeline.compress.schedules import Adaptive, Choose, Cyclical, Gradual, Held
from pipeline.compress.workbench import Workbench
from pipeline.training import Callback
from profiles.compression import Sparse, Training
from profiles.errors import StageError

DEFAULT_SPARSITY = 0.5
#: Of masked weights while an N:M pattern is trained.  Source: Zhou et al., "Learning N:M
#: Fine-grained Structured Sparse Neural Networks From Scratch", 2021.
DECAY = 2e-4


def apply(
    module: nn.Module, settings: Sparse, bench: Workbench
) -> tuple[nn.Module, dict[str, Any]]:
    """Set the smallest weights of a model to zero, at once or while it is trained.

    Args:
        module: of :func:`pipeline.compress.module.module_of`; changed in place.
        settings: how sparse, where, when, and how to train.
        bench: with what.

    Returns:
        The module, and the record: the sparsity asked for and found, of the whole and of each
        layer; layers that were left dense and why; layers of which nothing is left; the training,
        or without any, whether batch norms were settled on what they are given now.

    Raises:
        StageError: if no layer can be pruned so, or the training comes to nothing.
        DataError: if the data does not fit the model.
        UsageError: if there are no such features to learn from.
    """
    weights = prunable(module)
    if not weights:
        raise StageError(f"{settings.name}: the model has no convolution and no linear layer")
    if settings.pattern:
        record = _patterned(module, settings, bench, weights)
    elif settings.scope == "regularised":
        record = _regularised(module, settings, bench, weights)
    else:
        record = _by_magnitude(module, settings, bench, weights)
    if record["empty"]:
        bench.progress(
            f"{settings.name}: nothing is left of {', '.join(record['empty'])}:"
            " ask for a lower sparsity, or for scope: local"
        )
    return module, record


def _by_magnitude(
    module: nn.Module, settings: Sparse, bench: Workbench, weights: Weights
) -> dict[str, Any]:
    """The smallest go: ranked everywhere, in each layer, or by each layer's share."""
    sparsity = settings.sparsity or DEFAULT_SPARSITY
    record: dict[str, Any] = {}
    asked: Mapping[str, float] = {}
    if settings.scope == "layer-adaptive":
        from pipeline.compress.layer_adaptive import sparsities

        asked, record["allocation"] = sparsities(module, sparsity, bench)
    elif settings.scope == "local":
        asked = dict.fromkeys(weights, sparsity)
    if settings.schedule == "one-shot":
        if settings.scope == "layer-adaptive":
            masking.apply(weights, masking.local(weights, asked))
        else:
            nncf_pruning.prune(module, sparsity, bench.example, settings.scope)
        callback: Callback = Held(weights, masking.nonzero(weights))
    else:
        choose = partial(_overall, sparsity) if not asked else partial(_local, asked)
        callback = _scheduled(settings, weights, choose)
    record |= _trained(module, settings, settings.train, bench, callback)
    return {"sparsity_asked": sparsity, **found(weights, asked), **record}


def _regularised(
    module: nn.Module, settings: Sparse, bench: Workbench, weights: Weights
) -> dict[str, Any]:
    """One half of the epochs for the masks, the other for what they leave."""
    sparsity, training = settings.sparsity or DEFAULT_SPARSITY, settings.train or Training()
    first = -(-training.epochs // 2)
    scores = training.model_copy(update={"epochs": first})
    label = f"{settings.name} (masks)"
    learned = nncf_pruning.regularise(module, sparsity, scores, settings.distil, bench, label)
    record: dict[str, Any] = {"masks": learned}
    if training.epochs > first:
        rest = training.model_copy(update={"epochs": training.epochs - first})
        callback = Held(weights, masking.nonzero(weights))
        record |= _trained(module, settings, rest, bench, callback)
    return {"sparsity_asked": sparsity, **found(weights, {}), **record}


def _patterned(
    module: nn.Module, settings: Sparse, bench: Workbench, weights: Weights
) -> dict[str, Any]:
    """At most N of M neighbours: masks adapt while the model is trained, if it is."""
    kept, of = settings.kept_of
    unfit = masking.misfits(weights, of)
    fit = {path: weight for path, weight in weights.items() if path not in unfit}
    if not fit:
        path, reason = next(iter(unfit.items()))
        raise StageError(
            f"{settings.name}: the pattern {settings.pattern} fits no layer: {path}: {reason}",
            "choose an M that divides the layers' input channels",
        )
    if settings.train is None:
        masking.apply(fit, masking.n_of_m(fit, kept, of))
    choose = partial(_n_of_m, kept, of)
    callback = Adaptive(fit, choose, DECAY)
    record = _trained(module, settings, settings.train, bench, callback)
    broken = [path for path, weight in fit.items() if not masking.keeps_pattern(weight, kept, of)]
    if broken:
        raise StageError(f"{settings.name}: {broken[0]} does not keep {settings.pattern}")
    asked = dict.fromkeys(fit, 1 - kept / of)
    return {
        "pattern": settings.pattern,
        **found(weights, asked),
        "left_dense": unfit,
    } | record


def _scheduled(settings: Sparse, weights: Weights, choose: Choose) -> Callback:
    if settings.schedule == "gradual":
        return Gradual(weights, choose)
    return Cyclical(weights, choose, settings.cycles)


def _overall(sparsity: float, weights: Weights, share: float) -> Masks:
    return masking.overall(weights, sparsity * share)


def _local(asked: Mapping[str, float], weights: Weights, share: float) -> Masks:
    return masking.local(weights, {path: its * share for path, its in asked.items()})


def _n_of_m(kept: int, of: int, weights: Weights, share: float) -> Masks:
    return masking.n_of_m(weights, kept, of)


def _trained(
    module: nn.Module,
    settings: Sparse,
    training: Training | None,
    bench: Workbench,
    callback: Callback,
) -> dict[str, Any]:
    if training is None:
        return {"batch_norms_settled": True} if settle(module, bench.calibration) else {}
    return bench.fine_tune(module, training, settings.distil, settings.name, callbacks=(callback,))


def found(weights: Weights, asked: Mapping[str, float]) -> dict[str, Any]:
    """The record of what is zero: of all weights, of each layer, and layers without anything else.

    Args:
        weights: by path.
        asked: by path, the share that was asked of a layer.
    """
    zeros = {path: int((weight == 0).sum()) for path, weight in weights.items()}
    layers = {
        path: {"weights": weight.numel(), "found": zeros[path] / weight.numel()}
        | ({"asked": asked[path]} if path in asked else {})
        for path, weight in weights.items()
    }
    every = sum(weight.numel() for weight in weights.values())
    empty = [path for path, weight in weights.items() if zeros[path] == weight.numel()]
    return {"sparsity_found": sum(zeros.values()) / every, "layers": layers, "empty": empty}
