"""Do both agents tell the same time? Medians of the native agent against the Python agent's.

    python -m tools.bench.agents [--json] [--pairs 8] [--turns 20]

Two networks of depthwise separable convolutions with random weights, of some milliseconds, are
exported once for each runtime whose C library is among the packages here.  A pair is one process
of each agent with the same plan; they take turns of a slice on one core, one stopped while the
other runs, so that what else the machine does falls on both.  A pair's ratio is the median, over
its turns, of native / Python slice medians; reported are the geometric mean over the pairs and its
interval, Student's t over the logarithms.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np

from devices.agent.agent import PLAN_FORMAT
from devices.agent.native import native_agent, runtime_libraries
from devices.agent.program import build
from profiles.records import FORMATS, RUNTIME_OF, SUFFIX_OF
from tools.bench.paired import compare

SHAPE = (1, 3, 192, 192)
WIDTHS = (10, 16)
SLICE_ITERATIONS = 10
RUN_DEADLINE_S = 600


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agents' medians for one model in one runtime; ``ratio`` above 1: native reads slower."""

    runtime: str
    width: int
    native_ns: float
    python_ns: float
    ratio: float
    ci95: tuple[float, float]
    pairs: int


def network(width: int) -> Any:
    """A network of depthwise separable convolutions, ``width`` channels in its first layer."""
    from torch import nn

    def block(before: int, after: int, stride: int) -> Any:
        return nn.Sequential(
            nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False),
            nn.BatchNorm2d(before),
            nn.ReLU6(),
            nn.Conv2d(before, after, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU6(),
        )

    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1),
        nn.ReLU6(),
        *(block(width << i, width << (i + 1), 1 + i % 2) for i in range(4)),
        *(block(width << 4, width << 4, 1) for _ in range(2)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width << 4, 100),
    ).eval()


def export_models(folder: Path) -> dict[tuple[str, int], Path]:
    """By runtime and width: a file of each network for each runtime with a C library here."""
    import torch

    from pipeline.export import write_artifact
    from pipeline.model import trace

    torch.manual_seed(0)
    paths = {}
    for width in WIDTHS:
        program = trace(network(width), torch.randn(SHAPE))
        for format_ in FORMATS:
            runtime = RUNTIME_OF[format_]
            if runtime in runtime_libraries():
                path = folder / f"width{width}{SUFFIX_OF[format_]}"
                write_artifact(program, format_, path)
                paths[runtime, width] = path
    return paths


