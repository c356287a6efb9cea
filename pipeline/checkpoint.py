"""What a training keeps after each epoch, so that one that was killed goes on from there."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from pipeline.data import Split
from pipeline.stage import Progress
from profiles.compression import Training
from profiles.durable import write_whole

if TYPE_CHECKING:
    from pipeline.training import Callback

_DIGEST_SIZE = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True)
class Course:
    """Everything that a training must remember to go on after an epoch.

    Args:
        module, optimiser, schedule, callbacks: whose state it is.
        file: where it is kept; ``None`` for nowhere.
        start: what the training starts from, by :func:`start_of`.
    """

    module: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    callbacks: Sequence[Callback]
    file: Path | None
    start: str

    def save(self, epoch: int) -> None:
        """Write the checkpoint whole, or not at all.

        Args:
            epoch: how many are done.
        """
        if self.file is None:
            return
        stream = io.BytesIO()
        state = {
            "start": self.start,
            "epoch": epoch,
            "module": self.module.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "callbacks": [callback.state() for callback in self.callbacks],
        }
        torch.save(state, stream)
        content = stream.getvalue()
        write_whole(self.file, hashlib.sha256(content).digest() + content)

    def resume(self, progress: Progress, label: str) -> int:
        """Take up the checkpoint, if there is one of this very training.

        One that is damaged, or of another training, is left aside: the training starts again.

        Args:
            progress, label: told which.

        Returns:
            How many epochs are done.
        """
        if self.file is None or not self.file.exists():
            return 0
        whole = self.file.read_bytes()
        digest, content = whole[:_DIGEST_SIZE], whole[_DIGEST_SIZE:]
        if hashlib.sha256(content).digest() != digest:
            progress(f"{label}: the checkpoint {self.file} is damaged: from the start")
            return 0
        state = torch.load(io.BytesIO(content), weights_only=True)
        if state["start"] != self.start:
            progress(f"{label}: the checkpoint {self.file} is another training's: from the start")
            return 0
        self._restore(state)
        epoch = int(state["epoch"])
        progress(f"{label}: goes on after epoch {epoch}")
        return epoch

    def _restore(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.schedule.load_state_dict(state["schedule"])
        for callback, its in zip(self.callbacks, state["callbacks"], strict=True):
            callback.restore(its)


def start_of(
    module: nn.Module, data: Split, training: Training, callbacks: Sequence[Callback]
) -> str:
    """What a training starts from, as a sha256: weights, data, settings, and who takes part."""
    digest = hashlib.sha256(training.model_dump_json().encode())
    digest.update(repr([type(callback).__qualname__ for callback in callbacks]).encode())
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(repr((name, tuple(value.shape), str(value.dtype))).encode())
            digest.update(value.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    for values in (data.x, data.y):
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
