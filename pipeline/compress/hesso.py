"""Pruning in one training: what is redundant shrinks to zero while the rest learns.

Source: Chen et al., "HESSO: Towards Automatic Efficient and User Friendly Any Neural Network
Training and Pruning" (2024): after a warm-up redundant groups of parameters are found by their
saliency, and over some periods one part of them after the other is driven to zero step by step,
while all other parameters are trained as usual; what is zero stays zero.  At the end the network is
the smaller one already.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from pipeline.compress.groups import Structure
from pipeline.compress.narrowing import Kept
from pipeline.compress.saliency import Scores, Taylor, tensors
from pipeline.training import Callback

#: What is told the saliencies of the warm-up, and says which units stay, how much each matters now,
#: and why.
Decide = Callable[[Scores], tuple[Kept, Scores, dict[str, Any]]]

#: Shares of all steps: training as usual at first, and then driving to zero.
_WARM_UP, _SHRINKING = 0.1, 0.4
#: How many parts the redundant units leave in.
_PERIODS = 5
_STAYS = -1


class Hesso(Callback):
    """Drives redundant units of a structure's module to zero during its training.

    Args:
        structure: of the module that is trained.
        decide: asked once the warm-up is over, with its first-order saliencies.  It may leave the
            module in evaluation mode: the training goes on as it was.

    Attributes:
        record: what ``decide`` said why.
    """

    def __init__(self, structure: Structure, decide: Decide) -> None:
        self._structure = structure
        self._decide = decide
        self._taylor = Taylor(structure)
        #: For each unit the period in which it leaves.
        self._leaves: dict[str, torch.Tensor] = {}
        self.record: dict[str, Any] = {}

    def begin(self, step: int, steps: int) -> None:
        """Decide once the warm-up is over."""
        if step == int(_WARM_UP * steps):
            module = self._structure.module
            was = module.training
            kept, scores, self.record = self._decide(self._taylor.scores)
            module.train(was)
            self._leaves = self._ordered(kept, scores, _periods(steps))

    def update(self, step: int, steps: int) -> None:
        """Learn from the warm-up's gradients what matters."""
        if step < int(_WARM_UP * steps):
            self._taylor.add()

    def finish(self, step: int, steps: int) -> None:
        """Shrink what leaves in this period, evenly, so that it comes to zero at its end."""
        first, periods = int(_WARM_UP * steps), _periods(steps)
        length = max(1, int(_SHRINKING * steps) // periods)
        with torch.no_grad():
            for name, leaves in self._leaves.items():
                left = first + (leaves + 1) * length - step  # steps until it is zero, this one too
                factors = ((left - 1) / left.clamp(min=1)).clamp(0, 1)
                untouched = (leaves == _STAYS) | (left > length)  # its period is still to come
                self._scale(name, torch.where(untouched, 1.0, factors))

    def kept(self) -> Kept:
        """The units that stay."""
        return {
            name: torch.nonzero(leaves == _STAYS).flatten().tolist()
            for name, leaves in self._leaves.items()
        }

    def state(self) -> dict[str, torch.Tensor]:
        """What leaves when and why, and what the warm-up has learnt."""
        why = torch.tensor(list(json.dumps(self.record).encode()), dtype=torch.uint8)
        scores = {f"score {name}": torch.from_numpy(v) for name, v in self._taylor.scores.items()}
        return {
            "record": why,
            **scores,
            **{f"leaves {name}": v for name, v in self._leaves.items()},
        }

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take it up."""
        for key, value in state.items():
            what, _, name = key.partition(" ")
            if what == "record":
                self.record = json.loads(bytes(value.tolist()))
            elif what == "score":
                self._taylor.scores[name] = value.numpy()
            else:
                self._leaves[name] = value

    def _ordered(self, kept: Kept, scores: Scores, periods: int) -> dict[str, torch.Tensor]:
        """Of all groups together, what matters least leaves first."""
        going = sorted(
            (float(scores[name][unit]), name, unit)
            for name, its in kept.items()
            for unit in sorted(set(range(self._structure.groups[name].width)) - set(its))
        )
        leaves = {name: torch.full((self._structure.groups[name].width,), _STAYS) for name in kept}
        for period, part in enumerate(np.array_split(np.arange(len(going)), periods)):
            for place in part.tolist():
                _, name, unit = going[place]
                leaves[name][unit] = period
        return leaves

    def _scale(self, name: str, factors: torch.Tensor) -> None:
        for member in self._structure.members(self._structure.groups[name]):
            places = torch.from_numpy(member.places)
            by_place = factors[torch.from_numpy(member.units)]
            for values, dim in tensors(self._structure, member):
                shape = [-1 if d == dim else 1 for d in range(values.ndim)]
                part = values.index_select(dim, places) * by_place.reshape(shape)
                values.index_copy_(dim, places, part)


def _periods(steps: int) -> int:
    """As many as there are steps for, after the warm-up."""
    return max(1, min(_PERIODS, int(_SHRINKING * steps)))
