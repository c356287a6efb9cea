"""Accuracy-controlled quantization: what is most sensitive goes back to FP32 until a drop holds.

Blocks are ranked by what quantizing each of them *alone* does to the outputs: one forward pass per
block of the one calibration that there is, where leaving out one block at a time would take as many
passes to see differences that drown in the noise of all the others.  Sensitivity is per cost, so
that accuracy is bought back where it is cheapest.  Ranks are guesses; what is quantized anew and
judged on the validation examples decides.  A bisection over the ranked list needs few of these; of
what it reverts, a few single blocks are then tried in INT8 again, those first whose return to FP32
was worth least: the list is a guess, and some of it may not have been needed.

Accuracy is judged in PyTorch, for every format alike.  It rounds to the same integers as the
runtimes' kernels, but sums in FP32 where they requantize: on a small convolutional network outputs
differed by a step of their last range, 0.3 % of the largest in ONNX Runtime, 0.7 % in ExecuTorch
and 1.5 % in LiteRT, and all 600 decisions were the same.  What the artifact itself loses is for
parity to say.

*Source*: the greedy reverting by rank is that of accuracy control in NNCF; the bisection, the cost
and the way back are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pipeline.compress.calibration import MOST_ASKED, Drop, Judge
from pipeline.compress.simulate import Block, Simulation
from pipeline.data import Images
from pipeline.stage import Progress
from profiles.errors import StageError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: Calibrates with these modules in FP32; see :func:`pipeline.compress.quantize.calibrated`.
Build = Callable[[Sequence[str]], "ExportedProgram"]
#: So many reverted blocks are tried in INT8 again: each costs a calibration and a judgement.
RETRIES = 3


def controlled(
    program: ExportedProgram,
    build: Build,
    judge: Judge,
    max_drop: float,
    samples: Images,
    *,
    costs_ns: Mapping[str, float] | None = None,
    depth: int | None = None,
    progress: Progress = lambda text: None,
) -> tuple[ExportedProgram, tuple[str, ...], dict[str, Any]]:
    """Quantize as much as a drop of accuracy allows for.

    Args:
        program: in FP32.
        build: calibrates it, with more modules left in FP32.
        judge: tells what is lost against the uncompressed model.
        max_drop: how much that may be, as a fraction.
        samples: inputs to rank blocks with.
        costs_ns: by the name of a block, what it takes longer in FP32 on the device, where that
            is measured; multiplications stand in for it where it is not, and the record says why.
        depth: of the blocks that were measured; see :func:`pipeline.profile.grouping.group`.
        progress: told about each attempt.

    Returns:
        The calibrated program, what was left in FP32, and the record.

    Raises:
        StageError: if not even FP32 holds the drop, or nothing but FP32.
    """
    everything = build(())
    first = judge.drop(everything)
    if first.drop <= max_drop:
        return everything, (), _record(max_drop, [], {0: first}, [], first)
    _demand_reachable(judge.drop(program), max_drop)
    costs_ns = costs_ns or {}
    ranked = rank(Simulation(everything, samples[:MOST_ASKED]), costs_ns, depth)
    drops, programs = {0: first}, {0: everything}
    fails, holds = 0, len(ranked)
    while holds - fails > 1:
        count = (fails + holds) // 2
        programs[count] = build(_patterns([block for block, _ in ranked[:count]]))
        drops[count] = judge.drop(programs[count])
        progress(f"{count} of {len(ranked)} blocks in FP32: drop {drops[count].describe()}")
        if drops[count].drop <= max_drop:
            holds = count
        else:
            fails = count
    if holds == len(ranked):
        nearest = min(drops.values(), key=lambda drop: drop.drop)
        raise StageError(
            f"a drop of {100 * max_drop:g} points holds in FP32 only: with the least sensitive"
            f" block in INT8 it is {nearest.describe()}",
            f"allow for {nearest.drop:.4f}, calibrate with more samples, or name train (QAT)",
        )
    costs = Costs.of([block for block, _ in ranked], costs_ns)
    found = _Found([block for block, _ in ranked[:holds]], programs[holds], drops[holds])
    found, tried = _put_back(found, costs, build, judge, max_drop, progress)
    record = _record(max_drop, ranked, drops, found.reverted, found.drop)
    record |= {"put_back": tried, "cost": costs.unit, "cost_why": costs.why}
    return found.program, _patterns(found.reverted), record


@dataclass(frozen=True, slots=True)
class Costs:
    """What blocks cost in FP32 more than in INT8.

    Args:
        unit: ``ns``, or ``macs`` where these stand in for it.
        why: it is this one.
        each: by the name of a block.
    """

    unit: Literal["ns", "macs"]
    why: str
    each: Mapping[str, float]

    @classmethod
    def of(cls, blocks: Sequence[Block], costs_ns: Mapping[str, float]) -> Costs:
        """Nanoseconds where all blocks have them, for they do not compare with MACs."""
        unknown = [block.name for block in blocks if block.name not in costs_ns]
        if costs_ns and not unknown:
            return cls("ns", "every block was measured on the device", costs_ns)
        why = f"not every block has a latency: {', '.join(unknown)}"
        if not costs_ns:
            why = "no blocks were measured: only candidates of precision: measured have latencies"
        return cls("macs", why, {block.name: float(block.macs) for block in blocks})


@dataclass(frozen=True, slots=True)
class _Found:
    """What holds the drop: the blocks in FP32, worth most first, and what comes of it."""

    reverted: Sequence[Block]
    program: ExportedProgram
    drop: Drop


def _put_back(
    found: _Found,
    costs: Costs,
    build: Build,
    judge: Judge,
    max_drop: float,
    progress: Progress,
) -> tuple[_Found, dict[str, float]]:
    """Single blocks in INT8 again, as long as the drop holds; and the drops that were tried."""
    # Without the last one it did not hold: the bisection has seen that.
    slower = [block for block in found.reverted[:-1] if costs.each[block.name] > 0]
    tried = {}
    for block in reversed(slower[-RETRIES:]):
        left = [other for other in found.reverted if other is not block]
        program = build(_patterns(left))
        drop = judge.drop(program)
        tried[block.name] = drop.drop
        progress(f"{block.name} in INT8 again: drop {drop.describe()}")
        if drop.drop <= max_drop:
            found = _Found(left, program, drop)
    return found, tried


def rank(
    simulation: Simulation, costs_ns: Mapping[str, float], depth: int | None = None
) -> list[tuple[Block, float]]:
    """Blocks and their sensitivity, by the most distortion for the least cost first.

    Args:
        simulation: of a network with everything quantized.
        costs_ns, depth: see :func:`controlled`.
    """
    exact = simulation.outputs(())
    scale = float(np.mean(exact**2)) or 1.0
    found = []
    for block in simulation.blocks(depth):
        outputs = simulation.outputs(simulation.touching(block))
        found.append((block, float(np.mean((outputs - exact) ** 2)) / scale))
    costs = Costs.of([block for block, _ in found], costs_ns).each

    def worth(item: tuple[Block, float]) -> tuple[bool, float]:
        block, distortion = item
        cost = costs[block.name]
        # What is no slower in FP32 costs nothing to put back.
        return cost <= 0, distortion / (cost if cost > 0 else 1.0)

    return sorted(found, key=worth, reverse=True)


def _demand_reachable(drop: Drop, max_drop: float) -> None:
    if drop.drop > max_drop:
        raise StageError(
            f"a drop of {100 * max_drop:g} points cannot hold: what is to be quantized has lost"
            f" {drop.describe()} in FP32 already",
            "max_drop is against the uncompressed model"
            + (
                ", which has seen these examples in model.train and is better on them than on new"
                " ones"
                if drop.validation_seen_in_training
                else ""
            )
            + ": allow for more, or train before",
        )


def _patterns(blocks: Sequence[Block]) -> tuple[str, ...]:
    return tuple(pattern for block in blocks for pattern in block.patterns)


def _record(
    max_drop: float,
    ranked: Sequence[tuple[Block, float]],
    drops: Mapping[int, Drop],
    reverted: Sequence[Block],
    drop: Drop,
) -> dict[str, Any]:
    return {
        "max_drop": max_drop,
        "drop": drop.drop,
        "reverted": [block.name for block in reverted],
        "sensitivity": {block.name: distortion for block, distortion in ranked},
        "attempts": {str(count): drop.drop for count, drop in sorted(drops.items())},
    }
