"""Statistics of batch norms, for a network that is no longer the one they were taken from."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pipeline.data import Images
from pipeline.training import torch_threads

_BATCH = 32


def settle(module: nn.Module, samples: Images) -> bool:
    """Set batch-norm statistics from images.

    What is removed from a network changes what all layers behind it are given.  NNCF calls this
    batch-norm adaptation.

    Args:
        module: in place; left in evaluation mode.
        samples: inputs, shape ``(n, channels, height, width)``.

    Returns:
        Whether there was anything to set, and to set it from: one image may have one value per
        channel, which has no variance.
    """
    norms = [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]
    module.eval()
    if not norms or len(samples) < 2:
        return False
    momenta = [norm.momentum for norm in norms]
    # Of equal size: a rest of one image would have no variance, and count as much as a whole batch.
    batches = np.array_split(samples, -(-len(samples) // _BATCH))
    for number, batch in enumerate(batches, 1):
        for norm in norms:
            norm.momentum = 1 / number  # a plain average over batches
            norm.train()
        with torch.no_grad(), torch_threads(1):
            module(torch.from_numpy(batch))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    module.eval()
    return True
