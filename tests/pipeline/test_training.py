"""The training loop's guarantees: the same for a seed, killed or not, and no NaN without a word."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.training import Callback, augmented, optimise
from profiles.compression import Training
from tests.pipeline.trainings import EPOCHS, TRAINING, data, fit, network


class Drift(Callback):
    """Remembers something that changes what it does next."""

    def __init__(self) -> None:
        self.sum = torch.zeros(())

    def begin(self, step: int, steps: int) -> None:
        self.sum = self.sum + step

    def penalty(self) -> torch.Tensor | None:
        return torch.zeros((), requires_grad=True) * self.sum

    def state(self) -> dict[str, torch.Tensor]:
        return {"sum": self.sum}

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        self.sum = state["sum"]


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class Killed(Exception):
    pass


def killing(after: int) -> Callable[[str], None]:
    def progress(text: str) -> None:
        if f"epoch {after}/" in text:
            raise Killed

    return progress


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return fit(network(), callbacks=[Drift()])


# -- the same for a seed


def test_the_same_seed_gives_the_same_weights_bit_for_bit(trained: nn.Module):
    torch.manual_seed(123)  # what else draws random numbers has no part in it
    other = network()
    torch.rand(7)
    assert same(fit(other), trained)


@pytest.mark.parametrize("change", [{"seed": 6}, {"flip": False}, {"crop": 0}])
def test_the_seed_and_augmentation_have_a_part_in_it(change: dict[str, Any], trained: nn.Module):
    assert not same(fit(network(), training=TRAINING.model_copy(update=change)), trained)


def test_each_epoch_sees_every_example_once_and_in_an_order_of_its_own():
    module, examples = network(), data()
    seen: list[list[float]] = []

    def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        seen.append(x[:, 0, 0, 0].tolist())
        loss = nn.functional.cross_entropy(module(x), y)
        loss.backward()
        return loss

    plain = Training(epochs=3, batch_size=16)
    optimise(module, examples, plain, step, lambda text: None, "net")
    epochs = [[*seen[at], *seen[at + 1], *seen[at + 2]] for at in (0, 3, 6)]
    assert all(sorted(epoch) == sorted(examples.x[:, 0, 0, 0].tolist()) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_it_leaves_the_random_numbers_of_others_and_the_threads_alone():
    module = network()
    torch.manual_seed(7)
    expected = torch.rand(3)
    threads = torch.get_num_threads()
    torch.manual_seed(7)
    fit(module, training=TRAINING.model_copy(update={"epochs": 1}))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_it_learns_and_ends_in_evaluation_mode(trained: nn.Module):
    assert not trained.training
    held_out = data(200, seed=9)
    with torch.no_grad():
        right = trained(torch.from_numpy(held_out.x)).argmax(1).numpy() == held_out.y
    assert right.mean() > 0.8


# -- interrupted


@pytest.mark.parametrize("after", [1, 3, EPOCHS])
def test_an_interrupted_training_ends_with_the_same_weights(
    after: int, tmp_path: Path, trained: nn.Module
):
    checkpoint = tmp_path / "net.pt"
    with pytest.raises(Killed):
        fit(network(), progress=killing(after), callbacks=[Drift()], checkpoint=checkpoint)
    said: list[str] = []
    drift = Drift()
    resumed = fit(network(), progress=said.append, callbacks=[drift], checkpoint=checkpoint)
    assert same(resumed, trained)
    assert said[0] == f"net: goes on after epoch {after}"
    assert len(said) == 1 + EPOCHS - after
    assert float(drift.sum) == sum(range(EPOCHS * 3))


def test_a_killed_process_goes_on_to_the_same_weights(tmp_path: Path, trained: nn.Module):
    checkpoint = tmp_path / "net.pt"
    killed = f"""
import os, signal
from pathlib import Path
from tests.pipeline.test_training import Drift
from tests.pipeline.trainings import fit, network

def progress(text):
    if "epoch 2/" in text:
        os.kill(os.getpid(), signal.SIGKILL)

