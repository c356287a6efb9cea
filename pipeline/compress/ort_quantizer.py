"""Where to put INT8 so that ONNX Runtime fuses it: a torchao quantizer made for its rules.

ONNX Runtime runs an integer kernel for a whole *node unit* only: every input dequantized, one
operator, perhaps a clamp that the quantized range makes redundant, and a quantized output.  A
convolution whose output stays float runs in FP32, and dequantizes its weights first.  So an
annotation here completes a unit, or is not made:

=======================  ======================================================================
convolution              input, weight, and the output or that of the clamp behind it.  The bias
                         becomes INT32 at export
linear                   the same; what only float operators read it gives as FP32, at no cost
add, mul, concat         inputs and output, where that saves conversions between FP32 and INT8;
                         one of the inputs may be a number
average pooling          input and output behind integers, each with a range of its own
max pooling, reshape     input and output behind integers with one range: values pass unchanged
hardswish, hardsigmoid   behind a convolution or linear layer written out as additions, clamps
                         and products, see ``rewrite.py``
everything else          (softmax, layer normalization, attention…) stays in FP32
=======================  ======================================================================

The first convolution of an image stays in FP32 where it is thin, and so does a depthwise one right
behind it, see ``float_start``.

Source: ``qdq_selectors.cc`` (which units fuse) and ``weight_bias_quantization.cc`` (the bias) in
``onnxruntime/core/optimizer/qdq_transformer``, https://github.com/microsoft/onnxruntime.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.observer import MinMaxObserver, PerChannelMinMaxObserver
from torchao.quantization.pt2e.quantizer import QuantizationSpec as Spec
from torchao.quantization.pt2e.quantizer import SharedQuantizationSpec as SharedSpec
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY as KEY
from torchao.quantization.pt2e.utils import _fuse_linear_bn_

from pipeline.compress.padding import pad_depthwise
from pipeline.compress.rewrite import decompose_hard_activations, pool_by_window
from pipeline.compress.units import (
    CLAMPS,
    UnitQuantizer,
    is_constant,
    is_float,
    overloads,
    refuse_lost,
    tensor_of,
)

_CAT = torch.ops.aten.cat.default
_LINEAR = torch.ops.aten.linear.default
_CONV2D = overloads("conv2d conv2d.padding")
_WEIGHTED = overloads("conv1d conv1d.padding linear") | _CONV2D
_JOINS = overloads("add.Tensor add_.Tensor mul.Tensor mul_.Tensor cat")
_POOLS = overloads("avg_pool2d adaptive_avg_pool2d")
_PASSING = overloads(
    "max_pool2d flatten.using_ints reshape view permute transpose.int squeeze.dim squeeze.dims "
    "unsqueeze slice.Tensor dropout contiguous clone"
)

#: Unsigned, because ONNX Runtime's fast kernels on x86 and Arm multiply uint8 by int8.
ACTIVATION = Spec(torch.uint8, MinMaxObserver, 0, 255, torch.per_tensor_affine)
#: A scale per output channel fuses, for convolutions and linear layers.  NNCF brings its observers.
WEIGHT = Spec(torch.int8, PerChannelMinMaxObserver, -127, 127, torch.per_channel_symmetric, 0)
#: Multiplications for each position of its output that make a first convolution worth INT8.  Its
#: kernel gathers an image's channels, 3 bytes at a time; the FP32 one reads the image as it is.
#: Measured with ONNX Runtime 1.31 on x86-64 with VNNI, FP32 first / INT8 first of the time of three
#: layers: 1 to 16 channels 3x3 (144) 0.66, 3 to 16 (432) 0.65, 3 to 32 (864) 0.86 to 1.02,
#: 3 to 64 (1728) 1.4, 7x7 (9408) 1.6, patches of 16x16 2.3.
THIN = 1000


class OrtQuantizer(UnitQuantizer):
    """Annotate an exported graph for ``nncf.experimental.torch.fx.quantize_pt2e``.

    Calibrate with ``activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX`` and
    ``fast_bias_correction=None``: NNCF's own choices cut off outputs, and shift biases wrongly.

    Args:
        skip: modules to leave in FP32, submodules included: ``fnmatch`` patterns of paths in the
            exported module (``model.features.3``, ``model.*.se``).  Blocks rather than layers: one
            layer alone between integers ONNX Runtime quantizes itself, weights per tensor.
        start: whether a thin first convolution stays in FP32.
        swish: whether hardswish and hardsigmoid become integers, or stay in FP32 between
            conversions.
    """

    def __init__(
        self,
        *,
        skip: Collection[str] = (),
        start: Literal["float", "integer"] = "float",
        swish: Literal["float", "integer"] = "integer",
    ) -> None:
        super().__init__(skip)
        self._start = start
        self._swish = swish
        self._free: set[Node] = set()

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Bring the graph into a form whose units ONNX Runtime has integer kernels for.

        Batch norms are folded into linear layers, hard activations written out.  Global pooling
        becomes pooling by a window, because it is otherwise exported as ``ReduceMean``, which has
        no integer kernel.  Channels of depthwise convolutions are padded, see ``padding.py``.

        Args:
            model: after NNCF folded batch norms into convolutions; changed in place.

        Returns:
            The same module, computing the same function.

        Raises:
            ModelError: if it assigns to a part of a tensor; NNCF drops that without a word.
        """
        refuse_lost(model)
        _fuse_linear_bn_(model)
        if self._swish == "integer":
            layers = set(self._layers(model))
            decompose_hard_activations(
                model, lambda node: node.args[0] in layers and not self._kept.holds(node)
            )
        pool_by_window(model)
        pad_depthwise(model, self._layers(model))
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write a quantization annotation into the ``meta`` of every node that will fuse.

        Args:
            model: what :meth:`transform_for_annotation` returned; its nodes carry ``meta["val"]``.

        Returns:
            The same module.
        """
        self._integer, self._free = set(), set()
        for node in self._layers(model):
            source, weight, *_ = node.args
            self._annotate_unit(node, _tail(node), {source: ACTIVATION, weight: WEIGHT}, ACTIVATION)
            if node.target == _LINEAR and _tail(node) is node:
                self._free.add(node)
        # In graph order: whether these pay depends on what feeds them.
        for node in model.graph.nodes:
            if self._kept.holds(node):
                continue
            if node.target in _JOINS:
                self._annotate_join(node)
            elif node.target in _POOLS | _PASSING and node.args[0] in self._integer:
                self._annotate_follower(node)
        for node in reversed(model.graph.nodes):
            if node in self._free and not self._is_read_as_integers(node):
                self._leave_float(node)
        return model

    def _layers(self, model: GraphModule) -> list[Node]:
        """Convolutions and linear layers that are to become integers, and can."""
        early = float_start(model) if self._start == "float" else set()
        return [
            node
            for node in model.graph.nodes
            if not self._kept.holds(node) and node not in early and _has_integer_kernel(node)
        ]

    def _annotate_join(self, node: Node) -> None:
        inputs, tail = _joined(node), _tail(node)
        # An edge is a conversion where one side is integer and the other is not.
        fixed = [i for i in inputs if not is_constant(i) and i not in self._free]
        integer = [self._is_integer(i) for i in fixed]
        readers = [self._reads_integers(user) for user in tail.users]
        as_integers = integer.count(False) + (not all(readers))
        if inputs and as_integers < integer.count(True) + any(readers):
            self._annotate_unit(node, tail, dict.fromkeys(inputs, ACTIVATION), ACTIVATION)

    def _annotate_follower(self, node: Node) -> None:
        source: Any = node.args[0]
        passing = node.target in _PASSING
        given = SharedSpec((source, node)) if passing else ACTIVATION
        self._annotate_unit(node, node, {source: ACTIVATION}, given)
        if passing and source in self._free:
            self._free.add(node)

    def _reads_integers(self, user: Node) -> bool:
        if self._kept.holds(user):
            return False
        if user.target in _POOLS | _PASSING:
            return any(self._reads_integers(further) for further in user.users)
        return KEY in user.meta or bool(_joined(user))

    def _leave_float(self, node: Node) -> None:
        """Let a linear layer give FP32; what passes its values on is no unit then."""
        if node.target == _LINEAR:
            node.meta[KEY].output_qspec = None
        else:
            del node.meta[KEY]


def float_start(model: GraphModule) -> set[Node]:
    """The convolutions at a network's input that ONNX Runtime runs faster in FP32.

    These are a thin convolution (see :data:`THIN`) of the input itself, and a depthwise one behind
    it, which costs the same in FP32, and spares converting at the larger of its two sides.

    Args:
        model: an exported graph.
    """
    #: Values that come of the input alone, and whether a convolution has taken part.
    early: dict[Node, bool] = {}
    found = set()
    for node in model.graph.nodes:
        if node.op == "placeholder":
            early[node] = False
            continue
        read = [source for source in node.all_input_nodes if not is_constant(source)]
        if len(read) != 1 or read[0] not in early:
            continue
        behind = early[read[0]]
        if node.target in _CONV2D and _has_integer_kernel(node):
            weights = tensor_of(model, node.args[1])
            is_fast = weights.shape[1] == 1 if behind else weights.numel() < THIN
            if not is_fast:
                continue
            found.add(node)
        elif node.target in _WEIGHTED:
            continue
        early[node] = behind or node in found
    return found


def _has_integer_kernel(node: Node) -> bool:
    if node.target not in _WEIGHTED:
        return False
    source, weight, bias, *_ = [*node.args, None]
    # A bias that is computed cannot become INT32 beforehand: the unit would not fuse.
    return is_float(source) and is_constant(weight) and (not bias or is_constant(bias))


def _tail(node: Node) -> Node:
    """The node whose output a unit quantizes: ``node``, or the clamp that alone reads it."""
    reader = next(iter(node.users), node)
    # A linear layer over more than rows becomes Gemm and Reshape, and then no clamp fuses.
    fuses = node.target != _LINEAR or node.meta["val"].dim() == 2
    return reader if len(node.users) == 1 and reader.target in CLAMPS and fuses else node


def _joined(node: Node) -> list[Node]:
    """What a join reads, if ONNX Runtime could read all of it as integers, else nothing."""
    if node.target not in _JOINS or node.kwargs:
        return []
    read: Any = node.args[0] if node.target == _CAT else node.args[:2]
    plain = all(is_float(i) and (not is_constant(i) or _is_number(i)) for i in read)
    return list(read) if plain and len(set(read)) == len(read) > 1 else []


def _is_number(constant: Node) -> bool:
    """Whether it is one value: as an integer with a scale of its own that is exact."""
    fake = constant.meta.get("val")
    return fake is not None and fake.numel() == 1
