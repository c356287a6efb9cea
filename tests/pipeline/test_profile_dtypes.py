"""What INT8 buys: blocks of two profiles side by side."""

from __future__ import annotations

from dataclasses import replace

from pipeline.profile.dtypes import Gain, gains
from pipeline.profile.record import BlockCost
from profiles.findings import Figure
from tests.pipeline.test_profile_blocks import PROFILE


def block(names: tuple[str, ...], ns: float | None) -> BlockCost:
    figure = None if ns is None else Figure(ns, None, 10, 3)
    return BlockCost(names, "Conv", figure, None, "accepted" if figure else "failed", "why")


def test_blocks_are_put_side_by_side_by_name():
    before = replace(PROFILE, blocks=(block(("a", "b"), 500.0), block(("c",), 300.0)))
    # INT8 may tell blocks apart that are alike in FP32.
    after = replace(
        PROFILE, blocks=(block(("a",), 200.0), block(("c",), 400.0), block(("b",), None))
    )
    found = gains(before, after)
    assert found == [Gain("a", 500.0, 200.0), Gain("b", 500.0, None), Gain("c", 300.0, 400.0)]
    assert [gain.saved_ns for gain in found] == [300.0, None, -100.0]


def test_what_one_of_them_lacks_is_unknown():
    before = replace(PROFILE, blocks=(block(("a",), 500.0),))
    after = replace(PROFILE, blocks=())
    assert gains(before, after)[0].saved_ns is None
