"""Training a classifier: small, deterministic for a seed, with progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pipeline.checkpoint import Course, start_of
from pipeline.data import Images, Labels, Split
from pipeline.stage import Progress
from profiles.compression import Training
from profiles.errors import DataError, StageError

#: The loss of one batch; calls ``backward`` itself as often as it needs to.
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
#: What PyTorch raises for inputs or labels that a model is not made for.
_MISFITS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let PyTorch use that many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Callback:
    """Takes part in a training; what it does not override does nothing.

    Its ``state`` is in every checkpoint, so that an interrupted training goes on as if nothing had
    happened.
    """

    def groups(self, steps: int) -> list[dict[str, Any]]:
        """Parameters that learn at a rate of their own, as PyTorch's optimisers take them.

        Args:
            steps: of the whole training.

        Returns:
            Each with ``params``, ``lr`` (the peak) and ``weight_decay``.
        """
        return []

    def begin(self, step: int, steps: int) -> None:
        """Before the forward pass of a step; steps count from 0 over all epochs."""

    def penalty(self) -> torch.Tensor | None:
        """A term of the loss, if any."""
        return None

    def update(self, step: int, steps: int) -> None:
        """Before the optimiser's step: all gradients are there."""

    def finish(self, step: int, steps: int) -> None:
        """After the optimiser's step."""

    def state(self) -> dict[str, torch.Tensor]:
        """What it must not forget."""
        return {}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """Take up what :meth:`state` gave."""