fit(network(), progress=progress, callbacks=[Drift()], checkpoint=Path({str(checkpoint)!r}))
"""
    ended = subprocess.run([sys.executable, "-c", killed], check=False, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    said: list[str] = []
    resumed = fit(network(), progress=said.append, callbacks=[Drift()], checkpoint=checkpoint)
    assert said[0] == "net: goes on after epoch 2"
    assert same(resumed, trained)


def interrupted(checkpoint: Path, **more: Any) -> None:
    with pytest.raises(Killed):
        fit(network(), progress=killing(2), callbacks=[Drift()], checkpoint=checkpoint, **more)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:500] + bytes([content[500] ^ 1]) + content[501:],
        lambda content: b"PK\x03\x04" + content,
    ],
)
def test_a_damaged_checkpoint_is_left_aside_with_a_word(
    damage: Callable[[bytes], bytes], tmp_path: Path, trained: nn.Module
):
    checkpoint = tmp_path / "net.pt"
    interrupted(checkpoint)
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    said: list[str] = []
    again = fit(network(), progress=said.append, callbacks=[Drift()], checkpoint=checkpoint)
    assert same(again, trained)
    assert said[0] == f"net: the checkpoint {checkpoint} is damaged: from the start"
    assert "epoch 1/" in said[1]


@pytest.mark.parametrize(
    "other",
    [
        {"examples": data(seed=1)},
        {"training": TRAINING.model_copy(update={"learning_rate": 0.02})},
    ],
)
def test_another_trainings_checkpoint_is_left_aside_with_a_word(
    other: dict[str, Any], tmp_path: Path, trained: nn.Module
):
    checkpoint = tmp_path / "net.pt"
    interrupted(checkpoint, **other)
    said: list[str] = []
    again = fit(network(), progress=said.append, callbacks=[Drift()], checkpoint=checkpoint)
    assert same(again, trained)
    assert said[0] == f"net: the checkpoint {checkpoint} is another training's: from the start"


def test_a_checkpoint_of_other_weights_or_callbacks_is_another_trainings(tmp_path: Path):
    checkpoint = tmp_path / "net.pt"
    interrupted(checkpoint)
    begun = network()
    with torch.no_grad():
        begun[0].weight[0, 0, 0, 0] += 1e-3
    for module, callbacks in ((begun, [Drift()]), (network(), [])):
        said: list[str] = []
        content = checkpoint.read_bytes()
        fit(module, progress=said.append, callbacks=callbacks, checkpoint=checkpoint)
        assert "another training's" in said[0]
        checkpoint.write_bytes(content)


def test_without_a_checkpoint_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    fit(network(), training=TRAINING.model_copy(update={"epochs": 1}))
    assert not list(tmp_path.iterdir())


# -- callbacks


def test_callbacks_are_called_in_this_order():
    calls: list[tuple[str, int, bool]] = []
    module = network()

    class Order(Callback):
        def begin(self, step: int, steps: int) -> None:
            calls.append(("begin", step, module[0].weight.grad is None))
            assert steps == 6

        def update(self, step: int, steps: int) -> None:
            calls.append(("update", step, module[0].weight.grad is None))

        def finish(self, step: int, steps: int) -> None:
            calls.append(("finish", step, module[0].weight.grad is None))

    fit(module, training=TRAINING.model_copy(update={"epochs": 2}), callbacks=[Order()])
    assert [call[:2] for call in calls] == [
        (name, step) for step in range(6) for name in ("begin", "update", "finish")
    ]
    assert calls[0] == ("begin", 0, True)
    assert calls[1] == ("update", 0, False)


def test_a_penalty_is_a_part_of_the_loss():
    class Shrink(Callback):
        def penalty(self) -> torch.Tensor:
            return 100 * module[0].weight.square().sum()

    free = fit(network())
    module = network()
    fit(module, callbacks=[Shrink()])
    assert module[0].weight.norm() < 0.9 * network()[0].weight.norm()
    assert module[0].weight.norm() < free[0].weight.norm()


def test_a_group_of_a_callback_learns_at_its_own_rate():
    module = network()
    before = module[6].weight.detach().clone()

    class Still(Callback):
        def groups(self, steps: int) -> list[dict[str, Any]]:
            assert steps == EPOCHS * 3
            return [{"params": [module[6].weight], "lr": 1e-12, "weight_decay": 0.0}]

    others = module[6].bias.detach().clone()
    fit(module, callbacks=[Still()])
    torch.testing.assert_close(module[6].weight, before, rtol=0, atol=1e-9)
    assert not torch.allclose(module[6].bias, others)


# -- progress and augmentation


def test_progress_tells_epochs_losses_and_what_is_left(monkeypatch: pytest.MonkeyPatch):
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr("time.monotonic", lambda: float(next(clock)))
    said: list[str] = []
    fit(network(), progress=said.append)
    assert [text.rpartition(",")[0] for text in said] == [
        "net: epoch 1/4, 21 s left",
        "net: epoch 2/4, 14 s left",
        "net: epoch 3/4, 7 s left",
        "net: epoch 4/4",
    ]
    losses = [float(text.rpartition(" ")[2]) for text in said]
    assert all(after < before for before, after in pairwise(losses))


def test_a_flip_mirrors_some_and_a_crop_shifts_within_zeros():
    torch.manual_seed(0)
    x = torch.arange(1.0, 26).reshape(1, 1, 5, 5).expand(64, 1, 5, 5)
    flipped = augmented(x, Training(flip=True))
    mirrored = [bool(torch.equal(image, x[0].flip(-1))) for image in flipped]
    assert 16 < sum(mirrored) < 48
    assert all(
        torch.equal(image, x[0]) for image, m in zip(flipped, mirrored, strict=True) if not m
    )
    shifted = augmented(x, Training(crop=2))
    assert shifted.shape == x.shape
    corners = {float(image[0, 2, 2]) for image in shifted}
    assert corners <= set(range(1, 26)) and len(corners) > 12
    assert any(not image[0, :2].any() for image in shifted)
    assert augmented(x, Training()) is x
