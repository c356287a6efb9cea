"""Learning from the uncompressed model: its softened outputs, and its features."""

from __future__ import annotations

from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from profiles.compression import Distil
from profiles.errors import UsageError

_WHERE = "name a layer by its path in the exported module, as in model.layer1.0.conv1"


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
        """The loss of a batch: inputs ``x``, labels ``y`` of shape ``(n,)``.

        Raises:
            UsageError: if features of the two models have not the same shape, or are of something
                that is not called.
        """
        logits = self._student(x)
        loss = functional.cross_entropy(logits, y)
        settings = self._settings
        if self._teacher is None or settings is None:
            return loss
        with torch.no_grad():
            wanted = self._teacher(x)
        loss = (1 - settings.weight) * loss + settings.weight * divergence(logits, wanted, settings)
        for path in settings.at:
            loss = loss + settings.features * self._difference(path)
        return loss

    def _difference(self, path: str) -> torch.Tensor:
        try:
            mine, theirs = (self._features.pop((path, whose)) for whose in ("student", "teacher"))
        except KeyError as missing:
            raise UsageError(
                f"distil.at: {path} only holds layers in the {missing.args[0][1]}: no output",
                _WHERE,
            ) from None
        if mine.shape != theirs.shape:
            raise UsageError(
                f"distil.at: {path} gives features of shape {tuple(mine.shape[1:])} in the"
                f" compressed model and {tuple(theirs.shape[1:])} in the uncompressed one",
                "name a module whose output keeps its shape, or learn from outputs alone",
            )
        return functional.mse_loss(mine, theirs)

    def _listen(self, whose: str, module: nn.Module, path: str) -> None:
        try:
            layer = module.get_submodule(path)
        except AttributeError:
            raise UsageError(f"distil.at: the {whose} has no module {path}", _WHERE) from None

        def keep(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            self._features[path, whose] = output

        self._hooks.append(layer.register_forward_hook(keep))


def divergence(logits: torch.Tensor, wanted: torch.Tensor, settings: Distil) -> torch.Tensor:
    """How far the student's outputs are from the teacher's, both softened by the temperature.

    ``kl`` is the forward divergence KL(teacher || student), which makes the student cover all that
    the teacher holds possible.  ``bd-kd`` adds the reverse one, KL(student || teacher), which keeps
    it from what the teacher holds impossible.  With the entropies H of both softened outputs, each
    example's forward divergence weighs H(teacher) / (H(teacher) + H(student)), the reverse one the
    rest: where the student is surer than the teacher it is to spread, where it is less sure it is
    to sharpen.  The paper balances so example by example too; its constants are for both networks
    training together.  These weights need none and add up to 1, so that a recipe's ``weight`` means
    the same for both losses: near agreement the two divergences are equal to second order.

    Args:
        logits, wanted: the student's and the teacher's, shape ``(n, classes)``.
        settings: the loss and its temperature.

    Returns:
        The mean over examples, times the temperature's square (so that gradients keep their scale).

    *Source*: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015; Amara,
    Sepahvand, Meyer, Gross, Clark, "BD-KD: Balancing the Divergences for Online Knowledge
    Distillation", 2023.
    """
    mine = functional.log_softmax(logits / settings.temperature, 1)
    theirs = functional.log_softmax(wanted / settings.temperature, 1)
    each = _kl(theirs, mine)
    if settings.loss == "bd-kd":
        spread = balance(mine.detach(), theirs)
        each = spread * each + (1 - spread) * _kl(mine, theirs)
    return settings.temperature**2 * each.mean()


def balance(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """The forward divergence's weight for each example, from both models' log probabilities."""
    ours, teachers = _entropy(mine), _entropy(theirs)
    # Two that are quite sure have no entropy to compare: one half.
    tiny = torch.finfo(mine.dtype).eps
    return (teachers + tiny) / (teachers + ours + 2 * tiny)


def _entropy(log_probabilities: torch.Tensor) -> torch.Tensor:
    return -(log_probabilities.exp() * log_probabilities).sum(1)


def _kl(of: torch.Tensor, from_: torch.Tensor) -> torch.Tensor:
    return (of.exp() * (of - from_)).sum(1)
