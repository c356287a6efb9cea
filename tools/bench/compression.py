"""Is INT8 really faster? Each network's INT8 artifact against its FP32 one, in each runtime.

    python -m tools.bench.compression [--json] [--network vit] [--format onnx] [--rounds 4]

The networks are those of :mod:`tools.bench.networks`, 224², one thread.  INT8 is everywhere the
runtime's quantizer puts it, as a recipe's ``method: int8`` has it by default: no layer is kept in
FP32, no device is asked where INT8 pays (``precision: measured`` asks, which takes minutes).  A
round is a fresh process for each artifact; they take turns of a slice on one core, the others
stopped meanwhile, so that what else the machine does falls on all.  A round's ratio is the median,
over its turns, of FP32 / INT8 slice medians; reported are the geometric mean over the rounds and
its interval, Student's t over the logarithms.

MobileNetV2 in ONNX Runtime is also compared with ONNX Runtime's own ``quantize_static`` (QDQ,
QUInt8 activations, QInt8 weights per channel, the same calibration images).  No artifact is timed
that does not compute what the network computes: the cosine of its outputs to PyTorch's is shown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from devices.agent.engines import ENGINES
from devices.agent.program import build
from profiles.records import FORMATS, RUNTIME_OF, SUFFIX_OF, ArtifactFormat
from tools.bench.agents import at_least_two, take_turns, write_plan
from tools.bench.paired import compare

if TYPE_CHECKING:
    from torch.export import ExportedProgram

NETWORK_NAMES = ("mobilenet_v2", "mobilenet_v3", "vit")
#: Where ONNX Runtime's own tool is compared with.
STATIC = ("mobilenet_v2", "onnx")
#: What is measured, in the words of a recipe.
INT8 = {"method": "int8", "precision": "everywhere"}
CALIBRATION_IMAGES = 8
COMPARED_IMAGES = 4
LEAST_COSINE = 0.95
SHAPE = (1, 3, 224, 224)
SLICE_ITERATIONS = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One artifact against another; a ratio above 1: ours is faster.

    Args:
        network, format: of both.
        ours, theirs: what was compared: ``int8``, ``fp32``, ``quantize_static``.
        ours_ns, theirs_ns: medians over all turns.
        ratio: of the latencies, theirs / ours.
        ci95: its interval.
        n: how many rounds of fresh processes.
        cosine: of our outputs to PyTorch's in FP32, the mean over images.
    """

    network: str
    format: str
    ours: str
    theirs: str
    ours_ns: float
    theirs_ns: float
    ratio: float
    ci95: tuple[float, float]
    n: int
    cosine: float


@dataclass(frozen=True, slots=True)
class Made:
    """An artifact, and the cosine of its outputs to PyTorch's in FP32, the mean over images."""

    path: Path
    cosine: float


def tell(text: str) -> None:
    """Progress, beside the results."""
    print(text, file=sys.stderr, flush=True)


def program_of(network: str) -> ExportedProgram:
    """A network of :mod:`tools.bench.networks`, captured."""
    from pipeline.model import trace
    from tools.bench.networks import NETWORKS, images

    tell(f"{network}: capturing")
    return trace(NETWORKS[network](), images(1))


def export(
    program: ExportedProgram, network: str, format_: ArtifactFormat, folder: Path
) -> dict[str, Made]:
    """One network's artifacts in one format: ``fp32``, ``int8``, and ``quantize_static``'s.

    Raises:
        SystemExit: if one of ours computes something else.
    """
    from pipeline.compress.quantize import quantize
    from pipeline.export import write_artifact
    from tools.bench.networks import images

    samples = images(CALIBRATION_IMAGES, seed=2).numpy()
    paths = {}
    for kind in ("fp32", "int8"):
        tell(f"{network} {format_}: making {kind}")
        made = quantize(program, format_, samples) if kind == "int8" else program
        paths[kind] = folder / f"{kind}{SUFFIX_OF[format_]}"
        write_artifact(made, format_, paths[kind])
    if (network, format_) == STATIC:
        tell(f"{network} {format_}: making quantize_static's")
        paths["quantize_static"] = quantized_by_ort(paths["fp32"], samples)
    found = {kind: Made(path, cosine(program, format_, path)) for kind, path in paths.items()}
    for kind in ("fp32", "int8"):
        if not found[kind].cosine >= LEAST_COSINE:
            raise SystemExit(f"{network} {format_} {kind}: cosine {found[kind].cosine:.3f}")
    return found


