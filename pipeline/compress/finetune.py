"""Further training without any change of shape."""

from __future__ import annotations

from typing import Any

from torch import nn

from pipeline.compress.masks import nonzero, prunable
from pipeline.compress.schedules import Held
from pipeline.compress.workbench import Workbench
from profiles.compression import Tuned


def apply(module: nn.Module, settings: Tuned, bench: Workbench) -> tuple[nn.Module, dict[str, Any]]:
    """Fine-tune a model; where single weights of a layer are zero already, they stay zero.

    Args:
        module: to train, in place.
        settings: how.
        bench: with what.

    Returns:
        The module and the record of its training, with the layers whose zeros were held.
    """
    before = bench.accuracy(module)
    weights = prunable(module)
    # A layer of nothing but zeros was not pruned but begins so, as the last of a block may.
    masks = {p: mask for p, mask in nonzero(weights).items() if mask.any() and not mask.all()}
    callbacks = [Held(weights, masks)] if masks else []
    record = bench.fine_tune(
        module, settings.train, settings.distil, settings.name, callbacks=callbacks
    )
    return module, {"validation_accuracy_before": before, "zeros_held": sorted(masks), **record}
