"""Load a bundle of models that edgeloop made: verify it, pick the artifact for a device, run it.

One file for an app to take with it, of Python 3.9 or newer.  It needs ``cryptography``, and to run
a model its runtime.

    bundle = Bundle.open("models.zip", ["bCm70SnCAb1yvtbhEbnrz9ntycAenWXUOvCaWad64yE="])
    choice = bundle.choose(["pixel-8"], {"onnxruntime": "1.31.1"})
    logits = Model(bundle, choice)(values)

A bundle is a zip of stored entries in one fixed form: sorted by name, of one date and one set of
permissions, with nothing before, between or behind them.  So for given names and bytes there is
exactly one file, and whatever differs from it is refused.  Nothing of it is believed before its
signature is.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = "edgeloop-bundle-1"
MANIFEST = "manifest.json"
SIGNATURE = "manifest.sig"
#: In a class of devices: any device.
ANY_DEVICE = "*"
#: Every entry's bytes begin at a multiple of this, so that a mapped file can be used in place.
ALIGNMENT = 64
MAX_ENTRIES = 1000
MAX_MANIFEST_BYTES = 4 << 20
#: Zip's 32-bit sizes; half of it, for readers whose integers have a sign.
MAX_BYTES = (1 << 31) - 1

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*")
_DATE = 1 << 5 | 1  # 1 January 1980, the first that a zip can tell
_PERMISSIONS = 0o100644 << 16  # a plain file: never a link
_UNIX_2_0, _PLAIN_2_0 = 3 << 8 | 20, 20
_LOCAL = struct.Struct("<4s5H3I2H")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
#: The extra field that Android's zipalign pads with.
_PADDING_ID = 0xD935


class BundleError(ValueError):
    """A bundle is not what it should be, or has nothing for a device: the reason in one line."""


@dataclass(frozen=True)
class Choice:
    """What to run on a device.

    Args:
        artifact: its record in the manifest: file, inputs, outputs, preprocessing, labels...
        threads: that it was measured with; ``None`` where it was not measured on such a device.
        delegate: that was asked for; ``None`` for the runtime's own choice.
        evidence: what was measured on such a device, or ``None``.
    """

    artifact: Mapping[str, Any]
    threads: int | None
    delegate: str | None
    evidence: Mapping[str, Any] | None


@dataclass(frozen=True)
class Bundle:
    """A bundle that has been verified.

    Args:
        manifest: as the schema says.
        entries: the bytes of each file.
    """

    manifest: Mapping[str, Any]
    entries: Mapping[str, memoryview]

    @classmethod
    def open(
        cls,
        path: str | Path,
        public_keys: Sequence[str],
        now: datetime.datetime | None = None,
    ) -> Bundle:
        """Read and verify a bundle.

        Args:
            path: of the file.
            public_keys: that are trusted, each as the base64 text of its 32 bytes.
            now: the time that an expiry is compared with; the clock's unless given.

        Raises:
            BundleError: if it is not whole, not signed by one of the keys, or expired.
            OSError: if it cannot be read.
        """
        if Path(path).stat().st_size > MAX_BYTES:
            raise BundleError(f"it has more than {MAX_BYTES} bytes")
        return cls.verified(Path(path).read_bytes(), public_keys, now)

    @classmethod
    def verified(
        cls, content: bytes, public_keys: Sequence[str], now: datetime.datetime | None = None
    ) -> Bundle:
        """The same of bytes."""
        entries = read_entries(content)
        for name in (MANIFEST, SIGNATURE):
            if name not in entries:
                raise BundleError(f"there is no {name} in it")
        if len(entries[MANIFEST]) > MAX_MANIFEST_BYTES:
            raise BundleError(f"its manifest has more than {MAX_MANIFEST_BYTES} bytes")
        _demand_signed(bytes(entries[MANIFEST]), bytes(entries[SIGNATURE]), public_keys)
        try:
            manifest = json.loads(bytes(entries[MANIFEST]))
            found = manifest["format"]
            if found != FORMAT:
                raise BundleError(f"its format is {found!r}, this loader reads {FORMAT}")
            _demand_in_time(manifest["signer"]["not_after"], now)
            _demand_listed(manifest["files"], entries)
        except BundleError:
            raise
        except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise BundleError(f"its manifest is none: {type(error).__name__}: {error}") from None
        return cls(manifest, entries)

    def choose(self, device: Sequence[str], runtimes: Mapping[str, str | None]) -> Choice:
        """The best artifact for a device, among the runtimes that the app has.

        Args:
            device: names of it, the one that fits best first: its id, its model as the maker says
                it, its profile.
            runtimes: the app's, with their versions; ``None`` for a version that is unknown, which
                is taken to be new enough.

        Raises:
            BundleError: if there is none.
        """
        artifacts = {each["sha256"]: each for each in self.manifest["artifacts"]}
        for choice in self._choices(device):
            artifact = artifacts[choice["artifact"]]
            runtime = artifact["runtime"]
            if runtime["name"] in runtimes and _is_new_enough(
                runtimes[runtime["name"]], runtime["minimal_version"]
            ):
                return Choice(artifact, choice["threads"], choice["delegate"], choice["evidence"])
        wanted = ", ".join(runtimes) or "no runtime"
        raise BundleError(f"it has nothing for {', '.join(device)} with {wanted}")

    def _choices(self, device: Sequence[str]) -> Iterator[Mapping[str, Any]]:
        """What fits a device, best first; what fits any device, last."""
        for name in (*device, ANY_DEVICE):
            for group in self.manifest["devices"]:
                if name.lower() in [called.lower() for called in group["names"]]:
                    yield from group["choices"]

    def content(self, choice: Choice) -> bytes:
        """The artifact's bytes."""
        return bytes(self.entries[choice.artifact["file"]])

    def array(self, tensor: Mapping[str, Any]) -> Any:
        """A tensor of a golden vector as a numpy array."""
        import numpy as np

        kind = np.dtype(tensor["dtype"]).newbyteorder("<")
        return np.frombuffer(self.entries[tensor["file"]], kind).reshape(tensor["shape"])


