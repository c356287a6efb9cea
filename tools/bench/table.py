"""How fast does a table answer? Fused gathers against one gather a block and a plain loop.

    python -m tools.bench.table [--json] [--rounds 12]

The space is of once-for-all's size: 5 stages of 2 to 4 blocks, 3 kernels by 3 expansions for each,
5 resolutions; the costs are random.  Genomes are a row-major ``uint8`` matrix of 26 columns.  All
run on one core, in turns; what is checked is checked against the loop.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiles.scoring import Scorer, Stage, Structure
from profiles.space import SearchSpace, Slot
from tools.bench.paired import compare, in_turns

STAGES, BLOCKS, CHOICES = 5, 4, 9
DEPTHS = (2, 3, 4)
CONTEXTS = 5
GENOMES = 1_000_000
#: The slower ways are timed on a share of them.
GATHERED, LOOPED = 50_000, 1_000

Genes = NDArray[np.uint8]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """Random costs, ``(contexts, blocks, choices)``, and what a network costs without blocks."""

    blocks: Floats
    base: Floats


def once_for_all() -> Structure:
    """The space: genes of blocks, then of depths, then of the resolution."""
    blocks = [(s, b) for s in range(STAGES) for b in range(BLOCKS)]
    slots = [Slot(f"stage{s}.block{b}", tuple("abcdefghi")) for s, b in blocks]
    slots += [Slot(f"stage{s}.depth", tuple(map(str, DEPTHS))) for s in range(STAGES)]
    slots.append(Slot("resolution", ("128", "160", "192", "224", "256")))
    stages = [
        Stage(tuple(range(BLOCKS * s, BLOCKS * s + BLOCKS)), len(blocks) + s, DEPTHS)
        for s in range(STAGES)
    ]
    return Structure(SearchSpace(tuple(slots)), tuple(stages), len(slots) - 1)


def loop(costs: Costs, genomes: Genes) -> Floats:
    """One genome, one block after the other, in Python."""
    blocks, base = costs.blocks.tolist(), costs.base.tolist()
    totals = []
    for genome in genomes.tolist():
        under = genome[-1]
        total = base[under]
        for stage in range(STAGES):
            for block in range(DEPTHS[genome[STAGES * BLOCKS + stage]]):
                column = BLOCKS * stage + block
                total += blocks[under][column][genome[column]]
        totals.append(total)
    return np.array(totals)


def gather(costs: Costs, genomes: Genes) -> Floats:
    """One gather over all blocks of all genomes."""
    columns = np.arange(STAGES * BLOCKS)
    depth = np.array(DEPTHS)[genomes[:, STAGES * BLOCKS : -1]].repeat(BLOCKS, axis=1)
    under = genomes[:, -1]
    found = costs.blocks[under[:, np.newaxis], columns, genomes[:, : len(columns)]]
    total: Floats = np.where(columns % BLOCKS < depth, found, 0.0).sum(axis=1) + costs.base[under]
    return total


def run(rounds: int) -> dict[str, object]:
    """Time and check the three ways."""
    structure = once_for_all()
    rng = np.random.default_rng(0)
    genes = len(structure.space.slots)
    costs = Costs(
        rng.uniform(1e5, 1e6, (CONTEXTS, genes, CHOICES)), rng.uniform(1e5, 1e6, CONTEXTS)
    )
    genomes = structure.space.sample(GENOMES, rng).astype(np.uint8)
    scorer = Scorer(structure, costs.blocks, costs.base)
    expected = loop(costs, genomes[:GATHERED])
    error = float(np.max(np.abs(scorer.score(genomes)[:GATHERED] / expected - 1)))
    if not error <= 1e-9:
        raise SystemExit(f"the scorer is off by {error:.2g}")
    seconds = in_turns(
        {
            "fused": lambda: scorer.score(genomes),
            "gather": lambda: gather(costs, genomes[:GATHERED]),
            "loop": lambda: loop(costs, genomes[:LOOPED]),
        },
        rounds,
    )
    counts = {"fused": GENOMES, "gather": GATHERED, "loop": LOOPED}
    each = {name: np.array(taken) / counts[name] for name, taken in seconds.items()}
    speeds = {name: float(1 / np.median(taken)) for name, taken in each.items()}
    ratios = {name: compare(each[name], each["fused"]) for name in ("gather", "loop")}
    return {
        "architectures_per_second": speeds["fused"],
        "gather_architectures_per_second": speeds["gather"],
        "loop_architectures_per_second": speeds["loop"],
        "n": rounds,
        "genomes": counts,
        "checked": GATHERED,
        "max_relative_difference": error,
        "faster_than": {name: {"ratio": r.ratio, "ci95": r.ci95} for name, r in ratios.items()},
    }


def main() -> None:
    """Run the bench on one core and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=12)
    asked = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    found = run(max(asked.rounds, 2))
    if asked.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:32} {value:,.4g}" if isinstance(value, float) else f"{name:32} {value}")


if __name__ == "__main__":
    main()
