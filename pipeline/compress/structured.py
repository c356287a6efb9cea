"""Structured pruning: whole channels, neurons and heads leave, and the dense kernels are smaller.

What may leave is found in the graph (:mod:`pipeline.compress.groups`); how much of it leaves, and
where, is decided for the budget; there what matters least goes.  The smaller network is checked
against the whole one with zeros in place of what went.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

from pipeline.compress.batch_norms import settle
from pipeline.compress.groups import Gone, Structure
from pipeline.compress.hesso import Hesso
from pipeline.compress.layerwise import Layerwise
from pipeline.compress.measured import within_measured
from pipeline.compress.narrowing import Kept, Narrowing
from pipeline.compress.saliency import Scores, magnitude, taylor
from pipeline.compress.slim import check, slim
from pipeline.compress.workbench import Workbench
from pipeline.profile.widths import Rounds, liked_multiple, shape_of
from profiles.compression import Structured
from profiles.errors import StageError

#: Reasons that an error names.
_NAMED = 4


def apply(
    module: nn.Module, settings: Structured, bench: Workbench
) -> tuple[nn.Module, dict[str, Any]]:
    """Make a network narrower, within a budget.

    Args:
        module: of :func:`pipeline.compress.module.module_of`.
        settings: budget, saliency, allocation, and how to train.
        bench: with what.

    Returns:
        The narrower network; and the record: widths, MACs and parameters before and after, how the
        budget was met, what could not be pruned and why, and the training, or without any, whether
        batch norms were settled on what they are given now.

    Raises:
        StageError: if nothing can be pruned, or the budget cannot be met, with the nearest that
            can; or if a device that is to be asked cannot measure it.
        DeviceError: if it cannot be reached or leaves.
    """
    structure = Structure(cast(GraphModule, module.eval()), bench.example)
    if not structure.groups:
        reasons = [f"{path}: {why}" for path, why in structure.fixed.items()]
        raise StageError(
            f"{settings.name}: no layer can be pruned: {'; '.join(reasons[:_NAMED])}",
            "let a layer's channels be read by layers alone, not by the shape of a tensor",
        )
    pruning = _Pruning(structure, settings, bench)
    kept = pruning.in_one_training() if settings.how == "hesso" else pruning.at_once()
    gone = structure.gone(kept)
    small = slim(structure, gone)
    check(structure, gone, small, torch.from_numpy(bench.calibration[:4]))
    record = {**pruning.record, **_widths(structure, kept, gone)}
    if settings.how == "hesso":
        record["validation_accuracy"] = bench.accuracy(small)
    elif settings.train is not None:
        record["validation_accuracy_before_training"] = bench.accuracy(small)
        record |= bench.fine_tune(small, settings.train, settings.distil, settings.name)
    elif settle(small, bench.calibration):
        record["batch_norms_settled"] = True
    return small, record


class _Pruning:
    """Decides what stays, and keeps the record of why."""

    def __init__(self, structure: Structure, settings: Structured, bench: Workbench) -> None:
        self._structure, self._settings, self._bench = structure, settings, bench
        self.record: dict[str, Any] = {"remarks": structure.remarks}
        self._round_to = self._multiple()

    def at_once(self) -> Kept:
        """What stays, by how much each unit matters as the module is."""
        taylors = self._settings.saliency == "taylor"
        structure = self._structure
        scores = taylor(structure, self._bench.train) if taylors else magnitude(structure)
        kept, why = self.decided(scores)
        self.record |= why
        return kept

    def decided(self, scores: Scores) -> tuple[Kept, dict[str, Any]]:
        """What stays within the budget, and the record of why."""
        settings, structure, budget = self._settings, self._structure, self._settings.budget
        narrowing = Narrowing(structure, scores, self._round_to, settings.allocation)
        layerwise = None
        if settings.allocation == "layer-adaptive":
            layerwise = Layerwise(narrowing, self._bench)
        if budget.is_measured:
            family = None
            if layerwise is not None:
                family = layerwise.by_layers(cast(Rounds, self._bench.gauge), budget.share)
            widths, found = within_measured(narrowing, budget, self._bench, family)
        else:
            cost = structure.macs if budget.cost == "macs" else structure.parameters
            limit = budget.share * cost(structure.gone({}))
            chosen = (layerwise or narrowing).within(limit, cost)
            if chosen is None:
                raise self._unmet(narrowing)
            share = cost(narrowing.gone(chosen)) / cost(structure.gone({}))
            widths, found = chosen, {"share_found": round(share, 4)}
        why: dict[str, Any] = {
            "budget": {**budget.model_dump(mode="json", exclude_none=True), **found}
        }
        if layerwise is not None:
            why |= layerwise.record(widths)
        return narrowing.kept(widths), why

    def in_one_training(self) -> Kept:
        """Train, and drive to zero meanwhile what does not stay."""
        settings = self._settings

        def decide(of_warm_up: Scores) -> tuple[Kept, Scores, dict[str, Any]]:
            seen = any(scores.any() for scores in of_warm_up.values())
            taylors = settings.saliency == "taylor" and seen
            scores = of_warm_up if taylors else magnitude(self._structure)
            kept, why = self.decided(scores)
            return kept, scores, why

        hesso = Hesso(self._structure, decide)
        if settings.train is None:
            raise StageError(f"{settings.name}: hesso happens while training: name train")
        self.record |= self._bench.fine_tune(
            self._structure.module,
            settings.train,
            settings.distil,
            settings.name,
            callbacks=[hesso],
        )
        self.record |= hesso.record
        return hesso.kept()

    def _unmet(self, narrowing: Narrowing) -> StageError:
        budget, structure = self._settings.budget, self._structure
        cost = structure.macs if budget.cost == "macs" else structure.parameters
        least = cost(narrowing.gone(narrowing.at(1.0))) / cost(structure.gone({}))
        fixed = [f"{path}: {why}" for path, why in structure.fixed.items()]
        finer = f", or round to less than {self._round_to} channels" if self._round_to > 1 else ""
        return StageError(
            f"budget: {budget.cost}: {budget.share:g} cannot be met: the nearest that can is"
            f" {np.ceil(least * 1000) / 1000:g}",
            f"let more remain{finer}; what stays whole: {'; '.join(fixed[:_NAMED])}",
        )

    def _multiple(self) -> int:
        """What widths are multiples of, by the recipe or by the device."""
        asked = self._settings.round_to
        if asked != "device":
            self.record["round_to"] = {"multiple": asked, "why": "the recipe says so"}
            return asked
        if self._bench.gauge is None:
            raise StageError(f"{self._settings.name}: round_to: there is no device to ask")
        layer = self._heaviest()
        module = self._structure.module.get_submodule(layer)
        shape = shape_of(module, self._structure.trace.layers[layer].shape)
        found = liked_multiple(cast(Rounds, self._bench.gauge), shape)
        self.record["round_to"] = {
            "multiple": found.multiple,
            "why": found.why,
            "layer": layer,
            "slopes": {str(m): [value, ci] for m, (value, ci) in found.slopes.items()},
            "latency_ns_by_width": {str(width): ns for width, ns in found.curve.items()},
        }
        return found.multiple

    def _heaviest(self) -> str:
        """Of the layers that can be pruned and may have any width, the one that computes most."""
        structure = self._structure
        makers = {path for group in structure.groups.values() for path in group.makers}
        # What goes in groups hangs on the layer that it reads: there is always one that does not.
        any_width = [path for path in sorted(makers) if not self._is_grouped(path)]
        macs = structure.macs_by_layer(structure.gone({}))
        return max(any_width, key=lambda path: macs[path])

    def _is_grouped(self, path: str) -> bool:
        """Whether a layer is a convolution in groups, but not a depthwise one."""
        layer: Any = self._structure.module.get_submodule(path)
        return 1 < getattr(layer, "groups", 1) < getattr(layer, "in_channels", 1)


def _widths(structure: Structure, kept: Kept, gone: Gone) -> dict[str, Any]:
    nothing = structure.gone({})
    before, after = structure.widths(nothing), structure.widths(gone)
    return {
        "groups": {
            name: {
                "width": [group.width, len(kept.get(name, range(group.width)))],
                "channels": group.channels,
                "made_by": list(group.makers),
                "read_by": list(group.readers),
            }
            for name, group in structure.groups.items()
        },
        "widths": {path: [width, after[path]] for path, width in before.items()},
        "not_pruned": dict(structure.fixed),
        "macs": [structure.macs(nothing), structure.macs(gone)],
        "parameters": [structure.parameters(nothing), structure.parameters(gone)],
    }
