"""Do tables built within minutes predict whole networks?  On this machine's endpoints.

    python -m tools.bench.table_device [--json] [--combination onnx-float32-1t ...]
        [--networks 50] [--minutes 15] [--workspace FOLDER]

For each combination of runtime, data type and threads a table of :mod:`tools.bench.table_space` is
built within its budget, as ``device-lab table build`` does.  Then networks that it has not seen,
drawn uniformly from the space, are exported and measured in visits of their own, in turns, ten at a
time, so that what the machine does meanwhile falls on few.  Some of those that the table was
corrected with are measured again among them, and tell how far the machine has drifted since.
Everything is kept in the workspace: a run that was broken off goes on where it was, and one that is
complete measures nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import yaml

from devices.inventory import Device, load_inventory
from pipeline.flow import open_workspace
from pipeline.stage import Workspace, source_digest
from pipeline.table.build import Builder, Built
from pipeline.table.spaces import blocks_of
from profiles.durable import write_whole
from profiles.measure import Measure
from profiles.measurements import summary_of
from profiles.recipe import TableBuild
from profiles.records import FORMATS, ArtifactFormat, Trial
from profiles.space import Genomes
from profiles.statistics import Agreement, agreement
from tools.bench.table_space import elastic

SPACE = "tools.bench.table_space:elastic"
DTYPES = ("float32", "int8")
THREADS = (1, 2)
COMBINATIONS = tuple(f"{f}-{d}-{t}t" for f in FORMATS for d in DTYPES for t in THREADS)
#: Unseen networks that are measured in one visit, and the known ones among them.
AT_ONCE, KNOWN = 10, 2
_LEVEL = 0.9
_TEST_SEED = 1
_TEST_ITERATIONS = 200


@dataclass(frozen=True, slots=True)
class Proof:
    """A table against networks that it has not seen.

    Args:
        combination: format, data type and threads.
        device: what was measured on.
        agreement, plain: by the table with its 90 % intervals, and by the sum of its blocks alone,
            less the calls.
        interval_half_width: half of these intervals, as a share of the latency.
        least_ns, most_ns: of the unseen networks.
        noise: half of the 95 % interval of a measurement, as a share of it; the median network's.
        drift: of the known networks, measured with the unseen ones / measured for the table.
        networks: that the table was corrected with.
        build_minutes: until the table stood, exports included.
    """

    combination: str
    device: str
    agreement: Agreement
    plain: Agreement
    interval_half_width: float
    least_ns: float
    most_ns: float
    noise: float
    drift: float
    networks: int
    build_minutes: float


def prove(
    workspace: Workspace, device: Device, combination: str, networks: int, settings: TableBuild
) -> Proof:
    """Build one table and judge it."""
    format_, dtype, threads = combination.split("-")
    builder = Builder(
        workspace,
        device,
        cast(ArtifactFormat, format_),
        dtype,
        int(threads[:-1]),
        settings,
        _often(),
        model="bench",
        code=source_digest(SPACE),
    )
    network = elastic()
    clock = _Clock(workspace.root / f"{combination}.seconds")
    try:
        built = builder.build(network)
    finally:
        minutes = clock.stop() / 60
    genomes = _unseen(built, networks)
    trials, drift = _measured(builder, built, genomes)
    return _judged(combination, device, built, genomes, trials, drift, minutes)


def _often() -> Measure:
    return Measure(
        runs=5,
        warmup_iterations=5,
        warmup_seconds=0.02,
        iterations=_TEST_ITERATIONS,
        tolerate=("foreign-load", "not-stationary", "frequency", "throttled"),
    )


def _unseen(built: Built, count: int) -> Genomes:
    """Networks drawn uniformly, without those that the table knows and without repetition.

    Two genomes that leave out different slots may be one network; its blocks tell.
    """
    blocks = blocks_of(elastic())
    seen = {tuple(blocks.of(genome)) for genome in built.genomes}
    rng = np.random.default_rng(_TEST_SEED)
    found: list[Any] = []
    while len(found) < count:
        (genome,) = built.table.space.sample(1, rng)
        if tuple(blocks.of(genome)) not in seen and not built.holes.keys() & blocks.of(genome):
            seen.add(tuple(blocks.of(genome)))
            found.append(genome)
    return np.array(found)


def _measured(builder: Builder, built: Built, genomes: Genomes) -> tuple[list[Trial], float]:
    """The unseen networks' trials, and the known ones' drift."""
    network = elastic()
    known = np.linspace(0, len(built.genomes) - 1, KNOWN).astype(int)
    trials, again = [], []
    for start in range(0, len(genomes), AT_ONCE):
        part = genomes[start : start + AT_ONCE]
        subjects = builder.networks(network, np.concatenate([part, built.genomes[known]]))
        plan = builder.often.plan()
        plan = replace(plan, max_runs=plan.runs, turns=f"unseen-{start}")
        found = builder.trials(subjects, plan)
        trials += found[: len(part)]
        again += [
            summary_of(trial).median_ns / built.measured_ns[row]
            for trial, row in zip(found[len(part) :], known, strict=True)
        ]
    return trials, float(np.exp(np.mean(np.log(again))))


def _judged(
    combination: str,
    device: Device,
    built: Built,
    genomes: Genomes,
    trials: list[Trial],
    drift: float,
    minutes: float,
) -> Proof:
    summaries = [summary_of(trial) for trial in trials]
    truth = np.array([summary.median_ns for summary in summaries])
    predicted = built.table.predict_ns(genomes)
    signatures = [signature for signature in built.alone_ns if signature != "call"]
    call_ns = built.alone_ns["call"]
    own_ns = np.array([built.alone_ns[signature] - call_ns for signature in signatures])
    plain = blocks_of(elastic()).counts(genomes, signatures) @ own_ns + call_ns
    half = built.context.half_width(_LEVEL)
    widths = [(s.ci95_ns[1] - s.ci95_ns[0]) / 2 / s.median_ns for s in summaries if s.ci95_ns]
    population = f"{len(genomes)} unseen networks drawn uniformly from {SPACE}"
    return Proof(
        combination=combination,
        device=device.id,
        agreement=agreement(predicted, truth, population, half * predicted),
        plain=agreement(plain, truth, population),
        interval_half_width=half,
        least_ns=float(truth.min()),
        most_ns=float(truth.max()),
        noise=float(np.median(widths)),
        drift=drift,
        networks=len(built.genomes),
        build_minutes=minutes,
    )


class _Clock:
    """Seconds that something took in all, however often it was broken off."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = float(path.read_text()) if path.exists() else 0.0
        self._done = path.with_suffix(".done")
        self._began = time.monotonic()

    def stop(self) -> float:
        """Keep and return them; once it was done, what it took then."""
        if not self._done.exists():
            self._before += time.monotonic() - self._began
            write_whole(self._path, str(self._before).encode())
        if sys.exc_info()[0] is None:
            write_whole(self._done, b"")
        return self._before


