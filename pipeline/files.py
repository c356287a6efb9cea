"""Single stages on plain files, without a recipe."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from devices.inventory import Device, load_inventory
from pipeline.campaign import Subject, input_file, measure
from pipeline.compress.variants import Job, asks_a_device, compress, original
from pipeline.data import DataHandle, Dataset, Images, Labels, Split
from pipeline.flow import open_workspace
from pipeline.inspect import read_artifact
from pipeline.model import model_stage
from pipeline.stage import Progress, Workspace
from profiles.canonical import file_sha256
from profiles.compression import Method, Variant
from profiles.config import Config, parse
from profiles.errors import DataError, ModelError, UsageError
from profiles.export import Export, Partitioner
from profiles.findings import Measurement
from profiles.measure import Measure
from profiles.recipe import DataSource, Recipe
from profiles.records import Artifact, ArtifactFormat, Plan

if TYPE_CHECKING:
    from torch.export import ExportedProgram


#: Settings that take labels.
_JUDGED = ("train", "max_drop")
#: Inputs of a file whose outputs are kept for reference.
_FEW = 32


@dataclass(frozen=True, slots=True)
class Setting:
    """What a recipe says beside the method, for one file.

    Args:
        format: which runtime's format a quantization, or a measured choice, is for.
        samples: calibration inputs, at most.
        device: id of the device that decides where measurements do; none otherwise.
        inventory: the ``devices.yaml`` with it.
        measure: how often it measures.
    """

    format: ArtifactFormat = "onnx"
    samples: int = 128
    device: str | None = None
    inventory: Path = Path("devices.yaml")
    measure: Measure = field(default_factory=Measure)


def compress_file(
    program: Path,
    output: Path,
    method: Mapping[str, Any],
    data: Path,
    setting: Setting,
    *,
    root: Path | None = None,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """Compress a ``.pt2`` into another, as a recipe with this one variant would.

    Args:
        program, output: read and written.
        method: the variant, as it stands in a recipe: ``method`` and its settings.
        data: ``.npz`` whose array ``x`` holds float32 inputs, shape ``(n, ...)``, and ``y`` their
            labels, for methods that train or judge by accuracy.
        setting: what a recipe says beside.
        root: workspace for what can be gone on with; one that is thrown away if not given.
        progress: told what goes on.

    Returns:
        What the compression recorded.

    Raises:
        UsageError: for files or settings that cannot be used.
        StageError: if the method does not work on this model.
        DeviceError: if a device that decides cannot be reached or leaves.
    """
    from pipeline.programs import load_program

    variant = parse(OneMethod, {"method": dict(method)}, f"--method {method['method']}").method
    devices: dict[str, Device] = {}
    if setting.device is not None:
        devices = {setting.device: load_inventory(setting.inventory).find(setting.device)}
    with ExitStack() as stack:
        aside = stack.enter_context(_replacing(output))
        loaded = load_program(program)
        arrays = FileData(data, setting.samples, loaded)
        _demand_fitting(loaded, program, arrays.x, data)
        demand_usable(variant, arrays, setting)
        folder = root or Path(stack.enter_context(TemporaryDirectory(prefix="edgeloop-")))
        workspace = stack.enter_context(open_workspace(folder, progress))
        recipe = _recipe(program, data, variant, setting)
        model = model_stage(workspace, recipe, arrays)
        job = Job(workspace, recipe, arrays, model, devices)
        (made,) = compress(job, variant, original(job, setting.format))
        shutil.copyfile(made.program, aside)
        return dict(made.details)


class OneMethod(Config):
    """A variant on the command line."""

    method: Variant


class FileData(DataHandle):
    """The arrays of one file, as the data set of a recipe.

    Args:
        path: the ``.npz``.
        samples: how many of its inputs calibrate, at most.
        program: whose own answers are the labels, where there are none: then what it loses is how
            often it changes its mind.
    """

    def __init__(self, path: Path, samples: int, program: ExportedProgram) -> None:
        super().__init__(DataSource(factory="file:npz", calibration=samples))
        self._path, self._program = path, program
        self.x, self.y = _arrays(path)

    @cached_property
    def key(self) -> str:
        """The file's bytes."""
        return file_sha256(self._path)

    @cached_property
    def arrays(self) -> Dataset:
        """All of it to train with; a few to see what the model gives."""
        from pipeline.compress.simulate import outputs_of

        y = outputs_of(self._program, self.x).argmax(1) if self.y is None else self.y
        few = Split(self.x[:_FEW], y[:_FEW])
        return Dataset(Split(self.x, y), few, min(self.calibration_size, len(self.x)))


def demand_usable(variant: Method, data: FileData, setting: Setting) -> None:
    """See that there are the labels and the device that a method needs.

    Raises:
        UsageError: if not.
    """
    judged = [name for name in _JUDGED if getattr(variant, name, None) is not None]
    if judged and data.y is None:
        raise UsageError(f"{judged[0]} needs labels: the data have no array y")
    measured = getattr(variant, "precision", "") == "measured" or asks_a_device(variant)
    if measured and setting.device is None:
        raise UsageError("a device decides here: name one with --device")


def _recipe(program: Path, data: Path, variant: Method, setting: Setting) -> Recipe:
    """The recipe that says the same."""
    plain = {
        "name": re.sub(r"[^\w.-]", "-", program.stem, flags=re.ASCII).lstrip("-._") or "model",
        "model": {"program": _literal(program)},
        "data": {"factory": "file:npz", "calibration": setting.samples},
        "variants": [variant.model_dump(by_alias=True, exclude_none=True)],
        "formats": [setting.format],
        "devices": [setting.device or "none"],
        "inventory": _literal(setting.inventory),
        "measure": setting.measure,
    }
    return parse(Recipe, plain, str(program), program.absolute().parent)


