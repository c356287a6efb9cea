"""Costs in context against a truth that is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.errors import TableError
from profiles.in_context import InContext, in_context

BLOCKS = 8
ALONE_NS = np.linspace(20_000.0, 120_000.0, BLOCKS)


def learned(
    networks: int, factors: np.ndarray, *, noise: float = 0.0, drift: float = 0.0, seed: int = 0
) -> tuple[InContext, np.ndarray, np.ndarray]:
    """What is learned where each block costs its own factor; and further networks' truth."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 3, size=(networks + 200, BLOCKS)).astype(float)
    counts[:, 0] += 1
    truth = counts @ (ALONE_NS * factors) + 5_000.0
    runs = np.exp(noise * rng.standard_normal((networks, 5)) + drift * rng.standard_normal((1, 5)))
    found = in_context(counts[:networks], ALONE_NS, truth[:networks, None] * runs)
    return found, counts[networks:], truth[networks:]


def predicted(found: InContext, counts: np.ndarray) -> np.ndarray:
    return counts @ found.own_ns + found.offset_ns


@given(st.floats(0.3, 3.0))
def test_what_blocks_share_is_learned_from_few(factor: float):
    found, counts, truth = learned(10, np.full(BLOCKS, factor))
    np.testing.assert_allclose(predicted(found, counts), truth, rtol=1e-3)


def test_what_each_block_does_by_itself_is_learned_from_more():
    factors = np.random.default_rng(3).uniform(0.6, 1.2, BLOCKS)
    found, counts, truth = learned(40, factors, noise=0.005)
    error = np.abs(predicted(found, counts) / truth - 1)
    plain = np.abs((counts @ ALONE_NS) / truth - 1)
    assert error.mean() < 0.005 < plain.mean() / 4
    np.testing.assert_allclose(found.own_ns, ALONE_NS * factors, atol=3 * found.half_width_ns.max())


def test_intervals_cover_what_they_say():
    covered = []
    for seed in range(20):
        found, counts, truth = learned(40, np.ones(BLOCKS), noise=0.05, seed=seed)
        later = truth * np.median(
            np.exp(0.05 * np.random.default_rng(seed).standard_normal((len(truth), 5))), axis=1
        )
        covered += list(np.abs(predicted(found, counts) / later - 1) <= found.half_width())
    assert 0.85 <= np.mean(covered) <= 0.97


def test_a_device_that_drifts_has_wider_intervals():
    calm, drifting = (
        learned(40, np.ones(BLOCKS), noise=0.002, drift=drift)[0] for drift in (0.0, 0.05)
    )
    assert calm.half_width() < 0.01 < 0.02 < drifting.half_width()


def test_a_block_that_costs_nothing_alone_may_cost_something_in_context():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 2, size=(60, 3)).astype(float)
    alone, truth = np.array([100_000.0, 50_000.0, -200.0]), np.array([1e5, 5e4, 2e4])
    runs = np.repeat((counts @ truth + 10_000.0)[:, None], 3, axis=1)
    assert in_context(counts, alone, runs).own_ns == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize(
    ("counts", "alone", "runs", "why"),
    [
        (np.ones((9, 2)), np.ones(2), np.ones((9, 3)), "at least 10"),
        (np.ones((10, 2)), np.ones(3), np.ones((10, 3)), "each block"),
        (np.ones((10, 2)), np.ones(2), np.zeros((10, 3)), "positive"),
        (np.ones((10, 2)), np.array([1.0, np.nan]), np.ones((10, 3)), "finite"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(counts, alone, runs, why: str):
    with pytest.raises(TableError, match=why):
        in_context(counts, alone, runs)
