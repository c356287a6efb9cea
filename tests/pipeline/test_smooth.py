"""Smoothing changes no function, and lets INT8 hold what outlier channels crowded out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.compress.quantize import quantize
from pipeline.compress.smooth import smooth
from pipeline.model import trace
from profiles.errors import StageError, UsageError
from tests.pipeline.networks import VitLike

OUTLIERS = (3, 17)


def images(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 3, 32, 32)).astype(np.float32)


SAMPLES, TESTS = images(6, seed=1), images(6, seed=2)


def planted() -> nn.Module:
    """A transformer as training leaves it: two channels behind each norm are 80 times larger."""
    torch.manual_seed(0)
    network = VitLike().eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight[list(OUTLIERS)] *= 80
        for module in network.modules():
            if isinstance(module, nn.Linear) and module is not network.head:
                module.weight[:, list(OUTLIERS)] /= 20
    return network


def outputs(program: torch.export.ExportedProgram) -> np.ndarray:
    module = program.module()
    with torch.no_grad():
        rows = [module(torch.from_numpy(x[None])).numpy() for x in TESTS]
    return np.concatenate(rows).astype(np.float64)


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean square, as a share of what differs from sample to sample."""
    return float(np.square(found - expected).mean() / expected.var(0).mean())


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    return trace(planted(), torch.from_numpy(SAMPLES[:1]))


def test_the_function_stays_and_the_original_is_left_alone(program):
    before = outputs(program)
    after = outputs(smooth(program, SAMPLES, 0.5))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * np.abs(before).max())
    np.testing.assert_array_equal(outputs(program), before)


def test_int8_loses_far_less_behind_smoothed_norms(program):
    expected = outputs(program)
    plain = error(outputs(quantize(program, "executorch", SAMPLES)), expected)
    smoothed = smooth(program, SAMPLES, 0.5)
    even = error(outputs(quantize(smoothed, "executorch", SAMPLES)), expected)
    assert even < plain / 5


def test_strength_says_where_the_outliers_end_up(program):
    """At 1 all channels of the activations are alike, at 0 all columns of the weights."""
    norms = {name for name in program.state_dict if name.endswith("norm1.weight")}
    spread = {}
    for strength in (0.0, 0.5, 1.0):
        smoothed = smooth(program, SAMPLES, strength).state_dict
        (name, *_) = sorted(norms)
        factors = smoothed[name].detach().abs()
        spread[strength] = float(factors[list(OUTLIERS)].mean() / factors.median())
    assert spread[1.0] < 2
    assert spread[0.0] > spread[0.5] > spread[1.0]


def test_modules_keep_their_names(program):
    smoothed = smooth(program, SAMPLES, 0.5)
    kept = quantize(smoothed, "onnx", SAMPLES[:1], keep=("model.blocks.*.mlp",))
    assert kept is not None


class Shared(nn.Module):
    """One norm that a sum reads, too, one without factors, and weights that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.read_twice, self.plain = nn.LayerNorm(8), nn.LayerNorm(8, elementwise_affine=False)
        self.tied = nn.LayerNorm(8)
        self.a, self.b, self.c, self.d = (nn.Linear(8, 8) for _ in range(4))
        self.d.weight = self.c.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.read_twice(x)
        y = y + self.a(y)
        return self.d(self.c(self.tied(self.b(self.plain(y)))))


def test_without_a_pair_there_is_a_refusal():
    given = trace(Shared().eval(), torch.randn(1, 5, 8))
    with pytest.raises(StageError, match="nothing to smooth"):
        smooth(given, np.zeros((1, 5, 8), np.float32), 0.5)


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_strengths_out_of_range_are_refused(program, strength):
    with pytest.raises(UsageError, match="not between 0 and 1"):
        smooth(program, SAMPLES, strength)


def test_values_that_are_not_finite_are_refused_by_place(program):
    broken = SAMPLES.copy()
    broken[2, 0, 5, 5] = np.nan
    with pytest.raises(StageError, match=r"model\.blocks\.0\.norm1 .* not finite"):
        smooth(program, broken, 0.5)
