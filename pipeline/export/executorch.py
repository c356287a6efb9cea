"""ExecuTorch, lowered to the XNNPACK backend wherever that takes an operator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import to_edge_transform_and_lower

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def write(program: ExportedProgram, path: Path) -> dict[str, Any]:
    """Write ``program`` as a ``.pte``; returns how many parts are delegated and what stayed out."""
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    calls = [n for n in edge.exported_program().graph.nodes if n.op == "call_function"]
    names = [str(getattr(node.target, "__name__", node.target)) for node in calls]
    lowered = edge.to_executorch()
    path.write_bytes(lowered.buffer)
    outside = sorted(n for n in names if "getitem" not in n and "executorch_call_delegate" not in n)
    return {"delegates": names.count("executorch_call_delegate"), "outside_delegate": outside}
