"""What an artifact says of itself, inside the file, where its format has a place for it.

Only what follows from what is computed: what comes out the same after an upgrade, in another
process, or under two names, has the same bytes and is measured once.  A variant's name, edgeloop's
version, the stage's key and the program's sha256 (its file names modules by their places in memory)
are in the store's record instead, which the file's own sha256 leads to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.export.batch import batch_of
from pipeline.export.layout import layout_of
from pipeline.export.tensors import io_of


def about(program: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """All that is written into a file.

    Args:
        program: that is lowered.
        given: ``model``, ``dtype``, ``compression``...; empty for files that need not say anything.

    Returns:
        The same, with the batch, the names of inputs and outputs, which of them are ``open`` in
        their first dimension, and the ``layout`` of integers.
    """
    if not given:
        return {}
    io = io_of(program)
    found: dict[str, Any] = {
        **given,
        "made_by": "edgeloop",
        "batch": batch_of(program),
        "inputs": [spec.name for spec in io.inputs],
        "outputs": [spec.name for spec in io.outputs],
    }
    if found["batch"] == "dynamic":  # ExecuTorch's format knows the largest sizes alone
        found["open"] = {
            side: [spec.shape[:1] == (-1,) for spec in specs]
            for side, specs in (("inputs", io.inputs), ("outputs", io.outputs))
        }
    layout = layout_of(program)
    return {**found, "layout": layout} if layout else found
