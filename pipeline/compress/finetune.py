"""Further training without any change of shape."""

from __future__ import annotations

from typing import Any

from torch import nn

from pipeline.compress.workbench import Workbench
from profiles.compression import Tuned


def apply(module: nn.Module, settings: Tuned, bench: Workbench) -> tuple[nn.Module, dict[str, Any]]:
    """Fine-tune a model.

    Args:
        module: to train, in place.
        settings: how.
        bench: with what.

    Returns:
        The module and the record of its training.
    """
    before = bench.accuracy(module)
    record = bench.fine_tune(module, settings.train, settings.distil, settings.name)
    return module, {"validation_accuracy_before": before, **record}
