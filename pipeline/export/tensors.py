"""What a program takes and gives, by the names that its artifacts use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.model import INPUT_NAME
from profiles.records import Io, TensorSpec

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def io_of(program: ExportedProgram) -> Io:
    """Inputs and outputs of a program, named as the artifacts name them; -1 for what is open.

    Several inputs keep the names of ``forward``'s arguments.
    """
    placeholders = [
        node
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    results = [
        node for node in program.graph.nodes if node.name in program.graph_signature.user_outputs
    ]
    inputs = [INPUT_NAME] if len(placeholders) == 1 else [node.name for node in placeholders]
    outputs = ["output"] if len(results) == 1 else [f"output_{i}" for i in range(len(results))]
    return Io(
        tuple(_spec(name, node) for name, node in zip(inputs, placeholders, strict=True)),
        tuple(_spec(name, node) for name, node in zip(outputs, results, strict=True)),
    )


def _spec(name: str, node: Any) -> TensorSpec:
    value = node.meta["val"]
    dtype = str(value.dtype).removeprefix("torch.")
    return TensorSpec(
        name, tuple(size if isinstance(size, int) else -1 for size in value.shape), dtype
    )
