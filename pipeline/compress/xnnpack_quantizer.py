"""Where to put INT8 so that XNNPACK computes in integers: for LiteRT and ExecuTorch alike.

Both runtimes hand their operators to XNNPACK, and both converters look for the same pattern: every
input dequantized, one operator, perhaps a clamp, and a quantized output.  Their own quantizers
differ, and leave speed and accuracy lying: LiteRT's leaves most residual additions in FP32, gives a
convolution the range from before its clamp, and quantizes hardswish, which LiteRT then computes
outside XNNPACK (MobileNetV3 falls into 20 parts, and is slower than in FP32); ExecuTorch's turns
numbers into INT64 tensors, whose conversion stays outside.  So this one serves both:

=======================  ======================================================================
convolution, linear      input, weight per channel, and the output or that of the clamp behind
                         it.  The bias stays float: the converters make it INT32
add, subtract, multiply  inputs (constants, too) and output, where that saves conversions; but
                         sums that a layer norm reads stay float, see below
concat                   inputs and output with one range, as XNNPACK wants it
pooling, clamps          input and output behind integers, each with a range of its own
reshape, transpose…      input and output behind integers with one range: values pass unchanged;
                         zeros put around them, too, for every range holds zero
hardswish, hardsigmoid   written out as additions, clamps and products, see ``rewrite.py``;
                         hardswish where that is faster
everything else          (softmax, layer normalization, attention…) stays in FP32
=======================  ======================================================================

A transformer's residual sums have a few channels with values tens of times as large as the others',
which would set the step of the integers for all.  Layer norms read them in FP32 anyway.

Source: ``backends/xnnpack/partition/config`` in https://github.com/pytorch/executorch, and
``tensorflow/lite/delegates/xnnpack/README.md`` in https://github.com/tensorflow/tensorflow.
Of residual sums: Bondarenko et al., Understanding and Overcoming the Challenges of Efficient
Transformer Quantization, 2021.
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

from pipeline.compress.rewrite import decompose_hard_activations
from pipeline.compress.units import (
    CLAMPS,
    UnitQuantizer,
    is_constant,
    is_float,
    overloads,
    refuse_lost,
    tensor_of,
)

Precision = Literal["integer", "float"]

_CAT = torch.ops.aten.cat.default
_WEIGHTED = overloads("conv1d conv1d.padding conv2d conv2d.padding linear")
_SWISHES = overloads("hardswish hardswish_")
_JOINS = overloads("add.Tensor add_.Tensor sub.Tensor sub_.Tensor mul.Tensor mul_.Tensor")
_POOLS = overloads("avg_pool2d adaptive_avg_pool2d mean.dim")
_NORM = torch.ops.aten.layer_norm.default
_PASSING = overloads(
    "max_pool2d flatten.using_ints reshape view permute transpose.int squeeze.dim squeeze.dims "
    "unsqueeze slice.Tensor dropout contiguous clone"
)
_PAD = torch.ops.aten.pad.default

#: XNNPACK's integers are signed.  The observers are NNCF's; these stand for how they count.
ACTIVATION = Spec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_affine)
#: One scale per output channel, symmetric: XNNPACK knows no zero points of weights.
WEIGHT = Spec(torch.int8, PerChannelMinMaxObserver, -127, 127, torch.per_channel_symmetric, 0)
#: Positions of a filter up to which ExecuTorch's XNNPACK has a fast integer depthwise kernel.
#: Measured with ExecuTorch 1.4 on x86-64 with AVX-512, six blocks of two 1x1 convolutions with a
#: depthwise one between, the time with that one in FP32 over that with all in INT8: 3x3 1.00 (240
#: channels at 14x14), 0.99 (576 at 7x7), 1.01 (96 at 28x28); 5x5 0.88, 0.96, 0.76; 7x7 0.68, 0.94,
#: 0.94.
SMALL = 9


class XnnpackQuantizer(UnitQuantizer):
    """Annotate an exported graph for ``nncf.experimental.torch.fx.quantize_pt2e``.

    Args:
        keep: modules to leave in FP32, submodules included: ``fnmatch`` patterns of paths in the
            exported module (``model.features.3``, ``model.*.se``).
        swish: ``integer`` writes hardswish out.  LiteRT needs that: its converter makes an INT8
            operator of any other, outside XNNPACK.  In ExecuTorch ``float``, one FP32 kernel
            between two conversions, is faster than an addition and a product in integers.
        deep: whether depthwise convolutions larger than :data:`SMALL` become integers.
    """

    def __init__(
        self,
        *,
        keep: Collection[str] = (),
        swish: Precision = "integer",
        deep: Precision = "integer",
    ) -> None:
        super().__init__(keep)
        self._swish, self._deep = swish, deep

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Bring the graph into operators that XNNPACK has integer kernels for.

        Args:
            model: after NNCF folded batch norms into convolutions; changed in place.

        Returns:
            The same module, computing the same function.

        Raises:
            ModelError: if it assigns to a part of a tensor; NNCF drops that without a word.
        """
        refuse_lost(model)
        _fuse_linear_bn_(model)
        decompose_hard_activations(model, self._to_write_out)
        for node in list(model.graph.nodes):
            if node.target in _JOINS and not self._kept.holds(node):
                _number_to_tensor(model, node)
        model.recompile()
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Write a quantization annotation into the ``meta`` of what XNNPACK computes in integers.

        Args:
            model: what :meth:`transform_for_annotation` returned; its nodes carry ``meta["val"]``.

        Returns:
            The same module.
        """
        self._integer = set()
        nodes = [node for node in model.graph.nodes if not self._kept.holds(node)]
        for node in nodes:
            if node.target in _WEIGHTED:
                self._annotate_weighted(node)
        # In graph order: whether these pay depends on what feeds them.
        for node in nodes:
            if node.target in _JOINS or node.target == _CAT:
                self._annotate_join(node)
            elif (
                (_passes(node) or node.target in _POOLS | CLAMPS)
                and KEY not in node.meta
                and node.args[0] in self._integer
            ):
                # In integers if it reads them.
                shared = SharedSpec((node.args[0], node))
                given = shared if _passes(node) else ACTIVATION
                self._annotate_unit(node, node, {node.args[0]: ACTIVATION}, given)
        return model

    def _to_write_out(self, node: Node) -> bool:
        stays = self._swish == "float" and node.target in _SWISHES
        return not (stays or self._kept.holds(node))

    def _annotate_weighted(self, node: Node) -> None:
        source, weight, *_ = node.args
        if self._deep == "float" and _is_deep(weight):
            return
        if is_float(source) and is_constant(weight):
            self._annotate_unit(node, _tail(node), {source: ACTIVATION, weight: WEIGHT}, ACTIVATION)

    def _annotate_join(self, node: Node) -> None:
        inputs, tail = _joined(node), _tail(node)
        if any(user.target == _NORM for user in tail.users):
            return
        # An edge is a conversion where one side is integer and the other is not.
        integer = [self._is_integer(i) for i in inputs if not is_constant(i)]
        readers = [self._reads_integers(user) for user in tail.users]
        as_integers = integer.count(False) + (not all(readers))
        if as_integers >= integer.count(True) + any(readers):
            return
        read: dict[Node, Any] = dict.fromkeys(inputs, ACTIVATION)
        given: Any = ACTIVATION
        if node.target == _CAT:
            given = SharedSpec((inputs[0], node))
            read.update(dict.fromkeys(inputs[1:], given))
        self._annotate_unit(node, tail, read, given)

    def _reads_integers(self, user: Node) -> bool:
        if self._kept.holds(user):
            return False
        if user.target in _POOLS or _passes(user):
            return any(self._reads_integers(further) for further in user.users)
        return KEY in user.meta or bool(_joined(user))


def _passes(node: Node) -> bool:
    """Whether it hands values on: moves them, or puts zeros around them.

    LiteRT refuses a padding whose output has another range than its input.
    """
    if node.target != _PAD or node.kwargs:
        return node.target in _PASSING
    mode: Any = node.args[2] if len(node.args) > 2 else "constant"
    value: Any = node.args[3] if len(node.args) > 3 else None
    return mode == "constant" and not value


def _is_deep(weight: Any) -> bool:
    """Whether it is of a large depthwise convolution: filters of one channel each."""
    shape = weight.meta["val"].shape
    return len(shape) == 4 and shape[1] == 1 < shape[0] and shape[2] * shape[3] > SMALL


def _tail(node: Node) -> Node:
    """The node whose output a unit quantizes: ``node``, or the clamp that alone reads it."""
    reader = next(iter(node.users), node)
    return reader if len(node.users) == 1 and reader.target in CLAMPS else node


def _joined(node: Node) -> list[Node]:
    """What an addition, a product… reads, if all of it can be integers, else nothing."""
    if (node.target not in _JOINS and node.target != _CAT) or node.kwargs:
        return []
    read: Any = node.args[0] if node.target == _CAT else node.args[:2]
    plain = all(is_float(i) for i in read) and len(set(read)) == len(read) > 1
    return list(read) if plain and not all(is_constant(i) for i in read) else []


def _number_to_tensor(model: GraphModule, node: Node) -> None:
    """Give numbers and tensors without dimensions the rank of the result, in FP32.

    Without it a number is never quantized, and LiteRT's converter, which changes the order of
    dimensions, puts transpositions around what has none.
    """
    value = node.meta["val"]
    arguments = list(node.args)
    for position, argument in enumerate(arguments[:2]):
        number: Any = argument
        if isinstance(argument, Node):
            if not is_constant(argument) or argument.meta["val"].dim():
                continue
            number = tensor_of(model, argument)
        tensor = torch.as_tensor(number, dtype=value.dtype).reshape([1] * value.dim())
        name = f"{node.name}_constant_{position}"
        model.register_buffer(name, tensor)
        with node.graph.inserting_before(node):
            constant = node.graph.get_attr(name)
        fake = value.fake_mode.from_tensor(tensor, static_shapes=True)
        constant.meta = {**node.meta, "val": fake}
        arguments[position] = constant
    node.args = tuple(arguments)
