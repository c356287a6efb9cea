"""The manifest's schema: what a bundle says of itself, for apps and for people.

What is unknown is ``null``.  ``manifest.schema.json`` beside this file is made from these classes
(``python -m pipeline.bundle.manifest``); a test compares the two.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from profiles.config import Config
from profiles.records import ArtifactFormat

SCHEMA = Path(__file__).with_name("manifest.schema.json")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0)]
Interval = tuple[float, float]
Layout = Literal["nchw", "nhwc"]


class File(Config):
    """An entry of the zip."""

    name: str
    sha256: Sha256
    size_bytes: Size


class Tensor(Config):
    """An input or output, in positional order; -1 is an open batch."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout | None


class Preprocessing(Config):
    """From an image as a file holds it to an input: divided, less ``mean``, over ``std``.

    ``mean`` and ``std`` have one number per channel; ``null`` is none.  Then the axes are put in
    the input's order.
    """

    raw_dtype: str
    raw_layout: Layout
    divide_by: float
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


class Runtime(Config):
    """What runs an artifact.

    ``minimal_version`` is the oldest one it was measured with; an older one may do, and nobody has
    seen it.  ``null`` where runtimes told no version that can be compared.
    """

    name: Literal["executorch", "onnxruntime", "litert"]
    minimal_version: str | None
    measured_versions: tuple[str, ...]


class Agreement(Config):
    """How far outputs are from PyTorch's, on the test split; see ``profiles.records.Parity``."""

    n: Size
    accuracy: float
    reference_accuracy: float
    accuracy_drop_ci95: Interval
    max_abs_error: float
    cosine: float
    top1_agreement: float


class TensorFile(Config):
    """The little-endian bytes of a tensor in the zip."""

    file: str
    shape: tuple[int, ...]
    dtype: str


class Vector(Config):
    """A golden call: an image before and after pre-processing, and what came out on the host.

    ``max_relative_error``: how far an output may be off, as a share of the largest golden one: what
    the recipe demands of parity.
    """

    raw: TensorFile | None
    input: TensorFile
    output: TensorFile
    max_relative_error: float


class BundledArtifact(Config):
    """A model's file."""

    file: str
    sha256: Sha256
    size_bytes: Size
    model: str
    variant: str
    format: ArtifactFormat
    dtype: str
    runtime: Runtime
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    parity: Agreement
    toolchain: dict[str, str]
    vectors: tuple[Vector, ...]


class MeasuredFigure(Config):
    """A figure with its 95 % interval over runs, and how many samples and runs it is of."""

    value: float
    ci95: Interval | None
    n: Size
    runs: Size


class Evidence(Config):
    """What was measured of an artifact on a device, and how; ``emulated`` says nothing about real
    hardware."""

    device: str
    device_build: str
    emulated: bool
    transport: str
    agent: str
    runtime_version: str
    delegates: tuple[str, ...]
    condition: dict[str, str | int | None]
    latency_ns: MeasuredFigure
    p90_ns: float | None
    app_ns: MeasuredFigure | None
    sustained_ns: MeasuredFigure | None
    energy_uj: MeasuredFigure | None
    peak_memory_bytes: Size | None
    remarks: tuple[str, ...]


class BundledChoice(Config):
    """What to run, and as it was measured; without evidence nothing is known of such a device."""

    artifact: Sha256
    threads: int | None
    delegate: str | None
    evidence: Evidence | None


class DeviceClass(Config):
    """Devices by any of their names, and what to run on them: the first whose runtime is there.

    ``*`` is any device, and comes last.
    """

    names: tuple[str, ...]
    architecture: str | None
    os: str | None
    choices: tuple[BundledChoice, ...]


class Signer(Config):
    """The key that ``manifest.sig`` is made with; it is trusted for being known, not for being
    named here."""

    algorithm: Literal["ed25519"]
    public_key: str
    not_after: str | None


class Rule(Config):
    """How artifacts were chosen."""

    best: str
    limits: tuple[str, ...]
    artifacts: tuple[str, ...]


class Manifest(Config):
    """All that a bundle says."""

    format: Literal["edgeloop-bundle-1"]
    name: str
    chosen_by: Rule
    signer: Signer
    devices: tuple[DeviceClass, ...]
    artifacts: tuple[BundledArtifact, ...]
    files: tuple[File, ...]


def schema() -> dict[str, Any]:
    """The manifest's JSON Schema."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {**dialect, **Manifest.model_json_schema()}


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(schema(), indent=2) + "\n")