class Model:
    """An artifact of a bundle, loaded by its runtime from the bytes that were verified."""

    def __init__(self, bundle: Bundle, choice: Choice) -> None:
        make = {"onnxruntime": _onnxruntime, "litert": _litert, "executorch": _executorch}
        runtime = choice.artifact["runtime"]["name"]
        self._inputs = len(choice.artifact["inputs"])
        self._call = make[runtime](bundle.content(choice), choice)

    def __call__(self, *values: Any) -> list[Any]:
        """The outputs for these inputs, numpy arrays both, in the manifest's order.

        Raises:
            BundleError: for another number of inputs than the model takes.
        """
        if len(values) != self._inputs:
            raise BundleError(f"the model takes {self._inputs} inputs, not {len(values)}")
        return list(self._call(values))


def check(bundle: Bundle, choice: Choice, model: Model) -> float:
    """Run a model on the bundle's golden inputs.

    Returns:
        The largest difference from the golden outputs, as a share of the largest of them; 0 where
        the bundle has none.

    Raises:
        BundleError: if it is more than the manifest allows.
    """
    import numpy as np

    worst = 0.0
    for vector in choice.artifact["vectors"]:
        given, expected = (bundle.array(vector[side]) for side in ("input", "output"))
        difference = np.abs(model(given)[0] - expected).max() / np.abs(expected).max()
        worst = max(worst, float(difference))
        if not difference <= vector["max_relative_error"]:
            allowed = vector["max_relative_error"]
            raise BundleError(f"outputs are off by {difference:.3g}, {allowed:g} is allowed")
    return worst


def _onnxruntime(content: bytes, choice: Choice) -> Any:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # official builds report home
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if choice.threads is not None:
        options.intra_op_num_threads = choice.threads
    providers = [choice.delegate or "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(content, options, providers=providers)
    names = [each.name for each in session.get_inputs()]
    return lambda values: session.run(None, dict(zip(names, values)))  # noqa: B905


def _litert(content: bytes, choice: Choice) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=choice.threads)
    interpreter.allocate_tensors()

    def call(values: Sequence[Any]) -> list[Any]:
        for detail, value in zip(interpreter.get_input_details(), values):  # noqa: B905
            interpreter.set_tensor(detail["index"], value)
        interpreter.invoke()
        return [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]

    return call


def _executorch(content: bytes, choice: Choice) -> Any:
    import torch
    from executorch.extension.pybindings import _portable_lib

    with contextlib.suppress(ImportError, OSError):
        import executorch.kernels.quantized  # noqa: F401
    if choice.threads is not None:
        _portable_lib._unsafe_reset_threadpool(choice.threads)
    program = _portable_lib._load_program_from_buffer(content)
    method = program.load_method("forward")

    # The program reads from the bytes that it was given for as long as it is used.
    def call(values: Sequence[Any], _alive: Any = (content, program)) -> list[Any]:
        inputs = [torch.tensor(value) for value in values]
        return [output.numpy().copy() for output in method.call(inputs)]

    return call


def local_header(name: str, crc: int, size: int, offset: int) -> bytes:
    """The only header that an entry which begins at this offset of the file may have."""
    encoded = name.encode()
    room = -(offset + _LOCAL.size + len(encoded)) % ALIGNMENT
    if room and room < 6:  # an extra field has 4 bytes of its own, and zipalign's 2 more
        room += ALIGNMENT
    head = (b"PK\3\4", _PLAIN_2_0, 0, 0, 0, _DATE, crc, size, size, len(encoded), room)
    padding = (
        struct.pack("<3H", _PADDING_ID, room - 4, ALIGNMENT).ljust(room, b"\0") if room else b""
    )
    return _LOCAL.pack(*head) + encoded + padding


