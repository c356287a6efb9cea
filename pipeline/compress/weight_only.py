"""Weights alone in INT8 or INT4, for transformers: a quarter or an eighth of the size.

Only the weights of linear layers become integers; values between layers stay FP32, so there is
nothing to calibrate, and little accuracy to lose.  The program that comes out computes with the
dequantized weights, ``linear(x, dequantize(integers))``, whatever the format; each exporter writes
the integers in its format's own way (:mod:`pipeline.export.integer_weights`).

What the formats take, as their fast kernels are:

============  ==================================  ==============================================
format        INT8                                INT4
============  ==================================  ==============================================
onnx          groups or channels, zero points     groups or channels, zero points
executorch    channels                            groups of a multiple of 32, or channels
tflite        channels                            channels
============  ==================================  ==============================================

In INT4, rounding to the nearest of fifteen values costs accuracy.  So the step of each group is
searched: the one with the least squared error of the weights, each counted by the mean square of
the input it is multiplied with.  Source: that weighting is the diagonal of the layer's Hessian,
as in Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers, 2023.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.fx import GraphModule, Interpreter, Node

from pipeline.compress import PACKAGES
from pipeline.compress.units import Kept, is_constant, tensor_of
from pipeline.compress.variants import Compressed, Job, record_of
from pipeline.data import Images
from pipeline.model import PROGRAM, trace_graph
from pipeline.programs import load_program, save_program
from pipeline.quiet import quiet
from pipeline.stage import Stage
from pipeline.training import torch_threads
from profiles.canonical import file_sha256
from profiles.compression import Weights
from profiles.errors import StageError, UsageError
from profiles.records import ArtifactFormat

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_LINEAR = torch.ops.aten.linear.default
#: Steps to try, as shares of the one that reaches the largest weight.
_SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_XNNPACK = "XNNPACK, which computes it, has no such kernel"


def make(job: Job, settings: Weights, base: Compressed) -> list[Compressed]:
    """A recipe's variant with integer weights, for the format that ``base`` was made for.

    Args:
        job: what all compressions share.
        settings: bits, groups and zero points.
        base: in FP32.

    Raises:
        StageError: as :func:`weight_only`.
    """
    stage = Stage(
        "weight-only",
        {
            "program": file_sha256(base.program),
            "format": base.format,
            "settings": settings.model_dump(mode="json", exclude={"name", "after"}),
            "data": job.data.key,
            "samples": job.data.calibration_size if settings.bits == 4 else 0,
        },
        PACKAGES,
    )

    def work(folder: Path) -> dict[str, Any]:
        # Rounding to 255 values needs no samples.
        samples = job.data.arrays.calibration() if settings.bits == 4 else None
        made, record = weight_only(
            load_program(base.program),
            base.format,
            settings.bits,
            group_size=settings.group_size,
            symmetric=settings.symmetric,
            samples=samples,
        )
        save_program(made, folder / PROGRAM)
        if samples is None:
            return record
        return {**record, "calibration_sha256": hashlib.sha256(samples.tobytes()).hexdigest()}

    result = job.workspace.run(stage, work)
    return [
        Compressed(
            settings.name,
            base.format,
            result.folder / PROGRAM,
            "int8",
            base.reference,
            details=record_of(settings, base, result.value),
        )
    ]


def weight_only(
    program: ExportedProgram,
    format_: ArtifactFormat,
    bits: int,
    *,
    group_size: int | None = None,
    symmetric: bool = True,
    samples: Images | None = None,
    keep: Collection[str] = (),
) -> tuple[ExportedProgram, dict[str, Any]]:
    """Hold the weights of linear layers as integers.

    Args:
        program: in FP32.
        format_: what it is for; see the table above.
        bits: 8 or 4.
        group_size: how many weights of an output channel share a step; all of them if not given.
        symmetric: whether zero is in the middle of the range; with ``False`` each group has a zero
            point of its own.
        samples: inputs, shape ``(n, …)``: which inputs of a layer are large, for INT4.  Without
            them all count alike.
        keep: modules to leave in FP32, submodules included, as in ``quantizer_for``.

    Returns:
        The program, and how it was quantized: ``bits``, ``group_size``, ``symmetric``, ``layers``
        (how many), ``float_layers`` (which linear layers stayed FP32), ``samples``.

    Raises:
        UsageError: for other bits, or patterns of ``keep`` that match no module.
        StageError: if the format has no kernel for it, a layer's inputs do not divide into groups,
            or there is no linear layer.
    """
    _refuse(format_, bits, group_size, symmetric)
    with quiet(), torch_threads(1):
        module: Any = program.module(check_guards=False)
        linears = [n for n in module.graph.nodes if n.target == _LINEAR and is_constant(n.args[1])]
        kept = Kept(keep)
        for node in module.graph.nodes:  # each must be asked, so that every pattern is tried
            kept.holds(node)
        kept.check()
        chosen = [node for node in linears if not kept.holds(node)]
        if not chosen:
            raise StageError("there is no linear layer whose weights could be integers")
        energies = _energies(module, chosen, samples) if samples is not None and bits == 4 else {}
        for node in chosen:
            _quantize(module, node, bits, group_size, symmetric, energies.get(node))
        module.recompile()
        quantized = trace_graph(module, *_example(program))
    return quantized, {
        "method": "weight_only",
        "bits": bits,
        "group_size": group_size,
        "symmetric": symmetric,
        "layers": len(chosen),
        "float_layers": sorted(_place(node) for node in linears if node not in chosen),
        "samples": 0 if samples is None else len(samples),
    }


def _refuse(format_: ArtifactFormat, bits: int, group_size: int | None, symmetric: bool) -> None:
    if bits not in (4, 8):
        raise UsageError(f"weights of {bits} bits: there are kernels for 8 and for 4")
    if group_size is not None and (group_size < 16 or group_size & (group_size - 1)):
        raise UsageError(f"group_size {group_size}: groups are powers of two from 16 up")
    what = f"{format_} cannot express INT{bits} weights"
    if format_ == "onnx":
        return
    if not symmetric:
        raise StageError(f"{what} with zero points: {_XNNPACK}", "set symmetric")
    if group_size is not None and (format_ == "tflite" or bits == 8):
        raise StageError(f"{what} in groups: {_XNNPACK}", "leave group_size out")
    if group_size == 16:
        raise StageError(f"{what} in groups of 16: {_XNNPACK}", "set group_size to 32 or more")


def _example(program: ExportedProgram) -> tuple[torch.Tensor, ...]:
    arguments, _ = program.example_inputs
    return tuple(arguments)


def _place(node: Node) -> str:
    """The path of the module a node belongs to."""
    paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return paths[-1] if paths else node.name


class _Listener(Interpreter):
    """Runs a graph and sums the squares of what chosen layers read, per input channel."""

    def __init__(self, module: GraphModule, chosen: Collection[Node]) -> None:
        super().__init__(module)
        self._chosen = frozenset(chosen)
        self.sums: dict[Node, torch.Tensor] = {}

    def run_node(self, node: Node) -> Any:
        if node in self._chosen:
            source: Any = self.env[node.args[0]]  # type: ignore[index]
            squares = source.square().flatten(0, -2).sum(0)
            self.sums[node] = self.sums.get(node, 0) + squares
        return super().run_node(node)


def _energies(
    module: GraphModule, chosen: Collection[Node], samples: Images
) -> dict[Node, torch.Tensor]:
    """How large a layer's inputs are: sums of squares, shape ``(inputs,)``, by layer."""
    listener = _Listener(module, chosen)
    with torch.no_grad():
        for index in range(len(samples)):
            listener.run(torch.from_numpy(np.ascontiguousarray(samples[index : index + 1])))
    return listener.sums


