"""A measurement with sensible values for all that a test does not care about."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from profiles.findings import Measurement
from profiles.records import Condition
from tests import builders


def measurement(**changes: Any) -> Measurement:
    """One accepted measurement of the tiny model; an interval follows the median."""
    median_ns = changes.get("median_ns", 1e6)
    made = Measurement(
        artifact_sha256=builders.SHA,
        trial="f" * 64,
        model="tiny",
        variant="fp32",
        role="variant",
        format="onnx",
        runtime="onnxruntime",
        runtime_version="1.0",
        device="board",
        emulated=False,
        transport="ssh",
        condition=Condition(),
        status="accepted",
        reason="",
        n=60,
        runs=3,
        median_ns=median_ns,
        ci95_ns=None if median_ns is None else (0.99 * median_ns, 1.01 * median_ns),
        p90_ns=None if median_ns is None else 1.1 * median_ns,
        load_ns=2e6,
        first_ns=3e6,
        size_bytes=1000,
        parity=builders.parity(),
    )
    return replace(made, **changes)
