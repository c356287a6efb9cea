"""Records and files for tests, each with sensible values for all that a test does not care about.

A record that gains a field is brought up to date here, and nowhere else.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from devices.agent import agent
from devices.endpoints.sshd import LoopbackServer
from devices.inventory import Device
from devices.session import Job
from devices.transport.ssh import SshTransport
from profiles.config import parse
from profiles.records import (
    Artifact,
    Condition,
    Io,
    Parity,
    Plan,
    Run,
    TensorSpec,
    Trial,
)
from profiles.store import trial_key

IO = Io(inputs=(TensorSpec("x", (1, 8), "float32"),), outputs=(TensorSpec("y", (1, 4), "float32"),))
SHA = "a" * 64


@dataclass(frozen=True, slots=True)
class TinyModel:
    """A real ONNX file, its interface, and a file with one value for its input."""

    path: Path
    io: Io
    input_file: Path

    def job(self, id_: str = "tiny") -> Job:
        return Job(id_, self.path, self.io, (self.input_file,))

    def plan_job(self, id_: str = "tiny") -> dict[str, Any]:
        """The job as it stands in a plan for the agent."""
        spec = self.io.inputs[0]
        given = {"path": str(self.input_file), "shape": list(spec.shape), "dtype": spec.dtype}
        return {"id": id_, "path": str(self.path), "inputs": [given]}


def build_tiny_model(folder: Path) -> TinyModel:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    numbers = np.random.default_rng(0)
    weights = {
        "first": numbers.standard_normal((8, 16)).astype(np.float32),
        "second": numbers.standard_normal((16, 4)).astype(np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("MatMul", ["active", "second"], ["y"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "tiny.onnx"
    onnx.save(model, path)
    input_file = folder / "x.bin"
    numbers.standard_normal((1, 8)).astype(np.float32).tofile(input_file)
    return TinyModel(path, IO, input_file)


def matrix_product(path: Path, weights: np.ndarray[Any, Any]) -> Path:
    """An ONNX file of one square matrix product; its size decides how long it takes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    size = len(weights)
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name in ("x", "y")
    ]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "large",
        tensors[:1],
        tensors[1:],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def artifact(**changes: Any) -> Artifact:
    return replace(
        Artifact(
            sha256=SHA,
            format="onnx",
            path=Path("tiny.onnx"),
            size_bytes=1000,
            io=IO,
            model="tiny",
            variant="fp32",
            dtype="float32",
            recipe_key="recipe",
            parent="b" * 64,
            toolchain={"onnx": "1"},
            details={},
        ),
        **changes,
    )


def parity(**changes: Any) -> Parity:
    return replace(
        Parity(
            passed=True,
            reason="",
            n=100,
            max_abs_error=1e-5,
            cosine=1.0,
            top1_agreement=1.0,
            accuracy=0.9,
            reference_accuracy=0.9,
            accuracy_drop_ci95=(-0.01, 0.01),
        ),
        **changes,
    )


def plan(**changes: Any) -> Plan:
    """A plan that takes no time."""
    return replace(Plan(runs=3, iterations=20, warmup_iterations=2, warmup_ns=0), **changes)


def trial(
    *,
    sha256: str = SHA,
    device_id: str = "board",
    runtime: str = "onnxruntime",
    condition: Condition | None = None,
    plan_: Plan | None = None,
    **changes: Any,
) -> Trial:
    condition, plan_ = condition or Condition(), plan_ or plan()
    made = Trial(
        key=trial_key(sha256, device_id, runtime, condition, plan_),
        artifact_sha256=sha256,
        device_id=device_id,
        transport="ssh",
        runtime=runtime,
        condition=condition,
        plan=plan_,
        runtime_version="1.0",
        delegates=("CPUExecutionProvider",),
    )
    return replace(made, **changes)


def run(number: int = 0, samples: Sequence[int] = (100, 110, 120), **changes: Any) -> Run:
    made = Run(
        number=number,
        complete=True,
        warmup_ns=np.array([500, 400], dtype=np.int64),
        samples_ns=np.array(samples, dtype=np.int64),
        load_ns=1000,
        first_ns=900,
        environment={"before": {"load_1min": 0.5}},
    )
    return replace(made, **changes)


def agent_plan(jobs: Sequence[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """A plan for the agent, of few iterations."""
    return {
        "format": agent.PLAN_FORMAT,
        "kind": "latency",
        "runtime": "onnxruntime",
        "threads": 1,
        "core_mask": None,
        "deadline_s": 60,
        "warmup_iterations": 3,
        "warmup_ns": 0,
        "iterations": 20,
        "window_ns": 0,
        "period_ns": 0,
        "meter": None,
        "slice_iterations": 8,
        "settle_iterations": 2,
        "seed": 0,
        "jobs": list(jobs),
        **changes,
    }


def write_plan(folder: Path, jobs: Sequence[dict[str, Any]], **changes: Any) -> Path:
    path = folder / "plan.json"
    path.write_text(json.dumps(agent_plan(jobs, **changes)))
    return path


def device(**entry: Any) -> Device:
    """A device of the inventory; ``local:`` with this Python unless told otherwise."""
    given = {
        "id": "board",
        "profile": f"linux-{os.uname().machine}",
        "address": "local:",
        "python": sys.executable,
        **entry,
    }
    return parse(Device, given, "test")


def ssh(server: LoopbackServer) -> SshTransport:
    return SshTransport("127.0.0.1", server.port, server.user, server.key_file, server.known_hosts)
