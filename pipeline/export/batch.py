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
    return next((_size(value) for value in _inputs(program) if value.ndim), None)


def with_batch(program: ExportedProgram, batch: Batch) -> ExportedProgram:
    """The same program for another batch.

    The program is exported anew, and must then compute for each example what it computes of that
    alone: a size that the model holds as a constant shows there, and what mixes examples.

    Args:
        program: with an open batch, or with a fixed one.
        batch: that is wanted; ``dynamic`` takes 1 to :data:`LARGEST`.

    Raises:
        ExportError: if the program takes no batch, or holds it as a constant.
    """
    given = batch_of(program)
    if given == batch != "dynamic" or (given is None and batch == 1):
        return program
    if given is None:
        raise ExportError(f"the program takes no batch, and none of {batch}", "export it for one")
    try:
        found = _exported(program, batch)
        same = given in (1, "dynamic") and _computes_the_same(program, found)
    except Exception:  # whatever an operator says of a shape that it does not take
        same = False
    if not same:
        known = "its examples one by one" if given == "dynamic" else f"a batch of {given}"
        raise ExportError(
            f"the program takes {known} only, not {batch}",
            "no sizes of its input as constants in forward, or export it for that batch",
        )
    return found


def _size(value: Any) -> Batch:
    """How many examples an input of at least one dimension holds."""
    size = value.shape[0]
    return size if isinstance(size, int) else "dynamic"


def _inputs(program: ExportedProgram) -> list[Any]:
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    return [nodes[name].meta["val"] for name in names if isinstance(name, str) and name in nodes]


def _exported(program: ExportedProgram, batch: Batch) -> ExportedProgram:
    import torch

    inputs, batched = _examples(program, 2 if batch == "dynamic" else batch)
    dynamic = None
    if batch == "dynamic":
        # One dimension for all inputs that have a batch.
        size = torch.export.Dim("batch", min=1, max=LARGEST)
        dynamic = tuple({0: size} if each else None for each in batched)
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


def _examples(program: ExportedProgram, rows: int) -> tuple[tuple[Any, ...], tuple[bool, ...]]:
    """Inputs with so many different rows, always the same ones, and which of them have a batch.

    They are made of the program's own examples where it has any: these are of the kind that it
    computes with.
    """
    import torch

    batch, values = batch_of(program), _inputs(program)
    given = list((program.example_inputs or ((), {}))[0])
    own = [value for value in given if isinstance(value, torch.Tensor)]
    if len(own) != len(values):
        given = own = [_drawn(value, [_known(n) for n in value.shape]) for value in values]
    held = iter(values)
    inputs, batched = [], []
    for value in given:
        has = False
        if isinstance(value, torch.Tensor):
            known = next(held)
            has = bool(known.ndim) and _size(known) == batch
        inputs.append(_rows(value, rows) if has else value)
        batched.append(has)
    return tuple(inputs), tuple(batched)


def _known(size: Any) -> int:
    return size if isinstance(size, int) else 1


def _drawn(value: Any, sizes: list[int]) -> torch.Tensor:
    import torch

    if not value.dtype.is_floating_point:
        return torch.zeros(sizes, dtype=value.dtype)
    return torch.randn(sizes, generator=torch.Generator().manual_seed(0), dtype=value.dtype)


def _rows(example: torch.Tensor, rows: int) -> torch.Tensor:
    """So many rows that differ: the given ones in turn, each moved a step further, and smaller."""
    import torch

    if example.dtype.is_floating_point and bool((example == example.flatten()[0]).all()):
        example = _drawn(example, list(example.shape))  # nothing would differ
    found = []
    for index in range(rows):
        row = example[index % len(example)]
        moved = row.roll(index, -1) if row.ndim else row
        found.append(moved * (1 - index / (2 * rows)) if row.dtype.is_floating_point else moved)
    return torch.stack(found)


def _computes_the_same(program: ExportedProgram, found: ExportedProgram) -> bool:
    import torch

    wanted = batch_of(found)
    rows = wanted if isinstance(wanted, int) else 3
    whole, batched = _examples(program, rows)
    each = list(zip(whole, batched, strict=True))
    with torch.no_grad(), quiet(), torch_threads(1):
        module = _unchecked(program)
        single = [tuple(x[i : i + 1] if has else x for x, has in each) for i in range(rows)]
        outputs = [_flat(module(*one)) for one in single]
        expected = [torch.cat(parts) for parts in zip(*outputs, strict=True)]
        got = _flat(_unchecked(found)(*whole))
    return len(got) == len(expected) and all(map(_close, got, expected))


def _flat(outputs: Any) -> tuple[torch.Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def _close(got: torch.Tensor, expected: torch.Tensor) -> bool:
    import torch

    if got.shape != expected.shape:
        return False
    got, expected = got.float(), expected.float()
    number = expected.isfinite()
    # What is no number is to be the same one.
    others = torch.allclose(got[~number], expected[~number], equal_nan=True)
    error, scale = (got - expected)[number].abs(), expected[number].abs()
    return others and (not len(error) or bool(error.max() <= _SAME * scale.max()))
