"""What is known of a quantization: how it computes, by which samples, what it lost."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compress import int8
from pipeline.compress.calibration import (
    Judge,
    calibration_record,
    quantization_record,
)
from pipeline.compress.int8 import Choice, make, quantized
from pipeline.compress.quantize import calibrated, lowered
from pipeline.compress.simulate import Simulation, batch_of, demand_finite, outputs_of
from pipeline.compress.variants import original
from pipeline.model import trace
from pipeline.stage import Workspace
from profiles.compression import Int8, Training
from profiles.errors import DataError, UsageError
from profiles.records import ArtifactFormat
from tests.pipeline import gratings
from tests.pipeline.gratings import example, network, program

X = gratings.gratings(64, 2).x


@pytest.fixture(scope="module", params=["onnx", "tflite"])
def pair(request: pytest.FixtureRequest):
    """A calibrated program and what is lowered from it."""
    format_: ArtifactFormat = request.param
    found = calibrated(program(), format_, X)
    return found, lowered(found, format_, example())


def test_lowering_changes_no_output(pair):
    found, final = pair
    np.testing.assert_array_equal(outputs_of(found, X), outputs_of(final, X))


def test_with_all_conversions_off_it_is_fp32_and_with_all_on_it_is_int8(pair):
    found, _ = pair
    simulation = Simulation(found, X)
    exact = outputs_of(program(), X)
    np.testing.assert_allclose(simulation.outputs(()), exact, atol=1e-4)
    every = simulation.outputs(simulation.conversions)
    np.testing.assert_array_equal(every, outputs_of(found, X))
    assert np.abs(every - exact).max() > 0.1


def test_ranges_found_again_with_the_same_samples_are_those_of_calibration(pair):
    found, _ = pair
    simulation = Simulation(found, X)
    ranges = simulation.ranges(simulation.extremes(X), len(X))
    assert set(ranges) == set(simulation.activations)
    for node, (scale, zero) in ranges.items():
        # NNCF moves a range a little for zero to be exact.
        assert scale == pytest.approx(node.args[1], rel=0.02)
        assert abs(zero - node.args[2]) <= 2


def test_the_network_s_blocks_and_what_keeps_each_in_fp32(pair):
    found, _ = pair
    blocks = {block.name: block for block in Simulation(found, X).blocks()}
    assert {"stem", "down", "deep", "head"} == {name.partition(".")[0] for name in blocks}
    assert [block.macs for block in blocks.values()] == [
        8 * 144 * 9,
        16 * 36 * 9 * 8,
        16 * 36 * 9 * 16,
        4 * 16,
    ]
    for block in blocks.values():
        assert all(p.startswith(f"model.{block.name.partition('.')[0]}") for p in block.patterns)


def test_a_block_s_patterns_keep_it_in_fp32_and_nothing_else():
    *_, deep, _ = Simulation(calibrated(program(), "tflite", X[:2]), X).blocks()
    kept = calibrated(program(), "tflite", X[:2], keep=deep.patterns)
    assert quantization_record(kept)["float_layers"] == ["model.deep.0"]


def test_the_record_counts_layers_and_tells_the_scheme(pair):
    _, final = pair
    record = quantization_record(final)
    (activations,), (weights,) = record["activations"], record["weights"]
    assert weights == "int8 -127 to 127 per channel"
    # ONNX Runtime's quantizer leaves a layer that reads one channel in FP32.
    floats = ["model.stem.0"] if activations == "uint8 0 to 255 per tensor" else []
    assert floats or activations == "int8 -128 to 127 per tensor"
    assert (record["layers"], record["integer_layers"]) == (4, 4 - len(floats))
    assert record["float_layers"] == floats
    assert record["conversions"] > 4


class Folding(nn.Module):
    """Takes the examples of a batch for parts of one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.reshape(1, -1, 4).mean(1)


def test_examples_go_together_only_where_each_is_computed_as_if_alone():
    assert batch_of(network(), X) > 1
    assert batch_of(Folding(), X) == 1


