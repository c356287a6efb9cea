"""The stages from a PyTorch model to measured artifacts, a latency table and a search.

>>> from pipeline import Recipe, load_recipe, run
>>> summary = run(load_recipe(Path("recipe.yaml")), Path("workspace"))
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from profiles.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from pipeline.flow import RunSummary, run

# Before the first import of onnxruntime, whose official builds report home from 1.29 on.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = ["Recipe", "RunSummary", "load_recipe", "run"]


def __getattr__(name: str) -> Any:
    # numpy and what follows load only when the pipeline itself is used.
    if name in ("RunSummary", "run"):
        from pipeline import flow

        return getattr(flow, name)
    raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
