"""What a compression method works with, and the fine-tuning that most of them end in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from pipeline.compress.distillation import Distillation
from pipeline.compress.masks import prunable, pruned
from pipeline.compress.module import module_of
from pipeline.compress.schedules import Held
from pipeline.data import Images, Split
from pipeline.programs import load_program
from pipeline.stage import Progress
from pipeline.training import Callback, demand_classes, logits_of, optimise
from profiles.compression import Distil, Training

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_BATCH = 200


class Gauge(Protocol):
    """Tells what programs cost on one device with one runtime: milliseconds or millijoules."""

    def measure(self, programs: Mapping[str, ExportedProgram]) -> Mapping[str, float]:
        """Measure programs in turns.

        Args:
            programs: by name; each takes one input.

        Returns:
            By name, nanoseconds or microjoules of one call.

        Raises:
            StageError: if any cannot be exported or measured, by name.
            DeviceError: if the device cannot be reached or leaves.
        """


@dataclass(frozen=True)
class Workbench:
    """Data, teacher and device of one compression.

    Args:
        train: examples to fine-tune with.
        validation: examples to judge choices by; a part of the train split that ``train`` has not.
        calibration: inputs, shape ``(n, channels, height, width)``.
        teacher_program: of open batch size, the uncompressed model's or what a recipe names.
        checkpoint: where a fine-tuning keeps what it must not lose.
        progress: told what goes on.
        gauge: of the device and runtime that a measured budget names; ``None`` without one.
    """

    train: Split
    validation: Split
    calibration: Images
    teacher_program: Path
    checkpoint: Path
    progress: Progress = lambda text: None
    gauge: Gauge | None = None

    @cached_property
    def teacher(self) -> nn.Module:
        """What distillation learns from, for any batch size."""
        return module_of(load_program(self.teacher_program))

    @property
    def example(self) -> torch.Tensor:
        """One input."""
        return torch.from_numpy(self.calibration[:1])

    def accuracy(self, module: nn.Module) -> float:
        """Share of the validation examples that a module of open batch size gets right.

        Raises:
            DataError: if the module cannot take the data, or has too few classes for it.
        """
        outputs = logits_of(module.eval(), self.validation.x, _BATCH)
        demand_classes(outputs, self.validation.y, "the model")
        return float((outputs.argmax(1) == self.validation.y).mean())

    def fine_tune(
        self,
        module: nn.Module,
        training: Training,
        distil: Distil | None,
        label: str,
        *,
        callbacks: Sequence[Callback] = (),
        stage: str = "",
    ) -> dict[str, Any]:
        """Train on the labels, and on the teacher's outputs if asked for.

        Where single weights of a layer are zero already, they stay zero, whatever came before and
        whatever trains: unless a callback decides which of this layer's weights are.

        Args:
            module: to train, in place.
            training, distil: how.
            label: for progress.
            callbacks: see :class:`pipeline.training.Callback`.
            stage: tells the checkpoints of several fine-tunings of one compression apart.

        Returns:
            The record: settings, and accuracy on the validation examples after it; and the layers
            whose zeros were held, if any.

        Raises:
            DataError: if the module cannot take the data, or has too few classes for it.
            UsageError: if there are no such features to learn from.
            StageError: if the loss or a weight becomes infinite or NaN.
        """
        first = logits_of(module.eval(), self.train.x[:1], 1)
        demand_classes(first, self.train.y, "the model")
        held = _zeros(module, callbacks)
        if held is not None:
            callbacks = [*callbacks, held]
        checkpoint = self.checkpoint.with_name(f"{self.checkpoint.name}{stage}.pt")
        with Distillation(module, self.teacher if distil else None, distil) as loss_of:

            def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                loss = loss_of(x, y)
                loss.backward()
                return loss

            optimise(
                module,
                self.train,
                training,
                step,
                self.progress,
                label,
                callbacks=callbacks,
                checkpoint=checkpoint,
            )
        return {
            "train": training.model_dump(mode="json"),
            "distil": distil.model_dump(mode="json") if distil else None,
            "validation_accuracy": self.accuracy(module),
            **({"zeros_held": sorted(held.paths)} if held is not None else {}),
        }

    def with_gauge(self, gauge: Gauge) -> Workbench:
        """The same with a device to measure on."""
        return replace(self, gauge=gauge)


def _zeros(module: nn.Module, callbacks: Sequence[Callback]) -> Held | None:
    """Holds the zeros of an earlier step of a chain; ``None`` where there are none."""
    decided = {path for one in callbacks if isinstance(one, Held) for path in one.paths}
    weights = {path: w for path, w in prunable(module).items() if path not in decided}
    masks = pruned(weights)
    return Held({path: weights[path] for path in masks}, masks) if masks else None
