"""What is known of a quantization: what became integers, by which samples, and at what loss."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from pipeline.compress.simulate import Extremes, Simulation, outputs_of
from pipeline.data import Images, Split
from pipeline.profile.grouping import is_dequantize, is_quantize
from profiles.statistics import paired_drop_interval

if TYPE_CHECKING:
    from torch.export import ExportedProgram

#: Accuracies are judged on so many examples at most, and outputs on so many.
MOST_JUDGED, MOST_ASKED = 2000, 64
#: More samples are worth it while they take this share off the outputs' error.
_WORTH = 0.1
#: How often to double the number of samples in search of enough.
_DOUBLINGS = 3


@dataclass(frozen=True, slots=True)
class Drop:
    """Accuracy lost against the uncompressed model, on the same validation examples.

    Args:
        examples: how many.
        reference_accuracy: of the uncompressed model.
        accuracy: of this one.
        drop: the difference, as a fraction; negative where this one is better.
        ci95: its paired 95 % interval.
        validation_seen_in_training: whether the uncompressed model was trained on them.
    """

    examples: int
    reference_accuracy: float
    accuracy: float
    drop: float
    ci95: tuple[float, float]
    validation_seen_in_training: bool = False

    def describe(self) -> str:
        """In points, with the interval."""
        low, high = (100 * value for value in self.ci95)
        return f"{100 * self.drop:.2f} points ({low:.2f} to {high:.2f}) on {self.examples} examples"


class Judge:
    """Tells what programs lose, on examples that neither calibrated nor test.

    No compression trains on them.  But where the recipe trains the model itself, it does so on the
    whole train split: the uncompressed model has seen them then, and is better on them than on new
    ones.  A compressed one that was trained since has forgotten some of that, and its drop is
    larger here than on new examples.

    Args:
        reference: the uncompressed program.
        validation: labelled examples of the train split.
        seen: whether the uncompressed model was trained on them.
    """

    def __init__(
        self, reference: ExportedProgram, validation: Split, *, seen: bool = False
    ) -> None:
        self._seen = seen
        self._x, self._y = validation.x[:MOST_JUDGED], validation.y[:MOST_JUDGED]
        self._before = self._right(reference)

    def drop(self, program: ExportedProgram) -> Drop:
        """What a program loses."""
        after = self._right(program)
        before, now = float(self._before.mean()), float(after.mean())
        interval = paired_drop_interval(self._before, after)
        return Drop(len(after), before, now, before - now, interval, self._seen)

    def _right(self, program: ExportedProgram) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = outputs_of(program, self._x).argmax(1) == self._y
        return right


def quantization_record(program: ExportedProgram) -> dict[str, Any]:
    """How many convolutions and linear layers compute in integers, and with which numbers.

    Args:
        program: quantized.
    """
    layers = [n for n in program.graph.nodes if _is_layer(n)]
    whole = [n for n in layers if all(map(_is_converted, n.all_input_nodes[:2]))]
    schemes: dict[str, set[str]] = {"activations": set(), "weights": set()}
    for node in whole:
        for what, source in zip(schemes, node.all_input_nodes, strict=False):
            schemes[what].add(_scheme(source))
    return {
        "layers": len(layers),
        "integer_layers": len(whole),
        "float_layers": [_place(n) for n in layers if n not in whole],
        "conversions": sum(is_quantize(n) for n in program.graph.nodes),
        **{what: sorted(found) for what, found in schemes.items()},
    }


def _is_layer(node: Node) -> bool:
    return getattr(node.target, "_opname", "").startswith(("conv", "linear"))


def _is_converted(node: Node) -> bool:
    """Whether a value was integers, seen through what only moves it."""
    while not is_dequantize(node) and len(node.all_input_nodes) == 1:
        (node,) = node.all_input_nodes
    return is_dequantize(node)


def _scheme(node: Node) -> str:
    while not is_dequantize(node):
        (node,) = node.all_input_nodes
    name = str(node.target)
    least, most, dtype = node.args[-3:]
    granularity = "per channel" if "per_channel" in name else "per tensor"
    return f"{str(dtype).removeprefix('torch.')} {least} to {most} {granularity}"


def _place(node: Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else node.name


def calibration_record(
    program: ExportedProgram, samples: Images, more: Images, asked: Images
) -> dict[str, Any]:
    """Which samples calibrated, and whether they were enough.

    The activations' ranges are found again with a quarter and half of the samples, with twice as
    many, and with more while that takes a tenth off the error of the outputs.  Enough is the least
    number whose error is within that tenth of the best.

    Args:
        program: calibrated with these samples, weights in FP32.
        samples: that calibrated, shape ``(n, ...)``.
        more: further ones that there are.
        asked: inputs whose outputs are compared with those of activations in FP32.
    """
    simulation = Simulation(program, asked[:MOST_ASKED])
    order = np.random.default_rng(0).permutation(len(samples))
    errors = _errors(simulation, samples[order], more)
    best = min(errors.values())
    enough = min(size for size, error in errors.items() if error <= best * (1 + _WORTH))
    record = {
        "calibration_samples": len(samples),
        "calibration_sha256": hashlib.sha256(samples.tobytes()).hexdigest(),
        "calibration_errors": {str(size): error for size, error in sorted(errors.items())},
        "calibration_enough": enough,
    }
    if enough > len(samples):
        times = errors[len(samples)] / best
        record["warning"] = (
            f"{len(samples)} calibration samples are too few: the outputs' error is {times:.1f}"
            f" times that with {enough}, which are enough here"
        )
    return record


def _errors(simulation: Simulation, samples: Images, more: Images) -> dict[int, float]:
    """By number of samples, how far the outputs are from those without rounded activations."""
    expected = simulation.outputs(_weights_alone(simulation))

    def error(extremes: Extremes, size: int) -> float:
        ranges = simulation.ranges(extremes, size)
        found = simulation.outputs(simulation.conversions, ranges)
        scale = float(np.sqrt(np.mean(expected**2))) or 1.0
        return float(np.sqrt(np.mean((found - expected) ** 2))) / scale

    extremes = simulation.extremes(samples)
    known = len(samples)
    sizes = sorted({max(1, known // 4), max(1, known // 2), known})
    errors = {size: error(extremes, size) for size in sizes}
    for _ in range(_DOUBLINGS):
        *before, last = errors.values()
        wanted = max(errors)
        falls = wanted == known or last <= before[-1] * (1 - _WORTH)
        if wanted > len(more) or not falls:
            break
        new = simulation.extremes(more[:wanted])
        more = more[wanted:]
        extremes = {node: np.concatenate([rows, new[node]]) for node, rows in extremes.items()}
        errors[2 * wanted] = error(extremes, 2 * wanted)
    return errors


def _weights_alone(simulation: Simulation) -> list[Node]:
    return [n for n in simulation.conversions if n not in simulation.activations]


def drop_record(drop: Drop) -> dict[str, Any]:
    """A drop, as it stands in an artifact's record."""
    return {"validation": asdict(drop)}
