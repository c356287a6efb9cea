"""Is the search fast, and does it need few measurements?

    python -m tools.bench.search [--json] [--data DIR] [--seeds 10]

Pinned to one core.  First, 50,000 evaluations on a space of once-for-all's size, beside pymoo's
NSGA-II with the same budget, population and problem.  Then, on tabulated problems, how many
measurements the LINAS loop needs for the hypervolume at which NSGA-II ended, over all that NSGA-II
measured: 1,000 networks, or half of those that exist.  A seed that never gets there with as many
counts as 1 and is listed as not reached.  Without ``--data`` only made-up problems are searched.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.search.linas import LinasPlan, linas
from pipeline.search.nsga2 import Nsga2
from pipeline.search.record import Measured, Record
from profiles.space import Genomes
from profiles.statistics import two_stage_interval
from tools.bench.search_problems import (
    Problem,
    digits_like,
    interacting,
    measured_subnets,
    once_for_all,
)

EVALUATIONS, POPULATION, SPEED_SEEDS = 50_000, 100, 5
#: What plain NSGA-II may measure, and in generations of how many.
MEASUREMENTS, GENERATION = 1000, 40


class _Reached(Exception):
    """LINAS is where NSGA-II ended: what it would measure further is not asked for."""


def pymoo_volume(problem: Problem, seed: int) -> tuple[float, float]:
    """Seconds and hypervolume, over everything it looked at, of pymoo's NSGA-II."""
    from pymoo.algorithms.moo.nsga2 import NSGA2
    from pymoo.core.problem import Problem as PymooProblem
    from pymoo.operators.crossover.ux import UniformCrossover
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.repair.rounding import RoundingRepair
    from pymoo.operators.sampling.rnd import IntegerRandomSampling
    from pymoo.optimize import minimize

    seen: list[NDArray[np.float64]] = []

    class Networks(PymooProblem):  # type: ignore[misc]
        def _evaluate(self, x: Genomes, out: dict[str, object]) -> None:
            seen.append(problem.values(x.astype(np.int64)))
            out["F"] = seen[-1]

    highest = problem.space.highest
    algorithm = NSGA2(
        pop_size=POPULATION,
        sampling=IntegerRandomSampling(),
        crossover=UniformCrossover(repair=RoundingRepair()),
        mutation=PM(eta=3, vtype=float, repair=RoundingRepair()),
        eliminate_duplicates=True,
    )
    began = time.perf_counter()
    networks = Networks(n_var=len(highest), n_obj=2, xl=0, xu=highest, vtype=int)
    minimize(networks, algorithm, ("n_eval", EVALUATIONS), seed=seed)
    return time.perf_counter() - began, problem.volume(np.vstack(seen))


def speed() -> dict[str, Any]:
    """Both on the space of once-for-all's size, seed by seed."""
    problem = once_for_all()
    rows = []
    # Imports are not the search's time.
    Nsga2.begin(problem.space, problem.score, size=POPULATION, seed=0).run(problem.score, 2000)
    for seed in range(SPEED_SEEDS):
        began = time.perf_counter()
        ours = Nsga2.begin(problem.space, problem.score, size=POPULATION, seed=seed)
        ours.run(problem.score, EVALUATIONS)
        seconds = time.perf_counter() - began
        volume = problem.volume(ours.scores.values)
        their_seconds, their_volume = pymoo_volume(problem, seed)
        rows.append(
            {
                "seed": seed,
                "seconds": seconds,
                "pymoo_seconds": their_seconds,
                "ratio": volume / their_volume,
            }
        )
    ratios = [row["ratio"] for row in rows]
    return {
        "seconds_50k": float(np.median([row["seconds"] for row in rows])),
        "hypervolume_ratio_to_pymoo": float(np.exp(np.mean(np.log(ratios)))),
        "hypervolume_ratio_ci95": two_stage_interval(ratios),
        "speed": rows,
    }


def economy(problem: Problem, seeds: int) -> dict[str, Any]:
    """How many measurements LINAS needs for where NSGA-II ended, seed by seed."""
    exist = problem.space.size if problem.pool is None else len(problem.pool)
    budget = min(MEASUREMENTS, exist // 2)
    rows = [_race(problem, budget, seed) for seed in range(seeds)]
    ratios = [row["ratio"] for row in rows]
    return {
        "problem": problem.name,
        "n": seeds,
        "nsga2_measurements": budget,
        "ratio": float(np.exp(np.mean(np.log(ratios)))),
        "ci95": two_stage_interval(ratios),
        "reached": sum(row["reached"] for row in rows),
        "rows": rows,
    }


def _race(problem: Problem, budget: int, seed: int) -> dict[str, Any]:
    plain = Nsga2.begin(
        problem.space, problem.score, size=GENERATION, seed=seed, allowed=problem.allowed
    )
    plain.run(problem.score, budget)
    goal = problem.volume(plain.scores.values)
    needed = budget

    def stop_at_goal(record: Record) -> None:
        nonlocal needed
        if found := _first_reaching(problem, record.values, goal):
            needed = found
            raise _Reached

    reached = False
    try:
        linas(
            problem.space,
            lambda genomes: Measured.of(problem.values(genomes)),
            LinasPlan(budget=budget, seed=seed),
            pool=problem.pool,
            progress=stop_at_goal,
        )
    except _Reached:
        reached = True
    ratio = needed / len(plain.genomes)
    return {"seed": seed, "needed": needed, "reached": reached, "ratio": ratio}


def _first_reaching(problem: Problem, values: NDArray[np.float64], goal: float) -> int | None:
    """How many of the first measurements have that hypervolume; ``None``: not even all."""
    low, high = 1, len(values)
    if problem.volume(values) < goal:
        return None
    while low < high:
        middle = (low + high) // 2
        if problem.volume(values[:middle]) >= goal:
            high = middle
        else:
            low = middle + 1
    return low


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, help="folder that holds subnet_accuracy/")
    parser.add_argument("--seeds", type=int, default=10)
    options = parser.parse_args()
    if options.seeds < 3:
        parser.error("--seeds: an interval needs 3 or more")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    measured = measured_subnets(options.data) if options.data else None
    problems = [problem for problem in (measured, interacting(), digits_like()) if problem]
    report = speed()
    report["economy"] = [economy(problem, options.seeds) for problem in problems]
    # The worst problem's: a mean over problems would hide it.
    report["measurements_ratio_to_nsga2"] = max(each["ratio"] for each in report["economy"])
    report["measured_data"] = measured is not None
    if options.json:
        print(json.dumps(report))
        return
    low, high = report["hypervolume_ratio_ci95"]
    print(f"50,000 evaluations: {report['seconds_50k']:.2f} s, one core")
    print(f"hypervolume over pymoo's: {report['hypervolume_ratio_to_pymoo']:.4f}", end="  ")
    print(f"{low:.4f} to {high:.4f} (n = {SPEED_SEEDS})")
    if measured is None:
        print("no measured accuracies (--data): made-up problems only")
    for each in report["economy"]:
        low, high = each["ci95"]
        print(f"{each['problem']:45} measurements LINAS / NSGA-II {each['ratio']:.3f}", end="  ")
        print(f"{low:.3f} to {high:.3f}, reached by {each['reached']} of {each['n']} seeds")


if __name__ == "__main__":
    main()
