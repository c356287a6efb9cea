"""What goes back to FP32 for a drop of accuracy to hold, and how little is tried for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compress import controlled as method
from pipeline.compress.calibration import Drop, Judge, drop_record, quantization_record
from pipeline.compress.controlled import Costs, controlled, rank
from pipeline.compress.int8 import describe
from pipeline.compress.quantize import calibrated
from pipeline.compress.simulate import Block, Simulation
from profiles.errors import StageError
from tests.pipeline import gratings

X = gratings.gratings(64, 2).x
FP32 = "fp32"


def blocks(count: int) -> list[tuple[Block, float]]:
    return [(Block(f"b{i}", (f"model.b{i}",), frozenset(), 1), 1.0 / (i + 1)) for i in range(count)]


class Scripted:
    """Programs are what was kept; the drop is a function of how much that is."""

    def __init__(self, drops: Sequence[float], in_fp32: float = 0.0) -> None:
        self.drops, self.in_fp32 = drops, in_fp32
        self.built: list[tuple[str, ...]] = []

    def build(self, keep: Sequence[str]) -> Any:
        self.built.append(tuple(keep))
        return tuple(keep)

    def drop(self, program: Any) -> Drop:
        lost = self.in_fp32 if program == FP32 else self.drops[len(program)]
        return Drop(100, 0.9, 0.9 - lost, lost, (lost - 0.01, lost + 0.01))


def control(
    scripted: Scripted, max_drop: float, costs_ns: Mapping[str, float] | None = None
) -> Any:
    """Blocks are ranked as they are called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method, "Simulation", lambda *_: None)
        patch.setattr(method, "rank", lambda *_: blocks(len(scripted.drops)))
        return controlled(FP32, scripted.build, scripted, max_drop, X, costs_ns=costs_ns)


@given(st.lists(st.floats(0, 0.5), min_size=2, max_size=40), st.floats(0.001, 0.4))
def test_the_fewest_blocks_that_hold_it_go_back_in_few_attempts(drops, max_drop):
    drops = sorted(drops, reverse=True)
    holding = [count for count, drop in enumerate(drops) if drop <= max_drop]
    scripted = Scripted(drops)
    if not holding:
        with pytest.raises(StageError, match="holds in FP32 only"):
            control(scripted, max_drop)
    else:
        program, keep, record = control(scripted, max_drop)
        assert keep == program == tuple(f"model.b{i}" for i in range(holding[0]))
        assert record["reverted"] == [f"b{i}" for i in range(holding[0])]
        assert record["attempts"]["0"] == drops[0]
    assert len(scripted.built) <= 1 + math.ceil(math.log2(len(drops))) + method.RETRIES


class Needed(Scripted):
    """The drop holds once some blocks are in FP32, whatever else is."""

    def __init__(self, *names: str) -> None:
        super().__init__([0.0] * 8)
        self.needed = {f"model.{name}" for name in names}

    def drop(self, program: Any) -> Drop:
        lost = 0.0 if program == FP32 else 0.1 * len(self.needed - set(program))
        return Drop(100, 0.9, 0.9 - lost, lost, (lost, lost))


def test_reverted_blocks_that_were_not_needed_are_in_int8_again():
    scripted = Needed("b0", "b3")
    program, keep, record = control(scripted, 0.05)
    assert keep == program == ("model.b0", "model.b3")
    assert record["reverted"] == ["b0", "b3"]
    assert record["drop"] == 0
    # From the end; that the last one is needed was known.
    assert record["put_back"] == {"b2": 0.0, "b1": 0.0, "b0": pytest.approx(0.1)}
    assert "hold a drop of 5 points: 0.00, with all in INT8 20.00" in describe(record)


def test_no_more_than_a_few_are_tried_again_and_none_that_cost_nothing():
    scripted = Needed("b6")
    _, keep, record = control(scripted, 0.05)
    assert list(record["put_back"]) == ["b5", "b4", "b3"]
    assert keep == ("model.b0", "model.b1", "model.b2", "model.b6")
    costs = {f"b{i}": 5.0 for i in range(8)} | {"b4": -1.0}
    _, keep, record = control(Needed("b6"), 0.05, costs)
    assert list(record["put_back"]) == ["b5", "b3", "b2"]
    assert keep == ("model.b0", "model.b1", "model.b4", "model.b6")


