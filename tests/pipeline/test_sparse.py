"""Sparse variants: what was asked is in the exported program, exactly, and in the record."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compress import finetune, qat, sparse, structured
from pipeline.compress.masks import keeps_pattern, prunable
from pipeline.compress.module import module_of, open_program_of, program_of
from pipeline.compress.workbench import Workbench
from pipeline.data import Split
from pipeline.programs import load_program, save_program
from pipeline.training import torch_threads
from profiles.compression import Budget, Distil, Int8, Sparse, Structured, Training, Tuned
from profiles.errors import StageError

TRAINING = Training(epochs=3, batch_size=16, learning_rate=0.01, weight_decay=0.1, seed=1)
STEPS = 3 * 6


class Net(nn.Module):
    """Layers of many kinds and sizes: a depthwise one, a narrow stem, two large ones."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, 1, 1, groups=8)
        self.point = nn.Conv2d(8, 16, 1)
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.stem(x)).relu()
        x = self.point(self.deep(x).relu()).relu().mean((2, 3))
        return self.head(self.drop(x))


LAYERS = {"stem": 216, "deep": 72, "point": 128, "head": 64}


def examples(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, count)
    x = rng.standard_normal((count, 3, 8, 8)).astype(np.float32)
    x[:, 0] += (y - 1.5)[:, None, None]
    return Split(x, y)