class Running:
    """An agent at work on an endless plan, stopped unless it is its turn.

    Args:
        words: the command.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
        self._said = b""
        while self._event()["event"] != "samples":
            continue
        self._process.send_signal(signal.SIGSTOP)

    def turn(self) -> float:
        """Run until a slice is done that began in this turn; its median in ns."""
        self._forget()
        self._process.send_signal(signal.SIGCONT)
        self._event()  # was under way when the last turn ended
        taken = self._event()["ns"]
        self._process.send_signal(signal.SIGSTOP)
        return float(median(taken))

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._stream().close()

    def _stream(self) -> IO[bytes]:
        assert self._process.stdout is not None  # noqa: S101 - it was asked for as a pipe
        return self._process.stdout

    def _forget(self) -> None:
        while select.select([self._stream()], [], [], 0)[0]:
            self._said = (self._said + self._stream().read(1 << 16)).rpartition(b"\n")[2]

    def _event(self) -> dict[str, Any]:
        while b"\n" not in self._said:
            piece = self._stream().read(1 << 16)
            if not piece:
                raise SystemExit("an agent ended early")
            self._said += piece
        line, _, self._said = self._said.partition(b"\n")
        event: dict[str, Any] = json.loads(line)
        if event["event"] == "error":
            raise SystemExit(f"an agent failed: {event['message']}")
        return event


def write_plan(
    folder: Path,
    runtime: str,
    model: Path,
    shape: Sequence[int] = SHAPE,
    slice_iterations: int = SLICE_ITERATIONS,
) -> Path:
    """An endless plan for one model, in slices."""
    np.random.default_rng(0).standard_normal(shape).astype(np.float32).tofile(folder / "x.bin")
    given = {"path": str(folder / "x.bin"), "shape": shape, "dtype": "float32"}
    plan = {
        "format": PLAN_FORMAT,
        "kind": "latency",
        "runtime": runtime,
        "library": str(runtime_libraries().get(runtime, "")) or None,
        "delegate": None,
        "threads": 1,
        "core_mask": f"{1 << max(os.sched_getaffinity(0)):x}",
        "deadline_s": RUN_DEADLINE_S,
        "warmup_iterations": 5,
        "warmup_ns": 50_000_000,
        "iterations": 1_000_000,
        "window_ns": 0,
        "period_ns": 0,
        "meter": None,
        "slice_iterations": slice_iterations,
        "settle_iterations": 0,
        "seed": 0,
        "jobs": [{"id": "model", "path": str(model), "inputs": [given], "expect": []}],
    }
    path = folder / "plan.json"
    path.write_text(json.dumps(plan))
    return path


def measure_pair(commands: Mapping[str, str], plan: Path, turns: int) -> dict[str, list[float]]:
    """One process of each agent, in turns; slice medians in ns by agent."""
    words = {kind: [*shlex.split(command), str(plan)] for kind, command in commands.items()}
    return take_turns(words, turns)


def take_turns(commands: Mapping[str, Sequence[str]], turns: int) -> dict[str, list[float]]:
    """One process of each command, in turns; slice medians in ns by the command's name."""
    running: dict[str, Running] = {}
    taken: dict[str, list[float]] = {name: [] for name in commands}
    try:
        for name, words in commands.items():
            running[name] = Running(words)
        for turn in range(turns):
            for name in sorted(running, reverse=turn % 2 == 1):
                taken[name].append(running[name].turn())
    finally:
        for each in running.values():
            each.end()
    return taken


def measure(folder: Path, pairs: int, turns: int) -> list[Agreement]:
    """Measure every model with both agents."""
    commands = {
        "native": shlex.quote(str(native_agent(platform.machine()))),
        "python": shlex.join([sys.executable, str(build(folder / "agent.pyz"))]),
    }
    found = []
    for (runtime, width), model in export_models(folder).items():
        plan = write_plan(folder, runtime, model)
        taken = [measure_pair(commands, plan, turns) for _ in range(pairs)]
        ratios = [float(np.median(np.divide(t["native"], t["python"]))) for t in taken]
        paired = compare(ratios, [1.0] * pairs)
        ours, theirs = (
            float(np.median([each[kind] for each in taken])) for kind in ("native", "python")
        )
        found.append(Agreement(runtime, width, ours, theirs, paired.ratio, paired.ci95, pairs))
    return found


def at_least_two(text: str) -> int:
    """A number on the command line of things whose spread is asked for."""
    number = int(text)
    if number < 2:
        raise argparse.ArgumentTypeError(f"{number} is less than two, of which there is no spread")
    return number


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--pairs", type=at_least_two, default=8, help="of processes; at least two")
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = measure(Path(folder), options.pairs, options.turns)
    if options.json:
        print(json.dumps([asdict(item) for item in found], indent=2))
        return
    print("separable convolutions FP32, 1 thread; native agent against Python agent, in turns")
    print(f"{'runtime':12} {'width':>5} {'native ms':>10} {'Python ms':>10} {'ratio':>7}  95 %")
    for item in found:
        low, high = item.ci95
        print(
            f"{item.runtime:12} {item.width:5} {item.native_ns / 1e6:10.3f}"
            f" {item.python_ns / 1e6:10.3f} {item.ratio:7.4f}  {low:.4f} to {high:.4f}"
        )


if __name__ == "__main__":
    main()
