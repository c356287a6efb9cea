"""One training with rounding, and real INT8 in three runtimes that loses less than without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from pipeline.compress import qat
from pipeline.compress.calibration import Judge, quantization_record
from pipeline.compress.module import module_of, open_program_of, program_of
from pipeline.compress.qat import Hold, RoundedActivation, RoundedWeight, Rounding
from pipeline.compress.quantize import quantize
from pipeline.compress.workbench import Workbench
from pipeline.programs import load_program, save_program
from profiles.compression import Distil, Int8, Training
from profiles.errors import StageError, UsageError
from profiles.records import FORMATS
from tests.pipeline import gratings

TRAIN, VALIDATION = gratings.gratings(1024, 0), gratings.gratings(600, 1)
X = gratings.gratings(64, 2).x
TRAINING = Training(epochs=4, learning_rate=0.01)


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = gratings.network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qat") / "trainable.pt2"
    save_program(open_program_of(Named().eval(), gratings.example()), path)
    return path


def workbench(teacher: Path, checkpoint: Path, **changes: Any) -> Workbench:
    return replace(Workbench(TRAIN, VALIDATION, X, teacher, checkpoint), **changes)


def settings(training: Training = TRAINING) -> Int8:
    return Int8(name="int8", method="int8", train=training, distil=Distil())


@pytest.fixture(scope="module")
def trained(teacher: Path, tmp_path_factory: pytest.TempPathFactory):
    bench = workbench(teacher, tmp_path_factory.mktemp("checkpoint") / "c")
    return qat.apply(module_of(load_program(teacher)), settings(), bench)


@pytest.mark.parametrize("format_", FORMATS)
def test_it_loses_far_less_than_quantization_alone_in_every_runtime(format_, trained):
    judge = Judge(gratings.program(), VALIDATION)
    before = judge.drop(quantize(gratings.program(), format_, X))
    program = quantize(program_of(trained[0], gratings.example()), format_, X)
    after = judge.drop(program)
    assert before.ci95[0] > 0.05
    assert after.drop < before.drop / 2
    assert after.ci95[1] < before.ci95[0]
    record = quantization_record(program)
    assert set(record["float_layers"]) <= {"model.stem.0"}
    assert record["weights"] == ["int8 -127 to 127 per channel"]


def test_the_accuracy_with_rounding_is_that_of_int8(trained):
    module, record = trained
    program = quantize(program_of(module, gratings.example()), "tflite", X)
    found = Judge(gratings.program(), VALIDATION).drop(program).accuracy
    assert found == pytest.approx(record["validation_accuracy"], abs=0.03)
    assert record["rounded_layers"] == 4
    assert record["distil"]["loss"] == "kl"


def test_nothing_of_the_rounding_is_left(teacher: Path, trained):
    plain = module_of(load_program(teacher))
    assert trained[0].state_dict().keys() == plain.state_dict().keys()
    exact = plain(torch.from_numpy(X))
    rounding = Rounding(plain)
    rounded = plain.train()(torch.from_numpy(X))
    rounding.remove()
    assert not torch.allclose(rounded, exact, atol=0.1)
    again = module_of(load_program(teacher))
    names = [name for name, _ in plain.named_modules()]
    assert names == [name for name, _ in again.named_modules()]
    for name, value in plain.state_dict().items():
        if "running" not in name and "batches" not in name:
            torch.testing.assert_close(value, again.state_dict()[name], rtol=0, atol=0)


def test_weights_take_255_values_in_each_channel():
    weight = torch.randn(4, 500, generator=torch.Generator().manual_seed(0)) * 5
    weight.requires_grad_()
    rounded = RoundedWeight()(weight)
    rounded.sum().backward()
    for row, exact in zip(rounded.detach(), weight.detach(), strict=True):
        levels = row / (exact.abs().max() / 127)
        torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
        assert levels.abs().max() == pytest.approx(127, abs=1e-3)
    assert (weight.grad == 1).all(), "gradients pass as if nothing were rounded"


def test_ranges_grow_at_once_shrink_slowly_and_hold_zero():
    rounding = RoundedActivation()
    rounding(torch.tensor([1.0, 100.0]))
    assert (rounding.low, rounding.high) == (0, 100)
    rounding(torch.tensor([-4.0, 1.0]))
    assert rounding.low == -4
    assert 98 < rounding.high < 100
    rounding.eval()(torch.tensor([1000.0]))
    assert rounding.high < 100
    assert rounding(torch.zeros(3)).abs().max() == 0
    assert len(rounding(torch.linspace(-4, 99, 5000)).unique()) <= 256


def test_statistics_and_ranges_are_held_at_the_end(teacher: Path):
    module = module_of(load_program(teacher))
    Rounding(module)
    norm = next(m for m in module.modules() if isinstance(m, nn.BatchNorm2d))
    hold = Hold(module)
    module.train()
    for step, moves in ((0, True), (5, True), (6, False), (8, False)):
        hold.begin(step, 9)
        before = norm.running_mean.clone(), module.rounding_0.high.clone()
        module(torch.from_numpy(X) * (step + 2))
        after = norm.running_mean, module.rounding_0.high
        moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == [moves, moves]


class Killed(Exception):
    pass


def test_an_interrupted_training_goes_on_to_the_same_weights(teacher: Path, tmp_path: Path):
    short = settings(Training(epochs=3, learning_rate=0.01))

    def dying(text: str) -> None:
        if "epoch 2/" in text:
            raise Killed

    few = gratings.gratings(192, 7)
    bench = workbench(teacher, tmp_path / "interrupted", train=few, progress=dying)
    with pytest.raises(Killed):
        qat.apply(module_of(load_program(teacher)), short, bench)
    resumed, whole = (
        qat.apply(
            module_of(load_program(teacher)),
            short,
            workbench(teacher, tmp_path / name, train=few),
        )[0]
        for name in ("interrupted", "whole")
    )
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


def test_what_is_kept_in_fp32_is_not_rounded(teacher: Path, tmp_path: Path):
    module = module_of(load_program(teacher))
    everything = Rounding(module)
    layers, activations = everything.layers, everything.activations
    everything.remove()
    some = Rounding(module, ["model.deep", "model.head"])
    assert some.layers == layers - 2
    assert some.activations < activations
    for path in ("model.deep.0", "model.head"):
        layer = module.get_submodule(path)
        assert not parametrize.is_parametrized(layer)
    some.remove()
    asked = settings(Training(epochs=1)).model_copy(update={"keep": ("model.deep",)})
    bench = workbench(teacher, tmp_path / "c", train=gratings.gratings(64, 7))
    _, record = qat.apply(module_of(load_program(teacher)), asked, bench)
    assert record["rounded_layers"] == layers - 1


def test_a_module_to_keep_that_there_is_not_is_refused_before_an_epoch_is_lost(teacher: Path):
    with pytest.raises(UsageError, match=r"no module to keep in FP32 under model\.nowhere"):
        Rounding(module_of(load_program(teacher)), ["model.nowhere"])


def test_a_model_without_layers_is_refused():
    module = torch.fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.ReLU()))
    with pytest.raises(StageError, match="no convolution or linear layer"):
        Rounding(module)