def this_machine(folder: Path) -> Device:
    """This machine as a device, measured by this Python."""
    entry = {
        "id": "this-machine",
        "profile": f"linux-{os.uname().machine}",
        "address": "local:",
        "python": sys.executable,
        "root": str(folder / "device"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "devices.yaml"
    path.write_text(yaml.safe_dump({"devices": [entry]}))
    return load_inventory(path).find("this-machine")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--combination", nargs="+", choices=COMBINATIONS, default=COMBINATIONS)
    parser.add_argument("--networks", type=int, default=50, help="unseen ones, of each combination")
    parser.add_argument("--minutes", type=float, default=15.0, help="for each table")
    parser.add_argument("--known", type=int, default=40, help="networks that a table learns from")
    parser.add_argument("--workspace", type=Path, default=Path("workspace"))
    options = parser.parse_args()
    settings = TableBuild(minutes=options.minutes, networks=options.known)

    def told(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found = []
    with open_workspace(options.workspace, told) as workspace:
        device = this_machine(options.workspace.absolute())
        for combination in options.combination:
            found.append(prove(workspace, device, combination, options.networks, settings))
            if not options.json:
                print(_line(found[-1]), flush=True)
    if options.json:
        print(json.dumps([asdict(each) for each in found], indent=2))


def _line(found: Proof) -> str:
    exact = found.agreement
    return (
        f"{found.combination:22} n {exact.n}, {found.least_ns / 1e6:.2f} to"
        f" {found.most_ns / 1e6:.2f} ms: MAPE {exact.mape:.2%} (blocks alone"
        f" {found.plain.mape:.2%}), within 10 % {exact.within_10_percent:.1%}, Spearman"
        f" {exact.spearman or 0:.4f}, 90 % intervals of +/- {found.interval_half_width:.1%} cover"
        f" {exact.interval_coverage or 0:.1%}; noise {found.noise:.2%}, drift {found.drift:.3f};"
        f" {found.networks} networks known, {found.build_minutes:.1f} min"
    )


if __name__ == "__main__":
    main()
