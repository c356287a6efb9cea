"""What methods work with: fine-tuning on one part, judging by another, learning from a teacher."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compress import finetune
from pipeline.compress.module import module_of, open_program_of
from pipeline.compress.workbench import Workbench
from pipeline.data import Split
from pipeline.programs import load_program, save_program
from pipeline.training import Callback, torch_threads
from profiles.compression import Distil, Training, Tuned
from profiles.errors import DataError, StageError, UsageError

TRAINING = Training(epochs=2, batch_size=16, learning_rate=0.01, flip=True)


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Linear(6, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).mean((2, 3)))


def examples(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 3, 6, 6)).astype(np.float32)
    return Split(x, rng.integers(0, 3, count))


def teaching() -> Net:
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        net.head.weight *= 8  # sure of what no label says
    return net


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("teacher") / "teacher.pt2"
    with torch_threads(1):
        save_program(open_program_of(teaching(), torch.from_numpy(examples(2, 0).x)), path)
        yield path


@pytest.fixture
def bench(teacher: Path, tmp_path: Path) -> Workbench:
    train = examples(64, 1)
    return Workbench(train, examples(50, 2), train.x[:4], teacher, tmp_path / "checkpoint")


def student(seed: int = 5) -> Net:
    torch.manual_seed(seed)
    return Net().eval()


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_accuracy_is_the_share_of_validation_examples_that_are_right(bench: Workbench):
    class Knows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            place = [
                int(np.flatnonzero((bench.validation.x == i.numpy()).all((1, 2, 3)))[0]) for i in x
            ]
            right = torch.from_numpy(bench.validation.y[place])
            wrong = torch.tensor(place) >= 40  # the last ten
            return nn.functional.one_hot((right + wrong) % 3, 3).float()

    assert bench.accuracy(Knows()) == 0.8


def test_the_teacher_is_the_uncompressed_model_and_one_example_is_calibrations(bench: Workbench):
    x = torch.from_numpy(bench.validation.x)
    torch.testing.assert_close(bench.teacher(x), teaching()(x), atol=1e-5, rtol=1e-4)
    assert not bench.teacher.training
    assert torch.equal(bench.example, torch.from_numpy(bench.calibration[:1]))


def test_the_record_tells_how_it_was_trained_and_what_came_of_it(bench: Workbench):
    module = student()
    record = bench.fine_tune(module, TRAINING, None, "net")
    assert record == {
        "train": TRAINING.model_dump(mode="json"),
        "distil": None,
        "validation_accuracy": bench.accuracy(module),
    }
    distil = Distil(loss="bd-kd")
    assert (
        bench.fine_tune(student(), TRAINING, distil, "n", stage="-2")["distil"]["loss"] == "bd-kd"
    )


def test_it_learns_from_the_teacher_only_where_it_is_asked_to(bench: Workbench):
    x = torch.from_numpy(bench.validation.x)

    def apart(distil: Distil | None, stage: str) -> float:
        module = student()
        bench.fine_tune(module, TRAINING.model_copy(update={"epochs": 8}), distil, "n", stage=stage)
        with torch.no_grad():
            return float((module(x).softmax(1) - bench.teacher(x).softmax(1)).abs().mean())

    taught, alone = apart(Distil(weight=1.0, temperature=1.0), "-taught"), apart(None, "-alone")
    assert taught < alone / 2


def test_stages_of_one_compression_keep_checkpoints_apart_and_go_on(bench: Workbench):
    first, second = student(), student()
    bench.fine_tune(first, TRAINING, None, "net", stage="-a")
    bench.fine_tune(second, TRAINING.model_copy(update={"seed": 1}), None, "net", stage="-b")
    assert not same(first, second)
    folder = bench.checkpoint.parent
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-a.pt", "checkpoint-b.pt"]
    # Both are done: they are taken up, and nothing is trained again.
    again, said = student(), list[str]()
    told = Workbench(
        bench.train,
        bench.validation,
        bench.calibration,
        bench.teacher_program,
        bench.checkpoint,
        said.append,
    )
    told.fine_tune(again, TRAINING, None, "net", stage="-a")
    assert same(again, first)
    assert said == ["net: goes on after epoch 2"]


def test_callbacks_take_part(bench: Workbench):
    steps: list[int] = []

    class Counts(Callback):
        def finish(self, step: int, steps_: int) -> None:
            steps.append(step)

    bench.fine_tune(student(), TRAINING, None, "net", callbacks=[Counts()])
    assert steps == list(range(8))


def test_finetune_tells_what_it_was_before(bench: Workbench):
    module = student()
    before = bench.accuracy(module)
    tuned, record = finetune.apply(
        module, Tuned(name="tuned", method="finetune", train=TRAINING), bench
    )
    assert tuned is module
    assert record["validation_accuracy_before"] == before
    assert record["validation_accuracy"] == bench.accuracy(tuned)
    assert "zeros_held" not in record  # there were none


@pytest.mark.parametrize(
    "work",
    [
        lambda bench, module: bench.fine_tune(module, TRAINING, None, "net"),
        lambda bench, module: bench.accuracy(module),
    ],
)
def test_data_with_more_classes_than_the_model_is_one_line(
    bench: Workbench, work: Callable[[Workbench, nn.Module], object]
):
    with pytest.raises(DataError) as caught:
        work(bench, Net(classes=2).eval())
    assert str(caught.value) == (
        "the model tells 2 classes apart, labelled 0 to 1, but the data's labels go from 0 to 2"
        " (give the model as many classes as the data has)"
    )


def test_data_of_another_shape_is_one_line(bench: Workbench):
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).mean((2, 3))

    for work in (bench.accuracy, lambda m: bench.fine_tune(m, TRAINING, None, "net")):
        with pytest.raises(DataError, match=r"the model does not take inputs of shape \(3, 6, 6\)"):
            work(Other().eval())


def test_a_training_that_diverges_is_one_line(bench: Workbench):
    wild = TRAINING.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(StageError, match=r"net: .* is not finite in epoch 1, at a learning rate"):
        bench.fine_tune(student(), wild, None, "net")


def test_features_of_a_changed_shape_are_refused_before_an_epoch_is_lost(bench: Workbench):
    module = module_of(load_program(bench.teacher_program))
    module.get_submodule("body")._modules["0"] = nn.Conv2d(3, 6, 5)
    distil = Distil(features=1.0, at=("body.0",))
    with pytest.raises(UsageError) as caught:
        bench.fine_tune(module, TRAINING, distil, "net")
    assert caught.value.message == (
        "distil.at: body.0 gives features of shape (6, 2, 2) in the compressed model and (6, 4, 4)"
        " in the uncompressed one"
    )
    assert not list(bench.checkpoint.parent.iterdir())


def test_a_device_can_be_added(bench: Workbench):
    class Fixed:
        def measure(self, programs: object) -> dict[str, float]:
            return {"it": 1.0}

    gauge = Fixed()
    assert bench.gauge is None
    assert bench.with_gauge(gauge).gauge is gauge
    assert bench.gauge is None
