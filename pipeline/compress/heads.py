"""What attention does to channels' labels: a head leaves whole, or stays.

A head's queries and keys meet in its scores, and its scores weigh its values.  So all labels of one
head become one, whichever way its linear layers and reshapes lay them out.
"""

from __future__ import annotations

import torch

from pipeline.compress.labels import Labels, combined, none_like, varies


def product(labels: Labels, left: torch.Tensor, right: torch.Tensor, name: str) -> torch.Tensor:
    """Labels of a matrix product: ``left (..., n, k)``, ``right (..., k, m)``.

    Where its many matrices have labels of their own, as heads do, all of a matrix hangs together;
    else what is multiplied and summed does.

    Returns:
        Labels of shape ``(..., n, m)``.
    """
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    shape = (*batch, left.shape[-2], right.shape[-1])
    left, right = (one.expand(*batch, *one.shape[-2:]) for one in (left, right))
    nothing = none_like(torch.empty(shape, device="meta"))
    for one in (left, right):
        if any(varies(one, dim) for dim in range(len(batch))):
            each = one[..., :1, :1]
            for other in (left, right):
                labels.join(each, other, f"{name} multiplies it with values that no layer made")
            return each.expand(shape)
    if varies(left, -1) or varies(right, -2):
        rows, columns = left.unsqueeze(-1), right.unsqueeze(-3)
        labels.join(rows, columns, f"{name} multiplies it with values that no layer made")
    free = [one for one, own in ((left[..., :1], -2), (right[..., :1, :], -1)) if varies(one, own)]
    if len(free) == 2:
        for one in free:
            labels.freeze(one, f"{name} multiplies it with the channels of another layer")
        return nothing
    return free[0].expand(shape) if free else nothing


def attention(
    labels: Labels,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    name: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention; all operands are ``(..., tokens, features)``.

    Returns:
        Labels of the scores and of the result.
    """
    scores = product(labels, query, key.transpose(-2, -1), name)
    if mask is not None:
        scores = combined(labels, [scores, mask], name)
    labels.freeze_along(scores, [-1], f"{name} is a softmax over all of it")
    return scores, product(labels, scores, value, name)
