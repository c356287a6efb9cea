"""Weights that a program holds as integers while it computes in floats, for each exporter.

In the program a linear layer reads ``dequantize_per_channel_group(integers, scale, zero point…)``
(:mod:`pipeline.compress.weight_only`).  No converter writes that as what the runtimes have fast
kernels for.  So ONNX and TFLite files are written with the floats that the integers stand for, and
then the integers are put in their place, found by their values; ExecuTorch gets the pattern that
XNNPACK's partitioner looks for.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed
from torch.fx import GraphModule, Node

from pipeline.compress.units import tensor_of
from pipeline.export.batch import batch_of, with_batch
from pipeline.model import trace_graph
from profiles.errors import StageError
from profiles.records import ArtifactFormat

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_Q: Any = torch.ops.quantized_decomposed
_GROUPS = _Q.dequantize_per_channel_group.default
_CHANNELS = _Q.dequantize_per_channel.default


@dataclass(frozen=True, eq=False, slots=True)
class IntegerWeights:
    """The weights of one linear layer.

    Args:
        bits: 8 or 4.
        integers: INT8, shape ``(outputs, inputs)``.
        scale: FP32, shape ``(outputs, groups)``.
        zero: what stands for zero, in FP32, shape ``(outputs, groups)``.
        floats: what they stand for, FP32, shape ``(outputs, inputs)``.
    """

    bits: int
    integers: np.ndarray[Any, Any]
    scale: np.ndarray[Any, Any]
    zero: np.ndarray[Any, Any]
    floats: np.ndarray[Any, Any]


def integer_weights(program: ExportedProgram) -> list[IntegerWeights]:
    """All weights that a program holds as integers, in the order of its graph."""
    module: Any = program.module(check_guards=False)
    return [_read(module, node) for node in module.graph.nodes if node.target == _GROUPS]


def prepared(program: ExportedProgram, format_: ArtifactFormat) -> ExportedProgram:
    """The program as the format's writer is to get it; itself where it holds no integer weights."""
    if not any(node.target == _GROUPS for node in program.graph.nodes):
        return program
    if format_ == "executorch":
        return with_integer_activations(program)
    return with_float_weights(program)


def finisher(program: ExportedProgram, format_: ArtifactFormat) -> Callable[[bytes], bytes]:
    """What puts the integers of a program into a file in the place of its floats.

    Args:
        program: the one with integer weights, or without any.
        format_: of the file.

    Returns:
        A function of the bytes that a writer made of what :func:`prepared` returned.  The writer
        calls it before it checks and describes the file.  It gives back as they are the bytes that
        need no change, and raises a :class:`StageError` if some integers have no place in them.
    """
    weights = integer_weights(program)
    if not weights or format_ == "executorch":
        return bytes
    if format_ == "onnx":
        from pipeline.export.onnx_weights import with_integers
    else:
        from pipeline.export.litert_weights import with_integers
    return lambda content: with_integers(content, weights)


def with_float_weights(program: ExportedProgram) -> ExportedProgram:
    """The same program with the floats that its integer weights stand for."""
    module: Any = program.module(check_guards=False)
    for node in [node for node in module.graph.nodes if node.target == _GROUPS]:
        module.register_buffer(f"{node.name}_floats", torch.from_numpy(_read(module, node).floats))
        with module.graph.inserting_before(node):
            floats = module.graph.get_attr(f"{node.name}_floats")
        _replace(module, node, floats)
    return _traced(module, program)


def with_integer_activations(program: ExportedProgram) -> ExportedProgram:
    """The pattern of XNNPACK's kernels: inputs of linear layers become INT8, row by row.

    XNNPACK has no kernel of ExecuTorch's for floats by integers; this one is faster anyway, and
    its error is that of INT8 with a step for each row.
    """
    module: Any = program.module(check_guards=False)
    for node in [node for node in module.graph.nodes if node.target == _GROUPS]:
        for layer in list(node.users):
            with module.graph.inserting_before(layer):
                layer.args = (_rounded(module, layer.args[0]), *layer.args[1:])
        weights = _read(module, node)
        low, high = -(2 ** (weights.bits - 1)), 2 ** (weights.bits - 1) - 1  # tells bits apart
        if weights.scale.shape[1] == 1:
            _by_channel(module, node, weights, (low, high))
        else:
            node.args = (*node.args[:3], low, high, *node.args[5:])
    return _traced(module, program)


def matching(
    weights: Sequence[IntegerWeights], floats: np.ndarray[Any, Any]
) -> IntegerWeights | None:
    """Those that stand for these floats, shape ``(outputs, inputs)``."""
    same = (w for w in weights if np.array_equal(w.floats, floats))
    return next(same, None)


def check_all_written(written: int, weights: Sequence[IntegerWeights], format_: str) -> None:
    """Refuse a file in which some weights are still floats.

    Args:
        written: how many layers of the file have integers.
        weights: those of the program.
        format_: of the file.

    Raises:
        StageError: saying how many are missing.
    """
    if written < len(weights):
        found = f"{written} of {len(weights)}"
        raise StageError(f"{format_}: only {found} layers took their integer weights")


def _read(module: GraphModule, node: Node) -> IntegerWeights:
    reads: Any = node.args[:3]
    integers, scale, zero = (tensor_of(module, read) for read in reads)
    floats = _GROUPS(integers, scale, zero, *node.args[3:])
    bits = 4 if int(node.args[4]) < 8 else 8  # type: ignore[arg-type]
    return IntegerWeights(bits, *(t.numpy() for t in (integers, scale, zero, floats)))


def _rounded(module: GraphModule, source: Any) -> Node:
    call = module.graph.call_function
    ranges = call(_Q.choose_qparams_per_token_asymmetric.default, (source, torch.int8))
    scale, zero = (call(operator.getitem, (ranges, i)) for i in (0, 1))
    how = (scale, zero, -128, 127, torch.int8)
    integers = call(_Q.quantize_per_token.default, (source, *how))
    return call(_Q.dequantize_per_token.default, (integers, *how, torch.float32))


def _by_channel(
    module: GraphModule, node: Node, weights: IntegerWeights, limits: tuple[int, int]
) -> None:
    """One step per output channel has an operator of its own."""
    arguments = []
    with module.graph.inserting_before(node):
        for part, value in (("scale", weights.scale), ("zero", weights.zero.astype(np.int64))):
            module.register_buffer(f"{node.name}_{part}", torch.from_numpy(value[:, 0].copy()))
            arguments.append(module.graph.get_attr(f"{node.name}_{part}"))
        how = (node.args[0], *arguments, 0, *limits, torch.int8)
        _replace(module, node, module.graph.call_function(_CHANNELS, how))


def _replace(module: GraphModule, node: Node, by: Node) -> None:
    reads: Any = node.args[:3]
    node.replace_all_uses_with(by)
    module.graph.erase_node(node)
    for read in reads:
        if not read.users:
            module.graph.erase_node(read)


def _traced(module: GraphModule, program: ExportedProgram) -> ExportedProgram:
    """An exported program again, with an open batch if it was open before."""
    module.delete_all_unused_submodules()
    module.recompile()
    arguments, _ = program.example_inputs
    if batch_of(program) != "dynamic":
        return trace_graph(module, *arguments)
    return with_batch(trace_graph(module, *(value[:1] for value in arguments)), "dynamic")
