"""The whole loop: a recipe in; measured artifacts, a table, a searched front and a report's data
out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from devices.inventory import Device
from pipeline.bench import pick_devices
from pipeline.bundle.facts import facts
from pipeline.campaign import Subject, condition_of, input_file, measure
from pipeline.compress.variants import Compressed, Job, compress, original
from pipeline.data import DataHandle
from pipeline.export import export_stage, told
from pipeline.export.parity import parity_stage
from pipeline.model import REFERENCE, model_stage
from pipeline.stage import Progress, Workspace
from profiles.durable import write_whole
from profiles.errors import DeviceError, EdgeError, StageError
from profiles.findings import Measurement
from profiles.measure import Measure
from profiles.recipe import DataSource, Recipe
from profiles.records import Artifact, Parity

SUMMARY = "run.json"


@dataclass(frozen=True, slots=True)
class Failure:
    """Something that did not work while the rest went on: where, what, and why."""

    stage: str
    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Note:
    """What a reader of a variant's row should know of how it was made, in one line."""

    variant: str
    format: str
    device: str | None
    text: str


@dataclass(frozen=True, slots=True)
class Checked:
    """An artifact, its parity, and the one device it was made for (``None``: for all)."""

    artifact: Artifact
    parity: Parity
    device: str | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a run came to.

    Args:
        name: of the model.
        accuracy: of the uncompressed model on the test split, as a fraction.
        parameters: number of its parameters.
        measurements: of its variants, one per artifact, device and condition.
        search: what the search found, as plain data, or ``None`` without one.
        failures: what did not work.
        notes: what was decided for a variant, and why; what to keep in mind of how it was made.
        lowered: what exporting recorded of each artifact: batch, opset, where operators run.
        facts: what bundles say beside what the store knows, see :mod:`pipeline.bundle.facts`.
    """

    name: str
    accuracy: float
    parameters: int
    measurements: tuple[Measurement, ...]
    search: dict[str, Any] | None
    failures: tuple[Failure, ...]
    notes: tuple[Note, ...] = ()
    lowered: tuple[dict[str, Any], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def run(
    recipe: Recipe,
    root: Path,
    *,
    import_from: Path | None = None,
    progress: Progress = lambda text: None,
) -> RunSummary:
    """Do everything a recipe asks for; what is done already is not done again.

    Args:
        recipe: see :mod:`profiles.recipe`.
        root: the workspace's folder.
        import_from: a folder in which the recipe's import paths are looked up first; the
            recipe's own where none is named.
        progress: called with a line of text when something begins or moves on.

    Raises:
        UsageError: the recipe, its model or its data cannot be used; nothing was measured.
        EdgeError: a stage that everything else needs failed.  What fails for one format or one
            device alone is in the summary's ``failures``.
    """
    failures: list[Failure] = []
    with ExitStack() as stack:
        stack.enter_context(importing_from(import_from or recipe.folder))
        bench = pick_devices(recipe)
        workspace = stack.enter_context(open_workspace(root, progress))
        data = DataHandle(recipe.data)
        model = model_stage(workspace, recipe, data)
        devices = {device.id: device for device in bench.measured}
        job = Job(workspace, recipe, data, model, devices)
        compressed = compress_all(job, failures)
        checked = export_all(job, compressed, failures)
        trials: set[str] = set()
        for device in bench.measured:
            trials |= measure_all(workspace, recipe, checked, device, data, failures)
        if recipe.profile:
            from pipeline.profile.flow import profile_variants

            profile_variants(workspace, recipe, compressed, checked, bench.measured, data, failures)
        found = _search(workspace, recipe, data, bench.searched, failures)
        summary = RunSummary(
            name=recipe.name,
            accuracy=model.value["accuracy"],
            parameters=model.value["parameters"],
            measurements=tuple(_own_measurements(workspace, checked, trials)),
            search=found,
            failures=tuple(failures),
            notes=tuple(
                Note(item.variant, item.format, item.device, text)
                for item in compressed
                for text in item.details.get("notes", ())
            ),
            lowered=tuple({**told(item.artifact), "device": item.device} for item in checked),
            facts=facts(
                workspace,
                recipe,
                data,
                [*bench.measured, bench.searched],
                _agreeing(checked, found),
            ),
        )
        _write_summary(workspace, summary)
    return summary


@contextmanager
def open_workspace(root: Path, progress: Progress) -> Iterator[Workspace]:
    """A workspace, given back on any way out."""
    workspace = Workspace.open(root, progress)
    try:
        yield workspace
    finally:
        workspace.close()


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Look modules up in ``folder`` first."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


def compress_all(job: Job, failures: list[Failure]) -> list[Compressed]:
    """Every variant for every format; what a method cannot do is added to ``failures``."""
    compressed = []
    for format_ in job.recipe.formats:
        made: dict[str | None, Compressed] = {None: original(job, format_)}
        for variant in job.recipe.variants:
            what = f"{variant.name} {format_}"
            if variant.after not in made:
                failures.append(Failure("compress", what, f"there is no {variant.after} to go on"))
                continue
            try:
                found = compress(job, variant, made[variant.after])
            except EdgeError as error:  # of this variant: the others go on
                failures.append(Failure("compress", what, str(error)))
                continue
            compressed += found
            made[variant.name] = found[0]
    order = [variant.name for variant in job.recipe.variants]
    return sorted(compressed, key=lambda item: order.index(item.variant))


def export_all(
    job: Job, compressed: Sequence[Compressed], failures: list[Failure]
) -> list[Checked]:
    """Export and check each; a format that cannot express one is added to ``failures``."""
    workspace, recipe = job.workspace, job.recipe
    checked = []
    for item in compressed:
        try:
            artifact = export_stage(
                workspace,
                item.program if recipe.export.batch == 1 else item.trainable or item.program,
                item.format,
                model=recipe.name,
                variant=item.variant,
                dtype=item.dtype,
                details=item.details,
                settings=recipe.export,
                says=says(recipe.data, item),
            )
            parity = parity_stage(
                workspace,
                artifact,
                getattr(recipe.tolerances, item.dtype),
                job.data,
                item.reference,
                job.model.folder / REFERENCE,
            )
        except StageError as error:
            failures.append(Failure("export", f"{item.variant} {item.format}", str(error)))
            continue
        workspace.store.put_artifact(artifact, parity)
        checked.append(Checked(artifact, parity, item.device))
        if not parity.passed:
            failures.append(Failure("parity", f"{item.variant} {item.format}", parity.reason))
    return checked


def says(data: DataSource, item: Compressed) -> dict[str, Any]:
    """What a file says of itself: how it was compressed, and what its inputs must look like."""
    settings = item.details.get("settings", {"method": "fp32"})
    # Names are in the store: what has two of them is one file.
    compression = {key: settings[key] for key in settings if key not in ("name", "from")}
    normalisation = {"mean": data.mean, "std": data.std}
    return {"compression": compression, "normalisation": normalisation}


def measure_all(
    workspace: Workspace,
    recipe: Recipe,
    checked: Sequence[Checked],
    device: Device,
    data: DataHandle,
    failures: list[Failure],
) -> set[str]:
    """Measure what passed parity on one device; what goes wrong is added to ``failures``.

    Returns:
        The keys of the trials.
    """

    def sample(artifact: Artifact) -> Path:
        return input_file(workspace, data.arrays.test.x[: artifact.io.batch])

    subjects = [
        Subject(item.artifact, (sample(item.artifact),), item.parity.delegates)
        for item in checked
        if item.parity.passed and item.device in (None, device.id)
    ]
    names = {s.artifact.sha256: f"{s.artifact.variant} {s.artifact.format}" for s in subjects}
    try:
        trials = measure(workspace, device, subjects, recipe.measure)
    except DeviceError as error:
        failures.append(Failure("measure", device.id, str(error)))
        return _kept(workspace, device, subjects, recipe.measure)
    for trial in trials:
        # A device that cannot tell, its energy for one, has not failed.
        if trial.status not in ("accepted", "unknown"):
            name, kind = names[trial.artifact_sha256], trial.plan.kind
            what = name if kind == "latency" else f"{kind} of {name}"
            failures.append(Failure("measure", f"{what} on {device.id}", trial.reason))
    return {trial.key for trial in trials}


def _kept(
    workspace: Workspace, device: Device, subjects: Sequence[Subject], settings: Measure
) -> set[str]:
    """The keys of what was measured before a device left."""
    artifacts = {subject.artifact.sha256 for subject in subjects}
    plans = settings.plans()
    return {
        trial.key
        for trial in workspace.store.trials()
        if trial.artifact_sha256 in artifacts
        and trial.device_id == device.id
        and replace(trial.plan, meter="") in plans
        and trial.condition.requested()
        in [condition_of(settings, trial.runtime, n).requested() for n in settings.threads]
    }


def search_alone(
    recipe: Recipe,
    root: Path,
    *,
    import_from: Path | None = None,
    progress: Progress = lambda text: None,
) -> dict[str, Any]:
    """Only the search of a recipe, as plain data; arguments and errors as for :func:`run`."""
    from pipeline.search.loop import result_to_json, search

    with importing_from(import_from or recipe.folder):
        device = pick_devices(recipe).searched
        with open_workspace(root, progress) as workspace:
            return result_to_json(search(workspace, recipe, DataHandle(recipe.data), device))


def table_alone(
    recipe: Recipe,
    root: Path,
    *,
    import_from: Path | None = None,
    progress: Progress = lambda text: None,
) -> Path:
    """Only the latency table of a recipe's search space; arguments and errors as for :func:`run`.

    Returns:
        The table's file.
    """
    from pipeline.search.loop import table_of, table_path

    with importing_from(import_from or recipe.folder):
        device = pick_devices(recipe).searched
        with open_workspace(root, progress) as workspace:
            table_of(workspace, recipe, device)
            return table_path(workspace, recipe, device)


def _search(
    workspace: Workspace,
    recipe: Recipe,
    data: DataHandle,
    device: Device,
    failures: list[Failure],
) -> dict[str, Any] | None:
    if recipe.search is None:
        return None
    from pipeline.search.loop import result_to_json, search

    try:
        result = search(workspace, recipe, data, device)
    except EdgeError as error:
        failures.append(Failure("search", recipe.search.format, str(error)))
        return None
    failures += [Failure("search", "candidate", reason) for reason in result.failures]
    return result_to_json(result)


def _agreeing(checked: Sequence[Checked], found: dict[str, Any] | None) -> set[str]:
    """The sha256 of every artifact of a run that agrees with its reference."""
    passed = {item.artifact.sha256 for item in checked if item.parity.passed}
    return passed | {
        candidate["artifact_sha256"] for candidate in (found or {}).get("candidates", ())
    }


def _own_measurements(
    workspace: Workspace, checked: Sequence[Checked], trials: set[str]
) -> list[Measurement]:
    own = {(item.artifact.sha256, item.artifact.model, item.artifact.variant) for item in checked}
    return [
        m
        for m in workspace.store.measurements()
        if (m.artifact_sha256, m.model, m.variant) in own and (m.trial in trials or not m.trial)
    ]


def _write_summary(workspace: Workspace, summary: RunSummary) -> None:
    plain = asdict(summary)
    # The store has the measurements; which of them are this run's is told here.
    plain["measurements"] = [[m.trial, m.model, m.variant] for m in summary.measurements]
    write_whole(workspace.root / SUMMARY, (json.dumps(plain, indent=2) + "\n").encode())