def central_header(name: str, crc: int, size: int, offset: int) -> bytes:
    """The same entry in the zip's directory."""
    encoded = name.encode()
    versions = (b"PK\1\2", _UNIX_2_0, _PLAIN_2_0, 0, 0, 0, _DATE, crc, size, size)
    return _CENTRAL.pack(*versions, len(encoded), 0, 0, 0, 0, _PERMISSIONS, offset) + encoded


def end_record(count: int, size: int, offset: int) -> bytes:
    """The end of a zip whose directory has so many entries and bytes, and begins there."""
    return _END.pack(b"PK\5\6", 0, 0, count, count, size, offset, 0)


def read_entries(content: bytes) -> dict[str, memoryview]:
    """The files in a zip of the one form described above.

    Raises:
        BundleError: for any other; nothing is allocated for what a header claims.
    """
    view = memoryview(content)
    if not _END.size <= len(content) <= MAX_BYTES:
        raise BundleError(f"{len(content)} bytes are no bundle")
    end = len(content) - _END.size
    count, size, start = _END.unpack_from(content, end)[4:7]
    if view[end:] != end_record(count, size, start) or start + size != end:
        raise BundleError("its end is not that of a bundle: truncated, or not one")
    if count > MAX_ENTRIES:
        raise BundleError(f"it has {count} entries, more than {MAX_ENTRIES}")
    entries: dict[str, memoryview] = {}
    at, offset, last = start, 0, ""
    for _ in range(count):
        name, crc, length = _named(content, at, end)
        if name <= last:
            raise BundleError(f"{name!r} stands twice or out of order")
        if view[at : at + _CENTRAL.size + len(name)] != central_header(name, crc, length, offset):
            raise BundleError(f"the directory's entry of {name} is not a bundle's")
        header = local_header(name, crc, length, offset)
        begin = offset + len(header)
        if begin + length > start or view[offset:begin] != header:
            raise BundleError(f"the header of {name} is not a bundle's")
        entries[name] = view[begin : begin + length]
        if zlib.crc32(entries[name]) != crc:
            raise BundleError(f"the checksum of {name} does not match")
        at, offset, last = at + _CENTRAL.size + len(name), begin + length, name
    if (at, offset) != (end, start):
        raise BundleError("there are bytes between its entries and its directory, or its end")
    return entries


def _named(content: bytes, at: int, end: int) -> tuple[str, int, int]:
    """Name, checksum and size that the directory gives at this place; the rest is compared."""
    if at + _CENTRAL.size > end:
        raise BundleError("its directory ends too early")
    fields = _CENTRAL.unpack_from(content, at)
    crc, length, name_length = fields[7], fields[9], fields[10]
    raw = content[at + _CENTRAL.size : at + _CENTRAL.size + name_length]
    name = raw.decode("ascii", "replace")
    if not _NAME.fullmatch(name):
        raise BundleError(f"{name[:80]!r} is no name of a bundle's entry")
    return name, crc, length


def _demand_signed(manifest: bytes, signature: bytes, public_keys: Iterable[str]) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    for text in public_keys:
        try:
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
        except ValueError:
            raise BundleError(f"{text!r} is no public key: base64 of 32 bytes") from None
        try:
            key.verify(signature, manifest)
        except InvalidSignature:
            continue
        return
    raise BundleError("its manifest is not signed by a key that is trusted here")


def _demand_in_time(not_after: str | None, now: datetime.datetime | None) -> None:
    utc = datetime.timezone.utc  # noqa: UP017 - its short name came with Python 3.11
    moment = (now or datetime.datetime.now(utc)).astimezone(utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    if not_after is not None and moment > not_after:
        raise BundleError(f"the key it is signed with expired at {not_after}")


def _demand_listed(files: Sequence[Mapping[str, Any]], entries: Mapping[str, memoryview]) -> None:
    listed = {each["name"]: each for each in files}
    for name in entries:
        if name not in (MANIFEST, SIGNATURE, *listed):
            raise BundleError(f"{name} is not in its manifest")
    for name, each in listed.items():
        if name not in entries:
            raise BundleError(f"{name} of its manifest is missing")
        content = entries[name]
        if len(content) != each["size_bytes"]:
            raise BundleError(f"{name} has {len(content)} bytes, not {each['size_bytes']}")
        if hashlib.sha256(content).hexdigest() != each["sha256"]:
            raise BundleError(f"{name} is not the file that was signed: its sha256 differs")


def _is_new_enough(version: str | None, minimal: str | None) -> bool:
    if version is None or minimal is None:
        return True
    there, least = ([int(n) for n in re.findall(r"\d+", text)] for text in (version, minimal))
    return there >= least