def _quantize(
    module: GraphModule,
    node: Node,
    bits: int,
    group_size: int | None,
    symmetric: bool,
    energy: torch.Tensor | None,
) -> None:
    """Let a linear layer read its weights from integers."""
    # The operator that is called below exists once this is imported.
    import torch.ao.quantization.fx._decomposed

    weight: Any = node.args[1]
    values = tensor_of(module, weight)
    size = group_size or values.shape[1]
    if values.shape[1] % size:
        what = f"{_place(node)} has {values.shape[1]} inputs, no multiple of group_size {size}"
        raise StageError(what, "choose another group_size, or keep it in FP32")
    integers, scale, zero = nearest(values, bits, size, symmetric, energy)
    low, high = limits(bits, symmetric)
    parts = {"integers": integers, "scale": scale, "zero": zero}
    with module.graph.inserting_before(node):
        reads = []
        for part, tensor in parts.items():
            module.register_buffer(f"{node.name}_{part}", tensor)
            reads.append(module.graph.get_attr(f"{node.name}_{part}"))
        dequantize = torch.ops.quantized_decomposed.dequantize_per_channel_group.default
        arguments: Any = (*reads, low, high, torch.int8, size, torch.float32)
        floats = module.graph.call_function(dequantize, arguments)
    node.args = (node.args[0], floats, *node.args[2:])
    if not weight.users:
        module.graph.erase_node(weight)
        owner, _, name = str(weight.target).rpartition(".")
        delattr(module.get_submodule(owner), name)


