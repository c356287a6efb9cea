"""Latency tables in the YAML format of once-for-all: a dictionary of blocks, milliseconds each.

A key of that format describes a block and its shapes, such as
``expanded_conv-input:56x56x24-output:28x28x40-expand:4-kernel:5-stride:2-idskip:0``; its value is
``{mean: milliseconds, count: samples}``.  There is no device, no runtime and no interval in it,
and a block's latency is without the call: the numbers simply add.  Here such a key is a block's
signature.

*Source:* Cai, Gan, Wang, Zhang & Han, "Once-for-All: Train One Network and Specialize it for
Efficient Deployment", ICLR 2020, and the tables published with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiles.durable import write_whole
from profiles.errors import TableError, TableFileError
from profiles.table import LatencyTable

#: Digits of a millisecond that are written: nanoseconds.
_DIGITS = 6
_MS_NS = 1e6


@dataclass(frozen=True, slots=True)
class BlockMean:
    """Mean latency of one block over ``count`` samples, the runtime's call apart."""

    latency_ns: float
    count: int


def read_yaml(path: Path) -> dict[str, BlockMean]:
    """The blocks of a file, by signature.

    Raises:
        TableFileError: if it is no such file, a key is there twice, or a latency is not above 0;
            all wrong values at once.
    """
    data = _parse(path)
    if not isinstance(data, dict) or not data:
        raise TableFileError(f"{path} is no once-for-all table: no dictionary of blocks")
    wrong = [f"{key}: {value!r}" for key, value in data.items() if not _is_mean(value)]
    if wrong:
        raise TableFileError(
            f"{path}: {'; '.join(wrong)}", "a block is {mean: milliseconds above 0, count: samples}"
        )
    return {
        str(key): BlockMean(value["mean"] * _MS_NS, value["count"]) for key, value in data.items()
    }


def write_yaml(blocks: Mapping[str, BlockMean], path: Path) -> None:
    """Write blocks, to whole nanoseconds, for programs that read once-for-all's tables."""
    import yaml

    plain = {
        key: {"mean": round(block.latency_ns / _MS_NS, _DIGITS), "count": block.count}
        for key, block in blocks.items()
    }
    write_whole(path, yaml.safe_dump(plain, sort_keys=True).encode())


def blocks_of(table: LatencyTable) -> dict[str, BlockMean]:
    """A table's blocks by signature, or ``slot/choice`` where that is unknown, less the call.

    Raises:
        TableError: for blocks that take no longer than an empty network: such a number would be
            zero or less.
    """
    found, short = {}, []
    for entry in table.entries():
        name = entry.signature or f"{entry.slot}/{entry.choice}"
        found[name] = BlockMean(entry.latency_ns - table.call_ns, entry.n)
        if found[name].latency_ns <= 0:
            short.append(name)
    if short:
        raise TableError(
            f"no longer than an empty network: {', '.join(short)}", "write Parquet instead"
        )
    return found


def _is_mean(value: Any) -> bool:
    if not isinstance(value, dict) or not {"mean", "count"} <= set(value):
        return False
    mean, count = value["mean"], value["count"]
    numbers = type(mean) in (int, float) and type(count) is int
    return numbers and 0 < mean < math.inf and count >= 0


def _parse(path: Path) -> Any:
    """Safe YAML of which no key is there twice."""
    import yaml

    class Once(yaml.SafeLoader):
        """Refuses what PyYAML would let the last one win."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            found: dict[Any, Any] = super().construct_mapping(node, deep)
            if len(found) < len(node.value):
                names = [key.value for key, _ in node.value]
                twice = next(name for name in names if names.count(name) > 1)
                raise TableFileError(f"{path}: {twice} is there twice")
            return found

    try:
        return yaml.load(path.read_text(), Loader=Once)  # noqa: S506  a SafeLoader
    except (OSError, ValueError, yaml.YAMLError) as error:
        where = str(error).splitlines()[0]
        raise TableFileError(f"{path} is no once-for-all table: {where}") from error
