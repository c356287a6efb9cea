"""Is the agent honest? Its median against a bare loop over the same runtime, in one process.

    python -m tools.bench.harness [--json] [--rounds 40] [--iterations 50]

For each runtime a ResNet-20 with random weights is exported once.  Agent and bare loop then take
turns of a slice each, in A B B A order.  The ratio is the geometric mean, over the rounds, of the
ratio of the two slices' medians; its interval is Student's t over the logarithms.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from devices.agent.engines import ENGINES, executorch_library
from devices.agent.timing import timed_slice
from profiles.records import FORMATS, RUNTIME_OF, SUFFIX_OF

Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Honesty:
    """The agent against a bare loop in one runtime; ``ratio`` above 1: the agent reads slower."""

    runtime: str
    agent_ns: float
    bare_ns: float
    ratio: float
    ci95: tuple[float, float]
    rounds: int
    iterations: int


def bare_onnxruntime(path: str, value: Any) -> tuple[Call, Call]:
    """What an app would write with ONNX Runtime: bind, then run."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, value)
    binding.bind_output(session.get_outputs()[0].name)
    return (lambda: None), (lambda: session.run_with_iobinding(binding))


def bare_litert(path: str, value: Any) -> tuple[Call, Call]:
    """What an app would write with LiteRT: set the input, then invoke."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    index = interpreter.get_input_details()[0]["index"]
    return (lambda: interpreter.set_tensor(index, value)), interpreter.invoke


def bare_executorch(path: str, value: Any) -> tuple[Call, Call]:
    """What an app would write with ExecuTorch: load a method, then call it."""
    import torch

    library = executorch_library()
    library._unsafe_reset_threadpool(1)
    program = library._load_program(path)
    method = program.load_method("forward")
    tensors = [torch.from_numpy(value)]
    # The program owns the memory its methods run in: keep it as long as the method.
    return (lambda: program), (lambda: method.call(tensors, clone_outputs=False))


BARE = {"executorch": bare_executorch, "onnxruntime": bare_onnxruntime, "litert": bare_litert}


def bare_slice(prepare: Call, call: Call, count: int) -> list[int]:
    """The plainest timing loop there is."""
    taken = []
    for _ in range(count):
        prepare()
        start = time.perf_counter_ns()
        call()
        taken.append(time.perf_counter_ns() - start)
    return taken


def compare(runtime: str, path: Path, rounds: int, iterations: int) -> Honesty:
    """Measure one runtime both ways, interleaved."""
    from scipy.stats import t

    value = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    engine = ENGINES[runtime](str(path), 1)
    engine.feed([value])
    prepare, call = BARE[runtime](str(path), value)
    timed_slice(engine, iterations)
    bare_slice(prepare, call, iterations)
    agent: list[list[int]] = []
    bare: list[list[int]] = []
    for round_ in range(rounds):
        order = "AB" if round_ % 2 == 0 else "BA"
        for who in order:
            if who == "A":
                agent.append(timed_slice(engine, iterations))
            else:
                bare.append(bare_slice(prepare, call, iterations))
    logs = np.log(np.median(agent, axis=1)) - np.log(np.median(bare, axis=1))
    half = float(t.ppf(0.975, rounds - 1) * logs.std(ddof=1) / np.sqrt(rounds))
    centre = float(logs.mean())
    return Honesty(
        runtime=runtime,
        agent_ns=float(np.median(agent)),
        bare_ns=float(np.median(bare)),
        ratio=float(np.exp(centre)),
        ci95=(float(np.exp(centre - half)), float(np.exp(centre + half))),
        rounds=rounds,
        iterations=iterations,
    )


def export_models(folder: Path) -> dict[str, Path]:
    """A ResNet-20 with random weights in each format; by runtime."""
    import torch

    from pipeline.examples.resnet20 import ResNet20
    from pipeline.export import write_artifact
    from pipeline.model import trace

    torch.manual_seed(0)
    program = trace(ResNet20(), torch.randn(1, 3, 32, 32))
    paths = {}
    for format_ in FORMATS:
        path = folder / f"resnet20{SUFFIX_OF[format_]}"
        write_artifact(program, format_, path)
        paths[RUNTIME_OF[format_]] = path
    return paths


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--iterations", type=int, default=50)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = [
            compare(runtime, path, options.rounds, options.iterations)
            for runtime, path in export_models(Path(folder)).items()
        ]
    if options.json:
        print(json.dumps([asdict(item) for item in found], indent=2))
        return
    print("ResNet-20 FP32, 1 thread; agent against a bare loop, interleaved")
    print(f"{'runtime':12} {'agent ms':>9} {'bare ms':>9} {'ratio':>7}  95 % interval")
    for item in found:
        low, high = item.ci95
        print(
            f"{item.runtime:12} {item.agent_ns / 1e6:9.4f} {item.bare_ns / 1e6:9.4f}"
            f" {item.ratio:7.4f}  {low:.4f} to {high:.4f}"
        )


if __name__ == "__main__":
    main()
