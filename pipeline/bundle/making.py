"""From a workspace to a bundle: a pure function of what is in its store, its files and the key."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from pipeline.bundle import manifest as schema
from pipeline.bundle.archive import zipped
from pipeline.bundle.choosing import Wish, choose
from pipeline.bundle.loaders.edgeloop_bundle import (
    MANIFEST,
    MAX_BYTES,
    MAX_ENTRIES,
    SIGNATURE,
)
from pipeline.bundle.recorded import recorded
from pipeline.bundle.signing import SigningKey
from pipeline.overview import overview
from profiles import units
from profiles.canonical import canonical_json
from profiles.durable import write_whole
from profiles.errors import StoreError, UsageError
from profiles.findings import Figure, Measurement
from profiles.records import SUFFIX_OF, Artifact
from profiles.store import Store

#: Layout of the inputs of every model that was made from a data set, see :mod:`pipeline.data`.
_LAYOUT = "nchw"
_IMAGE_DIMENSIONS = 4
#: A runtime's version, with or without its package: of LiteRT's other packages (tflite_runtime) the
#: numbers count something else, and of its C library there is but a hash.
_VERSION = re.compile(r"(?:ai_edge_litert )?(\d+(?:\.\d+)+)")


def make_bundle(root: Path, output: Path, wish: Wish, key: SigningKey) -> schema.Manifest:
    """Choose artifacts of a workspace, and write a signed bundle of them.

    Args:
        root: the workspace, with a finished run.
        output: the zip to write; what is there is replaced once the new one is whole.
        wish: what is wanted.
        key: that signs.

    Returns:
        Its manifest.

    Raises:
        UsageError: if there is no workspace, nothing keeps the limits, or it cannot be written.
        StoreError: if a file of the workspace is not what the store says.
    """
    whole = overview(root)
    measurements = [row.measurement for row in whole.rows]
    facts = whole.summary.get("facts") or {}
    devices = facts.get("devices", {})
    names = {device: known["names"] for device, known in devices.items()}
    chosen = choose(measurements, names, wish)
    packing = _Packing(root, facts, measurements)
    distinct = {m.artifact_sha256: m for found in chosen.values() for m in found}
    artifacts = [packing.artifact(m) for m in sorted(distinct.values(), key=_for_any)]
    made = schema.Manifest(
        format="edgeloop-bundle-1",
        name=whole.name,
        chosen_by=schema.Rule(
            best=wish.best,
            limits=tuple(limit.text for limit in wish.limits),
            artifacts=wish.artifacts,
        ),
        signer=schema.Signer(
            algorithm="ed25519", public_key=key.public_key, not_after=key.not_after
        ),
        devices=(
            *(_class(device, devices.get(device), found) for device, found in chosen.items()),
            _any_device(artifacts),
        ),
        artifacts=tuple(artifacts),
        files=tuple(
            schema.File(name=name, sha256=_sha256(content), size_bytes=len(content))
            for name, content in sorted(packing.entries.items())
        ),
    )
    text = canonical_json(made.model_dump(mode="json")).encode()
    signed = {**packing.entries, MANIFEST: text, SIGNATURE: key.sign(text)}
    size_bytes = sum(map(len, signed.values()))
    if size_bytes > MAX_BYTES // 2 or len(signed) > MAX_ENTRIES:
        raise UsageError(
            f"{len(signed)} files of {units.format_bytes(size_bytes)} are too much for a bundle",
            f"{MAX_ENTRIES} and {units.format_bytes(MAX_BYTES // 2)} at most: name artifacts",
        )
    if output.is_dir():
        raise UsageError(f"{output} is a folder: name a file")
    try:
        write_whole(output, zipped(signed))
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from error
    return made


def oldest_version(versions: Iterable[str]) -> str | None:
    """The oldest of a runtime's versions, of those that can be compared."""
    told = [found[1] for found in map(_VERSION.fullmatch, versions) if found]
    return min(told, key=lambda text: [int(n) for n in text.split(".")], default=None)


