"""Compression: one exported program in, a compressed one out."""

from __future__ import annotations

import os

#: Distributions whose versions decide what a compressed program looks like.
PACKAGES = ("nncf", "torch", "torchao")


def silence_telemetry() -> None:
    """Keep NNCF and OpenVINO from reporting usage; nothing here phones home."""
    os.environ["NNCF_CI"] = "1"
    os.environ.setdefault("CI", "true")