def _literal(path: Path) -> str:
    """A path as a recipe writes it: there ``$`` begins a variable, and ``$$`` is itself."""
    return str(path.absolute()).replace("$", "$$")


def export_file(
    program: Path,
    output: Path,
    format_: ArtifactFormat,
    batch: str | None = None,
    partitioner: Partitioner = "xnnpack",
) -> dict[str, Any]:
    """Lower a ``.pt2`` to a format.

    Args:
        program, output: read and written.
        format_: of the file.
        batch: a number, or ``dynamic``; the program's own if not given.
        partitioner: ExecuTorch's.

    Returns:
        The artifact's sha256, size, inputs and outputs, and what the exporter recorded.

    Raises:
        UsageError: for files that cannot be used.
        ExportError: if the format cannot express the program.
    """
    from dataclasses import asdict

    from pipeline.export import write_artifact
    from pipeline.export.batch import batch_of
    from pipeline.programs import load_program

    with _replacing(output) as aside:
        loaded = load_program(program)
        own = batch_of(loaded) or 1
        wanted = own if batch is None else int(batch) if batch.isdecimal() else batch
        given = {"batch": wanted, "partitioner": partitioner}
        settings = parse(Export, given, "--batch")
        record = write_artifact(loaded, format_, aside, settings, {"program": file_sha256(program)})
    return {
        "sha256": file_sha256(output),
        "size_bytes": output.stat().st_size,
        **record,
        "io": asdict(record["io"]),
    }


def measure_files(
    paths: Sequence[Path],
    device_id: str,
    inventory: Path,
    root: Path,
    settings: Measure,
    progress: Progress,
    plans: Sequence[Plan] | None = None,
) -> list[Measurement]:
    """Measure artifact files with random inputs; their parity is unknown and says so.

    Args:
        paths: ``.pte``, ``.onnx`` and ``.tflite`` files.
        device_id, inventory: where.
        root: workspace for the results.
        settings: how often.
        progress: told what goes on.
        plans: see :func:`pipeline.campaign.measure`.

    Raises:
        UsageError: for files that cannot be used, or an unknown device.
        DeviceError: if the device cannot be reached or leaves.
    """
    device = load_inventory(inventory).find(device_id)
    artifacts = [read_artifact(path) for path in paths]
    with open_workspace(root, progress) as workspace:
        for artifact in artifacts:
            workspace.store.put_artifact(artifact)
        subjects = [Subject(a, _random_inputs(workspace, a)) for a in artifacts]
        trials = measure(workspace, device, subjects, settings, plans=plans)
        return workspace.store.measurements([trial.key for trial in trials])


def _random_inputs(workspace: Workspace, artifact: Artifact) -> tuple[Path, ...]:
    rng = np.random.default_rng(0)
    files = []
    for spec in artifact.io.closed().inputs:
        if spec.dtype != "float32":
            raise UsageError(f"{artifact.path}: input {spec.name} is {spec.dtype}, not float32")
        files.append(input_file(workspace, rng.standard_normal(spec.shape).astype(np.float32)))
    return tuple(files)


def _arrays(data: Path) -> tuple[Images, Labels | None]:
    """Inputs; and their labels, where there are any."""
    try:
        with data.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            x: Images = np.ascontiguousarray(arrays["x"], dtype=np.float32)
            y = arrays.get("y")
    except Exception as error:  # a damaged archive raises whatever zipfile and zlib do
        raise DataError(
            f"{data} is not an .npz with a plain array x, and y if it has labels: {error}"
        ) from error
    if len(x) == 0 or not np.isfinite(x).all():
        raise DataError(f"{data}: x is empty or not finite")
    if y is None:
        return x, None
    if y.ndim != 1:
        raise DataError(f"{data}: y has shape {y.shape}, expected one dimension")
    if not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"{data}: y holds {y.dtype}, expected integers: the numbers of classes")
    if len(y) != len(x):
        raise DataError(f"{data} has {len(x)} inputs and {len(y)} labels")
    return x, y.astype(np.int64)


def _demand_fitting(loaded: ExportedProgram, program: Path, x: Images, data: Path) -> None:
    """See that a program takes one input, one example at a time or any number, like those of x."""
    from pipeline.export.batch import batch_of
    from pipeline.export.tensors import io_of

    inputs = io_of(loaded).inputs
    if len(inputs) != 1 or not inputs[0].shape:
        raise ModelError(
            f"{program} takes {len(inputs)} inputs", "expected one, with examples as its first axis"
        )
    expected, found = inputs[0].shape[1:], x.shape[1:]
    if found != expected:
        raise DataError(f"{data}: x holds inputs of shape {found}, not {expected}")
    if (batch := batch_of(loaded)) not in (1, "dynamic"):
        raise ModelError(
            f"{program} was exported for a batch of {batch}",
            "export it for one example, or for a dynamic batch",
        )


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """A file to write, which becomes ``output`` in the end; nothing is left of it otherwise.

    Raises:
        UsageError: if there can be no such file, before anything is done for it.
    """
    if not output.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {output.absolute().parent}")
    try:
        if output.exists() and not output.is_file():
            raise UsageError(f"{output} is a folder or a device, not a file to write")
        aside = output.with_name(f".partial-{output.name}")
        aside.touch()
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from error
    try:
        yield aside
        aside.replace(output)
    finally:
        aside.unlink(missing_ok=True)
