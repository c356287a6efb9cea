"""ResNet-20 on CIFAR-10: what each compression costs in accuracy, and gains in ms and bytes.

    CIFAR10_DIR=... python -m tools.bench.resnet20 [--json] [--workspace workspace/resnet20]

Runs the recipe ``pipeline/examples/resnet20_compressed.yaml`` on this machine (what is done already
is not done again) and compares its variants in pairs, format by format: accuracy on the same test
images through each runtime, with the paired interval of the loss, size, and latency measured in
turns.  What fine-tunes is compared with FP32 fine-tuned in the same way.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.data import DataHandle, Split
from pipeline.export.parity import host_outputs
from pipeline.flow import RunSummary, run
from profiles.comparison import effect, medians_by_round
from profiles.errors import EdgeError, UsageError
from profiles.findings import Measurement
from profiles.recipe import Recipe, load_recipe
from profiles.records import FORMATS, SUFFIX_OF, Artifact, Io
from profiles.statistics import paired_drop_interval
from profiles.store import Store
from tools.demo import local_inventory

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "pipeline" / "examples" / "resnet20_compressed.yaml"
#: What is compared with what.
PAIRS = (
    ("int8", "fp32"),
    ("tuned", "fp32"),
    ("half", "tuned"),
    ("half", "half-alone"),
    ("half-int8", "tuned"),
    ("adaptive", "uniform"),
    ("by-latency", "by-parameters"),
    ("sparse-adaptive", "sparse-uniform"),
    ("cyclical", "gradual"),
)


@dataclass(frozen=True, slots=True)
class Compared:
    """One variant against another in one format.

    Args:
        variant, against, format: which.
        accuracy: of the variant on the test images through its runtime, as a fraction.
        drop: how much less that is than the other's, with its paired 95 % interval.
        size: the variant's bytes as a share of the other's.
        latency: its time as a share of the other's, with its interval; ``None`` where unknown.
    """

    variant: str
    against: str
    format: str
    accuracy: float
    drop: float
    drop_ci95: tuple[float, float]
    size: float
    latency: float | None
    latency_ci95: tuple[float, float] | None


def compared(summary: RunSummary, root: Path, test: Split) -> Iterator[Compared]:
    """Every pair of variants that was measured, in every format.

    Args:
        summary: of a run on one device under one condition, see :func:`demand_one_condition`.
        root: its workspace.
        test: what the accuracies are found by.
    """
    found = {(m.variant, m.format): m for m in summary.measurements}
    right: dict[str, NDArray[np.bool_]] = {}
    with Store(root / "store.db") as store:
        rounds = {t.key: medians_by_round(t) for t in store.trials() if t.status == "accepted"}
    for variant, against in PAIRS:
        for format_ in dict.fromkeys(m.format for m in summary.measurements):
            if not {(variant, format_), (against, format_)} <= set(found):
                continue
            mine, other = found[variant, format_], found[against, format_]
            for m in (mine, other):
                if m.artifact_sha256 not in right:
                    right[m.artifact_sha256] = _right(m, root, test)
            ours, theirs = right[mine.artifact_sha256], right[other.artifact_sha256]
            yield Compared(
                variant,
                against,
                format_,
                float(ours.mean()),
                float(theirs.mean() - ours.mean()),
                paired_drop_interval(theirs, ours),
                mine.size_bytes / other.size_bytes,
                *_latency(rounds.get(mine.trial, {}), rounds.get(other.trial, {})),
            )


def demand_one_condition(recipe: Recipe) -> None:
    """See that each variant is measured once: latencies are compared with each other's.

    Raises:
        UsageError: if the recipe names several devices or numbers of threads.
    """
    for key, values in (("devices", recipe.devices), ("measure.threads", recipe.measure.threads)):
        if len(values) > 1:
            raise UsageError(
                f"{key}: {', '.join(map(str, values))}: this compares under one condition",
                f"--set {key}=[{values[0]}]",
            )


def _right(m: Measurement, root: Path, test: Split) -> NDArray[np.bool_]:
    format_ = next(name for name in FORMATS if name == m.format)
    path = root.absolute() / "artifacts" / f"{m.artifact_sha256}{SUFFIX_OF[format_]}"
    artifact = Artifact(
        m.artifact_sha256, format_, path, m.size_bytes, Io((), ()), m.model, m.variant, "", "", ""
    )
    outputs, _ = host_outputs(artifact, test.x)
    right: NDArray[np.bool_] = outputs.argmax(1) == test.y
    return right


def _latency(
    mine: dict[tuple[int, int], float], other: dict[tuple[int, int], float]
) -> tuple[float | None, tuple[float, float] | None]:
    both = sorted(set(mine) & set(other))
    if not both:
        return None, None
    found = effect([other[at] for at in both], [mine[at] for at in both], paired=True)
    return found.ratio, found.ci95


def _line(c: Compared) -> str:
    low, high = (f"{100 * end:+.2f}" for end in c.drop_ci95)
    taken = "" if c.latency is None else f"{c.latency:.3f}"
    spread = "" if c.latency_ci95 is None else "{:.3f} to {:.3f}".format(*c.latency_ci95)
    return (
        f"{c.variant:16}{c.against:15}{c.format:11}{100 * c.accuracy:6.2f} {100 * c.drop:+6.2f}"
        f"  {low} to {high:6} {c.size:6.3f}  {taken:6} {spread}"
    )


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--workspace", type=Path, default=Path("workspace/resnet20"))
    parser.add_argument("--set", action="append", default=[], help="override a recipe's setting")
    options = parser.parse_args()
    inventory = local_inventory(options.workspace / "lab")
    recipe = load_recipe(RECIPE, (f"inventory={inventory.absolute()}", *options.set))
    demand_one_condition(recipe)
    summary = run(recipe, options.workspace, progress=lambda text: print(text, file=sys.stderr))
    for failure in summary.failures:
        print(f"failed: {failure.stage}: {failure.what}: {failure.reason}", file=sys.stderr)
    test = DataHandle(recipe.data).arrays.test
    found = list(compared(summary, options.workspace, test))
    if options.json:
        print(json.dumps([asdict(item) for item in found], indent=2))
        return 0
    threads = f"threads: {recipe.measure.threads[0]}"
    print(f"ResNet-20, {len(test.y)} test images, {threads}; accuracy in %, drop in points")
    print("variant         against        format      acc.    drop  95 % interval   size  latency")
    print("\n".join(_line(item) for item in found))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