def limits(bits: int, symmetric: bool) -> tuple[int, int]:
    """The least and the greatest integer; symmetric ranges leave the least one out."""
    most = 2 ** (bits - 1) - 1
    return (-most if symmetric else -most - 1), most


def nearest(
    values: torch.Tensor, bits: int, size: int, symmetric: bool, energy: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The integers that stand for weights.

    Args:
        values: weights, shape ``(outputs, inputs)``.
        bits: 8 or 4.
        size: of a group; divides ``inputs``.
        symmetric: whether zero points are zero.
        energy: how much each input counts, shape ``(inputs,)``; all alike if not given.

    Returns:
        Integers as INT8, shape ``(outputs, inputs)``; steps in FP32 and zero points, both of shape
        ``(outputs, inputs / size)``.
    """
    groups = values.reshape(len(values), -1, size)
    counts = torch.ones(groups.shape[1:]) if energy is None else energy.reshape(-1, size)
    low, high = limits(bits, symmetric)
    if symmetric:
        step = groups.abs().amax(-1) / high
    else:
        step = (groups.amax(-1).clamp_min(0) - groups.amin(-1).clamp_max(0)) / (high - low)
    step = step.clamp_min(torch.finfo(torch.float32).tiny * 2**24)  # a group of zeros
    tried = [
        _rounded(groups, step * shrink, (low, high), symmetric)
        for shrink in (_SHRINKS if bits == 4 else _SHRINKS[:1])
    ]
    errors = [
        (((integers - zero) * scale - groups).square() * counts).sum(-1)
        for integers, scale, zero in tried
    ]
    best = torch.stack(errors).argmin(0)[None, ..., None]
    integers, scale, zero = (
        torch.stack(parts).take_along_dim(best, 0)[0] for parts in zip(*tried, strict=True)
    )
    return integers.to(torch.int8).reshape(values.shape), scale[..., 0], zero[..., 0]


def _rounded(
    groups: torch.Tensor, step: torch.Tensor, limits_: tuple[int, int], symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Integers, step and zero point of each group, all of three dimensions."""
    low, high = limits_
    scale = step[..., None]
    zero = torch.zeros_like(scale)
    if not symmetric:
        zero = (low - groups.amin(-1, keepdim=True).clamp_max(0) / scale).round().clamp(low, high)
    return ((groups / scale).round() + zero).clamp(low, high), scale, zero
