"""Do predictors beat what adds up, chance, and starting anew?

    python -m tools.bench.table_fit [--json] [--data DIR] [--part accuracy] [--seeds 10]
    python -m tools.bench.table_fit --part pair --pair FILE --choices 'g*' --source A --target B
    python -m tools.bench.table_fit --data DIR --flatten accuracies.csv

Parts: ``accuracy`` (600 and 100 of the measured once-for-all sub-networks against the additive
ridge), ``latency`` (the same of an imaginary device), ``next`` and ``next-latency`` (chosen
measurements against twice as many random ones), ``transfer`` (20 measurements of a device and what
is known of another against 100 measurements alone), ``pair`` (the same of a file with a column of
each device).

Every seed divides the networks anew.  A ratio is of mean errors, ours to the other's, below 1 where
ours is better: geometric mean over the seeds, and Student's t interval over their logarithms.  The
divisions are of one set of networks, so the interval says how much depends on the division.
``--flatten`` writes the accuracies for ``device-lab table fit``: a block that is not there is 0.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from profiles.predictor import Networks, choose_next, evaluate, fit, fit_residual
from profiles.predictor.networks import Floats
from profiles.predictor.planning import Toward
from profiles.predictor.reading import read_networks
from profiles.statistics import geometric_mean, two_stage_interval
from tools.bench.imaginary_devices import BLOCKS, NAMES, SOURCE, TARGET, sample

_LOOKED_AT = 0.1
_FIRST, _STEP = 20, 10


@dataclass(frozen=True, slots=True)
class Comparison:
    """Ours against another way, means over the seeds; ``ratio`` of mean errors, below 1: better."""

    what: str
    ours: str
    other: str
    seeds: int
    ours_mape: float
    other_mape: float
    ratio: float
    ci95: tuple[float, float] | None
    seconds: float
    detail: dict[str, float]


def compared(
    words: tuple[str, str, str],
    errors: Sequence[tuple[float, float]],
    started: float,
    **detail: float,
) -> Comparison:
    """Sum up the seeds' mean relative errors, ours and the other's."""
    ours, others = np.array(errors).T
    return Comparison(
        *words,
        seeds=len(ours),
        ours_mape=float(ours.mean()),
        other_mape=float(others.mean()),
        ratio=geometric_mean(ours / others),
        ci95=two_stage_interval(ours / others),
        seconds=(time.perf_counter() - started) / len(ours),
        detail=detail,
    )


def flatten(folder: Path) -> tuple[NDArray[np.int64], Floats]:
    """Sub-networks as rows of kernels, expansions and depths, absent blocks 0; and their top-1."""
    rows, accuracies = [], []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="") as stream:
            for line in csv.DictReader(stream):
                net = ast.literal_eval(line["Sub-network"])
                depths = np.array(net["d"])
                there = (np.arange(BLOCKS) < depths[:, None]).ravel()
                rows.append(np.concatenate([net["ks"] * there, net["e"] * there, depths]))
                accuracies.append(float(line["Top-1 Acc (%)"]))
    if not rows:
        raise SystemExit(f"{folder}: no measured sub-networks (*.csv) there")
    return np.array(rows, dtype=np.int64), np.array(accuracies)


def against_additive(what: str, networks: Networks, train: int, seeds: int) -> Comparison:
    """Fit some, predict the others."""
    started = time.perf_counter()
    report = evaluate(networks, train, seeds)
    detail = {
        "mae": report.score.mae,
        "additive_mae": report.additive.mae,
        "spearman": report.score.spearman or float("nan"),
        "additive_spearman": report.additive.spearman or float("nan"),
        "least_coverage": min(score.interval_coverage for score in report.by_seed),
        "interval_coverage": report.score.interval_coverage,
    }
    pairs = zip(report.by_seed, report.additive_by_seed, strict=True)
    words = (f"{what}, {train} networks", "chosen model", "additive ridge")
    return compared(words, [(ours.mape, other.mape) for ours, other in pairs], started, **detail)


def chosen_against_random(
    what: str, networks: Networks, toward: Toward, count: int, seeds: int
) -> Comparison:
    """So many measurements, chosen in tens after twenty random ones, against twice as many random.

    Errors are those where the search looks: on a tenth of held-out networks, or on all of them.
    """
    started = time.perf_counter()
    errors = []
    rows = networks.choices.decode(networks.codes)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(networks))
        held, pool = order[: len(order) // 3], order[len(order) // 3 :]
        ranked = held[np.argsort(networks.target[held])]
        tenth = int(_LOOKED_AT * len(ranked))
        asked = {"all": ranked, "low": ranked[:tenth], "high": ranked[-tenth:]}[toward]

        def error(learned: NDArray[np.int64], asked: NDArray[np.int64] = asked) -> float:
            predictor = fit(networks.take(learned), kinds=("process",))
            test = networks.take(asked)
            found = predictor.predict_codes(test.codes, test.features)
            return float(np.abs(found.values / test.target - 1).mean())

        known = pool[:_FIRST]
        while len(known) < count:
            rest = np.setdiff1d(pool, known)
            step = min(_STEP, count - len(known))
            candidates = [rows[row] for row in rest]
            best = choose_next(networks.take(known), candidates, step, toward=toward, seed=seed)
            known = np.concatenate([known, rest[best]])
        errors.append((error(known), error(pool[: 2 * count])))
    words = (f"{what}, error on {toward}", f"{count} chosen", f"{2 * count} random")
    return compared(words, errors, started)


def transfer(
    what: str, rows: Sequence[Sequence[object]], known: Floats, new: Floats, seeds: int
) -> Comparison:
    """20 networks of a new device beside 400 of a known one, against 100 of the new one alone."""
    started = time.perf_counter()
    errors, held = [], []
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(rows))
        source, few, many, asked = np.split(order, [400, 420, 500])
        before = Networks.of([rows[row] for row in source], known[source])
        assumed = fit(before, kinds=("process",)).predict(rows).values
        residual = fit_residual(assumed[few], [rows[row] for row in few], new[few], seed=seed)
        unseen = [rows[row] for row in asked]
        ours = residual.predict(assumed[asked], unseen)
        alone = np.concatenate([few, many])
        anew = fit(Networks.of([rows[row] for row in alone], new[alone]), seed=seed)
        other = anew.predict(unseen).values
        truth = new[asked]
        errors.append((np.abs(ours.values / truth - 1).mean(), np.abs(other / truth - 1).mean()))
        held.append(float(((ours.low <= truth) & (truth <= ours.high)).mean()))
    words = (what, "20 and a known device", "100 alone")
    return compared(words, errors, started, interval_coverage=float(np.mean(held)))


def parts(options: argparse.Namespace) -> dict[str, Callable[[], list[Comparison]]]:
    """What can be compared, by name."""
    seeds = options.seeds

    def accuracy() -> Networks:
        return Networks.of(*flatten(options.data))

    def latency(count: int) -> tuple[NDArray[np.int64], Floats, Floats]:
        rng = np.random.default_rng(0)
        rows = sample(count, rng)
        return rows, SOURCE.latency_ns(rows, rng), TARGET.latency_ns(rows, rng)

    def one_device() -> Networks:
        rows, known, _ = latency(2000)
        return Networks.of(rows, known, names=NAMES)

    def from_file() -> list[Comparison]:
        choices = options.choices.split(",")
        known = read_networks(options.pair, choices, options.source)
        new = read_networks(options.pair, choices, options.target)
        rows = known.choices.decode(known.codes)
        return [transfer(options.pair.name, rows, known.target, new.target, seeds)]

    def imagined() -> list[Comparison]:
        rows, known, new = latency(2000)
        return [transfer("imaginary devices", rows.tolist(), known, new, seeds)]

    def measured_next(what: str, networks: Networks, *towards: Toward) -> list[Comparison]:
        return [
            chosen_against_random(what, networks, toward, count, seeds)
            for toward in towards
            for count in (40, 80)
        ]

    return {
        "accuracy": lambda: [
            against_additive("top-1", accuracy(), train, seeds) for train in (600, 100)
        ],
        "latency": lambda: [
            against_additive("imaginary latency", one_device(), train, seeds)
            for train in (400, 100, 30)
        ],
        "next": lambda: measured_next("top-1", accuracy(), "high", "all"),
        "next-latency": lambda: measured_next("imaginary latency", one_device(), "low", "all"),
        "transfer": imagined,
        "pair": from_file,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/subnet_accuracy"))
    parser.add_argument("--part", action="append", help="only this one")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--flatten", type=Path, metavar="FILE.csv", help="write the accuracies")
    parser.add_argument("--pair", type=Path, help="measured on two devices: .csv or .parquet")
    parser.add_argument("--choices", help="columns of genes")
    parser.add_argument("--source", help="column of the known device")
    parser.add_argument("--target", help="column of the new device")
    options = parser.parse_args()
    if options.flatten:
        write_flat(options.data, options.flatten)
        return
    known = parts(options)
    for name in options.part or [name for name in known if name != "pair"]:
        found = known[name]()
        if options.json:
            print(json.dumps([asdict(item) for item in found], indent=2))
            continue
        for item in found:
            print(described(item), flush=True)


def write_flat(folder: Path, path: Path) -> None:
    """Write the accuracies as columns g0, g1, ... and top1."""
    rows, accuracies = flatten(folder)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*(f"g{index}" for index in range(rows.shape[1])), "top1"])
        writer.writerows([*row, top1] for row, top1 in zip(rows.tolist(), accuracies, strict=True))


def described(item: Comparison) -> str:
    """One comparison as a line."""
    interval = "unknown" if item.ci95 is None else f"{item.ci95[0]:.3f} to {item.ci95[1]:.3f}"
    detail = "".join(f"; {name} {value:.4g}" for name, value in item.detail.items())
    return (
        f"{item.what}: {item.ours} {item.ours_mape:.3%}, {item.other} {item.other_mape:.3%};"
        f" ratio {item.ratio:.3f} ({interval}), {item.seeds} seeds,"
        f" {item.seconds:.1f} s a seed{detail}"
    )


if __name__ == "__main__":
    main()
