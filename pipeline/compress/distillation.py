"""Learning from the uncompressed model: its softened outputs, and its features."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from profiles.compression import Distil
from profiles.errors import UsageError


class Distillation:
    """The loss of a fine-tuning: cross-entropy, mixed with what a teacher says.

    A context: the features of both models are listened to while it is open.

    Args:
        student: the model that learns.
        teacher: the uncompressed one, in evaluation mode; ``None`` for cross-entropy alone.
        settings: how to mix; ``None`` as well.
    """

    def __init__(
        self, student: nn.Module, teacher: nn.Module | None, settings: Distil | None
    ) -> None:
        self._student, self._teacher, self._settings = student, teacher, settings
        self._hooks: list[Any] = []
        self._features: dict[tuple[str, str], torch.Tensor] = {}

    def __enter__(self) -> Distillation:
        if self._teacher is not None and self._settings is not None:
            for path in self._settings.at:
                self._listen("student", self._student, path)
                self._listen("teacher", self._teacher, path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def __call__(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The loss of a batch: inputs ``x``, labels ``y`` of shape ``(n,)``."""
        logits = self._student(x)
        loss = functional.cross_entropy(logits, y)
        settings = self._settings
        if self._teacher is None or settings is None:
            return loss
        with torch.no_grad():
            wanted = self._teacher(x)
        loss = (1 - settings.weight) * loss + settings.weight * divergence(logits, wanted, settings)
        for path in settings.at:
            mine, theirs = self._features[path, "student"], self._features[path, "teacher"]
            loss = loss + settings.features * functional.mse_loss(mine, theirs)
        return loss

    def _listen(self, whose: str, module: nn.Module, path: str) -> None:
        try:
            layer = module.get_submodule(path)
        except AttributeError:
            raise UsageError(f"distil.at: the model has no module {path}") from None

        def keep(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            self._features[path, whose] = output

        self._hooks.append(layer.register_forward_hook(keep))


def divergence(logits: torch.Tensor, wanted: torch.Tensor, settings: Distil) -> torch.Tensor:
    """How far the student's outputs ``(n, classes)`` are from the teacher's."""
    mine = functional.log_softmax(logits / settings.temperature, 1)
    theirs = functional.log_softmax(wanted / settings.temperature, 1)
    forward = (theirs.exp() * (theirs - mine)).sum(1)
    return settings.temperature**2 * forward.mean()
