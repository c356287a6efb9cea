"""What NNCF does of pruning: by magnitude at once, and by masks that are learned."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pipeline.compress import masks as masking
from pipeline.compress import silence_telemetry
from pipeline.compress.schedules import RISE
from pipeline.compress.workbench import Workbench
from pipeline.quiet import quiet
from pipeline.training import Callback
from profiles.compression import Distil, Training
from profiles.errors import StageError

#: How softly the share of masked weights is drawn to its target.  Source: NNCF's example of
#: regularisation-based pruning.
_SOFTNESS = 0.1
#: Scores begin at logit(0.99) = 4.6 and prune below 0: with Adam, whose steps are as long as the
#: rate, a peak of so many over the number of steps goes there and back within one cycle.
_TRAVEL = 20.0
#: The least peak; the rate of NNCF's example.
_RATE = 0.01


def prune(module: nn.Module, sparsity: float, example: torch.Tensor, scope: str = "global") -> None:
    """Set the smallest weights of convolutions and linear layers to zero, in place.

    Args:
        module: of :func:`pipeline.compress.module.module_of`.
        sparsity: share of those weights to set to zero.
        example: one input.
        scope: ``global``: the smallest of the whole model, each over its layer's norm; ``local``:
            of each layer.

    Raises:
        StageError: if the model has no such layer.
    """
    with _at_work() as nncf:
        mode = getattr(nncf.PruneMode, f"UNSTRUCTURED_MAGNITUDE_{scope.upper()}")
        masked = nncf.prune(_Plain(module), mode=mode, ratio=sparsity, examples_inputs=example)
        _strip(nncf, masked, example)


def regularise(
    module: nn.Module,
    sparsity: float,
    training: Training,
    distil: Distil | None,
    bench: Workbench,
    label: str,
) -> dict[str, Any]:
    """Learn which weights go, while the others are trained; in place.

    Each weight has a score that decides by chance whether it takes part in a step; a term of the
    loss draws the share of those that do not to a target, which rises to ``sparsity``.  In the end
    those of least score go, as many as were asked for.

    Args:
        module: of :func:`pipeline.compress.module.module_of`.
        sparsity: share of the weights to set to zero.
        training, distil: how.
        bench: with what.
        label: for progress.

    Returns:
        The training's record, and the share that the scores themselves had come to.

    Raises:
        StageError: if NNCF cannot prune the model, or the training comes to nothing.

    *Source*: NNCF's regularisation-based pruning, after Louizos, Welling, Kingma, "Learning Sparse
    Neural Networks through L0 Regularization", 2018.
    """
    with _at_work() as nncf:
        mode = nncf.PruneMode.UNSTRUCTURED_REGULARIZATION_BASED
        masked = nncf.prune(_Plain(module), mode=mode, examples_inputs=bench.example)
    callback = _Regularised(masked, sparsity)
    record = bench.fine_tune(masked, training, distil, label, callbacks=(callback,), stage="-masks")
    record["sparsity_learned"] = callback.settle(sparsity)
    with _at_work() as nncf:
        _strip(nncf, masked, bench.example)
    return record


class _Regularised(Callback):
    """NNCF's loss and its schedule, by steps instead of epochs."""

    def __init__(self, masked: nn.Module, sparsity: float) -> None:
        from nncf.torch.function_hook.pruning.rb.algo import get_pruned_modules
        from nncf.torch.function_hook.pruning.rb.losses import RBLoss
        from nncf.torch.function_hook.wrapper import get_hook_storage

        # NNCF keeps its hooks in the order of a set, which differs from process to process: sums
        # and the optimiser's state would.
        hooks = get_hook_storage(masked).post_hooks
        for name in sorted(hooks):
            hooks[name] = hooks.pop(name)
        self._scores = [hook.mask for hook in get_pruned_modules(masked).values()]
        self._loss = RBLoss(masked, target_ratio=0.0, p=_SOFTNESS)
        self._sparsity = sparsity

    def groups(self, steps: int) -> list[dict[str, Any]]:
        """Scores have far to go, and nothing to decay to."""
        rate = max(_RATE, _TRAVEL / steps)
        return [{"params": self._scores, "lr": rate, "weight_decay": 0.0}]

    def begin(self, step: int, steps: int) -> None:
        """Raise the target."""
        from nncf.torch.function_hook.pruning.rb.schedulers import ExponentialRBPruningScheduler

        last = max(1, round(RISE * steps))
        ExponentialRBPruningScheduler(self._loss, 0.0, self._sparsity, last).step(step)

    def penalty(self) -> torch.Tensor:
        """How far from the target the share is."""
        term: torch.Tensor = self._loss()
        return term

    @torch.no_grad()
    def settle(self, sparsity: float) -> float:
        """Let exactly the asked share of scores prune, the least ones.

        Returns:
            The share that would have.
        """
        scores = torch.cat([score.flatten() for score in self._scores])
        learned = float((scores <= 0).float().mean())
        kept = masking.largest(scores, round(scores.numel() * sparsity))
        sizes = [score.numel() for score in self._scores]
        for score, mask in zip(self._scores, kept.split(sizes), strict=True):
            score.copy_(mask.reshape(score.shape).to(score.dtype) * 2 - 1)
        return learned


def _strip(nncf: Any, masked: nn.Module, example: torch.Tensor) -> None:
    """Make NNCF's masks zeros in the weights, which it leaves as constants."""
    nncf.strip(masked, do_copy=False, strip_format=nncf.StripFormat.IN_PLACE, example_input=example)
    masked.requires_grad_(True)


@contextmanager
def _at_work() -> Iterator[Any]:
    """NNCF, quiet; what it raises becomes one line."""
    try:
        with quiet():
            silence_telemetry()
            import nncf

            yield nncf
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise StageError(f"NNCF cannot prune the model: {reason}") from error


class _Plain(nn.Module):
    """A module around a graph: NNCF refuses to prune a bare one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, input: torch.Tensor) -> Any:
        """The graph's own forward pass."""
        return self.module(input)

    def get_submodule(self, target: str) -> nn.Module:
        """By the graph's own paths too, as those who distil name them."""
        try:
            return super().get_submodule(target)
        except AttributeError:
            return self.module.get_submodule(target)