def test_a_program_of_one_example_gives_the_outputs_of_all():
    with torch.no_grad():
        expected = network()(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(outputs_of(program(), X), expected, atol=1e-3)


def test_values_that_are_not_finite_are_found_where_they_begin():
    broken = network(1.0)
    with torch.no_grad():
        broken.down[1].weight[3] = float("nan")
    with pytest.raises(DataError, match=r"not finite appear in model\.down\.1\.weight"):
        demand_finite(trace(broken, example()), X[:3])
    large = network(1.0)
    with torch.no_grad():
        large.down[0].weight[3] = 1e38
    with pytest.raises(DataError, match=r"not finite appear in model\.down\.0 \(conv2d_1\)"):
        demand_finite(trace(large, example()), X[:3])


class Masked(nn.Module):
    """As attention masks: minus infinity before a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(SIZE, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = x.masked_fill(x > 1, float("-inf")).softmax(-1)
        return self.layer(scores).mean((1, 2))


SIZE = gratings.SIZE


def test_what_is_masked_with_infinity_does_no_harm():
    demand_finite(trace(Masked().eval(), example()), X[:3])


class Overflowing(Masked):
    """Reads infinity, and drops what comes of it: the output is finite, no range is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        large = (x.abs() + 1) * 1e38 * 1e38
        return self.layer(large).nan_to_num(0, 0, 0).mean((1, 2))


def test_infinity_that_a_layer_reads_is_found_though_the_output_is_finite():
    with pytest.raises(DataError, match=r"not finite appear in model \(mul"):
        demand_finite(trace(Overflowing().eval(), example()), X[:3])


def test_too_few_samples_are_warned_of_with_how_many_were_enough():
    more = gratings.gratings(256, 5).x
    faint = 0.3 * X[:2]
    found = calibrated(program(1.0), "onnx", faint)
    record = calibration_record(found, faint, more, gratings.gratings(64, 6).x)
    assert record["calibration_samples"] == 2
    assert record["calibration_enough"] in (4, 8, 16)
    assert f"with {record['calibration_enough']}, which are enough" in record["warning"]
    errors = {int(size): error for size, error in record["calibration_errors"].items()}
    assert errors[2] > 1.1 * errors[record["calibration_enough"]]


def test_enough_samples_are_not_warned_of():
    found = calibrated(program(1.0), "onnx", X)
    record = calibration_record(found, X, gratings.gratings(256, 5).x, gratings.gratings(64, 6).x)
    assert "warning" not in record
    assert record["calibration_enough"] <= 64
    assert record["calibration_sha256"] == hashlib.sha256(X.tobytes()).hexdigest()


def test_the_drop_is_paired_and_of_the_validation_examples():
    split = gratings.gratings(600, 1)
    judge = Judge(program(), split)
    same = judge.drop(program())
    assert (same.examples, same.drop) == (600, 0.0)
    hurt = judge.drop(calibrated(program(), "onnx", X))
    assert hurt.drop == pytest.approx(hurt.reference_accuracy - hurt.accuracy)
    assert 0.05 < hurt.ci95[0] < hurt.drop < hurt.ci95[1]
    assert "on 600 examples" in hurt.describe()


def test_training_for_int8_knows_what_stays_in_fp32(monkeypatch: pytest.MonkeyPatch):
    told: list[Int8] = []

    class Told(Exception):
        pass

    def on_floats(job: Any, settings: Int8, *others: Any) -> None:
        told.append(settings)
        raise Told

    monkeypatch.setattr(int8, "on_floats", on_floats)
    asked = Int8(name="s", method="int8", keep=("model.head",), train=Training())
    with pytest.raises(Told):
        make(cast(Any, None), asked, cast(Any, None))
    assert told[0].keep == ("model.head",)


def test_a_drop_is_held_by_the_blocks_that_were_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told: dict[str, Any] = {}

    class Told(Exception):
        pass

    def controlled(*others: Any, **options: Any) -> None:
        told.update(options)
        raise Told

    monkeypatch.setattr("pipeline.compress.controlled.controlled", controlled)
    workspace = Workspace.open(tmp_path / "work")
    try:
        job = gratings.job(tmp_path, workspace, {}, factor=1.0)
        settings = Int8(name="s", method="int8", max_drop=0.01)
        choice = Choice("measured", costs_ns={"stem": 5.0}, depth=1)
        with pytest.raises(Told):
            quantized(job, settings, original(job, "onnx"), choice)
    finally:
        workspace.close()
    assert (told["costs_ns"], told["depth"]) == ({"stem": 5.0}, 1)


def test_a_variant_s_record_says_how_it_was_made(tmp_path: Path):
    workspace = Workspace.open(tmp_path / "work")
    try:
        job = gratings.job(tmp_path, workspace, {}, factor=1.0)
        settings = Int8(name="small", method="int8", keep=("model.head",))
        (made,) = make(job, settings, original(job, "onnx"))
        samples = job.data.arrays.calibration()
        details = made.details
        assert (made.variant, made.dtype, made.device) == ("small", "int8", None)
        assert details["keep"] == ["model.head"]
        assert details["quantization"]["float_layers"] == ["model.stem.0", "model.head"]
        assert details["calibration_sha256"] == hashlib.sha256(samples.tobytes()).hexdigest()
        assert details["seed"] == 0
        # A fifth of the 320 training examples, none of the 32 test examples.
        assert details["validation"]["examples"] == 64
        assert details["validation"]["validation_seen_in_training"] is False
        model = job.recipe.model.model_copy(update={"train": Training()})
        trained = replace(job, recipe=job.recipe.model_copy(update={"model": model}))
        (made,) = make(trained, settings, original(trained, "onnx"))
        assert made.details["validation"]["validation_seen_in_training"] is True
        with pytest.raises(UsageError, match=r"model\.foot"):
            make(job, Int8(name="s", method="int8", keep=("model.foot",)), original(job, "onnx"))
    finally:
        workspace.close()
