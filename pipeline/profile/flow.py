"""Profiles of single files, and of everything that a recipe measures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from devices.inventory import Device, load_inventory
from pipeline.data import DataHandle, Images
from pipeline.profile.blocks import profile_network
from pipeline.profile.parts import Network, Values
from pipeline.profile.record import BlockProfile
from pipeline.stage import Progress, Workspace
from profiles.errors import DataError, EdgeError, UsageError
from profiles.measure import Measure
from profiles.recipe import Recipe
from profiles.records import ArtifactFormat

if TYPE_CHECKING:
    from pipeline.compress.variants import Compressed
    from pipeline.flow import Checked, Failure
    from pipeline.profile.dtypes import BothTypes

#: Examples that INT8 is calibrated with where only latency is asked for.
_CALIBRATION = 32


def profile_file(
    program: Path,
    format_: ArtifactFormat,
    device_id: str,
    inventory: Path,
    root: Path,
    settings: Measure,
    progress: Progress,
    *,
    depth: int | None = None,
    operators: bool = False,
    data: Path | None = None,
) -> BlockProfile:
    """Profile a ``.pt2``, in FP32 or quantized for this format.

    Args:
        program: the file.
        format_: to export to.
        device_id, inventory: where.
        root: workspace for the results.
        settings: how often; for one thread count.
        progress: told what goes on.
        depth, operators: see :func:`pipeline.profile.blocks.profile_network`.
        data: ``.npz`` whose array ``x`` holds inputs; without one, the input that the program was
            exported with is used.

    Raises:
        UsageError: for files that cannot be used, or an unknown device.
        StageError: if the network cannot be cut.
        DeviceError: if the device cannot be reached or leaves.
    """
    from pipeline.flow import open_workspace

    device = load_inventory(inventory).find(device_id)
    network = _network_of(program, data)
    with open_workspace(root, progress) as workspace:
        return profile_network(
            workspace, device, network, format_, settings, depth=depth, operators=operators
        )


def profile_file_in_int8(
    program: Path,
    format_: ArtifactFormat,
    device_id: str,
    inventory: Path,
    root: Path,
    settings: Measure,
    progress: Progress,
    *,
    depth: int | None = None,
    data: Path | None = None,
) -> BothTypes:
    """Profile a ``.pt2`` in FP32 beside the same in INT8; arguments as :func:`profile_file`.

    INT8 is calibrated with the first examples of ``data``, or the program's own input.
    """
    from pipeline.flow import open_workspace
    from pipeline.profile.dtypes import profile_both

    device = load_inventory(inventory).find(device_id)
    network = _network_of(program, data)
    samples = _inputs(data, _CALIBRATION) if data else network.inputs[0]
    with open_workspace(root, progress) as workspace:
        return profile_both(workspace, device, network, format_, settings, samples, depth=depth)


def _network_of(program: Path, data: Path | None) -> Network:
    if not program.is_file():
        raise UsageError(f"there is no file {program}")
    inputs: Values = [_inputs(data, 1)] if data else _own_inputs(program)
    return Network(program, program.stem, "file", inputs)


def profile_variants(
    workspace: Workspace,
    recipe: Recipe,
    compressed: Sequence[Compressed],
    checked: Sequence[Checked],
    devices: Sequence[Device],
    data: DataHandle,
    failures: list[Failure],
) -> None:
    """Profile each variant and format of a recipe that passed parity, on each of its devices.

    What goes wrong, and every block that is not known, is added to ``failures``.
    """
    from pipeline.flow import Failure

    passed = {(c.artifact.variant, c.artifact.format) for c in checked if c.parity.passed}
    inputs = [data.arrays.test.x[:1]]
    for device in devices:
        for item in compressed:
            if (item.variant, item.format) not in passed:
                continue
            network = Network(item.program, recipe.name, item.variant, inputs)
            what = f"{item.variant} {item.format} on {device.id}"
            for threads in recipe.measure.threads:
                settings = recipe.measure.model_copy(update={"threads": (threads,)})
                try:
                    found = profile_network(
                        workspace,
                        device,
                        network,
                        item.format,
                        settings,
                        operators=item.format == "onnx",
                        tolerances=recipe.tolerances,
                    )
                except EdgeError as error:
                    failures.append(Failure("profile", what, str(error)))
                    continue
                failures += [
                    Failure("profile", f"{part} of {what}", reason)
                    for part, reason in found.lacking().items()
                    if part != "operators"
                ]


def _inputs(data: Path, count: int) -> Images:
    try:
        with data.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            x: Images = np.ascontiguousarray(arrays["x"][:count], dtype=np.float32)
    except Exception as error:  # a damaged archive raises whatever zipfile and zlib do
        raise DataError(f"{data} is not an .npz with a plain array x: {error}") from error
    if len(x) == 0 or not np.isfinite(x).all():
        raise DataError(f"{data}: x is empty or not finite")
    return x


def _own_inputs(program: Path) -> Values:
    from pipeline.programs import load_program

    given = load_program(program).example_inputs
    if not given or given[1]:
        raise UsageError(
            f"{program} holds no input that it was exported with", "name one with --data"
        )
    return [value.detach().numpy() for value in given[0]]
