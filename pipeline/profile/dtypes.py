"""What INT8 would buy in each block of a network, on one device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from devices.inventory import Device
from pipeline.data import Images
from pipeline.model import PROGRAM
from pipeline.profile.blocks import profile_network
from pipeline.profile.parts import Network
from pipeline.profile.record import BlockProfile
from pipeline.stage import Stage, Workspace
from profiles.canonical import digest, file_sha256
from profiles.errors import UsageError
from profiles.measure import Measure
from profiles.records import ArtifactFormat


@dataclass(frozen=True, slots=True)
class Gain:
    """One block in both data types, each measured as a network of its own.

    Args:
        name: of the block.
        float32_ns, int8_ns: one call of the runtime included; ``None`` where unknown.  At its
            borders the block in INT8 converts what it would be handed as integers within the
            network: it may cost less there.
    """

    name: str
    float32_ns: float | None
    int8_ns: float | None

    @property
    def saved_ns(self) -> float | None:
        """What INT8 saves in a call; below 0 where it is slower."""
        if self.float32_ns is None or self.int8_ns is None:
            return None
        return self.float32_ns - self.int8_ns


@dataclass(frozen=True, slots=True)
class BothTypes:
    """The profiles of a network in FP32 and INT8, and what that means for its blocks."""

    float32: BlockProfile
    int8: BlockProfile
    gains: tuple[Gain, ...]


def profile_both(
    workspace: Workspace,
    device: Device,
    network: Network,
    format_: ArtifactFormat,
    settings: Measure,
    samples: Images,
    *,
    depth: int | None = None,
) -> BothTypes:
    """Profile a network as it is and in INT8, cut in the same way.

    Args:
        workspace, device, format_, settings, depth: see
            :func:`pipeline.profile.blocks.profile_network`.
        network: in FP32, of one input.
        samples: to calibrate with, shape ``(n, ...)``.

    Raises:
        UsageError: if it is quantized already, or takes several inputs.
        StageError, DeviceError: as :func:`pipeline.profile.blocks.profile_network`.
    """
    if len(network.inputs) != 1:
        raise UsageError(f"{network.program} takes {len(network.inputs)} inputs: INT8 takes one")
    before = profile_network(workspace, device, network, format_, settings, depth=depth)
    if before.dtype != "float32":
        raise UsageError(f"{network.program} is in {before.dtype} already", "name the FP32 one")
    stage = Stage(
        "profile-int8",
        {
            "program": file_sha256(network.program),
            "format": format_,
            "samples": digest(np.ascontiguousarray(samples).tobytes().hex()),
        },
        ("torch", "nncf", "torchao"),
    )

    def work(folder: Path) -> dict[str, Any]:
        from pipeline.compress.quantize import quantize
        from pipeline.programs import load_program, save_program

        program = quantize(load_program(network.program), format_, samples)
        save_program(program, folder / PROGRAM)
        return {}

    quantized = workspace.run(stage, work).folder / PROGRAM
    after = profile_network(
        workspace,
        device,
        replace(network, program=quantized, variant="int8"),
        format_,
        settings,
        depth=before.depth,
    )
    return BothTypes(before, after, tuple(gains(before, after)))


def gains(before: BlockProfile, after: BlockProfile) -> Sequence[Gain]:
    """Each block of the network in both, in the network's order of the first."""
    in_int8, in_float32 = _by_name(after), _by_name(before)
    return [Gain(name, value, in_int8.get(name)) for name, value in in_float32.items()]


def _by_name(profile: BlockProfile) -> dict[str, float | None]:
    return {
        name: block.latency_ns.value if block.latency_ns else None
        for block in profile.blocks
        for name in block.names
    }
