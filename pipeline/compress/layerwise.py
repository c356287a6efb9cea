"""Layer-adaptive widths: the least measured distortion within a budget of any cost.

Source: Xu et al., "Efficient Joint Optimization of Layer-Adaptive Weight Pruning in Deep Neural
Networks" (2023), for single weights.  Here whole channels leave.  Their costs multiply where a
layer loses inputs and outputs, so they are taken around the uniform allocation of the same budget,
and the sum is corrected until the network's own cost is within it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from pipeline.compress.allocation import Choice, Curve, choose, least_cost
from pipeline.compress.distortion import Distortion, few_samples
from pipeline.compress.groups import Gone
from pipeline.compress.narrowing import Narrowing
from pipeline.compress.slim import slim
from pipeline.compress.workbench import Workbench
from pipeline.profile.widths import LayerShape, Rounds, layer_costs, shape_of

#: Widths of one group that are tried; more are thinned out evenly.
_OPTIONS = 6
#: Halvings of what the sum of costs may be.
_CORRECTIONS = 20

Widths = dict[str, int]


class Layerwise:
    """Chooses widths by what each group's narrowing alone does to the outputs.

    Args:
        narrowing: what is allowed, and which units stay.
        bench: with calibration samples to measure distortion on.
    """

    def __init__(self, narrowing: Narrowing, bench: Workbench) -> None:
        self._narrowing = narrowing
        self._structure = narrowing.structure
        self._samples = bench.calibration
        self._distortion = Distortion(self._structure.module, self._samples)
        self._levels = {
            group.name: _thinned(narrowing.options(group))
            for group in self._structure.groups.values()
        }
        self._distortions = self._distortion.curves(self._levels, self._build, bench.progress)

    def within(self, limit: float, cost: Callable[[Gone], float]) -> Widths | None:
        """The widths of least distortion whose counted cost is within a limit.

        Args:
            limit: largest cost.
            cost: of a network without what is gone.
        """
        uniform = replace(self._narrowing, allocation="uniform").within(limit, cost)
        if uniform is None:
            return None

        def alone(name: str, width: float) -> float:
            return cost(self._narrowing.gone({**uniform, name: int(width)}))

        return self._chosen(alone, lambda widths: cost(self._narrowing.gone(widths)) <= limit)

    def by_layers(self, gauge: Rounds, share: float) -> Callable[[float], Widths | None]:
        """The same against what layers take on a device.

        Each layer is measured by itself at all its widths, the others as in the uniform allocation
        of a share of the MACs.

        Args:
            gauge: of the device.
            share: about what will remain.

        Returns:
            The widths for a share of all layers' cost; ``None`` where none are so cheap.

        Raises:
            StageError, DeviceError: as the gauge does.
        """
        structure = self._structure
        uniform_narrowing = replace(self._narrowing, allocation="uniform")
        whole = structure.macs(structure.gone({}))
        uniform = uniform_narrowing.within(share * whole, structure.macs)
        uniform = uniform or uniform_narrowing.at(1.0)
        asked = {
            (name, int(width)): self._shapes(name, {**uniform, name: int(width)})
            for name, levels in self._levels.items()
            for width in (*levels, uniform[name])
        }
        everything = self._all_shapes(structure.gone({}))
        around = self._all_shapes(self._narrowing.gone(uniform))
        needed = {*(shape for found in asked.values() for shape in found), *everything, *around}
        costs = layer_costs(gauge, sorted(needed, key=lambda shape: shape.name))

        def alone(name: str, width: float) -> float:
            return sum(costs[shape] for shape in asked[name, int(width)])

        fixed = sum(costs[shape] for shape in around)
        fixed -= sum(alone(name, width) for name, width in uniform.items())
        total = sum(costs[shape] for shape in everything)

        def within(part: float) -> Widths | None:
            def fits(widths: Widths) -> bool:
                return fixed + sum(alone(n, w) for n, w in widths.items()) <= part * total

            return self._chosen(alone, fits)

        return within

    def record(self, widths: Mapping[str, int]) -> dict[str, Any]:
        """What the distortions were, and whether they added up at these widths."""
        curves = [
            Curve(name, its, self._distortions[name], tuple(0.0 for _ in its))
            for name, its in self._levels.items()
        ]
        options = {name: its.index(float(widths[name])) for name, its in self._levels.items()}
        levels = {name: float(width) for name, width in widths.items()}
        choice = Choice(options, levels, 0.0, 0.0)
        return {
            "additivity": self._distortion.additivity(curves, choice, self._build),
            "distortions": {
                name: {str(int(width)): value for width, value in zip(its, values, strict=True)}
                for (name, its), values in zip(
                    self._levels.items(), self._distortions.values(), strict=True
                )
            },
            **few_samples(len(self._samples)),
        }

    def _chosen(
        self, alone: Callable[[str, float], float], fits: Callable[[Widths], bool]
    ) -> Widths | None:
        """The largest sum of costs at which the network itself fits."""
        curves = []
        for name, levels in self._levels.items():
            costs = [alone(name, level) for level in levels]
            least = min(costs)
            own = tuple(cost - least for cost in costs)
            curves.append(Curve(name, levels, self._distortions[name], own))
        low, high = least_cost(curves), sum(max(curve.costs) for curve in curves)
        best = None
        for _ in range(_CORRECTIONS):
            choice = choose(curves, (low + high) / 2)
            widths = {name: int(level) for name, level in choice.levels.items()}
            if fits(widths):
                best, low = widths, (low + high) / 2
            else:
                high = (low + high) / 2
        return best

    def _build(self, levels: Mapping[str, float]) -> Any:
        widths = {name: int(level) for name, level in levels.items()}
        return slim(self._structure, self._narrowing.gone(widths))

    def _shapes(self, name: str, widths: Widths) -> list[LayerShape]:
        """Shapes of the layers that a group is in."""
        group, gone = self._structure.groups[name], self._narrowing.gone(widths)
        paths = dict.fromkeys((*group.makers, *group.readers))
        return [self._shape(path, gone) for path in paths]

    def _all_shapes(self, gone: Gone) -> list[LayerShape]:
        return [self._shape(path, gone) for path in self._structure.widths(gone)]

    def _shape(self, path: str, gone: Gone) -> LayerShape:
        layer = self._structure.trace.layers[path]
        whole = shape_of(self._structure.module.get_submodule(path), layer.shape)
        made, read = (int((~gone[x.numpy()]).sum()) for x in (layer.makes, layer.reads))
        groups = whole.groups * read // whole.inputs if whole.groups > 1 else 1
        return replace(whole, inputs=read, outputs=made, groups=groups)


def _thinned(options: tuple[int, ...]) -> tuple[float, ...]:
    """Some of a group's widths, evenly; the whole one first, as a curve begins."""
    places = np.unique(np.linspace(0, len(options) - 1, _OPTIONS).round().astype(int))
    return tuple(float(options[place]) for place in places[::-1])