def make_bench(folder: Path, progress: Callable[[str], None] = lambda text: None) -> Workbench:
    train = examples(96, 0)
    return Workbench(
        train,
        examples(40, 1),
        train.x[:8],
        folder / "teacher.pt2",
        folder / "checkpoint",
        progress,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sparse")
    torch.manual_seed(0)
    save_program(
        open_program_of(Net().eval(), torch.from_numpy(examples(2, 0).x)), folder / "teacher.pt2"
    )
    with torch_threads(1):
        yield folder


def settings(**more: Any) -> Sparse:
    return Sparse(name="mine", method="sparse", **more)


def made(folder: Path, **more: Any) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights by path of the exported program, and the record."""
    bench = make_bench(folder)
    module = module_of(load_program(folder / "teacher.pt2"))
    module, record = sparse.apply(module, settings(**more), bench)
    for leftover in folder.glob("checkpoint*"):
        leftover.unlink()
    program = program_of(module, bench.example)
    state = program.state_dict
    return {path: state[f"{path}.weight"].detach() for path in LAYERS}, record


def zeros(weights: dict[str, torch.Tensor]) -> float:
    every = sum(weight.numel() for weight in weights.values())
    return sum(int((weight == 0).sum()) for weight in weights.values()) / every


def dense(folder: Path) -> dict[str, torch.Tensor]:
    state = load_program(folder / "teacher.pt2").state_dict
    return {path: state[f"{path}.weight"].detach() for path in LAYERS}


def test_the_record_says_of_each_layer_what_the_program_has(folder: Path):
    weights, record = made(folder, sparsity=0.6, scope="local")
    assert record["sparsity_asked"] == 0.6
    assert record["sparsity_found"] == zeros(weights)
    assert {path: layer["weights"] for path, layer in record["layers"].items()} == LAYERS
    for path, layer in record["layers"].items():
        assert layer["found"] == int((weights[path] == 0).sum()) / LAYERS[path]
        assert layer["found"] == pytest.approx(0.6, abs=0.02)
        assert layer["asked"] == 0.6
    assert record["empty"] == []


@pytest.mark.parametrize("scope", ["local", "global"])
def test_at_once_the_smallest_go_and_the_others_keep_their_values(folder: Path, scope: Any):
    weights, _ = made(folder, sparsity=0.5, scope=scope)
    assert zeros(weights) == pytest.approx(0.5, abs=0.01)
    before = dense(folder)
    largest_gone, smallest_kept = [], []
    for path, weight in weights.items():
        kept = weight != 0
        assert torch.equal(weight[kept], before[path][kept])
        unit = before[path].norm() if scope == "global" else 1.0
        largest_gone.append(float((before[path][~kept].abs() / unit).max()))
        smallest_kept.append(float((before[path][kept].abs() / unit).min()))
    if scope == "global":
        assert max(largest_gone) <= min(smallest_kept)
    else:
        assert all(gone <= kept for gone, kept in zip(largest_gone, smallest_kept, strict=True))


def test_half_of_the_weights_go_where_nothing_is_said(folder: Path):
    assert zeros(made(folder)[0]) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "how",
    [
        {"sparsity": 0.8},
        {"sparsity": 0.8, "scope": "local"},
        {"sparsity": 0.8, "schedule": "gradual"},
        {"sparsity": 0.8, "schedule": "cyclical", "cycles": 2},
        {"sparsity": 0.8, "schedule": "gradual", "scope": "local"},
        {"sparsity": 0.7, "scope": "regularised"},
    ],
    ids=lambda how: "-".join(str(value) for value in how.values()),
)
def test_zeros_are_exact_after_training_under_momentum_and_decay(folder: Path, how: dict[str, Any]):
    weights, record = made(folder, train=TRAINING, **how)
    assert zeros(weights) == record["sparsity_found"]
    assert record["sparsity_found"] == pytest.approx(how["sparsity"], abs=0.02)
    before = dense(folder)
    for path, weight in weights.items():
        kept = weight != 0
        assert (weight[kept] != before[path][kept]).float().mean() > 0.9  # they were trained
        assert not torch.signbit(weight[~kept]).any()
    assert 0 <= record["validation_accuracy"] <= 1
    assert record["train"]["epochs"] in (1, 3)
    assert ("asked" in record["layers"]["head"]) == (how.get("scope") == "local")


def test_regularised_training_learns_which_and_then_trains_the_rest(folder: Path):
    said: list[str] = []
    bench = make_bench(folder, said.append)
    module = module_of(load_program(folder / "teacher.pt2"))
    distil = Distil(features=0.1, at=("point",))
    chosen = settings(sparsity=0.7, scope="regularised", train=TRAINING, distil=distil)
    _, record = sparse.apply(module, chosen, bench)
    for leftover in folder.glob("checkpoint*"):
        leftover.unlink()
    assert [text.partition(",")[0] for text in said] == [
        "mine (masks): epoch 1/2",
        "mine (masks): epoch 2/2",
        "mine: epoch 1/1",
    ]
    assert record["masks"]["train"]["epochs"] == 2
    assert record["masks"]["sparsity_learned"] > 0.3
    assert record["sparsity_found"] == pytest.approx(0.7, abs=0.005)
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_layers_are_left_a_share_of_their_own_where_they_say_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    shares = {"stem": 0.25, "deep": 0.0, "point": 0.75, "head": 0.5}
    asked: list[float] = []

    def sparsities(module: nn.Module, sparsity: float, bench: Workbench) -> Any:
        asked.append(sparsity)
        return shares, {"curves": "of each"}

    monkeypatch.setattr("pipeline.compress.layer_adaptive.sparsities", sparsities)
    for schedule, train in (("one-shot", None), ("gradual", TRAINING), ("cyclical", TRAINING)):
        weights, record = made(
            folder, sparsity=0.4, scope="layer-adaptive", schedule=schedule, train=train
        )
        assert record["allocation"] == {"curves": "of each"}
        for path, weight in weights.items():
            assert int((weight == 0).sum()) == round(shares[path] * LAYERS[path])
            assert record["layers"][path]["asked"] == shares[path]
    assert asked == [0.4] * 3


def test_layer_adaptive_meets_the_sparsity_that_was_asked_for(folder: Path):
    weights, record = made(folder, sparsity=0.6, scope="layer-adaptive")
    assert zeros(weights) == pytest.approx(0.6, abs=0.02)
    assert len({layer["asked"] for layer in record["layers"].values()}) > 1


# -- N:M


@pytest.mark.parametrize(
    "train", [None, TRAINING, TRAINING.model_copy(update={"epochs": 1, "batch_size": 96})]
)
def test_a_pattern_holds_in_each_layer_it_fits_and_others_are_named(
    folder: Path, train: Training | None
):
    distil = Distil(loss="bd-kd") if train else None
    weights, record = made(folder, pattern="2:4", train=train, distil=distil)
    for path in ("point", "head"):
        assert keeps_pattern(weights[path], 2, 4)
        assert (weights[path] != 0).float().mean() == 0.5
        assert record["layers"][path]["asked"] == record["layers"][path]["found"] == 0.5
    assert record["left_dense"] == {
        "stem": "3 input channels are no multiple of 4",
        "deep": "1 input channels are no multiple of 4",
    }
    for path in ("stem", "deep"):
        assert (weights[path] != 0).all()
        assert "asked" not in record["layers"][path]
    assert record["pattern"] == "2:4"


def test_masks_of_a_pattern_adapt_while_it_is_trained(folder: Path):
    at_once, _ = made(folder, pattern="2:4")
    adapted, _ = made(
        folder, pattern="2:4", train=TRAINING.model_copy(update={"learning_rate": 0.05})
    )
    assert ((at_once["point"] != 0) != (adapted["point"] != 0)).any()


def test_a_pattern_that_fits_nowhere_is_refused_with_a_layer_and_its_reason(folder: Path):
    with pytest.raises(StageError) as caught:
        made(folder, pattern="2:7")
    assert caught.value.message == (
        "mine: the pattern 2:7 fits no layer: stem: 3 input channels are no multiple of 7"
    )
    assert caught.value.hint == "choose an M that divides the layers' input channels"


# -- what is said


def test_a_layer_of_which_nothing_is_left_is_named(folder: Path):
    module = module_of(load_program(folder / "teacher.pt2"))
    with torch.no_grad():
        module.get_submodule("deep").weight.zero_()
    said: list[str] = []
    _, record = sparse.apply(module, settings(sparsity=0.3), make_bench(folder, said.append))
    assert record["empty"] == ["deep"]
    assert said == ["mine: nothing is left of deep: ask for a lower sparsity, or for scope: local"]


def test_a_model_without_weights_to_prune_is_one_line(folder: Path):
    with pytest.raises(StageError, match="mine: the model has no convolution and no linear layer"):
        sparse.apply(nn.Sequential(nn.Flatten(), nn.ReLU()), settings(), make_bench(folder))


# -- a chain


def test_what_is_tuned_after_it_keeps_its_zeros(folder: Path):
    bench = make_bench(folder)
    module = module_of(load_program(folder / "teacher.pt2"))
    sparse.apply(module, settings(sparsity=0.7), bench)
    before = {path: weight.detach().clone() for path, weight in prunable(module).items()}
    with torch.no_grad():
        module.get_submodule("deep").weight.zero_()  # begins so: nobody pruned it
    tuned = Tuned(name="tuned", method="finetune", train=TRAINING)
    _, record = finetune.apply(module, tuned, bench)
    for leftover in folder.glob("checkpoint*"):
        leftover.unlink()
    assert record["zeros_held"] == ["head", "point", "stem"]
    for path in record["zeros_held"]:
        after = prunable(module)[path]
        assert torch.equal(after == 0, before[path] == 0)
        assert not torch.equal(after, before[path])
    assert prunable(module)["deep"].any()
    assert set(record) >= {"validation_accuracy_before", "validation_accuracy", "train"}


def pruned(folder: Path) -> tuple[nn.Module, Workbench]:
    """With 70 % of each layer's weights gone, without training."""
    bench = make_bench(folder)
    module = module_of(load_program(folder / "teacher.pt2"))
    sparse.apply(module, settings(sparsity=0.7, scope="local"), bench)
    return module, bench


def test_zeros_stay_while_it_is_trained_for_int8(folder: Path, tmp_path: Path):
    module, bench = pruned(folder)
    before = {path: weight.detach().clone() for path, weight in prunable(module).items()}
    int8 = Int8(name="int8", method="int8", train=TRAINING)
    _, record = qat.apply(module, int8, replace(bench, checkpoint=tmp_path / "c"))
    assert record["zeros_held"] == sorted(LAYERS)
    for path, weight in prunable(module).items():
        assert torch.equal(weight == 0, before[path] == 0)
        assert not torch.equal(weight, before[path])


def test_zeros_stay_while_what_is_left_of_it_is_trained(folder: Path, tmp_path: Path):
    module, bench = pruned(folder)
    narrow = Structured(
        name="narrow",
        method="structured",
        budget=Budget(macs=0.7),
        round_to=1,
        train=TRAINING,
    )
    smaller, record = structured.apply(module, narrow, replace(bench, checkpoint=tmp_path / "c"))
    weights = prunable(smaller)
    assert weights["point"].numel() < LAYERS["point"]
    # Which channels go has little to do with where zeros are.
    assert zeros(weights) > 0.5
    assert record["zeros_held"]


def test_a_method_that_chooses_masks_itself_may_take_zeros_back(folder: Path, tmp_path: Path):
    module, bench = pruned(folder)
    again = settings(sparsity=0.4, scope="local", schedule="cyclical", cycles=2, train=TRAINING)
    _, record = sparse.apply(module, again, replace(bench, checkpoint=tmp_path / "c"))
    assert record["sparsity_found"] == pytest.approx(0.4, abs=0.02)
    assert "zeros_held" not in record


def test_what_a_pattern_does_not_fit_keeps_its_zeros(folder: Path, tmp_path: Path):
    module, bench = pruned(folder)
    again = settings(pattern="2:4", train=TRAINING)
    _, record = sparse.apply(module, again, replace(bench, checkpoint=tmp_path / "c"))
    assert record["zeros_held"] == ["deep", "stem"]
    assert record["layers"]["stem"]["found"] == pytest.approx(0.7, abs=0.02)


# -- batch norms


@pytest.mark.parametrize("how", [{"sparsity": 0.7}, {"pattern": "2:4"}])
def test_without_training_batch_norms_are_settled_on_what_they_are_given_now(
    folder: Path, how: dict[str, Any]
):
    bench = make_bench(folder)
    module = module_of(load_program(folder / "teacher.pt2"))
    if "pattern" in how:  # which does not fit the stem
        with torch.no_grad():
            module.get_submodule("stem").weight.mul_(3)
    _, record = sparse.apply(module, settings(**how), bench)
    assert record["batch_norms_settled"] is True
    with torch.no_grad():
        given = module.get_submodule("stem")(torch.from_numpy(bench.calibration))
    norm = module.get_submodule("norm")
    torch.testing.assert_close(norm.running_mean, given.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, given.var((0, 2, 3)))
    assert not norm.training


def test_they_are_settled_in_narrower_networks_too(folder: Path):
    module = module_of(load_program(folder / "teacher.pt2"))
    narrow = Structured(name="n", method="structured", budget=Budget(macs=0.7), round_to=1)
    bench = make_bench(folder)
    smaller, record = structured.apply(module, narrow, bench)
    assert record["batch_norms_settled"] is True
    with torch.no_grad():
        given = smaller.get_submodule("stem")(torch.from_numpy(bench.calibration))
    torch.testing.assert_close(smaller.get_submodule("norm").running_mean, given.mean((0, 2, 3)))


def test_trained_ones_follow_by_themselves_and_where_there_are_none_nothing_is_said(folder: Path):
    assert "batch_norms_settled" not in made(folder, sparsity=0.5, train=TRAINING)[1]
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 4))
    _, record = sparse.apply(plain, settings(sparsity=0.5, scope="local"), make_bench(folder))
    assert "batch_norms_settled" not in record


