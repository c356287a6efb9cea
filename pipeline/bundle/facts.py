"""What a run leaves for bundles: what an app must feed a model, and what must come out.

Only a run has the data and the inventory; a bundle is made of a workspace alone, so that it comes
out the same wherever that is.  What a recipe does not tell (a factory's pre-processing, names of
classes) stays ``None``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from devices.inventory import Device
from pipeline.bundle.recorded import recorded
from pipeline.data import DataHandle, class_names, raw_examples
from pipeline.export.parity import HOST_RUNTIMES, host_outputs
from pipeline.stage import Stage, Workspace
from profiles.recipe import DataSource, Recipe
from profiles.records import Artifact

#: Golden calls: one could be matched by chance, and each adds its bytes to the app.
CALLS = 2
#: What images are before they are normalised, from 0 to this.
_BYTE_RANGE = 255


def facts(
    workspace: Workspace,
    recipe: Recipe,
    data: DataHandle,
    devices: Sequence[Device],
    agreeing: set[str],
) -> dict[str, Any]:
    """What bundles of a run's artifacts say beside what the store knows, as plain data.

    Args:
        workspace: takes the golden vectors.
        recipe: of the run.
        data: of the recipe.
        devices: that it measured on or searched for.
        agreeing: sha256 of the artifacts that agree with their reference.
    """
    source = recipe.data
    found = recorded(workspace.store, workspace.root)
    artifacts = {a.sha256: a for a in found if a.sha256 in agreeing}.values()

    @cache
    def raw() -> NDArray[Any] | None:
        return raw_examples(source, CALLS * max(a.io.batch for a in artifacts))

    return {
        "preprocessing": _preprocessing(source, raw() if artifacts else None),
        "labels": class_names(source),
        "devices": {device.id: _device(device) for device in devices},
        "vectors": {a.sha256: _vectors(workspace, a, data, raw) for a in artifacts},
        "max_relative_error": {
            name: tolerance["max_abs_error"]
            for name, tolerance in recipe.tolerances.model_dump().items()
        },
    }


def _preprocessing(source: DataSource, raw: NDArray[Any] | None) -> dict[str, Any] | None:
    """From an image in a file to an input; unknown for a factory, whose examples come ready."""
    if raw is None:
        return None
    layout = source.npz.layout if source.npz else "nhwc"
    return {
        "raw_dtype": raw.dtype.name,
        "raw_layout": layout,
        "divide_by": _BYTE_RANGE if raw.dtype == np.uint8 else 1,
        "mean": source.mean,
        "std": source.std,
    }


def _device(device: Device) -> dict[str, Any]:
    profile = device.details()
    models = [name for name in profile.models if not set(name) & set("*?[")]
    names = dict.fromkeys([device.profile, device.id, *models])
    return {"names": list(names), "architecture": profile.architecture, "os": profile.os}


def _vectors(
    workspace: Workspace,
    artifact: Artifact,
    data: DataHandle,
    raw: Callable[[], NDArray[Any] | None],
) -> dict[str, Any]:
    """Calls of an artifact on this host, with the bytes that went in and came out."""
    stage = Stage(
        "vectors",
        {"artifact": artifact.sha256, "data": data.key, "calls": CALLS},
        (HOST_RUNTIMES[artifact.format],),
    )

    def work(folder: Path) -> dict[str, Any]:
        x, rows = data.arrays.test.x, artifact.io.batch
        calls = min(CALLS, len(x) // rows)
        if not calls:
            return {"calls": []}
        outputs, _ = host_outputs(artifact, x[: calls * rows])
        sides = {"raw": raw(), "input": x, "output": outputs}
        return {
            "calls": [
                {
                    side: _kept(folder / f"{side}-{number}", values, number * rows, rows)
                    for side, values in sides.items()
                }
                for number in range(calls)
            ]
        }

    result = workspace.run(stage, work)
    return {"folder": result.folder.name, "calls": result.value["calls"]}


def _kept(path: Path, values: NDArray[Any] | None, first: int, rows: int) -> dict[str, Any] | None:
    """Write some examples as little-endian bytes; what a reader must know of them."""
    if values is None:
        return None
    part = values[first : first + rows]
    path.write_bytes(np.ascontiguousarray(part, part.dtype.newbyteorder("<")).tobytes())
    return {"file": path.name, "shape": part.shape, "dtype": part.dtype.name}