class _Packing:
    """The files of a bundle, by what they hold, and the records that name them."""

    def __init__(
        self, root: Path, facts: Mapping[str, Any], measurements: Sequence[Measurement]
    ) -> None:
        self._root, self._facts, self._measurements = root, facts, measurements
        with Store(root / "store.db") as store:
            self._recorded = {(a.sha256, a.model, a.variant): a for a in recorded(store, root)}
        self.entries: dict[str, bytes] = {}

    def artifact(self, m: Measurement) -> schema.BundledArtifact:
        """The record of a measured artifact, whose file is put in."""
        found = self._recorded[m.artifact_sha256, m.model, m.variant]
        content = _read(found.path)
        if _sha256(content) != found.sha256:
            raise StoreError(f"{found.path} is damaged: its sha256 differs", "run the recipe again")
        file = f"artifacts/{found.sha256}{SUFFIX_OF[found.format]}"
        self.entries[file] = content
        return schema.BundledArtifact(
            file=file,
            sha256=found.sha256,
            size_bytes=found.size_bytes,
            model=found.model,
            variant=found.variant,
            format=found.format,
            dtype=found.dtype,
            runtime=self._runtime(found),
            inputs=tuple(_tensor(asdict(spec)) for spec in found.io.inputs),
            outputs=tuple(_tensor(asdict(spec)) for spec in found.io.outputs),
            preprocessing=self._facts.get("preprocessing"),
            labels=self._facts.get("labels"),
            parity=schema.Agreement.model_validate(
                {name: getattr(m.parity, name) for name in schema.Agreement.model_fields}
            ),
            toolchain=dict(found.toolchain),
            vectors=tuple(self._vectors(found)),
        )

    def _runtime(self, artifact: Artifact) -> schema.Runtime:
        versions = {
            m.runtime_version
            for m in self._measurements
            if m.artifact_sha256 == artifact.sha256 and m.status == "accepted"
        }
        return schema.Runtime(
            name=cast(Any, artifact.runtime),
            minimal_version=oldest_version(versions),
            measured_versions=tuple(sorted(versions)),
        )

    def _vectors(self, artifact: Artifact) -> Iterable[schema.Vector]:
        found = self._facts.get("vectors", {}).get(artifact.sha256, {"calls": []})
        for call in found["calls"]:
            folder = self._root / "stages" / found["folder"]
            files = {side: self._tensor_file(folder, told) for side, told in call.items()}
            allowed = self._facts["max_relative_error"][artifact.dtype]
            yield schema.Vector.model_validate({**files, "max_relative_error": allowed})

    def _tensor_file(self, folder: Path, told: Mapping[str, Any] | None) -> dict[str, Any] | None:
        if told is None:
            return None
        content = _read(folder / told["file"])
        file = f"vectors/{_sha256(content)}.bin"
        self.entries[file] = content
        return {**told, "file": file}


def _tensor(spec: Mapping[str, Any]) -> schema.Tensor:
    layout = _LAYOUT if len(spec["shape"]) == _IMAGE_DIMENSIONS else None
    return schema.Tensor.model_validate({**spec, "layout": layout})


def _class(
    device: str, known: Mapping[str, Any] | None, found: Sequence[Measurement]
) -> schema.DeviceClass:
    known = known or {"names": [device], "architecture": None, "os": None}
    return schema.DeviceClass(
        names=tuple(known["names"]),
        architecture=known["architecture"],
        os=known["os"],
        choices=tuple(
            schema.BundledChoice(
                artifact=m.artifact_sha256,
                threads=m.condition.threads,
                delegate=m.condition.delegate,
                evidence=_evidence(m),
            )
            for m in found
        ),
    )


def _any_device(artifacts: Sequence[schema.BundledArtifact]) -> schema.DeviceClass:
    """For devices that nobody has measured: accuracy and size are all that is known."""
    choices = tuple(
        schema.BundledChoice(artifact=each.sha256, threads=None, delegate=None, evidence=None)
        for each in artifacts
    )
    return schema.DeviceClass(names=("*",), architecture=None, os=None, choices=choices)


def _for_any(m: Measurement) -> tuple[float, int, str]:
    return -m.parity.accuracy if m.parity else 0.0, m.size_bytes, m.artifact_sha256


def _evidence(m: Measurement) -> schema.Evidence:
    # What is not known is not chosen.
    latency = Figure(cast(float, m.median_ns), m.ci95_ns, m.n, m.runs)
    return schema.Evidence(
        device=m.device,
        device_build=m.device_build,
        emulated=m.emulated,
        transport=m.transport,
        agent=m.agent,
        runtime_version=m.runtime_version,
        delegates=m.delegates,
        condition=asdict(m.condition),
        latency_ns=schema.MeasuredFigure(**asdict(latency)),
        p90_ns=m.p90_ns,
        app_ns=_figure(m.app_ns),
        sustained_ns=_figure(m.sustained_ns),
        energy_uj=_figure(m.energy.net_uj if m.energy else None),
        peak_memory_bytes=m.memory.peak_bytes if m.memory else None,
        remarks=tuple(remark.text for remark in m.remarks),
    )


def _figure(figure: Figure | None) -> schema.MeasuredFigure | None:
    return None if figure is None else schema.MeasuredFigure(**asdict(figure))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror}", "run the recipe again"
        ) from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
