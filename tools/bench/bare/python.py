"""A bare loop over one runtime's Python package; each slice is a line such as the agents write.

python -m tools.bench.bare.python RUNTIME MODEL INPUT CORE SHAPE SLICE
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Call = Callable[[], object]


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
    from executorch.extension.pybindings import _portable_lib

    _portable_lib._unsafe_reset_threadpool(1)
    program = _portable_lib._load_program(path)
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


def main() -> None:
    """Time calls until killed."""
    runtime, model, values, core, axes, size = sys.argv[1:7]
    shape = tuple(map(int, axes.split("x")))
    os.sched_setaffinity(0, {int(core)})
    value = np.frombuffer(Path(values).read_bytes(), dtype=np.float32).reshape(shape).copy()
    prepare, call = BARE[runtime](model, value)
    while True:
        print(
            json.dumps({"event": "samples", "ns": bare_slice(prepare, call, int(size))}), flush=True
        )


if __name__ == "__main__":
    main()