def test_the_record_says_what_a_block_cost_and_why():
    _, _, record = control(Needed("b1"), 0.05)
    assert record["cost"] == "macs"
    assert "no blocks were measured" in record["cost_why"]
    costs = {f"b{i}": 5.0 for i in range(8)}
    _, _, record = control(Needed("b1"), 0.05, costs)
    assert (record["cost"], record["cost_why"]) == ("ns", "every block was measured on the device")
    del costs["b7"]
    _, _, record = control(Needed("b1"), 0.05, costs)
    assert (record["cost"], record["cost_why"]) == ("macs", "not every block has a latency: b7")


def test_nothing_is_reverted_or_ranked_where_all_in_int8_holds():
    scripted = Scripted([0.01, 0.0])
    assert control(scripted, 0.01)[1] == ()
    assert scripted.built == [()]


def test_a_drop_that_the_network_has_before_is_refused_with_what_it_is():
    with pytest.raises(StageError, match=r"has lost 3\.00 points .* in FP32 already") as caught:
        control(Scripted([0.2, 0.1], in_fp32=0.03), 0.02)
    assert "against the uncompressed model:" in caught.value.hint


def test_a_drop_on_examples_that_the_model_was_trained_on_says_so():
    judge = Judge(gratings.program(), gratings.gratings(20, 1), seen=True)
    drop = judge.drop(gratings.program())
    assert drop_record(drop)["validation"]["validation_seen_in_training"] is True
    unseen = Judge(gratings.program(), gratings.gratings(20, 1)).drop(gratings.program())
    assert drop_record(unseen)["validation"]["validation_seen_in_training"] is False

    class Seen(Scripted):
        def drop(self, program: Any) -> Drop:
            return replace(super().drop(program), validation_seen_in_training=True)

    with pytest.raises(StageError) as caught:
        control(Seen([0.2, 0.1], in_fp32=0.03), 0.02)
    assert "has seen these examples in model.train" in caught.value.hint


def test_a_drop_that_only_fp32_holds_is_refused_with_the_nearest():
    with pytest.raises(StageError, match=r"it is 4\.00 points") as caught:
        control(Scripted([0.2, 0.1, 0.04]), 0.02)
    assert "allow for 0.0400" in caught.value.hint


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return Simulation(calibrated(gratings.program(), "tflite", X), X)


def test_what_shares_the_large_range_is_most_sensitive(simulation: Simulation):
    distortions = {block.name: value for block, value in rank(simulation, {})}
    low, *_, second, first = sorted(distortions, key=lambda name: distortions[name])
    assert {first.partition(".")[0], second.partition(".")[0]} == {"down", "deep"}
    assert distortions[second] > 20 * distortions[low]


def test_blocks_are_ranked_by_what_they_gain_for_what_they_cost(simulation: Simulation):
    by_macs = rank(simulation, {})
    worth = [value / block.macs for block, value in by_macs]
    assert worth == sorted(worth, reverse=True)
    *_, (dullest, _) = sorted(by_macs, key=lambda item: -item[1])
    # On the device it is no slower in FP32: to put it back costs nothing.
    costs = {block.name: 1000.0 for block, _ in by_macs} | {dullest.name: -5.0}
    (first, _), *others = rank(simulation, costs)
    assert first == dullest
    values = [value for _, value in others]
    assert values == sorted(values, reverse=True)
    # One cost that is not known, and none is used.
    del costs[by_macs[0][0].name]
    assert [b.name for b, _ in rank(simulation, costs)] == [b.name for b, _ in by_macs]


def test_blocks_are_those_that_were_measured(simulation: Simulation):
    """At another depth they have other names, and their costs would be lost."""
    shallow, deep = simulation.blocks(1), simulation.blocks(3)
    assert {b.name for b in shallow} != {b.name for b in deep}
    for blocks_, depth in ((shallow, 1), (deep, 3)):
        costs = {block.name: 1000.0 for block in blocks_}
        ranked = rank(simulation, costs, depth)
        assert Costs.of([block for block, _ in ranked], costs).unit == "ns"


def test_a_network_that_int8_hurts_keeps_its_accuracy():
    judge = Judge(gratings.program(), gratings.gratings(600, 1))

    def build(keep: Sequence[str]) -> Any:
        return calibrated(gratings.program(), "tflite", X, keep=keep)

    assert judge.drop(build(())).drop > 0.05
    program, keep, record = controlled(gratings.program(), build, judge, 0.02, X)
    assert judge.drop(program).drop <= 0.02
    floats = quantization_record(program)["float_layers"]
    assert "model.deep.0" in floats
    assert 0 < len(floats) < 4
    assert len(keep) == len(record["reverted"]) == len(floats)
    assert np.isfinite(list(record["sensitivity"].values())).all()
