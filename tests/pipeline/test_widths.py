"""Which widths a device likes: found where it has tiles, not where it has none or is noisy."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.profile.gauge import DeviceGauge
from pipeline.profile.widths import DEFAULT, LayerShape, layer_costs, liked_multiple, shape_of
from pipeline.stage import Workspace
from profiles.measure import Measure
from tests import builders

CALL_NS = 5_000.0
SHAPE = LayerShape(32, 64, (16, 16), (3, 3), (1, 1), (1, 1), (1, 1))


class Tiled:
    """A device whose kernels compute so many channels at once, whatever is asked for.

    Args:
        tile: how many.
        noise: relative, of each figure; ``drift`` of all figures of a round alike.
        rounds: how many.
    """

    def __init__(self, tile: int, noise: float = 0.0, drift: float = 0.0, rounds: int = 5) -> None:
        self.tile, self.noise, self.drift, self.count = tile, noise, drift, rounds
        self.rng = np.random.default_rng(0)
        self.asked: list[set[str]] = []

    def _ns(self, program: Any) -> float:
        (weight,) = (value for value in program.state_dict.values() if value.ndim > 1)
        return 1_000.0 * math.ceil(len(weight) / self.tile) * self.tile

    def measure(self, programs: Mapping[str, Any]) -> dict[str, float]:
        self.asked.append(set(programs))
        return {name: CALL_NS + self._ns(one) for name, one in programs.items()} | {"call": CALL_NS}

    def rounds(self, programs: Mapping[str, Any]) -> dict[str, dict[tuple[int, int], float]]:
        exact, found = self.measure(programs), {}
        drifts = 1 + self.drift * self.rng.standard_normal(self.count)
        for name, ns in exact.items():
            own = 1 + self.noise * self.rng.standard_normal(self.count)
            found[name] = {(1, n): ns * drifts[n] * own[n] for n in range(self.count)}
        return found


@pytest.fixture(autouse=True)
def light(monkeypatch) -> None:
    """Programs that are not exported: a fake device looks at their widths alone."""

    class Program:
        def __init__(self, outputs: int) -> None:
            self.state_dict = {"weight": np.empty((outputs, 1))}

    exported = LayerShape.program
    monkeypatch.setattr(LayerShape, "exported", exported, raising=False)
    monkeypatch.setattr(LayerShape, "program", lambda self: Program(self.outputs))


@pytest.mark.parametrize("tile", [2, 4, 8, 16, 32])
def test_the_largest_multiple_that_costs_nothing_is_found(tile):
    found = liked_multiple(Tiled(tile, noise=0.003, drift=0.1), SHAPE)
    assert found.multiple == tile
    assert f"up to a multiple of {tile} cost" in found.why
    assert found.slopes[tile][0] < 0.3 and all(
        found.slopes[m][0] > 0.8 for m in (2, 4, 8, 16, 32) if m > tile
    )
    assert min(found.curve) >= 8 and max(found.curve) == 64


def test_where_each_channel_costs_the_same_all_widths_are_liked():
    found = liked_multiple(Tiled(1, noise=0.003), SHAPE)
    assert (found.multiple, found.why) == (1, "each channel costs the same, at whatever width")


def test_a_device_too_noisy_to_tell_gets_the_usual_multiple_and_the_reason():
    found = liked_multiple(Tiled(1, noise=0.3), SHAPE)
    assert found.multiple == DEFAULT == 8
    assert "cannot be told" in found.why


def test_two_rounds_are_not_enough_to_decide():
    found = liked_multiple(Tiled(16, rounds=2), SHAPE)
    assert found.multiple == DEFAULT and "cannot be told" in found.why


def test_widths_that_take_no_longer_than_a_call_have_no_place_on_the_curve():
    """And no NaN, which no record holds."""

    class Quick(Tiled):
        def _ns(self, program: Any) -> float:
            ns = super()._ns(program)
            return ns if ns > 32_000 else -1.0

    found = liked_multiple(Quick(1), SHAPE)
    assert min(found.curve) == 36 and all(map(math.isfinite, found.curve.values()))
    assert found.multiple == DEFAULT and "cannot be told" in found.why


def test_a_layer_too_narrow_to_tell_asks_nothing():
    gauge = Tiled(8)
    found = liked_multiple(gauge, LayerShape(4, 1, (8, 8), (1, 1), (1, 1), (0, 0), (1, 1)))
    assert found.multiple == DEFAULT and "too few" in found.why and gauge.asked == []


def test_a_depthwise_layer_is_varied_on_both_sides(monkeypatch):
    made: list[LayerShape] = []
    program = LayerShape.program
    monkeypatch.setattr(LayerShape, "program", lambda self: made.append(self) or program(self))
    shape = LayerShape(64, 64, (16, 16), (3, 3), (1, 1), (1, 1), (1, 1), groups=64)
    assert liked_multiple(Tiled(8), shape).multiple == 8
    assert all(one.inputs == one.outputs == one.groups for one in made) and len(made) > 5


def test_layers_alike_are_measured_once_and_the_call_is_no_part_of_them():
    gauge = Tiled(1)
    wide = LayerShape(32, 128, (16, 16), (3, 3), (1, 1), (1, 1), (1, 1))
    same = LayerShape(32, 64, (16, 16), (3, 3), (1, 1), (1, 1), (1, 1))
    assert layer_costs(gauge, [SHAPE, wide, same]) == {SHAPE: 64_000.0, wide: 128_000.0}
    assert [len(asked) for asked in gauge.asked] == [2]


@pytest.mark.parametrize(
    ("layer", "reads", "wanted"),
    [
        (nn.Linear(12, 6, bias=False), (5, 12), LayerShape(12, 6, (5,), bias=False)),
        (
            nn.Conv2d(8, 8, (3, 5), 2, (1, 2), groups=8),
            (8, 9, 9),
            LayerShape(8, 8, (9, 9), (3, 5), (2, 2), (1, 2), (1, 1), 8),
        ),
    ],
)
def test_the_shape_of_a_layer_makes_a_layer_of_that_shape(layer, reads, wanted):
    shape = shape_of(layer, reads)
    assert shape == wanted
    program = wanted.exported()
    x = torch.ones(1, *reads)
    assert program.module()(x).shape == layer(x).shape
    (mine,) = (v for v in program.state_dict.values() if v.ndim > 1)
    assert mine.shape == layer.weight.shape
    again = wanted.exported()
    assert all(torch.equal(v, again.state_dict[k]) for k, v in program.state_dict.items())


def test_on_a_device_that_takes_the_same_for_each_byte_no_width_is_liked(tmp_path, monkeypatch):
    """Through export and campaign; asked again it answers from the workspace."""
    monkeypatch.setattr(LayerShape, "program", LayerShape.exported)
    monkeypatch.setattr("pipeline.profile.widths.MULTIPLES", (8, 16))
    monkeypatch.setattr("pipeline.profile.widths._PLACES", 1)
    home = tmp_path / "home"
    home.mkdir()
    (home / "scripted.json").write_text(json.dumps({"between_runs": [0.0, 0.0]}))
    device = builders.device(address=f"scripted:{home}")
    said: list[str] = []
    workspace = Workspace.open(tmp_path / "work", said.append)
    gauge = DeviceGauge(workspace, device, "onnx", Measure(runs=3, iterations=8, warmup_seconds=0))
    shape = LayerShape(512, 32, ())
    found = liked_multiple(gauge, shape)
    assert found.multiple == 1
    assert found.slopes[16][0] == pytest.approx(1, abs=0.05)
    said.clear()
    assert liked_multiple(gauge, shape) == found
    assert not any(line.startswith("measure") for line in said)
    workspace.close()
