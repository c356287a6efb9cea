"""``compress``, ``export`` and ``measure``: single stages on plain files."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tools.device_lab.output import print_json, progress
from tools.device_lab.running import AsJson, WorkspaceFolder

Inventory = Annotated[Path, typer.Option("--inventory", "-i", help="The devices.yaml.")]

if TYPE_CHECKING:
    from profiles.measure import Tolerable


class Format(StrEnum):
    """Formats on the command line."""

    executorch = "executorch"
    onnx = "onnx"
    tflite = "tflite"


class Method(StrEnum):
    """Compression methods on the command line."""

    int8 = "int8"
    weight_only = "weight-only"
    sparse = "sparse"
    structured = "structured"
    low_rank = "low-rank"
    remove_layers = "remove-layers"
    finetune = "finetune"


class PartitionerName(StrEnum):
    """ExecuTorch's partitioners on the command line."""

    xnnpack = "xnnpack"
    vulkan = "vulkan"
    coreml = "coreml"
    qnn = "qnn"
    openvino = "openvino"
    none = "none"


class Tolerance(StrEnum):
    """What data need not be refused for, on the command line."""

    throttled = "throttled"
    frequency = "frequency"
    foreign_load = "foreign-load"
    not_stationary = "not-stationary"


Tolerate = Annotated[
    list[Tolerance] | None, typer.Option(help="Only remark upon what would refuse data.")
]


def codes(tolerate: list[Tolerance] | None) -> tuple[Tolerable, ...]:
    """The same as a recipe names them."""
    return tuple(each.value for each in tolerate or ())


Program = Annotated[
    Path, typer.Argument(metavar="MODEL.pt2", help="A program saved by torch.export.save.")
]


def compress(
    program: Program,
    method: Annotated[Method, typer.Option("--method", "-m", help="How to compress.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The .pt2 file to write.")],
    data: Annotated[
        Path,
        typer.Option(
            "--data", help="An .npz: x holds inputs for the model, y labels if it is to learn."
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting, as in a recipe's variant."),
    ] = None,
    format_: Annotated[
        Format, typer.Option("--format", "-f", help="The runtime's format it is for.")
    ] = Format.onnx,
    samples: Annotated[int, typer.Option(min=1, help="Calibration inputs to use.")] = 128,
    device: Annotated[
        str | None,
        typer.Option("--device", "-d", help="Id of the device, if one decides."),
    ] = None,
    inventory: Inventory = Path("devices.yaml"),
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-w", help="Folder to go on in if interrupted.")
    ] = None,
    tolerate: Tolerate = None,
) -> None:
    """Compress an exported program into another one, as a variant of a recipe would be.

    Example: device-lab compress model.pt2 -m int8 -f tflite --data calibration.npz -o int8.pt2
    """
    from profiles.recipe import override

    asked: dict[str, Any] = {}
    for text in settings or ():
        override(asked, text)
    with progress() as show:
        show(f"{method.value} ...")
        from pipeline.files import Setting, compress_file
        from profiles.measure import Measure

        details = compress_file(
            program,
            output,
            {**asked, "method": method.value},
            data,
            Setting(format_.value, samples, device, inventory, Measure(tolerate=codes(tolerate))),
            root=workspace,
            progress=show,
        )
    print_json({"program": str(output), **details})


def export(
    program: Program,
    format_: Annotated[Format, typer.Option("--format", "-f", help="The format to write.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The artifact to write.")],
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="N|dynamic", help="Examples for each call; the program's own if not given."
        ),
    ] = None,
    partitioner: Annotated[
        PartitionerName, typer.Option(help="What ExecuTorch hands operators to.")
    ] = PartitionerName.xnnpack,
) -> None:
    """Lower an exported program to a runtime's format.

    Example: device-lab export int8.pt2 -f tflite -o model.tflite
    """
    with progress() as show:
        show(f"export to {format_.value} ...")
        from pipeline.files import export_file

        details = export_file(program, output, format_.value, batch, partitioner.value)
    print_json({"artifact": str(output), **details})


def measure(
    artifacts: Annotated[
        list[Path], typer.Argument(metavar="ARTIFACT...", help="Files: .pte, .onnx, .tflite.")
    ],
    device: Annotated[str, typer.Option("--device", "-d", help="Id of the device.")],
    inventory: Inventory = Path("devices.yaml"),
    workspace: WorkspaceFolder = Path("workspace"),
    runs: Annotated[int, typer.Option(min=3, help="Fresh processes each, at least.")] = 5,
    iterations: Annotated[int, typer.Option(min=1, help="Timed calls per run.")] = 200,
    threads: Annotated[int, typer.Option(min=1, help="Threads of the runtime.")] = 1,
    tolerate: Tolerate = None,
    as_json: AsJson = False,
) -> None:
    """Measure artifact files on a device, interleaved; files measured before are not again.

    Example: device-lab measure a.onnx b.onnx --device pi5 --runs 10 --json
    """
    from tools.device_lab.summary import print_measurements

    with progress() as show:
        from pipeline.files import measure_files
        from profiles.measure import Measure

        settings = Measure(
            runs=runs,
            iterations=iterations,
            threads=(threads,),
            tolerate=codes(tolerate),
        )
        found = measure_files(artifacts, device, inventory, workspace, settings, show)
    if as_json:
        print_json(found)
    else:
        print_measurements(found)
    if any(m.status != "accepted" for m in found):
        raise typer.Exit(1)
