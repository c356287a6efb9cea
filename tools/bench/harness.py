"""Are the agents honest? Their medians against a bare loop over the same runtime.

    python -m tools.bench.harness [--json] [--pairs 10] [--turns 20]

A network of depthwise separable convolutions with random weights, of about a millisecond, is
exported once for each runtime.  A pair is a process of the agent and one of a bare loop in the
agent's own language (see :mod:`tools.bench.bare`); they take turns of a slice on one core, one
stopped while the other runs, so that what else the machine does falls on both.  A pair's ratio is
the median, over its turns, of agent / bare slice medians; reported are the geometric mean over the
pairs and its interval, Student's t over the logarithms.

Between slices an agent reads the clock of its core, where the system tells it: on a machine without
cpufreq, as most virtual ones are, that reading is not exercised here.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from devices.agent.native import native_agent, runtime_libraries
from devices.agent.program import build
from profiles.records import FORMATS, RUNTIME_OF, SUFFIX_OF
from tools.bench import bare
from tools.bench.agents import (
    SHAPE,
    SLICE_ITERATIONS,
    WIDTHS,
    at_least_two,
    measure_pair,
    network,
    write_plan,
)
from tools.bench.paired import compare

#: A shorter call tells of the clock's own cost: reading it twice takes some 100 ns, a thousandth of
#: this.  (How long a call takes is a matter of the machine: between two of one kind it halved.)
LEAST_NS = 100_000


@dataclass(frozen=True, slots=True)
class Honesty:
    """An agent against a bare loop in one runtime; ``ratio`` above 1: the agent reads slower."""

    runtime: str
    agent: str
    agent_ns: float
    bare_ns: float
    ratio: float
    ci95: tuple[float, float]
    pairs: int


def export_models(folder: Path) -> dict[str, Path]:
    """One network in each format; by runtime."""
    import torch

    from pipeline.export import write_artifact
    from pipeline.model import trace

    torch.manual_seed(0)
    program = trace(network(min(WIDTHS)), torch.randn(SHAPE))
    paths = {}
    for format_ in FORMATS:
        path = folder / f"network{SUFFIX_OF[format_]}"
        write_artifact(program, format_, path)
        paths[RUNTIME_OF[format_]] = path
    return paths


def build_bare(runtime: str, folder: Path) -> Path:
    """The bare loop in C over a runtime's C library."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise SystemExit("there is no C compiler here; on Debian: apt-get install gcc")
    source = Path(bare.__file__).parent / f"{runtime}.c"
    program = folder / f"bare-{runtime}"
    words = [compiler, "-std=c11", "-O2", "-o", str(program), str(source), "-ldl"]
    subprocess.run(words, check=True)
    return program


def commands(runtime: str, agent: str, model: Path, folder: Path) -> dict[str, str]:
    """How the agent and its bare loop are started, but for the plan that comes after."""
    core = str(max(os.sched_getaffinity(0)))
    shape = "x".join(map(str, SHAPE))
    given = [str(model), str(folder / "x.bin"), core, shape, str(SLICE_ITERATIONS)]
    if agent == "native":
        library = str(runtime_libraries()[runtime])
        ours = [str(native_agent(platform.machine()))]
        theirs = [str(build_bare(runtime, folder)), library, *given]
    else:
        ours = [sys.executable, str(build(folder / "agent.pyz"))]
        theirs = [sys.executable, "-m", f"{bare.__name__}.python", runtime, *given]
    return {"agent": shlex.join(ours), "bare": shlex.join(theirs)}


def measure(runtime: str, agent: str, model: Path, pairs: int, turns: int) -> Honesty:
    """Measure one agent's way with one runtime."""
    folder = model.parent
    plan = write_plan(folder, runtime, model)
    ways = commands(runtime, agent, model, folder)
    taken = [measure_pair(ways, plan, turns) for _ in range(pairs)]
    ratios = [float(np.median(np.divide(each["agent"], each["bare"]))) for each in taken]
    paired = compare(ratios, [1.0] * pairs)
    ours, theirs = (float(np.median([each[way] for each in taken])) for way in ways)
    if theirs < LEAST_NS:
        raise SystemExit(f"{runtime}: a call takes {theirs:.0f} ns, too little to compare")
    return Honesty(runtime, agent, ours, theirs, paired.ratio, paired.ci95, pairs)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--pairs", type=at_least_two, default=10, help="of processes; at least two")
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = [
            measure(runtime, agent, model, options.pairs, options.turns)
            for runtime, model in export_models(Path(folder)).items()
            for agent in ("python", "native")
            if agent == "python" or runtime in runtime_libraries()
        ]
    if options.json:
        print(json.dumps([asdict(item) for item in found], indent=2))
        return
    print("separable convolutions FP32, 1 thread; agent against a bare loop, in turns")
    print(f"{'runtime':12} {'agent':7} {'agent ms':>9} {'bare ms':>9} {'ratio':>7}  95 % interval")
    for item in found:
        low, high = item.ci95
        print(
            f"{item.runtime:12} {item.agent:7} {item.agent_ns / 1e6:9.3f}"
            f" {item.bare_ns / 1e6:9.3f} {item.ratio:7.4f}  {low:.4f} to {high:.4f}"
        )


if __name__ == "__main__":
    main()
