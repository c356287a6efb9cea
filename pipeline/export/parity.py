"""Parity: does an artifact still compute what its PyTorch reference computes, on real inputs?

No parity, no timing: an artifact that fails here is reported and never measured.  The runtimes are
driven by the same code that measures them on a device.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from devices.agent.engines import ENGINES, available_delegates
from pipeline.data import DataHandle, Images, Split
from pipeline.export.partitioners import BACKENDS
from pipeline.quiet import quiet
from pipeline.stage import Stage, Workspace
from profiles.canonical import file_sha256
from profiles.errors import StageError
from profiles.recipe import Tolerance
from profiles.records import RUNTIME_OF, Artifact, Parity
from profiles.statistics import paired_drop_interval

#: The distribution that runs each format on this host.
HOST_RUNTIMES = {"executorch": "executorch", "onnx": "onnxruntime", "tflite": "ai-edge-litert"}
#: Where a batch is open, so many examples are given at once too: one alone shows no mixing.
_AT_ONCE = 3


def parity_stage(
    workspace: Workspace,
    artifact: Artifact,
    tolerance: Tolerance,
    data: DataHandle,
    reference: Path,
    baseline: Path,
) -> Parity:
    """Run an artifact on the test split and compare, or find that it has been done.

    Args:
        workspace: it is recorded in.
        artifact: to check.
        tolerance: what is demanded of it.
        data: whose test split is used.
        reference: ``.npy`` of the logits it should give: of its own program before quantization.
        baseline: ``.npy`` of the uncompressed model's logits, for the accuracy drop.

    Raises:
        StageError: if the runtime refuses the artifact.
    """
    stage = Stage(
        "parity",
        {
            "artifact": artifact.sha256,
            "data": data.key,
            "tolerance": tolerance.model_dump(),
            "references": [file_sha256(reference), file_sha256(baseline)],
        },
        (HOST_RUNTIMES[artifact.format],),
    )

    def work(_: Path) -> dict[str, Any]:
        test = data.arrays.test
        outputs, delegates = host_outputs(artifact, test.x)
        expected = np.load(reference, allow_pickle=False)
        uncompressed = np.load(baseline, allow_pickle=False)
        found = compare(outputs, expected, uncompressed, test, tolerance)
        if found.passed and artifact.io.inputs[0].shape[:1] == (-1,):
            problem = _together(artifact, test.x, outputs, tolerance)
            found = replace(found, passed=not problem, reason=problem)
        return asdict(replace(found, delegates=delegates))

    return Parity.from_json(workspace.run(stage, work).value)


def _together(artifact: Artifact, x: Images, alone: Images, tolerance: Tolerance) -> str:
    """What is wrong with the outputs of several examples at once; nothing if it is empty."""
    rows = min(_AT_ONCE, len(x))
    outputs, _ = host_outputs(artifact, x[:rows], rows)
    what = f"{rows} examples at once"
    if outputs.shape != alone[:rows].shape:
        return f"{what} give the shape {outputs.shape}, not {alone[:rows].shape}"
    worst = float(np.abs(outputs - alone[:rows]).max())
    allowed = tolerance.max_abs_error * float(np.abs(alone).max())
    if worst <= allowed:
        return ""
    return f"{what} are off from each alone by {worst:.3g} > {allowed:.3g}"


def host_outputs(
    artifact: Artifact, x: Images, rows: int | None = None
) -> tuple[Images, tuple[str, ...]]:
    """Let an artifact's runtime compute on this host.

    Args:
        artifact: to run.
        x: its inputs, shape ``(n, ...)``.
        rows: examples at once; where not given, those of its fixed batch, or one.

    Returns:
        Its first output for each input, and the delegates that took part.

    Raises:
        StageError: if the runtime refuses it.
    """
    try:
        with quiet():
            engine = ENGINES[RUNTIME_OF[artifact.format]](str(artifact.path), 1)
            found = []
            size = rows or artifact.io.batch
            for start in range(0, len(x), size):
                part = x[start : start + size]
                # What is missing in the last batch is filled up with its last example.
                full = np.concatenate([part, *[part[-1:]] * (size - len(part))])
                engine.feed([np.ascontiguousarray(full)])
                engine.prepare()
                engine.call()
                found.append(engine.outputs()[0][: len(part)].copy())
    except Exception as error:
        reason = _absent_backend(artifact) or next(iter(str(error).strip().splitlines()), "")
        raise StageError(
            f"{artifact.runtime} cannot run its own artifact: {type(error).__name__}: {reason}"
        ) from error
    return np.concatenate(found), tuple(engine.delegates())


def _absent_backend(artifact: Artifact) -> str | None:
    """Why an artifact cannot run here, where it was lowered to a backend that this host lacks."""
    backend = BACKENDS.get(artifact.details.get("partitioner", ""))
    if backend is None or backend in available_delegates("executorch"):
        return None
    return f"this host has no {backend}, so nothing can vouch for it"


def compare(
    outputs: Images, expected: Images, baseline: Images, test: Split, tolerance: Tolerance
) -> Parity:
    """Compare outputs of shape ``(n, classes)`` with what was expected.

    The error is relative to the largest expected output, so that one tolerance fits logits of any
    scale.
    """
    finite = bool(np.isfinite(outputs).all())
    worst = float(np.abs(outputs - expected).max()) if finite else float(np.finfo("f4").max)
    cosine = _cosine(outputs, expected) if finite else 0.0
    top1 = float(np.mean(outputs.argmax(1) == expected.argmax(1)))
    right, right_before = outputs.argmax(1) == test.y, baseline.argmax(1) == test.y
    allowed = tolerance.max_abs_error * float(np.abs(expected).max())
    problems = []
    if not finite:
        problems.append("outputs are not finite")
    if worst > allowed:
        problems.append(f"max abs error {worst:.3g} > {allowed:.3g}")
    if cosine < tolerance.cosine:
        problems.append(f"cosine {cosine:.5f} < {tolerance.cosine:g}")
    if top1 < tolerance.top1_agreement:
        problems.append(f"top-1 agreement {top1:.3f} < {tolerance.top1_agreement:g}")
    return Parity(
        passed=not problems,
        reason="; ".join(problems),
        n=len(test.y),
        max_abs_error=worst,
        cosine=cosine,
        top1_agreement=top1,
        accuracy=float(right.mean()),
        reference_accuracy=float(right_before.mean()),
        accuracy_drop_ci95=paired_drop_interval(right_before, right),
    )


def _cosine(outputs: Images, expected: Images) -> float:
    """Mean cosine similarity of rows."""
    norms = np.linalg.norm(outputs, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((outputs * expected).sum(1) / np.maximum(norms, np.finfo("f4").tiny)).mean())
