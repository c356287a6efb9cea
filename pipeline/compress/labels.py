"""Which channels of a network hang together: each gets a label, and the graph is run on labels.

A convolution or linear layer gives each of its outputs a label of its own.  What moves values
(reshapes, padding, attention heads) moves the labels alike, for it is run on them; what combines
two values (a shortcut's addition) makes their labels one.  Labels that cannot leave, since
something takes all of them together, are frozen, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

#: The label of what no layer made: inputs, constants.  It can never leave.
NONE = 0
Integers = NDArray[np.int64]


class Labels:
    """Labels that are found to be the same, or frozen."""

    def __init__(self) -> None:
        self._parents: list[int] = [NONE]
        self._reasons: dict[int, str] = {NONE: "it meets values that no layer made"}

    def fresh(self, *shape: int) -> torch.Tensor:
        """New labels, all different, of a shape."""
        count, first = int(np.prod(shape)), len(self._parents)
        self._parents.extend(range(first, first + count))
        return torch.arange(first, first + count).reshape(shape)

    def join(self, one: torch.Tensor, other: torch.Tensor, why: str) -> None:
        """Make labels the same, place by place; shapes broadcast.

        Args:
            one, other: labels.
            why: they cannot leave, where one of them is nobody's.
        """
        first, second = compact(*torch.broadcast_tensors(one, other))
        pairs = np.unique(np.stack([first.flatten().numpy(), second.flatten().numpy()]), axis=1)
        for a, b in pairs.T.tolist():
            if NONE in (a, b):
                self._reasons.setdefault(self._find(max(a, b)), why)
                continue
            low, high = sorted((self._find(a), self._find(b)))
            if low != high:
                self._parents[high] = low
                if high in self._reasons:
                    self._reasons.setdefault(low, self._reasons[high])

    def freeze(self, labels: torch.Tensor, why: str) -> None:
        """Let labels never leave."""
        (labels,) = compact(labels)
        for label in np.unique(labels.numpy()).tolist():
            self._reasons.setdefault(self._find(label), why)

    def freeze_along(self, labels: torch.Tensor, dims: Sequence[int], why: str) -> None:
        """Let labels never leave that differ along one of these dimensions."""
        for dim in dims:
            if varies(labels, dim):
                self.freeze(labels, why)

    def along(self, labels: torch.Tensor, dim: int, why: str = "") -> torch.Tensor:
        """The labels along one dimension, one for each place, whatever the other places are."""
        moved = labels.movedim(dim, -1)
        (small,) = compact(moved)
        if small.shape[-1] != moved.shape[-1]:
            small = small.expand(*small.shape[:-1], moved.shape[-1])
        rows = small.reshape(-1, moved.shape[-1])
        if len(rows) > 1:
            self.join(rows, rows[:1], why)
        return rows[0].contiguous()

    def roots(self) -> Integers:
        """For each label, the one that stands for all that are the same."""
        return np.array([self._find(label) for label in range(len(self._parents))])

    def reason(self, label: int) -> str | None:
        """Why a label cannot leave; ``None`` if it can."""
        return self._reasons.get(self._find(label))

    def _find(self, label: int) -> int:
        root = label
        while self._parents[root] != root:
            root = self._parents[root]
        while self._parents[label] != root:
            self._parents[label], label = root, self._parents[label]
        return root


def varies(labels: torch.Tensor, dim: int) -> bool:
    """Whether labels differ along a dimension."""
    return labels.shape[dim] > 1 and labels.stride(dim) != 0


def compact(*labels: torch.Tensor) -> list[torch.Tensor]:
    """The same labels without the repetitions along dimensions in which none of them differs."""
    same = [
        dim
        for dim in range(labels[0].ndim)
        if labels[0].shape[dim] > 1 and not any(varies(one, dim) for one in labels)
    ]
    found = list(labels)
    for dim in same:
        found = [one.narrow(dim, 0, 1) for one in found]
    return found


def squeezed(labels: torch.Tensor) -> torch.Tensor:
    """The same labels, stored once along each dimension in which they do not differ."""
    (small,) = compact(labels)
    for dim in range(small.ndim):
        if varies(small, dim) and bool((small == small.narrow(dim, 0, 1)).all()):
            small = small.narrow(dim, 0, 1)
    return small.expand(labels.shape)


def looked_up(labels: torch.Tensor, table: Integers) -> torch.Tensor:
    """What a table says of each label."""
    (small,) = compact(labels)
    return squeezed(torch.from_numpy(table)[small]).expand(labels.shape)


def none_like(value: torch.Tensor) -> torch.Tensor:
    """Nobody's labels for a tensor."""
    return torch.zeros((), dtype=torch.int64).expand(value.shape)


def combined(labels: Labels, operands: Sequence[torch.Tensor], name: str) -> torch.Tensor:
    """The labels of what is computed place by place from operands whose shapes broadcast."""
    shape = torch.broadcast_shapes(*(one.shape for one in operands))
    wide = [one.expand(shape) for one in operands]
    varying = [{dim for dim in range(len(shape)) if varies(one, dim)} for one in wide]
    all_varying = sorted(set().union(*varying))
    first = next((one for one, own in zip(wide, varying, strict=True) if own), None)
    if first is None:
        for one in operands:
            labels.freeze(one, f"{name} takes it whole")
        return none_like(wide[0])
    for operand, one, own in zip(operands, wide, varying, strict=True):
        sizes = (1,) * (len(shape) - operand.ndim) + tuple(operand.shape)
        if not own and all(sizes[dim] == 1 for dim in all_varying):
            labels.freeze(operand, f"{name} spreads it over the others")
        elif one is not first:
            labels.join(first, one, f"{name} combines it with values that no layer made")
    return first