def optimise(
    module: nn.Module,
    data: Split,
    training: Training,
    step: Step,
    progress: Progress,
    label: str,
    *,
    callbacks: Sequence[Callback] = (),
    checkpoint: Path | None = None,
) -> None:
    """Run ``training.epochs`` epochs of AdamW under a one-cycle schedule.

    The same seed, data and number of threads give the same weights, bit for bit, interrupted or
    not: what is random comes from the seed and the epoch alone, and PyTorch's kernels on the CPU
    are deterministic with one thread.  With more, sums are taken in an order that depends on their
    number; kernels that add to scattered places (backward of ``index_add``, ``gather``) may differ
    from run to run then.

    Args:
        module: whose parameters are trained, in place; left in evaluation mode.
        data: to train on.
        training: epochs, batch size, peak learning rate, augmentation, seed, threads.
        step: computes the loss of a batch and its gradients, and returns the loss.
        progress: told about each epoch.
        label: what is being trained, for progress.
        callbacks: take part in each step.
        checkpoint: a file that is written after each epoch, and gone on from if it is there and of
            this very training.

    Raises:
        DataError: if the module cannot take such inputs or labels.
        StageError: if the loss or a weight becomes infinite or NaN; the module is of no use then.
    """
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    batches = max(1, len(y) // training.batch_size)
    steps = training.epochs * batches
    groups = _groups(module, training, callbacks, steps)
    optimiser = torch.optim.AdamW(groups, weight_decay=training.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, [group["lr"] for group in groups], total_steps=steps
    )
    start = start_of(module, data, training, callbacks) if checkpoint else ""
    course = Course(module, optimiser, schedule, callbacks, checkpoint, start)
    first = course.resume(progress, label)
    module.train()
    with torch_threads(training.threads), torch.random.fork_rng(devices=[]):
        for epoch in range(first, training.epochs):
            # Of the epoch alone: an epoch that is done again comes to the same.
            order = np.random.default_rng([training.seed, epoch])
            torch.manual_seed(int(order.integers(2**62)))
            shuffled = torch.from_numpy(order.permutation(len(y)))
            total, began = 0.0, time.monotonic()
            for number, indices in enumerate(shuffled.tensor_split(batches), epoch * batches):
                for callback in callbacks:
                    callback.begin(number, steps)
                optimiser.zero_grad()
                try:
                    loss = step(augmented(x[indices], training), y[indices])
                except _MISFITS as error:
                    raise _misfit(f"the {label}", data.x, error) from error
                for callback in callbacks:
                    if (term := callback.penalty()) is not None:
                        term.backward()
                if not torch.isfinite(loss):
                    raise _diverged(label, "the loss", epoch, schedule)
                for callback in callbacks:
                    callback.update(number, steps)
                optimiser.step()
                schedule.step()
                for callback in callbacks:
                    callback.finish(number, steps)
                total += float(loss.detach())
            if (name := _not_finite(module)) is not None:
                raise _diverged(label, name, epoch, schedule)
            course.save(epoch + 1)
            left = (training.epochs - epoch - 1) * (time.monotonic() - began)
            rest = f", {left:.0f} s left" if left >= 1 else ""
            done = f"epoch {epoch + 1}/{training.epochs}{rest}"
            progress(f"{label}: {done}, loss {total / batches:.3f}")
    module.eval()


def _groups(
    module: nn.Module, training: Training, callbacks: Sequence[Callback], steps: int
) -> list[dict[str, Any]]:
    """A module's parameters, those apart that learn at a rate of their own."""
    own = [group for callback in callbacks for group in callback.groups(steps)]
    apart = {id(parameter) for group in own for parameter in group["params"]}
    common = [parameter for parameter in module.parameters() if id(parameter) not in apart]
    return [{"params": common, "lr": training.learning_rate}, *own]


def _not_finite(module: nn.Module) -> str | None:
    """The first parameter that has become infinite or NaN; buffers may be so on purpose."""
    for name, value in module.named_parameters():
        if value.requires_grad and not value.isfinite().all():
            return name
    return None


def _diverged(
    label: str, what: str, epoch: int, schedule: torch.optim.lr_scheduler.LRScheduler
) -> StageError:
    rate = schedule.get_last_lr()[0]
    return StageError(
        f"{label}: {what} is not finite in epoch {epoch + 1}, at a learning rate of {rate:.2g}",
        "lower train.learning_rate",
    )


def augmented(x: torch.Tensor, training: Training) -> torch.Tensor:
    """Images mirrored and shifted at random, as far as a training asks for it."""
    if training.flip:
        chosen = torch.rand(len(x)) < 0.5
        x = torch.where(chosen[:, None, None, None], x.flip(-1), x)
    if training.crop:
        size, pad = x.shape[-2:], training.crop
        wide = nn.functional.pad(x, (pad, pad, pad, pad))
        corners = torch.randint(0, 2 * pad + 1, (len(x), 2)).tolist()
        x = torch.stack(
            [
                image[:, top : top + size[0], left : left + size[1]]
                for image, (top, left) in zip(wide, corners, strict=True)
            ]
        )
    return x


def train_classifier(
    module: nn.Module, data: Split, training: Training, progress: Progress, label: str
) -> None:
    """Train on cross-entropy, in place."""
    demand_classes(logits_of(module.eval(), data.x[:1], 1), data.y, f"the {label}")

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()
        return loss

    optimise(module, data, training, step, progress, label)


def demand_classes(logits: Images, labels: Labels, what: str) -> None:
    """See that labels are among the classes that a model tells apart.

    Args:
        logits: some of its outputs.
        labels: of the data.
        what: the model, for the error.

    Raises:
        DataError: if not, or if the model is no classifier.
    """
    if logits.ndim != 2:
        raise DataError(f"{what} gives outputs of shape {logits.shape}, expected (n, classes)")
    classes, least, most = logits.shape[1], int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise DataError(
            f"{what} tells {classes} classes apart, labelled 0 to {classes - 1}, but the data's"
            f" labels go from {least} to {most}",
            "give the model as many classes as the data has",
        )


def logits_of(module: Callable[[torch.Tensor], torch.Tensor], x: Images, batch: int) -> Images:
    """Outputs on all of ``x``, ``batch`` at a time, shape ``(n, classes)``.

    Raises:
        DataError: if the model cannot take such inputs.
    """
    outputs = []
    try:
        with torch.no_grad():
            for start in range(0, len(x), batch):
                outputs.append(module(torch.from_numpy(x[start : start + batch])).numpy())
    except _MISFITS as error:
        raise _misfit("the model", x, error) from error
    return np.concatenate(outputs)


def _misfit(what: str, x: Images, error: Exception) -> DataError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return DataError(f"{what} does not take inputs of shape {x.shape[1:]}: {reason}")
