"""Where to put INT8 so that ONNX Runtime fuses it: a torchao quantizer made for its rules.

ONNX Runtime runs an integer kernel for a whole *node unit* only: every input dequantized, one
operator, perhaps a clamp that the quantized range makes redundant, and a quantized output.  A
convolution whose output stays float runs in FP32, and dequantizes its weights first.  So an
annotation here completes a unit, or is not made:

====================  =========================================================================
convolution, linear   input, weight, and the output or that of the clamp behind it.  The bias
                      stays float: ONNX Runtime makes it INT32 itself once the rest is quantized
add, mul, concat      inputs and output, where that saves conversions between FP32 and INT8
average pooling       input and output behind integers, each with a range of its own
max pooling, reshape  input and output behind integers with one range: values pass unchanged
everything else       (hardswish, softmax, layer normalization, attention…) stays in FP32
====================  =========================================================================

Source: ``qdq_selectors.cc`` (which units fuse) and ``weight_bias_quantization.cc`` (the bias) in
``onnxruntime/core/optimizer/qdq_transformer``, https://github.com/microsoft/onnxruntime.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.observer import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationAnnotation as Annotation
from torchao.quantization.pt2e.quantizer import QuantizationSpec as Spec
from torchao.quantization.pt2e.quantizer import Quantizer
from torchao.quantization.pt2e.quantizer import SharedQuantizationSpec as SharedSpec
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY as KEY
from torchao.quantization.pt2e.utils import _fuse_linear_bn_

from profiles.errors import ModelError, UsageError

_aten = torch.ops.aten


def _overloads(names: str) -> frozenset[Any]:
    parts = (name.partition(".") for name in names.split())
    return frozenset(getattr(getattr(_aten, op), kind or "default") for op, _, kind in parts)


_WEIGHTED = _overloads("conv1d conv1d.padding conv2d conv2d.padding linear")
_CLAMPS = _overloads("relu relu_ relu6 relu6_ hardtanh hardtanh_ clamp clamp_ clamp_min clamp_min_")
_JOINS = _overloads("add.Tensor add_.Tensor mul.Tensor mul_.Tensor cat")
_POOLS = _overloads("avg_pool2d adaptive_avg_pool2d")
_PASSING = _overloads(
    "max_pool2d flatten.using_ints reshape view permute transpose.int squeeze.dim squeeze.dims "
    "unsqueeze slice.Tensor dropout contiguous clone"
)

#: Unsigned, because ONNX Runtime's fast kernels on x86 and Arm multiply uint8 by int8.
ACTIVATION = Spec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
#: A scale per output channel fuses, for convolutions and linear layers.  NNCF brings its observers.
WEIGHT = Spec(torch.int8, PerChannelMinMaxObserver, -127, 127, torch.per_channel_symmetric, 0)


class OrtQuantizer(Quantizer):  # type: ignore[misc]  # torchao is untyped
    """Annotate an exported graph for ``nncf.experimental.torch.fx.quantize_pt2e``.

    Calibrate with ``activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX`` and
    ``fast_bias_correction=None``: NNCF's own choices cut off outputs, and shift biases wrongly.

    Args:
        skip: modules to leave in FP32, submodules included: ``fnmatch`` patterns of paths in the
            exported module (``model.features.3``, ``model.*.se``).  Blocks rather than layers: one
            layer alone between integers ONNX Runtime quantizes itself, weights per tensor.
    """

    def __init__(self, *, skip: Collection[str] = ()) -> None:
        self._skip = frozenset(skip)
        self._matched: set[str] = set()
        self._integer: set[Node] = set()

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Bring the graph into a form whose units ONNX Runtime has integer kernels for.

        Batch norms are folded into linear layers.  Global pooling becomes pooling by a window,
        because it is otherwise exported as ``ReduceMean``, which has no integer kernel.

        Args:
            model: after NNCF folded batch norms into convolutions; changed in place.

        Returns:
            The same module, computing the same function.

        Raises:
            ModelError: if it assigns to a part of a tensor; NNCF drops that without a word.
        """
        lost = [node.name for node in model.graph.nodes if _is_lost(node)]
        if lost:
            hint = "functionalize the exported program with run_decompositions({})"
            raise ModelError(f"the model assigns to parts of tensors: {', '.join(lost)}", hint)
        _fuse_linear_bn_(model)
        for node in list(model.graph.nodes):
            _pool_by_window(node)
        model.recompile()
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write a quantization annotation into the ``meta`` of every node that will fuse.

        Args:
            model: what :meth:`transform_for_annotation` returned; its nodes carry ``meta["val"]``.

        Returns:
            The same module.
        """
        self._matched, self._integer = set(), set()
        nodes = [node for node in model.graph.nodes if not self._skipped(node)]
        for node in nodes:
            if node.target in _WEIGHTED:
                self._annotate_weighted(node)
        # In graph order: whether these pay depends on what feeds them.
        for node in nodes:
            if node.target in _JOINS:
                self._annotate_join(node)
            elif node.target in _POOLS | _PASSING and node.args[0] in self._integer:
                edge = (node.args[0], node)
                given = SharedSpec(edge) if node.target in _PASSING else ACTIVATION
                self._annotate_unit(node, node, {node.args[0]: ACTIVATION}, given)
        return model

    def validate(self, model: GraphModule) -> None:
        """Check the annotated graph against what was asked for.

        Args:
            model: the annotated graph.

        Raises:
            UsageError: if patterns of ``skip`` match no module.
        """
        unmatched = sorted(self._skip - self._matched)
        if unmatched:
            hint = "paths start at the exported module, for example model.features.3"
            raise UsageError(f"nothing to skip under {', '.join(unmatched)}", hint)

    def _skipped(self, node: Node) -> bool:
        paths = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
        hits = {pattern for pattern in self._skip if fnmatch.filter(paths, pattern)}
        self._matched |= hits
        return bool(hits)

    def _annotate_weighted(self, node: Node) -> None:
        source, weight, bias, *_ = _arguments(node, 3)
        # A bias that is computed cannot become INT32 beforehand: the unit would not fuse.
        if _is_float(source) and _is_constant(weight) and (not bias or _is_constant(bias)):
            self._annotate_unit(node, _tail(node), {source: ACTIVATION, weight: WEIGHT})

    def _annotate_join(self, node: Node) -> None:
        inputs, tail = _joined(node), _tail(node)
        # An edge is a conversion where one side is integer and the other is not.
        integer = [self._is_integer(i) for i in inputs]
        readers = [self._reads_integers(user) for user in tail.users]
        as_integers = integer.count(False) + (not all(readers))
        if inputs and as_integers < integer.count(True) + any(readers):
            self._annotate_unit(node, tail, dict.fromkeys(inputs, ACTIVATION))

    def _is_integer(self, node: Node) -> bool:
        """Whether the value is quantized, be it for another reader only."""
        read = [user.meta[KEY].input_qspec_map for user in node.users if KEY in user.meta]
        return node in self._integer or any(node in inputs for inputs in read)

    def _reads_integers(self, user: Node) -> bool:
        if user.target in _POOLS | _PASSING:
            return any(self._reads_integers(further) for further in user.users)
        return KEY in user.meta or bool(_joined(user))

    def _annotate_unit(self, node: Node, tail: Node, read: Any, given: Any = ACTIVATION) -> None:
        """Quantize what ``node`` reads and what ``tail`` (itself, or its clamp) gives."""
        node.meta[KEY] = Annotation(read)
        tail.meta.setdefault(KEY, Annotation()).output_qspec = given
        self._integer.add(tail)


def _arguments(node: Node, count: int) -> list[Any]:
    """The first ``count`` arguments or more, with ``None`` for what is not given."""
    return [*node.args, *[None] * (count - len(node.args))]


def _is_constant(value: object) -> bool:
    return isinstance(value, Node) and value.op == "get_attr"


def _is_float(value: object) -> bool:
    fake = value.meta.get("val") if isinstance(value, Node) else None
    return isinstance(fake, torch.Tensor) and fake.dtype == torch.float32


def _tail(node: Node) -> Node:
    """The node whose output a unit quantizes: ``node``, or the clamp that alone reads it."""
    reader = next(iter(node.users), node)
    # A linear layer over more than rows becomes Gemm and Reshape, and then no clamp fuses.
    fuses = node.target != _aten.linear.default or node.meta["val"].dim() == 2
    return reader if len(node.users) == 1 and reader.target in _CLAMPS and fuses else node


def _is_lost(node: Node) -> bool:
    """Whether the node works by its effect alone, as the end of ``y[:, :4] = 0`` does."""
    operator = node.target
    return isinstance(operator, OpOverload) and operator._schema.is_mutable and not node.users


def _joined(node: Node) -> list[Node]:
    """What a join reads, if ONNX Runtime could read all of it as integers, else nothing."""
    if node.target not in _JOINS or node.kwargs:
        return []
    first, second, *_ = _arguments(node, 2)
    inputs = list(first) if node.target == _aten.cat.default else [first, second]
    plain = all(_is_float(i) and not _is_constant(i) for i in inputs)
    return inputs if plain and len(set(inputs)) == len(inputs) > 1 else []


def _pool_by_window(node: Node) -> None:
    source, over, keeps_rank, *_ = _arguments(node, 3)
    if node.target == _aten.adaptive_avg_pool2d.default:
        is_global, keeps_rank = set(over) == {1}, True
    elif node.target == _aten.mean.dim and source.meta["val"].dim() == 4:
        is_global = {axis % 4 for axis in over or ()} == {2, 3} and not node.kwargs
    else:
        return
    window = source.meta["val"].shape[-2:]
    if not is_global or not all(isinstance(size, int) for size in window):
        return
    with node.graph.inserting_before(node):
        result = node.graph.call_function(_aten.avg_pool2d.default, (source, list(window)))
        result.meta = dict(node.meta)
        if not keeps_rank:
            result.meta["val"] = node.meta["val"][..., None, None]
            result = node.graph.call_function(_aten.flatten.using_ints, (result, 1))
            result.meta = dict(node.meta)
    node.replace_all_uses_with(result)
    node.graph.erase_node(node)