def quantized_by_ort(model: Path, samples: Any) -> Path:
    """What ONNX Runtime's own tool makes of an FP32 file, prepared as its documentation says."""
    from onnxruntime import quantization as ort
    from onnxruntime.quantization.shape_inference import quant_pre_process

    from pipeline.model import INPUT_NAME
    from pipeline.quiet import quiet

    class Samples(ort.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is untyped
        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> Any:
            sample = next(self._left, None)
            return None if sample is None else {INPUT_NAME: sample[None]}

    prepared, target = model.with_suffix(".prepared.onnx"), model.with_suffix(".static.onnx")
    with quiet():
        quant_pre_process(str(model), str(prepared))
        ort.quantize_static(
            str(prepared),
            str(target),
            Samples(),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
        )
    return target


def cosine(program: ExportedProgram, format_: ArtifactFormat, path: Path) -> float:
    """Of an artifact's outputs to a program's, the mean over a few images."""
    import torch

    from pipeline.quiet import quiet
    from tools.bench.networks import images

    found = []
    with quiet(), torch.no_grad():
        engine, module = ENGINES[RUNTIME_OF[format_]](str(path), 1), program.module()
        for image in images(COMPARED_IMAGES, seed=3).split(1):
            engine.feed([image.numpy()])
            engine.prepare()
            engine.call()
            output, expected = engine.outputs()[0].ravel(), module(image).numpy().ravel()
            lengths = np.linalg.norm(expected) * np.linalg.norm(output)
            found.append(float(expected @ output / lengths))
    return float(np.mean(found))


def measure(
    made: Mapping[str, Made],
    network: str,
    format_: ArtifactFormat,
    folder: Path,
    rounds: int,
    turns: int,
) -> list[Row]:
    """Measure one network's INT8 artifact against the others.

    Args:
        made: the artifacts by kind, see :func:`export`.
        network, format_: what they are.
        folder: for the plans.
        rounds: of fresh processes, at least two.
        turns: of each artifact in a round.
    """
    agent = [sys.executable, str(build(folder / "agent.pyz"))]
    commands = {}
    for kind, artifact in made.items():
        place = folder / kind
        place.mkdir()
        plan = write_plan(place, RUNTIME_OF[format_], artifact.path, SHAPE, SLICE_ITERATIONS)
        commands[kind] = [*agent, str(plan)]
    taken = []
    for round_ in range(rounds):
        tell(f"{network} {format_}: measuring, round {round_ + 1}/{rounds}")
        taken.append(take_turns(commands, turns))

    def row(theirs: str) -> Row:
        ratios = [float(np.median(np.divide(each[theirs], each["int8"]))) for each in taken]
        paired = compare(ratios, [1.0] * rounds)
        ns = {kind: float(np.median([each[kind] for each in taken])) for kind in made}
        return Row(
            network,
            format_,
            "int8",
            theirs,
            ns["int8"],
            ns[theirs],
            paired.ratio,
            paired.ci95,
            rounds,
            made["int8"].cosine,
        )

    rows = [row(theirs) for theirs in made if theirs != "int8"]
    for found in rows:
        low, high = found.ci95
        tell(f"{network} {format_}: {found.ratio:.2f} x {found.theirs}, {low:.2f} to {high:.2f}")
    return rows


def report(rows: Sequence[Row]) -> dict[str, Any]:
    """Everything as plain data.

    Returns:
        ``int8_speedup`` by network and format; ``int8``, how it was made; our latency as a ratio to
        that of ONNX Runtime's own tool, ``against_quantize_static`` (``None`` where not measured);
        all ``rows``.
    """
    speedups: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.theirs == "fp32":
            speedups.setdefault(row.network, {})[row.format] = row.ratio
    static = [1 / row.ratio for row in rows if row.theirs == "quantize_static"]
    return {
        "int8_speedup": speedups,
        "int8": INT8,
        "against_quantize_static": static[0] if static else None,
        "threads": 1,
        "rows": [asdict(row) for row in rows],
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    several = "may be given several times; all if not given"
    parser.add_argument("--network", choices=NETWORK_NAMES, action="append", help=several)
    parser.add_argument("--format", choices=FORMATS, action="append", help=several)
    parser.add_argument("--rounds", type=at_least_two, default=4, help="of processes; at least two")
    parser.add_argument("--turns", type=at_least_two, default=6, help="in a round; at least two")
    options = parser.parse_args()
    rows = []
    for network in options.network or NETWORK_NAMES:
        program = program_of(network)
        for format_ in options.format or FORMATS:
            with TemporaryDirectory() as name:
                folder = Path(name)
                made = export(program, network, format_, folder)
                rows += measure(made, network, format_, folder, options.rounds, options.turns)
    if options.json:
        print(json.dumps(report(rows), indent=2))
        return
    print("224², 1 thread; how many times faster INT8 is")
    print(
        f"{'network':13} {'format':11} {'against':16} {'theirs ms':>9} {'INT8 ms':>8} {'ratio':>6}"
        f"  95 % interval   cosine"
    )
    for row in rows:
        low, high = row.ci95
        print(
            f"{row.network:13} {row.format:11} {row.theirs:16} {row.theirs_ns / 1e6:9.3f}"
            f" {row.ours_ns / 1e6:8.3f} {row.ratio:6.3f}  {low:.3f} to {high:.3f}  {row.cosine:.4f}"
        )


if __name__ == "__main__":
    main()
