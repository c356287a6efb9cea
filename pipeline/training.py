"""Training a classifier: small, deterministic for a seed, with progress."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pipeline.data import Images, Split
from pipeline.stage import Progress
from profiles.compression import Training
from profiles.durable import write_whole
from profiles.errors import DataError

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

    def begin(self, step: int, steps: int) -> None:
        """Before the forward pass of a step; steps count from 0 over all epochs."""

    def penalty(self) -> torch.Tensor | None:
        """A term of the loss, if any."""
        return None

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
    not: PyTorch's kernels on the CPU are deterministic for one number of threads.

    Args:
        module: whose parameters are trained, in place; left in evaluation mode.
        data: to train on.
        training: epochs, batch size, peak learning rate, augmentation, seed, threads.
        step: computes the loss of a batch and its gradients, and returns the loss.
        progress: told about each epoch.
        label: what is being trained, for progress.
        callbacks: take part in each step.
        checkpoint: a file that is written after each epoch, and gone on from if it is there.

    Raises:
        DataError: if the module cannot take such inputs or labels.
    """
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    batches = max(1, len(y) // training.batch_size)
    steps = training.epochs * batches
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, training.learning_rate, total_steps=steps
    )
    course = Course(module, optimiser, schedule, callbacks, checkpoint)
    first = course.resume()
    module.train()
    with torch_threads(training.threads):
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
                optimiser.step()
                schedule.step()
                for callback in callbacks:
                    callback.finish(number, steps)
                total += float(loss.detach())
            course.save(epoch + 1)
            left = (training.epochs - epoch - 1) * (time.monotonic() - began)
            rest = f", {left:.0f} s left" if left >= 1 else ""
            done = f"epoch {epoch + 1}/{training.epochs}{rest}"
            progress(f"{label}: {done}, loss {total / batches:.3f}")
    module.eval()


@dataclass(frozen=True, slots=True)
class Course:
    """Everything that a training must remember to go on after an epoch."""

    module: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    callbacks: Sequence[Callback]
    file: Path | None

    def save(self, epoch: int) -> None:
        """Write the checkpoint whole, or not at all."""
        if self.file is None:
            return
        content = io.BytesIO()
        state = {
            "epoch": epoch,
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "callbacks": [callback.state() for callback in self.callbacks],
        }
        torch.save(state, content)
        write_whole(self.file, content.getvalue())

    def resume(self) -> int:
        """Take up the checkpoint, if there is one.

        Returns:
            How many epochs are done.
        """
        if self.file is None or not self.file.exists():
            return 0
        state = torch.load(self.file, weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        for callback, its in zip(self.callbacks, state["callbacks"], strict=True):
            callback.restore(its)
        return int(state["epoch"])


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

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()
        return loss

    optimise(module, data, training, step, progress, label)


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
