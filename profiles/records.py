"""The types everything speaks: what was built, where it ran, how, and what came out.

All are frozen; data flow one way.  Raw samples are ``int64`` nanoseconds, in the order taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.int64]

#: What an artifact is there for: a whole compressed model, one block of a latency table, or a
#: sub-network that a search proposed.
Role = Literal["variant", "block", "candidate"]
ArtifactFormat = Literal["executorch", "onnx", "tflite"]
FORMATS: tuple[ArtifactFormat, ...] = get_args(ArtifactFormat)

#: What a trial is after.  ``latency``: back-to-back calls, the bench figure.  ``sustained``: the
#: same for so long that the device's heat shows.  ``app``: one call now and then, with other work
#: between.  ``memory``: what loading and calling takes.  ``energy``: what the power sensor says
#: meanwhile.  ``operators``: the runtime's own account of where its time goes.
TrialKind = Literal["latency", "sustained", "app", "memory", "energy", "operators"]

#: The runtime that executes each format, by the name used in records and on the command line.
RUNTIME_OF: Mapping[ArtifactFormat, str] = {
    "executorch": "executorch",
    "onnx": "onnxruntime",
    "tflite": "litert",
}
#: The ending of each format's file, as the runtimes' own tools write it.
SUFFIX_OF: Mapping[ArtifactFormat, str] = {
    "executorch": ".pte",
    "onnx": ".onnx",
    "tflite": ".tflite",
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of an artifact: name, shape, numpy name of the element type.

    A batch that is open is -1 in the shape.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Io:
    """What an artifact takes and gives, in positional order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Io:
        """The inverse of the canonical JSON form."""

        def specs(items: Any) -> tuple[TensorSpec, ...]:
            return tuple(TensorSpec(i["name"], tuple(i["shape"]), i["dtype"]) for i in items)

        return cls(specs(value["inputs"]), specs(value["outputs"]))

    @property
    def batch(self) -> int:
        """Examples that one call takes: those of a fixed batch, or one where it is open."""
        first = self.inputs[0].shape[:1] if self.inputs else ()
        return first[0] if first and first[0] > 0 else 1

    def closed(self) -> Io:
        """The same with one example where the batch is open."""

        def specs(items: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
            return tuple(
                TensorSpec(i.name, tuple(1 if n < 0 else n for n in i.shape), i.dtype)
                for i in items
            )

        return Io(specs(self.inputs), specs(self.outputs))


@dataclass(frozen=True, slots=True)
class Artifact:
    """A deployable file; immutable, its bytes live under their own sha256.

    Args:
        sha256: of the file's bytes, hex.
        format: which runtime it is for.
        path: where the bytes are on this host.
        size_bytes: length of the file.
        io: inputs and outputs.
        model: name of the model it was made from.
        variant: how it was compressed, by its name in the recipe (``fp32``, ``int8``...).
        dtype: ``float32`` or ``int8``: which tolerances apply.
        recipe_key: key of the stage that made it.
        parent: sha256 of the exported program it was lowered from.
        role: what it is there for.
        toolchain: versions of the packages that made it.
        details: what the compression recorded (calibration, sparsity...).
    """

    sha256: str
    format: ArtifactFormat
    path: Path
    size_bytes: int
    io: Io
    model: str
    variant: str
    dtype: str
    recipe_key: str
    parent: str
    role: Role = "variant"
    toolchain: Mapping[str, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def runtime(self) -> str:
        """Name of the runtime that executes this artifact."""
        return RUNTIME_OF[self.format]


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an artifact's outputs are from its PyTorch reference, on real inputs.

    Args:
        passed: whether every figure is within the tolerance of the artifact's data type.
        reason: which figure is not, or empty.
        n: number of inputs compared.
        max_abs_error: largest absolute difference of any output element.
        cosine: mean cosine similarity of the outputs.
        top1_agreement: share of inputs on which both rank the same class first.
        accuracy: the artifact's own top-1 accuracy.
        reference_accuracy: the uncompressed model's top-1 accuracy on the same inputs.
        accuracy_drop_ci95: paired 95 % interval of reference minus artifact accuracy.
        delegates: what executed it here; a device on which less takes part is refused.
    """

    passed: bool
    reason: str
    n: int
    max_abs_error: float
    cosine: float
    top1_agreement: float
    accuracy: float
    reference_accuracy: float
    accuracy_drop_ci95: tuple[float, float]
    delegates: tuple[str, ...] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Parity:
        """The inverse of ``dataclasses.asdict`` and JSON."""
        low, high = value["accuracy_drop_ci95"]
        delegates = tuple(value.get("delegates", ()))
        return cls(**{**value, "accuracy_drop_ci95": (low, high), "delegates": delegates})


@dataclass(frozen=True, slots=True)
class Condition:
    """How something was measured; part of every key.

    Args:
        threads: threads the runtime was told to use.
        core_mask: hexadecimal affinity mask, or ``None`` for the scheduler's choice.
        mode: ``as-shipped`` (nothing on the device was changed) or ``pinned``.
        governor: cpufreq governor found on the device, or ``unknown``.
        power_source: ``mains``, ``battery`` or ``unknown``.
        delegate: delegate or execution provider asked for; ``None`` for the runtime's default.
    """

    threads: int = 1
    core_mask: str | None = None
    mode: str = "as-shipped"
    governor: str = "unknown"
    power_source: str = "unknown"
    delegate: str | None = None

    def requested(self) -> dict[str, Any]:
        """The part that is asked for before the device has been looked at."""
        return {
            "threads": self.threads,
            "core_mask": self.core_mask,
            "mode": self.mode,
            "delegate": self.delegate,
        }

    def describe(self) -> str:
        """The condition in a few words, for tables."""
        cores = "" if self.core_mask is None else f" cores {self.core_mask}"
        delegate = "" if self.delegate is None else f" {self.delegate}"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{threads}{cores}{delegate} {self.mode}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how often: runs (fresh processes) of iterations each.

    Args:
        kind: see :data:`TrialKind`.
        runs: fresh processes per artifact whose data count, at least; what they vary by decides
            how many more there are (see :mod:`profiles.stopping`).
        max_runs: so many at most; never fewer than ``runs``.
        target: relative half-width of the 95 % interval at which it is enough.
        iterations: timed calls per run, after warm-up; at least so many, where ``window_ns`` is
            longer.
        warmup_iterations: at least so many calls before them,
        warmup_ns: and at least this long.
        window_ns: timed calls go on at least this long; for ``energy`` the idle stretches before
            and after are as long.
        period_ns: from the beginning of one call to that of the next; 0 for back to back.
        meter: for ``energy``, which sensor the inventory names and how it is calibrated, as one
            word; another calibration is another measurement.
        seed: of the order in which artifacts take turns.
        turns: what it was measured in turns with, as one word; such a figure stands beside those
            it took turns with, and for nothing else.
    """

    kind: TrialKind = "latency"
    runs: int = 5
    max_runs: int = 15
    target: float = 0.02
    iterations: int = 200
    warmup_iterations: int = 20
    warmup_ns: int = 200_000_000
    window_ns: int = 0
    period_ns: int = 0
    meter: str = ""
    seed: int = 0
    turns: str = ""


@dataclass(frozen=True, slots=True)
class Run:
    """One fresh process on the device that measured one artifact.

    Args:
        number: 0 for the first of its trial.
        complete: whether it is looked at: the process ended by itself, under the trial's present
            setting.  What an interrupted run had delivered is kept, and never averaged in.
        warmup_ns, samples_ns: every call, in the order made.
        load_ns: from opening the file to a model ready to run; ``None`` if it never was.
        first_ns: the first call.
        environment: what the device said of itself before, once warm, and after, what was read
            before the process began, and the limits it was to keep (see :mod:`profiles.quality`).
        details: what only this kind of trial has: clocks by slice, memory, the power sensor's raw
            readings and time marks, the runtime's profile.
    """

    number: int
    complete: bool
    warmup_ns: Samples
    samples_ns: Samples
    load_ns: int | None
    first_ns: int | None
    environment: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trial:
    """One artifact's part of a visit to a device: the raw material of a measurement.

    Args:
        status: ``open``; ``accepted``, with why it stopped as its reason; ``refused``, with what is
            wrong with its data (see :mod:`profiles.quality`); ``failed``, with what went wrong; or
            ``unknown``, with why the device cannot tell.
        device_serial: of the hardware that was visited, or ``unknown``.
        device_build: the build of its operating system, or ``unknown``.
        agent: which program measured: ``python``, ``native``, ``scripted``..., or ``unknown``.
        fence: of the lease under which it was last opened; 0 for none, older than every lease.
    """

    key: str
    artifact_sha256: str
    device_id: str
    transport: str
    runtime: str
    condition: Condition
    plan: Plan
    runtime_version: str = "unknown"
    delegates: tuple[str, ...] = ()
    emulated: bool = False
    status: str = "open"
    reason: str = ""
    runs: tuple[Run, ...] = ()
    device_serial: str = "unknown"
    device_build: str = "unknown"
    agent: str = "python"
    fence: int = 0
