"""What programs cost on one device with one runtime: the answer that measured choices ask for."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devices.inventory import Device
from pipeline.campaign import Subject, measure
from pipeline.export.batch import batch_of
from pipeline.model import PROGRAM
from pipeline.profile.parts import (
    CALL,
    WHOLE,
    Network,
    Parts,
    save_call,
    save_part,
    subject_of,
)
from pipeline.stage import Stage, Workspace
from profiles.canonical import digest, file_sha256
from profiles.comparison import Round, medians_by_round
from profiles.energy import energy_of_run, summarise_energy
from profiles.errors import StageError
from profiles.export import Batch, Export, Partitioner
from profiles.measure import Measure
from profiles.measurements import summary_of
from profiles.quality import counting_runs
from profiles.recipe import Tolerances
from profiles.records import ArtifactFormat, Plan, Trial

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from pipeline.compress.variants import Job


@dataclass(frozen=True, slots=True)
class DeviceGauge:
    """Exports programs, sees that their artifacts compute what they should, and measures them.

    All programs of one question share each process and take turns in it, so that what moves the
    device moves all: their figures stand beside each other, not beside those of another question.
    A question that was answered before is answered from the workspace.

    Args:
        workspace: for stages and measurements.
        device: to measure on.
        format: to export to.
        settings: how often to measure; its first thread count counts.
        tolerances: of the outputs, by data type.
        model: name for the records.
        cost: ``latency`` in nanoseconds, or ``energy`` in microjoules.
        partitioner: ExecuTorch's, as of the artifacts that are chosen for.
    """

    workspace: Workspace
    device: Device
    format: ArtifactFormat
    settings: Measure
    tolerances: Tolerances = field(default_factory=Tolerances)
    model: str = "gauge"
    cost: str = "latency"
    partitioner: Partitioner = "xnnpack"

    def measure(self, programs: Mapping[str, ExportedProgram]) -> dict[str, float]:
        """What one call of each program costs.

        Args:
            programs: by name, of a fixed batch size, with their example inputs.

        Returns:
            By name, nanoseconds or microjoules of one call, above 0.  Of the latency also, under
            ``call``, those of an empty network, which took part in the turns: what is to be
            subtracted from a program that is a part of another.

        Raises:
            StageError: if any cannot be exported or measured, by name.
            DeviceError: if the device cannot be reached or leaves.
        """
        found = self.attempt(programs)
        failed = [f"{name}: {why}" for name, why in found.items() if isinstance(why, str)]
        if failed:
            raise StageError(
                f"no {self.cost} of {self.format} on {self.device.id}: {'; '.join(failed)}",
                "name another format or device, or a budget that is counted (macs or parameters)",
                self.device.id,
            )
        return {name: cost for name, cost in found.items() if not isinstance(cost, str)}

    def attempt(self, programs: Mapping[str, ExportedProgram]) -> dict[str, float | str]:
        """As :meth:`measure`, with the reason for a program that there is no figure of."""
        return {
            name: trial if isinstance(trial, str) else _cost(trial)
            for name, trial in self._trials(programs).items()
        }

    def rounds(self, programs: Mapping[str, ExportedProgram]) -> dict[str, dict[Round, float]]:
        """As :meth:`measure`, of the latency, by rounds: those of one round stood side by side."""
        timed = replace(self, cost="latency")
        timed.measure(programs)
        trials = timed._trials(programs)
        return {name: medians_by_round(t) for name, t in trials.items() if isinstance(t, Trial)}

    def _trials(self, programs: Mapping[str, ExportedProgram]) -> dict[str, Trial | str]:
        found: dict[str, Trial | str] = {}
        subjects: dict[str, Subject] = {}
        for number, (name, program) in enumerate(programs.items(), start=1):
            self.workspace.progress(f"gauge: {name} to {self.format} ({number}/{len(programs)})")
            try:
                subjects[name] = self._subject(name, program)
            except StageError as error:
                found[name] = str(error)
        in_turns = self.cost == "latency"
        if subjects and in_turns:
            subjects[CALL] = self._call()
        trials = measure(
            self.workspace,
            self.device,
            list(subjects.values()),
            self.settings.model_copy(update={"threads": self.settings.threads[:1]}),
            together=in_turns,
            plans=[self._plan(subjects)],
        )
        by_sha = {trial.artifact_sha256: trial for trial in trials}
        return found | {name: by_sha[one.artifact.sha256] for name, one in subjects.items()}

    def _plan(self, subjects: Mapping[str, Subject]) -> Plan:
        plan = self.settings.plan()
        if self.cost == "energy":
            return replace(plan, kind="energy", runs=5, max_runs=5)
        # As in a profile: what took other turns is another figure, and nothing goes on alone.
        turns = digest(sorted(subject.artifact.sha256 for subject in subjects.values()))
        return replace(plan, turns=f"gauge-{turns}", max_runs=plan.runs)

    def _subject(self, name: str, program: ExportedProgram) -> Subject:
        from pipeline.profile.cut import is_quantized
        from pipeline.programs import save_program

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / PROGRAM
            save_program(program, file)
            stage = Stage("gauge-program", {"program": file_sha256(file)}, ("torch",))

            def work(partial: Path) -> dict[str, Any]:
                shutil.copyfile(file, partial / PROGRAM)
                inputs = _inputs(program)
                save_part(partial, WHOLE, None, inputs, _outputs(program, inputs))
                return {"dtype": "int8" if is_quantized(program) else "float32"}

            result = self.workspace.run(stage, work)
        parts = _uncut(result.key, result.folder, result.value["dtype"])
        network = Network(result.folder / PROGRAM, self.model, name, ())
        return self._exported(network, parts, WHOLE, self._settings(batch_of(program)))

    def _call(self) -> Subject:
        def work(folder: Path) -> dict[str, Any]:
            save_call(folder)
            return {}

        result = self.workspace.run(Stage("gauge-call", {}, ("torch",)), work)
        parts = _uncut(result.key, result.folder, "float32")
        network = Network(result.folder / f"{CALL}.pt2", self.model, "gauge", ())
        return self._exported(network, parts, CALL, self._settings(1))

    def _settings(self, batch: Batch | None) -> Export:
        """As a recipe exports what is shipped, but each program with the batch that it has."""
        return Export(batch=batch or 1, partitioner=self.partitioner)

    def _exported(self, network: Network, parts: Parts, part: str, settings: Export) -> Subject:
        return subject_of(
            self.workspace, network, parts, part, self.format, self.tolerances, settings
        )


def gauge_for(job: Job, device: Device, format_: ArtifactFormat, cost: str) -> DeviceGauge:
    """The gauge of a recipe's device and format, measuring as often as the recipe says.

    Args:
        job: whose workspace and settings.
        device: to measure on.
        format_: whose runtime.
        cost: ``latency`` or ``energy``.

    Raises:
        StageError: if the recipe's artifacts take more than one example with a call: what costs
            least with one need not with many.
    """
    recipe = job.recipe
    if recipe.export.batch not in (1, "dynamic"):
        raise StageError(
            f"{cost}: choices are measured with one example, and export.batch is"
            f" {recipe.export.batch}",
            "take a budget that is counted (macs or parameters) and round_to a number, or"
            " export.batch: 1",
        )
    return DeviceGauge(
        job.workspace,
        device,
        format_,
        recipe.measure,
        recipe.tolerances,
        recipe.name,
        cost,
        recipe.export.partitioner,
    )


def _uncut(key: str, folder: Path, dtype: str) -> Parts:
    return Parts(key, folder, 0, 0, 0, (), {}, dtype)


def _inputs(program: ExportedProgram) -> tuple[Any, ...]:
    if not program.example_inputs:
        raise StageError("the program has no example inputs to be called with")
    return tuple(program.example_inputs[0])


def _outputs(program: ExportedProgram, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    import torch

    with torch.no_grad():
        made = program.module(check_guards=False)(*inputs)
    return tuple(made) if isinstance(made, tuple | list) else (made,)


def _cost(trial: Trial) -> float | str:
    """The figure of an accepted trial, or why there is none."""
    if trial.status != "accepted":
        return f"{trial.status}: {trial.reason}"
    if trial.plan.kind == "energy":
        runs = [energy_of_run(run.details) for run in counting_runs(trial)]
        net = summarise_energy(runs).net_uj
        least = net.ci95[0] if net.ci95 else net.value
        return net.value if least > 0 else "its energy is too small to be told from idle"
    return float(summary_of(trial).median_ns)
