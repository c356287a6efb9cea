"""Training a classifier: small, deterministic for a seed, with progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from pipeline.data import Images, Split
from pipeline.stage import Progress
from profiles.errors import DataError
from profiles.recipe import Training

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


def optimise(
    module: nn.Module, data: Split, training: Training, step: Step, progress: Progress, label: str
) -> None:
    """Run ``training.epochs`` epochs of AdamW under a one-cycle schedule.

    Args:
        module: whose parameters are trained, in place.
        data: to train on.
        training: epochs, batch size, peak learning rate, seed of the order of examples, threads.
        step: computes the loss of a batch and its gradients, and returns the loss.
        progress: told about each epoch.
        label: what is being trained, for progress.

    Raises:
        DataError: if the module cannot take such inputs or labels.
    """
    x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
    order = np.random.default_rng(training.seed)
    batches = max(1, len(y) // training.batch_size)
    optimiser = torch.optim.AdamW(module.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, training.learning_rate, total_steps=training.epochs * batches
    )
    module.train()
    with torch_threads(training.threads):
        for epoch in range(training.epochs):
            shuffled = torch.from_numpy(order.permutation(len(y)))
            total = 0.0
            for indices in shuffled.tensor_split(batches):
                optimiser.zero_grad()
                try:
                    loss = step(x[indices], y[indices])
                except _MISFITS as error:
                    raise _misfit(f"the {label}", data.x, error) from error
                optimiser.step()
                schedule.step()
                total += float(loss.detach())
            progress(f"{label}: epoch {epoch + 1}/{training.epochs}, loss {total / batches:.3f}")
    module.eval()


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
