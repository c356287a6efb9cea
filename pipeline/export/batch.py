"""The batch of a program: fixed, or open in the first dimension of its inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pipeline.quiet import quiet
from pipeline.training import torch_threads
from profiles.errors import ExportError
from profiles.export import Batch

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

#: Largest batch that a program with an open one is lowered for.  ExecuTorch plans memory for it.
LARGEST = 32
#: How far the outputs of a batch may be from those of single examples, as a share of the largest:
#: one step of INT8 here and there, but not another example's.
_SAME = 0.02


def batch_of(program: ExportedProgram) -> Batch | None:
    """How many examples a program takes at once; ``None`` where it takes no tensor."""
    sizes = [value.shape[0] for value in _inputs(program) if value.ndim]
    if not sizes:
        return None
    return sizes[0] if isinstance(sizes[0], int) else "dynamic"


def with_batch(program: ExportedProgram, batch: Batch) -> ExportedProgram:
    """The same program for another batch.

    A program that was exported for one example is exported anew, and must then compute for each
    what it computed before: a size that the model holds as a constant shows there.

    Args:
        program: with an open batch, or with a fixed one.
        batch: that is wanted; ``dynamic`` takes 1 to :data:`LARGEST`.

    Raises:
        ExportError: if the program holds its batch as a constant.
    """
    given = batch_of(program)
    if given in (batch, None):
        return program if batch != "dynamic" else _exported(program, batch)
    try:
        found = _exported(program, batch)
        same = given == "dynamic" or (given == 1 and _computes_the_same(program, found))
    except Exception:  # whatever an operator says of a shape that it does not take
        same = False
    if not same:
        raise ExportError(
            f"the program takes a batch of {given} only, not {batch}",
            "no sizes of its input as constants in forward, or export it for that batch",
        )
    return found


def _inputs(program: ExportedProgram) -> list[Any]:
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [nodes[name].meta["val"] for name in names if isinstance(name, str) and name in nodes]


def _exported(program: ExportedProgram, batch: Batch) -> ExportedProgram:
    import torch

    inputs = _examples(program, 2 if batch == "dynamic" else batch)
    dynamic = None
    if batch == "dynamic":
        # One dimension for each input; those without a batch are told apart by their size.
        size = torch.export.Dim("batch", min=1, max=LARGEST)
        dynamic = tuple({0: size} if len(value) == 2 and value.ndim else None for value in inputs)
    with quiet(), torch.no_grad(), any_size():
        module = _unchecked(program)
        return torch.export.export(module, inputs, strict=False, dynamic_shapes=dynamic)


def _unchecked(program: ExportedProgram) -> torch.nn.Module:
    """The program's module, without the check that its inputs have the shapes it was traced for."""
    module: torch.nn.Module = program.module(check_guards=False)
    module._forward_pre_hooks.clear()
    return module


@contextmanager
def any_size() -> Iterator[None]:
    """PyTorch does not ask meanwhile whether a batch is below 16.

    It does so to choose among libraries of convolutions, which matters for no export, and takes
    the answer for a limit of the program.
    """
    import torch

    with torch.backends.nnpack.flags(enabled=False), torch.backends.mkldnn.flags(enabled=False):
        yield


def _examples(program: ExportedProgram, rows: int) -> tuple[torch.Tensor, ...]:
    """Inputs with so many rows, where the program's inputs have a batch; always the same ones."""
    import torch

    generator = torch.Generator().manual_seed(0)
    values = _inputs(program)
    batch = values[0].shape[0]
    found = []
    for value in values:
        sizes = [
            rows if size == batch and not i else int(size) for i, size in enumerate(value.shape)
        ]
        if value.dtype.is_floating_point:
            found.append(torch.randn(sizes, generator=generator, dtype=value.dtype))
        else:
            found.append(torch.zeros(sizes, dtype=value.dtype))
    return tuple(found)


def _computes_the_same(program: ExportedProgram, found: ExportedProgram) -> bool:
    import torch

    wanted = batch_of(found)
    rows = wanted if isinstance(wanted, int) else 3
    whole = _examples(program, rows)
    with torch.no_grad(), quiet(), torch_threads(1):
        module = _unchecked(program)
        single = [tuple(x[i : i + 1] if len(x) == rows else x for x in whole) for i in range(rows)]
        outputs = [_flat(module(*one)) for one in single]
        expected = [torch.cat(each) for each in zip(*outputs, strict=True)]
        got = _flat(_unchecked(found)(*whole))
    return len(got) == len(expected) and all(map(_close, got, expected))


def _flat(outputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def _close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    if got.shape != expected.shape:
        return False
    error = (got.float() - expected.float()).abs().max()
    return bool(error <= _SAME * expected.float().abs().max())
