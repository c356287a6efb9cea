"""Sparsity while training: when it rises, and whether weights that it took may come back."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Literal

import torch

from pipeline.compress import masks as masking
from pipeline.compress.masks import Masks, Weights
from pipeline.training import Callback

#: The last part of a training, in which masks stay as they are and what is left learns to do alone.
FROZEN = 0.25
#: Masks are chosen anew every so many steps; Zhu & Gupta take 100 to 1000 of trainings that are
#: hundreds of times as long as these.
EVERY = 10
#: Share of the adapting part in which the decay of masked weights rises to its full strength.
RISE = 0.5

#: Masks for weights at a share (0 to 1) of the sparsity that is wanted in the end.
Choose = Callable[[Weights, float], Masks]
Kind = Literal["gradual", "cyclical"]


def risen(kind: Kind, step: int, steps: int, cycles: int = 1) -> float:
    """How much of the final sparsity holds at a step.

    Args:
        kind: ``gradual``: s(t) = s_f + (s_i - s_f)(1 - (t - t0) / (n dt))^3 with t0 = s_i = 0 and
            n dt = the adapting part; ``cyclical``: the same ``cycles`` times over, each from
            nothing.
        step: counts from 0.
        steps: of the whole training; in the last :data:`FROZEN` of it all of the sparsity holds.
        cycles: of ``cyclical``.

    Returns:
        From 0 to 1.

    *Source*: Zhu & Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
    compression", 2017, equation 1; Srinivas et al., "Cyclical Pruning for Sparse Neural Networks",
    2022.
    """
    adapting = adapting_steps(steps)
    if step >= adapting:
        return 1.0
    progress = (step * cycles % adapting if kind == "cyclical" else step) / adapting
    return float(1 - (1 - progress) ** 3)


def adapting_steps(steps: int) -> int:
    """How many steps at the beginning of a training may change masks; never all of them."""
    return min(round(steps * (1 - FROZEN)), steps - 1)


class Held(Callback):
    """Keeps what is zero at zero, whatever momentum and weight decay would make of it.

    Args:
        weights: by path.
        masks: what stays.
    """

    def __init__(self, weights: Weights, masks: Masks) -> None:
        self._weights, self._masks = weights, masks

    @property
    def paths(self) -> Collection[str]:
        """The layers whose masks it decides."""
        return self._weights.keys()

    def finish(self, step: int, steps: int) -> None:
        """After the optimiser's step."""
        masking.apply(self._weights, self._masks)

    def state(self) -> dict[str, torch.Tensor]:
        """The masks."""
        return dict(self._masks)

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take up :meth:`state`."""
        self._masks = dict(state)


class Gradual(Held):
    """Takes more and more weights, for good: what is zero has the least magnitude, and stays.

    Args:
        weights: by path, dense.
        choose: masks for a share of the final sparsity.
    """

    def __init__(self, weights: Weights, choose: Choose) -> None:
        super().__init__(weights, {})
        self._choose = choose

    def begin(self, step: int, steps: int) -> None:
        """Choose anew, where it is time to."""
        if _is_due(step, steps):
            self._masks = self._choose(self._weights, risen("gradual", step, steps))
            masking.apply(self._weights, self._masks)


class Cyclical(Held):
    """Gives all weights a new chance with each cycle: what was taken begins again from zero.

    Each step is one of projected gradient descent: all weights learn, those at zero as well, and
    the largest are kept before the next.  So what had been taken wrongly grows back while a cycle
    is young.  Weights that keep their values under the mask, or learn there, do worse (digits, 97 %
    sparse: 97.2 % and 93.4 % right, and 98.2 % so): the others have learned to do without them.

    Args:
        weights: by path, dense.
        choose: masks for a share of the final sparsity.
        cycles: how many.

    *Source*: Srinivas et al., "Cyclical Pruning for Sparse Neural Networks", 2022.
    """

    def __init__(self, weights: Weights, choose: Choose, cycles: int) -> None:
        super().__init__(weights, {})
        self._choose, self._cycles = choose, cycles

    def begin(self, step: int, steps: int) -> None:
        """Keep the largest."""
        if step <= adapting_steps(steps):
            share = risen("cyclical", step, steps, self._cycles)
            self._masks = self._choose(self._weights, share)
            masking.apply(self._weights, self._masks)

    def finish(self, step: int, steps: int) -> None:
        """After the optimiser's step: once masks are frozen, what is zero stays zero."""
        if step >= adapting_steps(steps):
            masking.apply(self._weights, self._masks)


class Adaptive(Held):
    """Computes with masked weights while dense ones learn under the mask: any may return.

    The gradient of a masked weight is that of the zero in its place, straight through.  Masks are
    chosen by the dense magnitudes; once they are frozen, what is masked is zero for good.

    Args:
        weights: by path, dense.
        choose: masks for the final sparsity.
        decay: is added to the gradients of masked weights, times their values: what is masked
            shrinks, so that masks settle.  It rises from nothing over the first :data:`RISE` of the
            adapting part, so that they explore first.

    *Source*: Zhou et al., "Learning N:M Fine-grained Structured Sparse Neural Networks From
    Scratch", 2021 (SR-STE: the decay); Huang et al., "Pruning Large Language Models with
    Semi-Structural Adaptive Sparse Training", 2024 (the decay rises, then the masks are frozen).
    """

    def __init__(self, weights: Weights, choose: Choose, decay: float) -> None:
        super().__init__(weights, {})
        self._choose, self._decay = choose, decay
        self._dense: dict[str, torch.Tensor] = {}

    def begin(self, step: int, steps: int) -> None:
        """Choose anew, where it is time to, and put zeros where the masks have them."""
        if _is_due(step, steps):
            self._masks = self._choose(self._weights, 1.0)
        if step < adapting_steps(steps):
            self._dense = {path: self._weights[path].detach().clone() for path in self._masks}
        masking.apply(self._weights, self._masks)

    @torch.no_grad()
    def update(self, step: int, steps: int) -> None:
        """Put the dense weights back, for the optimiser to change."""
        if step >= adapting_steps(steps):
            return
        decay = self._decay * min(1.0, step / max(1.0, RISE * adapting_steps(steps)))
        for path, mask in self._masks.items():
            weight = self._weights[path]
            weight.copy_(self._dense[path])
            if decay and weight.grad is not None:
                weight.grad.add_(weight * ~mask, alpha=decay)

    def finish(self, step: int, steps: int) -> None:
        """After the optimiser's step: dense weights stay so until masks are frozen."""
        if step >= adapting_steps(steps):
            masking.apply(self._weights, self._masks)


def _is_due(step: int, steps: int) -> bool:
    """Whether masks are chosen at this step: now and then, and a last time when they are frozen."""
    frozen = adapting_steps(steps)
    return step == frozen or (step < frozen and step % EVERY == 0)
