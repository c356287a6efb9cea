"""What a network and the options of its layers cost: counted, or measured on a device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.compress.allocation import Choice, Curve, least_share, spend
from pipeline.compress.factors import Responses, replaced
from pipeline.compress.module import program_of
from pipeline.compress.workbench import Gauge
from profiles.compression import Budget
from profiles.errors import StageError

#: By path, a layer's options; the first one is the layer itself.
Options = Mapping[str, Sequence[nn.Module]]

#: How often a choice is made anew when the whole network costs more than its layers promised.
ROUNDS = 4
#: By what share a measured cost may exceed its budget: two measurements differ by about as much.
TOLERANCE = 0.02


def macs(module: nn.Module, example: torch.Tensor) -> int:
    """Multiplications with additions in one forward pass: convolutions and matrix products."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(example)
    return int(counter.get_total_flops()) // 2


class Counted:
    """Parameters, or MACs for one example.

    Args:
        cost: which of both.
        module: the whole network.
        options: of its layers.
        seen: at how many positions each layer works.
        example: an input of the network.
    """

    def __init__(
        self,
        cost: str,
        module: nn.Module,
        options: Options,
        seen: Mapping[str, Responses],
        example: torch.Tensor,
    ) -> None:
        counts = cost == "macs"
        self.whole = float(macs(module, example) if counts else _parameters(module))
        self.of = {
            path: tuple(
                float(_weights(layer) * seen[path].positions if counts else _parameters(layer))
                for layer in layers
            )
            for path, layers in options.items()
        }

    def settle(self, curves: Sequence[Curve], budget: Budget) -> tuple[Choice, dict[str, Any]]:
        """The best choice within the budget, and the record of what it costs.

        Raises:
            StageError: if there is none, with the nearest budget that has one.
        """
        choice = spend(curves, self.whole, budget)
        return choice, {"cost_before": self.whole, "share_found": choice.cost / self.whole}


class Measured:
    """Nanoseconds or microjoules of one example, of each layer alone and of the whole network.

    Layers that differ in their weights alone are measured once.

    Args:
        gauge: to measure with.
        module: the whole network.
        options: of its layers.
        seen: what each layer is given.
        example: an input of the network.

    Raises:
        StageError: if any cannot be exported or measured.
        DeviceError: if the device cannot be reached or leaves.
    """

    def __init__(
        self,
        gauge: Gauge,
        module: nn.Module,
        options: Options,
        seen: Mapping[str, Responses],
        example: torch.Tensor,
    ) -> None:
        self._gauge, self._module, self._options = gauge, module, options
        self._example = example
        names = {
            (path, number): _alike(layer, seen[path].example)
            for path, layers in options.items()
            for number, layer in enumerate(layers)
        }
        programs: dict[str, Any] = {"whole": program_of(module, example)}
        for (path, number), name in names.items():
            if name not in programs:
                programs[name] = program_of(_named(options[path][number]), seen[path].example)
        found = gauge.measure(programs)
        self.whole = found["whole"]
        self.of = {
            path: tuple(found[names[path, number]] for number in range(len(layers)))
            for path, layers in options.items()
        }

    def settle(self, curves: Sequence[Curve], budget: Budget) -> tuple[Choice, dict[str, Any]]:
        """As :meth:`Counted.settle`; the whole network is built and measured, too.

        Layers cost less in a network than alone, or more: what one choice is off by is taken into
        account in the next one.
        """
        asked = budget.share
        rounds: list[dict[str, float]] = []
        least = least_share(list(self.of.values()), self.whole)
        for _ in range(ROUNDS):
            target = budget.model_copy(update={budget.cost: max(asked, least)})
            choice = spend(curves, self.whole, target if rounds else budget)
            before, after = self._both(choice)
            predicted, share = choice.cost / self.whole, after / before
            rounds.append({"predicted": predicted, "measured": share})
            if share <= budget.share * (1 + TOLERANCE):
                return choice, {
                    "cost_before": before,
                    "cost_after": after,
                    "share_found": share,
                    "rounds": rounds,
                }
            if asked < least:
                break
            asked = predicted - (share - budget.share)
        best = min(one["measured"] for one in rounds)
        raise StageError(
            f"budget: {budget.cost}: {budget.share:g} cannot be met: the whole network came to"
            f" {best:.3f} of what it was, though its layers alone promise less",
            f"ask for {best:.2f}, or compress by another method first",
        )

    def _both(self, choice: Choice) -> tuple[float, float]:
        changed = {path: self._options[path][number] for path, number in choice.options.items()}
        before = program_of(self._module, self._example)
        with replaced(self._module, changed):
            after = program_of(self._module, self._example)
        found = self._gauge.measure({"before": before, "after": after})
        return found["before"], found["after"]


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.ndim > 1)


def _alike(layer: nn.Module, example: torch.Tensor) -> str:
    """The same for layers that differ in nothing but their weights."""
    parts = layer if isinstance(layer, nn.Sequential) else [layer]
    return f"{' then '.join(map(repr, parts))} of {tuple(example.shape)}"


def _named(layer: nn.Module) -> nn.Module:
    """Under a name, as layers are in any network: names of parameters begin with a letter."""
    return nn.Sequential(OrderedDict(layer=layer))
