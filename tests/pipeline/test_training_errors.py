"""What goes wrong in a training is told in words, and with what it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.data import Split
from pipeline.training import Callback, demand_classes, optimise, train_classifier
from profiles.errors import DataError, StageError
from tests.pipeline.trainings import TRAINING, data, fit, network


def test_a_loss_that_is_no_number_is_told_with_its_epoch_and_rate():
    module = network()

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.cross_entropy(module(x), y)
        steps.append(loss.item())
        if len(steps) == 5:  # the second batch of the second epoch
            loss = loss * float("nan")
        loss.backward()
        return loss

    steps: list[float] = []
    with pytest.raises(StageError) as caught:
        optimise(module, data(), TRAINING, step, lambda text: None, "net")
    assert str(caught.value).startswith(
        "net: the loss is not finite in epoch 2, at a learning rate of 0.0"
    )
    assert caught.value.hint == "lower train.learning_rate"
    # The step that would have made them NaN was not taken.
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_weights_that_become_no_numbers_after_the_last_loss_are_told_too(tmp_path: Path):
    module = network()

    class Burst(Callback):
        def finish(self, step: int, steps: int) -> None:
            if step == steps - 1:
                with torch.no_grad():
                    module[6].weight[0, 0] = float("inf")

    checkpoint = tmp_path / "net.pt"
    with pytest.raises(StageError, match=r"net: 6\.weight is not finite in epoch 4, at a learning"):
        fit(module, callbacks=[Burst()], checkpoint=checkpoint)
    assert checkpoint.exists()
    # The epochs before it are kept, what broke is not.
    said: list[str] = []
    with pytest.raises(StageError):
        fit(module := network(), callbacks=[Burst()], checkpoint=checkpoint, progress=said.append)
    assert said == ["net: goes on after epoch 3"]


@pytest.mark.filterwarnings("error")
def test_a_rate_far_too_high_ends_in_words():
    with pytest.raises(StageError, match="not finite in epoch"):
        fit(network(), training=TRAINING.model_copy(update={"learning_rate": 1e30}))


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ([0, 1, 7], "labels go from 0 to 7"),
        ([0, -1, 2], "labels go from -1 to 2"),
    ],
)
def test_labels_that_no_class_has_are_one_line(labels: list[int], problem: str):
    examples = Split(data(3).x, np.array(labels, dtype=np.int64))
    with pytest.raises(DataError) as caught:
        train_classifier(network(), examples, TRAINING, lambda text: None, "net")
    assert caught.value.message == (
        f"the net tells 3 classes apart, labelled 0 to 2, but the data's {problem}"
    )
    assert "\n" not in str(caught.value)


def test_what_gives_no_class_scores_is_no_classifier():
    with pytest.raises(DataError, match=r"the net gives outputs of shape \(1, 8, 6, 6\), expected"):
        demand_classes(np.zeros((1, 8, 6, 6), np.float32), np.zeros(1, np.int64), "the net")


def test_inputs_that_do_not_fit_are_one_line():
    wrong = Split(np.zeros((4, 1, 6, 6), np.float32), np.zeros(4, np.int64))
    with pytest.raises(DataError, match=r"the net does not take inputs of shape \(1, 6, 6\)"):
        fit(network(), examples=wrong)