# -- interrupted

HOWS: dict[str, dict[str, Any]] = {
    "gradual": {"sparsity": 0.8, "schedule": "gradual"},
    "cyclical": {"sparsity": 0.8, "schedule": "cyclical", "cycles": 2},
    "pattern": {"pattern": "2:4"},
    "regularised": {"sparsity": 0.7, "scope": "regularised"},
}


class Killed(Exception):
    pass


@pytest.mark.parametrize("how", ["gradual", "cyclical", "pattern", "regularised"])
@pytest.mark.parametrize("after", [1, 2])
def test_interrupted_it_comes_to_the_same_weights(
    folder: Path, tmp_path: Path, how: str, after: int
):
    whole, _ = made(folder, train=TRAINING, **HOWS[how])
    count = 0

    def kill(text: str) -> None:
        nonlocal count
        count += "epoch " in text
        if count == after:
            raise Killed

    (tmp_path / "teacher.pt2").write_bytes((folder / "teacher.pt2").read_bytes())
    chosen = settings(train=TRAINING, **HOWS[how])
    with pytest.raises(Killed):
        sparse.apply(
            module_of(load_program(folder / "teacher.pt2")), chosen, make_bench(tmp_path, kill)
        )
    module = module_of(load_program(folder / "teacher.pt2"))
    said: list[str] = []
    sparse.apply(module, chosen, make_bench(tmp_path, said.append))
    assert "goes on after epoch" in said[0]
    for path, weight in prunable(module).items():
        assert torch.equal(weight, whole[path])


