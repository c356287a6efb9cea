"""Distillation: each divergence by its definition, features, and that the student comes closer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.compress.distillation import Distillation, balance, divergence
from pipeline.compress.variants import Compressed, teacher_of
from pipeline.data import Split
from pipeline.training import optimise
from profiles.compression import Distil, Training, Tuned
from profiles.errors import UsageError

Loss = Literal["kl", "bd-kd"]
LOSSES: tuple[Loss, ...] = ("kl", "bd-kd")


def logits(seed: int, rows: int = 5, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))


def entropy(values: torch.Tensor, temperature: float) -> torch.Tensor:
    return torch.distributions.Categorical(logits=values / temperature).entropy()


def kl(of: torch.Tensor, from_: torch.Tensor, temperature: float) -> torch.Tensor:
    one = torch.distributions.Categorical(logits=of / temperature)
    return torch.distributions.kl_divergence(
        one, torch.distributions.Categorical(logits=from_ / temperature)
    )


@given(seed=st.integers(0, 50), temperature=st.floats(0.5, 8))
@settings(max_examples=20)
def test_kl_is_the_forward_divergence_of_softened_outputs(seed: int, temperature: float):
    mine, theirs = logits(seed), logits(seed + 1000)
    found = divergence(mine, theirs, Distil(temperature=temperature))
    torch.testing.assert_close(found, temperature**2 * kl(theirs, mine, temperature).mean())


@given(seed=st.integers(0, 50), temperature=st.floats(0.5, 8))
@settings(max_examples=20)
def test_bd_kd_balances_both_divergences_by_the_entropies(seed: int, temperature: float):
    mine, theirs = logits(seed), logits(seed + 1000)
    h_mine, h_theirs = entropy(mine, temperature), entropy(theirs, temperature)
    spread = h_theirs / (h_theirs + h_mine)
    expected = spread * kl(theirs, mine, temperature) + (1 - spread) * kl(mine, theirs, temperature)
    found = divergence(mine, theirs, Distil(loss="bd-kd", temperature=temperature))
    torch.testing.assert_close(found, temperature**2 * expected.mean(), rtol=1e-4, atol=1e-5)


def test_a_student_that_is_surer_than_its_teacher_is_to_spread():
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[0.4, 0.0, 0.2]])
    as_logs = [values.log_softmax(1) for values in (sure, unsure)]
    assert balance(as_logs[0], as_logs[1]) > 0.9  # forward
    assert balance(as_logs[1], as_logs[0]) < 0.1  # reverse
    assert balance(as_logs[1], as_logs[1]) == 0.5


def test_two_that_are_quite_sure_are_balanced_and_finite():
    for mine, theirs in ((0, 0), (0, 1)):
        student, teacher = torch.zeros(1, 3), torch.zeros(1, 3)
        student[0, mine], teacher[0, theirs] = 1e4, 1e4
        student.requires_grad_(True)
        loss = divergence(student, teacher, Distil(loss="bd-kd", temperature=1.0))
        loss.backward()
        assert loss.isfinite()
        assert student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_equal_outputs_cost_nothing_and_pull_nowhere(loss: Loss):
    mine = logits(1).requires_grad_(True)
    found = divergence(mine, mine.detach().clone(), Distil(loss=loss))
    found.backward()
    assert found.item() == pytest.approx(0, abs=1e-6)
    assert mine.grad is not None
    assert mine.grad.abs().max() < 1e-6


def test_the_balance_is_no_way_to_a_lower_loss():
    """Entropies weigh the divergences and get no gradient: a student cannot shift the weights."""
    mine, theirs, settings_ = logits(3).requires_grad_(True), logits(4), Distil(loss="bd-kd")
    divergence(mine, theirs, settings_).backward()
    h_mine, h_theirs = entropy(mine.detach(), 4.0), entropy(theirs, 4.0)
    fixed = h_theirs / (h_theirs + h_mine)
    again = logits(3).requires_grad_(True)
    by_hand = fixed * kl(theirs, again, 4.0) + (1 - fixed) * kl(again, theirs, 4.0)
    (16 * by_hand.mean()).backward()
    torch.testing.assert_close(mine.grad, again.grad, rtol=1e-4, atol=1e-6)


def test_temperature_softens_and_its_square_keeps_the_gradients_scale():
    grads = []
    for temperature in (20.0, 40.0):
        mine = logits(5).requires_grad_(True)
        divergence(mine, logits(6), Distil(temperature=temperature)).backward()
        assert mine.grad is not None
        grads.append(float(mine.grad.norm()))
    assert grads[0] == pytest.approx(grads[1], rel=0.1)


# -- mixed into a training


class Net(nn.Module):
    def __init__(self, width: int = 6, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(8, width), nn.ReLU())
        self.head = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body[1](self.body[0](x.flatten(1))))


def examples() -> Split:
    rng = np.random.default_rng(0)
    return Split(rng.standard_normal((96, 2, 2, 2)).astype(np.float32), rng.integers(0, 3, 96))


def distilled(student: nn.Module, teacher: nn.Module, settings_: Distil | None) -> nn.Module:
    with Distillation(student, teacher if settings_ else None, settings_) as loss_of:

        def step(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            loss = loss_of(x, y)
            loss.backward()
            return loss

        training = Training(epochs=6, batch_size=16, learning_rate=0.02)
        optimise(student, examples(), training, step, lambda text: None, "student")
    return student


def distance(student: nn.Module, teacher: nn.Module) -> float:
    x = torch.from_numpy(examples().x)
    with torch.no_grad():
        return float(kl(teacher(x), student(x), 1.0).mean())


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    teacher = Net(seed=1).eval()
    with torch.no_grad():
        teacher.head.weight *= 4  # sure of itself, unlike the labels, which are random
    return teacher


@pytest.mark.parametrize("loss", LOSSES)
def test_a_student_comes_close_to_its_teacher(loss: Loss, teacher: nn.Module):
    alone = distance(distilled(Net(), teacher, None), teacher)
    settings_ = Distil(loss=loss, weight=1.0, temperature=2.0)
    taught = distance(distilled(Net(), teacher, settings_), teacher)
    assert taught < alone / 2


def test_the_teacher_learns_nothing(teacher: nn.Module):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distilled(Net(), teacher, Distil(features=1.0, at=("body.0",)))
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_loss_mixes_labels_outputs_and_features_by_their_weights(teacher: nn.Module):
    student, data = Net(), examples()
    x, y = torch.from_numpy(data.x[:10]), torch.from_numpy(data.y[:10])
    settings_ = Distil(weight=0.3, features=0.7, at=("body.0", "body.1"))
    labels = nn.functional.cross_entropy(student(x), y)
    outputs = divergence(student(x), teacher(x), settings_)
    one = nn.functional.mse_loss(student.body[0](x.flatten(1)), teacher.body[0](x.flatten(1)))
    two = nn.functional.mse_loss(student.body(x.flatten(1)), teacher.body(x.flatten(1)))
    with Distillation(student, teacher, settings_) as loss_of:
        found = loss_of(x, y)
    torch.testing.assert_close(found, 0.7 * labels + 0.3 * outputs + 0.7 * (one + two))


def test_features_come_closer_when_they_are_asked_to(teacher: nn.Module):
    x = torch.from_numpy(examples().x).flatten(1)

    def apart(student: nn.Module) -> float:
        with torch.no_grad():
            return float(nn.functional.mse_loss(student.body[0](x), teacher.body[0](x)))

    plain = distilled(Net(), teacher, Distil())
    close = distilled(Net(), teacher, Distil(features=10.0, at=("body.0",)))
    assert apart(close) < apart(plain) / 2


def test_nothing_is_listened_to_any_more_when_it_ends(teacher: nn.Module):
    student = Net()
    with (
        pytest.raises(ZeroDivisionError),
        Distillation(student, teacher, Distil(features=1.0, at=("body.0",))),
    ):
        raise ZeroDivisionError
    for module in (*student.modules(), *teacher.modules()):
        assert not module._forward_hooks


@pytest.mark.parametrize(
    ("student", "at", "problem"),
    [
        (
            Net(width=5),
            "body.0",
            "distil.at: body.0 gives features of shape (5,) in the compressed model and (6,) in"
            " the uncompressed one",
        ),
        (Net(), "body.7", "distil.at: the student has no module body.7"),
        (Net(), "body", "distil.at: body only holds layers in the student: no output"),
    ],
)
def test_features_that_cannot_be_compared_are_one_line(
    student: nn.Module, at: str, problem: str, teacher: nn.Module
):
    with pytest.raises(UsageError) as caught:
        distilled(student, teacher, Distil(features=1.0, at=(at,)))
    assert caught.value.message == problem
    assert caught.value.hint


def test_a_module_that_only_the_student_has_is_named(teacher: nn.Module):
    student = Net()
    student.body.append(nn.Identity())
    with pytest.raises(UsageError, match=r"distil\.at: the teacher has no module body\.2"):
        distilled(student, teacher, Distil(features=1.0, at=("body.2",)))


def test_the_teacher_is_the_uncompressed_model_or_the_variant_that_is_named():
    job: Any = SimpleNamespace(model=SimpleNamespace(folder=Path("model")))
    base = Compressed(
        "short", "onnx", Path("p"), "float32", Path("r"), line={"tuned": Path("tuned/t.pt2")}
    )

    def taught_by(name: str | None) -> Path:
        asked = Tuned(name="x", method="finetune", distil=Distil(teacher=name))
        return teacher_of(job, asked, base)

    assert taught_by(None) == Path("model/trainable.pt2")
    assert taught_by("tuned") == Path("tuned/t.pt2")
    with pytest.raises(UsageError, match=r"^x: distil\.teacher: it does not come of other"):
        taught_by("other")
