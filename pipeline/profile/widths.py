"""A layer's latency over its width, on one device: which widths it likes, and what layers cost.

Kernels work on channels in tiles: a width just above a multiple of the tile takes as long as the
next multiple.  How large a tile is depends on processor, runtime and data type: it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipeline.profile.parts import CALL
from profiles.comparison import Round
from profiles.statistics import FEWEST_RUNS, t_quantile

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

#: Multiples that are looked at.  *Source*: XNNPACK's and ONNX Runtime's kernels for floats and
#: bytes have tiles of 4 to 32 channels.
MULTIPLES = (2, 4, 8, 16, 32)
#: What is taken where the device does not say: divides the widths of common networks, and is a
#: whole number of tiles for most kernels.
DEFAULT = 8
#: Places on a layer's width, for each multiple.
_PLACES = 3
#: Widths go down to this share of the layer's.
_LEAST_SHARE = 1 / 4
#: Rounding up to a multiple that costs less than this share of what so many channels cost elsewhere
#: is worth it.
_WORTH = 0.5


class Rounds(Protocol):
    """What is asked of :class:`pipeline.profile.gauge.DeviceGauge`."""

    def measure(self, programs: Mapping[str, ExportedProgram]) -> Mapping[str, float]:
        """See there."""

    def rounds(
        self, programs: Mapping[str, ExportedProgram]
    ) -> Mapping[str, Mapping[Round, float]]:
        """See there."""


@dataclass(frozen=True, slots=True)
class LayerShape:
    """All that a convolution's or linear layer's latency depends on.

    Args:
        inputs, outputs: channels, or features.
        rest: the other sizes of one input, behind the channels or (linear) before the features.
        kernel: empty for a linear layer.
        stride, padding, dilation: of a convolution.
        groups: 1; or as many as there are inputs.
        bias: whether there is one.
    """

    inputs: int
    outputs: int
    rest: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: Any = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True

    @property
    def name(self) -> str:
        """Says all of it; two layers of one name take equally long."""
        parts = [f"{self.inputs}x{self.outputs}", "at", "x".join(map(str, self.rest)) or "1"]
        if self.kernel:
            parts += [f"k{self.kernel}s{self.stride}p{self.padding}d{self.dilation}g{self.groups}"]
        return " ".join([*parts, "bias" if self.bias else ""]).strip()

    def program(self) -> ExportedProgram:
        """A layer of this shape with weights that are always the same."""
        import torch
        from torch import nn

        from pipeline.compress.module import program_of

        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            if not self.kernel:
                layer: nn.Module = nn.Linear(self.inputs, self.outputs, self.bias)
                return program_of(layer, torch.randn(1, *self.rest, self.inputs))
            make: Any = nn.Conv1d if len(self.kernel) == 1 else nn.Conv2d
            layer = make(
                self.inputs,
                self.outputs,
                self.kernel,
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
                self.bias,
            )
            return program_of(layer, torch.randn(1, self.inputs, *self.rest))


def shape_of(layer: nn.Module, reads: Sequence[int]) -> LayerShape:
    """The shape of a convolution or linear layer.

    Args:
        layer: it.
        reads: shape of one of its inputs, without the batch.
    """
    one: Any = layer
    if not hasattr(one, "kernel_size"):
        bias = one.bias is not None
        return LayerShape(one.in_features, one.out_features, tuple(reads[:-1]), bias=bias)
    return LayerShape(
        one.in_channels,
        one.out_channels,
        tuple(reads[1:]),
        tuple(one.kernel_size),
        tuple(one.stride),
        one.padding if isinstance(one.padding, str) else tuple(one.padding),
        tuple(one.dilation),
        one.groups,
        one.bias is not None,
    )


def layer_costs(gauge: Rounds, shapes: Sequence[LayerShape]) -> dict[LayerShape, float]:
    """What layers take by themselves, without the call, measured in turns.

    Raises:
        StageError, DeviceError: as :meth:`pipeline.profile.gauge.DeviceGauge.measure`.
    """
    distinct = {shape.name: shape for shape in shapes}
    found = gauge.measure({name: shape.program() for name, shape in distinct.items()})
    call = found.get(CALL, 0.0)
    own = {name: max(found[name] - call, 0.0) for name in distinct}
    return {shape: own[shape.name] for shape in shapes}


@dataclass(frozen=True, slots=True)
class Liked:
    """The multiple of channels that a device likes.

    Args:
        multiple: 1 where all widths are alike.
        why: in words.
        slopes: for each multiple that was looked at, what the last channels up to it cost, as a
            share of what so many cost on average, with its 95 % interval.
        curve: latency in nanoseconds over width, without the call; of widths that take longer than
            the call alone.
    """

    multiple: int
    why: str
    slopes: Mapping[int, tuple[float, tuple[float, float] | None]]
    curve: Mapping[int, float]


def liked_multiple(gauge: Rounds, shape: LayerShape) -> Liked:
    """Measure a layer at widths around multiples, and find the largest one worth rounding up to.

    For each multiple m the width half of m below it and the multiple itself are compared, at some
    places between a quarter of the layer's width and all of it: if half a tile more costs nothing,
    the kernel computed it anyway.

    Args:
        gauge: of the latency, on the device and for the runtime that it is asked for.
        shape: of the layer; its ``outputs`` are varied, those of a depthwise one with its
            ``inputs``.  Other grouped convolutions have no shape for each width.

    Raises:
        StageError, DeviceError: as :meth:`pipeline.profile.gauge.DeviceGauge.measure`.
    """
    pairs = {m: found for m in MULTIPLES if (found := _pairs(shape.outputs, m))}
    widths = sorted({width for found in pairs.values() for pair in found for width in pair})
    if not widths:
        return Liked(DEFAULT, f"{shape.outputs} channels are too few to tell", {}, {})
    programs = {width: _narrowed(shape, width) for width in widths}
    rounds = gauge.rounds({str(width): one.program() for width, one in programs.items()})
    own = {width: _own(rounds[str(width)], rounds[CALL]) for width in widths}
    slopes = {m: _slope(found, own) for m, found in pairs.items()}
    curve = {width: float(np.median(list(its.values()))) for width, its in own.items() if its}
    multiple, why = _judged(slopes)
    return Liked(multiple, why, slopes, curve)


def _pairs(width: int, multiple: int) -> list[tuple[int, int]]:
    """Widths half a multiple below a multiple, and those multiples."""
    first = max(math.ceil(width * _LEAST_SHARE / multiple), 1)
    whole = range(first, width // multiple + 1)
    chosen = (
        sorted({whole[round(p)] for p in np.linspace(0, len(whole) - 1, _PLACES)}) if whole else []
    )
    return [(one * multiple - multiple // 2, one * multiple) for one in chosen]


def _narrowed(shape: LayerShape, width: int) -> LayerShape:
    if shape.groups > 1:
        return replace(shape, inputs=width, outputs=width, groups=width)
    return replace(shape, outputs=width)


def _own(medians: Mapping[Round, float], call: Mapping[Round, float]) -> dict[Round, float]:
    return {at: ns - call[at] for at, ns in medians.items() if at in call and ns > call[at]}


def _slope(
    pairs: Sequence[tuple[int, int]], own: Mapping[int, Mapping[Round, float]]
) -> tuple[float, tuple[float, float] | None]:
    """What the second half of a tile costs, as a share of what so many channels should cost.

    Each round is one observation: all widths of a round stood side by side.
    """
    common = set.intersection(*(set(own[width]) for pair in pairs for width in pair))
    observed = np.array(
        [
            np.mean(
                [
                    math.log(own[high][at] / own[low][at]) / math.log(high / low)
                    for low, high in pairs
                ]
            )
            for at in sorted(common)
        ]
    )
    if len(observed) < FEWEST_RUNS:
        return float(observed.mean()) if len(observed) else 1.0, None
    half = t_quantile(len(observed) - 1) * float(observed.std(ddof=1)) / math.sqrt(len(observed))
    centre = float(observed.mean())
    return centre, (centre - half, centre + half)


def _judged(
    slopes: Mapping[int, tuple[float, tuple[float, float] | None]],
) -> tuple[int, str]:
    liked = [m for m, (_, ci) in slopes.items() if ci is not None and ci[1] < _WORTH]
    unsure = [m for m, (_, ci) in slopes.items() if ci is None or ci[0] < _WORTH <= ci[1]]
    if liked:
        multiple = max(liked)
        share = slopes[multiple][0]
        return multiple, (
            f"the last {multiple // 2} channels up to a multiple of {multiple} cost"
            f" {max(share, 0):.0%} of what so many cost on average"
        )
    if unsure:
        names = ", ".join(map(str, unsure))
        return (
            DEFAULT,
            f"it cannot be told whether multiples of {names} are liked: the usual {DEFAULT}",
        )
    return 1, "each channel costs the same, at whatever width"
