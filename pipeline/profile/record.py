"""What a profile is, and how it is kept in a workspace: one JSON file for each."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from profiles.canonical import canonical_json
from profiles.durable import write_whole
from profiles.errors import StoreError
from profiles.findings import Figure
from profiles.records import Condition

FORMAT_VERSION = 1
_FOLDER = "profiles"


@dataclass(frozen=True, slots=True)
class BlockCost:
    """One block of a network, and all that are like it, measured as a network of its own.

    Args:
        names: of all blocks that differ from this one in weights alone; the first was measured.
        kind: class of the module that it begins with.
        latency_ns: of one of them, one call of the runtime included; ``None`` where it is not
            known.
        share: of all of them in the sum of the blocks, calls apart; ``None`` where any is unknown.
        status: ``accepted``; or ``refused``, ``failed`` or ``open``, of the measurement or of what
            comes before it.
        reason: why it is not accepted.
        trial: key of the trial behind it.
    """

    names: tuple[str, ...]
    kind: str
    latency_ns: Figure | None
    share: float | None
    status: str
    reason: str = ""
    trial: str = ""

    @property
    def count(self) -> int:
        """How many blocks of the network these are."""
        return len(self.names)


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """One operator as the runtime itself sees it.

    Args:
        name: of its node.
        type: of operator.
        provider: what executed it.
        latency_ns: in one call of the network; the median over the calls.
        block: that it belongs to, or ``None`` where its name does not tell, as for conversions that
            the runtime adds between blocks.
    """

    name: str
    type: str
    provider: str
    latency_ns: float
    block: str | None = None


@dataclass(frozen=True, slots=True)
class OperatorProfile:
    """The runtime's own account of where its time goes; slower than a call that is not observed.

    Args:
        operators: in the order in which they were executed.
        sum_ns: of all operators in one call; the median over the calls.
        whole_ns: of the same calls; more by what is between the operators.
        calls: how many.
        resolution_ns: of the runtime's clock; shorter operators are told as 0.
    """

    operators: tuple[OperatorCost, ...]
    sum_ns: float
    whole_ns: float
    calls: int
    resolution_ns: int = 1000

    @property
    def gap_ns(self) -> float:
        """The part of the calls that is in no operator."""
        return self.whole_ns - self.sum_ns


@dataclass(frozen=True, slots=True)
class BlockProfile:
    """What each part of a network costs on a device.

    Args:
        artifact_sha256: of the whole network's artifact.
        dtype: ``float32`` or ``int8``.
        depth: levels of modules that were gone down to find the blocks.
        blocks: those that differ in more than weights, in the network's order.
        call_ns: an empty network: one call of the runtime.
        whole_ns: the whole network, measured in the same visit, in turns with the blocks.
        sum_ns: all blocks, less all calls but one; ``None`` where any part is not known.
        ratio: ``sum_ns`` over ``whole_ns``, of the same processes.
        unknown: what else was not measured (``whole``, ``call``, ``operators``), and why.
        remarks: what the gap between sum and whole consists of, and what else to keep in mind.
        operators: the runtime's own profile, where it was asked for.
    """

    model: str
    variant: str
    format: str
    dtype: str
    artifact_sha256: str
    device: str
    emulated: bool
    runtime: str
    runtime_version: str
    condition: Condition
    depth: int
    blocks: tuple[BlockCost, ...]
    call_ns: Figure | None
    whole_ns: Figure | None
    sum_ns: Figure | None
    ratio: Figure | None
    unknown: Mapping[str, str]
    remarks: tuple[str, ...]
    operators: OperatorProfile | None = None

    @property
    def gap_ns(self) -> float | None:
        """The sum less the whole; above 0 the blocks take longer alone than in the network."""
        if self.ratio is None or self.whole_ns is None:
            return None
        return (self.ratio.value - 1) * self.whole_ns.value

    def lacking(self) -> dict[str, str]:
        """Every part that is not known, by its name, and why."""
        blocks = {b.names[0]: f"{b.status}: {b.reason}" for b in self.blocks if not b.latency_ns}
        return {**blocks, **self.unknown}


def write_profile(root: Path, profile: BlockProfile) -> Path:
    """Keep a profile in a workspace, in place of an earlier one of the same; returns its file."""
    folder = root / _FOLDER
    folder.mkdir(exist_ok=True)
    parts = [profile.model, profile.variant, profile.device, profile.format]
    words = [re.sub(r"[^\w.-]", "_", part) for part in parts]
    name = "-".join([*words, f"{profile.condition.threads}t", f"d{profile.depth}"])
    path = folder / f"{name}.json"
    plain = {"format": FORMAT_VERSION, "profile": asdict(profile)}
    write_whole(path, canonical_json(plain).encode())
    return path


def read_profiles(root: Path) -> list[BlockProfile]:
    """All profiles in a workspace, by the names of their files.

    Raises:
        StoreError: if one is damaged, or of another version.
    """
    return [_read(path) for path in sorted((root / _FOLDER).glob("*.json"))]


def _read(path: Path) -> BlockProfile:
    try:
        data = json.loads(path.read_bytes())
        if data["format"] == FORMAT_VERSION:
            return _profile(data["profile"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is no profile: {type(error).__name__}", "delete it") from error
    raise StoreError(f"{path} is a profile of version {data['format']}", "make it again")


def _profile(plain: Mapping[str, Any]) -> BlockProfile:
    figures = {name: _figure(plain[name]) for name in ("call_ns", "whole_ns", "sum_ns", "ratio")}
    operators = plain["operators"]
    return BlockProfile(
        **{
            **plain,
            **figures,
            "condition": Condition(**plain["condition"]),
            "blocks": tuple(_block(each) for each in plain["blocks"]),
            "remarks": tuple(plain["remarks"]),
            "operators": operators and _operators(operators),
        }
    )


def _block(plain: Mapping[str, Any]) -> BlockCost:
    names, latency_ns = tuple(plain["names"]), _figure(plain["latency_ns"])
    return BlockCost(**{**plain, "names": names, "latency_ns": latency_ns})


def _operators(plain: Mapping[str, Any]) -> OperatorProfile:
    return OperatorProfile(
        **{**plain, "operators": tuple(OperatorCost(**each) for each in plain["operators"])}
    )


def _figure(plain: Mapping[str, Any] | None) -> Figure | None:
    if plain is None:
        return None
    interval = plain["ci95"]
    return Figure(**{**plain, "ci95": None if interval is None else (interval[0], interval[1])})