def test_regularised_masks_are_the_same_in_another_process(folder: Path, tmp_path: Path):
    """NNCF keeps its hooks in the order of a set of strings, which is another in each process."""
    (tmp_path / "teacher.pt2").write_bytes((folder / "teacher.pt2").read_bytes())
    script = f"""
import torch
from pathlib import Path
from tests.pipeline.test_sparse import HOWS, TRAINING, Killed, made, make_bench, settings
from pipeline.compress import sparse
from pipeline.compress.module import module_of
from pipeline.programs import load_program

def kill(text):
    if "epoch 1/" in text:
        raise Killed

torch.set_num_threads(1)
folder = Path({str(tmp_path)!r})
module = module_of(load_program(folder / "teacher.pt2"))
try:
    sparse.apply(module, settings(train=TRAINING, **HOWS["regularised"]), make_bench(folder, kill))
except Killed:
    pass
"""
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=300, env=environment)
    whole, _ = made(folder, train=TRAINING, **HOWS["regularised"])
    module = module_of(load_program(folder / "teacher.pt2"))
    said: list[str] = []
    sparse.apply(
        module, settings(train=TRAINING, **HOWS["regularised"]), make_bench(tmp_path, said.append)
    )
    assert said[0] == "mine (masks): goes on after epoch 1"
    for path, weight in prunable(module).items():
        assert torch.equal(weight, whole[path])
