"""Small bundles of made-up files, and ways to break one."""

from __future__ import annotations

import hashlib
import io
import random
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.bundle.archive import zipped
from pipeline.bundle.loaders.edgeloop_bundle import (
    FORMAT,
    MANIFEST,
    SIGNATURE,
    central_header,
    end_record,
    local_header,
    read_entries,
)
from pipeline.bundle.signing import SigningKey, signing_key
from profiles.canonical import canonical_json

FILES = {"artifacts/a.onnx": b"weights" * 3, "vectors/v.bin": b"\0" * 8}


def a_key(folder: Path, monkeypatch: Any) -> SigningKey:
    """A key that is made for the first time."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    return signing_key()


def listed(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"name": name, "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
        for name, content in files.items()
    ]


def manifest_of(files: Mapping[str, bytes] = FILES, /, **changes: Any) -> dict[str, Any]:
    return {"format": FORMAT, "signer": {"not_after": None}, "files": listed(files), **changes}


def signed(
    key: SigningKey, files: Mapping[str, bytes] = FILES, manifest: Any = None
) -> dict[str, bytes]:
    """The entries of a bundle."""
    text = canonical_json(manifest_of(files) if manifest is None else manifest).encode()
    return {**files, MANIFEST: text, SIGNATURE: key.sign(text)}


def small_bundle(key: SigningKey) -> bytes:
    return zipped(signed(key))


def archive(
    entries: Sequence[tuple[str, bytes]],
    *,
    gap: bytes = b"",
    tail: bytes = b"",
    checksum: Callable[[bytes], int] = zlib.crc32,
) -> bytes:
    """A zip in a bundle's form of any entries in any order.

    Args:
        gap, tail: bytes before and behind its directory.
        checksum: that stands in all headers.
    """
    files, directory = bytearray(), bytearray()
    for name, content in entries:
        known = name, checksum(content), len(content), len(files)
        directory += central_header(*known)
        files += local_header(*known) + content
    files, directory = files + gap, directory + tail
    return bytes(files + directory + end_record(len(entries), len(directory), len(files)))


def plain_zip(entries: Mapping[str, bytes], method: int, permissions: int = 0o100644) -> bytes:
    """What another program would write."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as made:
        for name, content in sorted(entries.items()):
            info = zipfile.ZipInfo(name)
            info.external_attr, info.compress_type = permissions << 16, method
            made.writestr(info, content)
    return stream.getvalue()


def broken(whole: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """So many bundles in which something is not as it was."""
    rng = random.Random(seed)
    entries = {name: bytes(part) for name, part in read_entries(whole).items()}
    made = 0
    while made < count:
        content = bytearray(whole)
        at, more = rng.randrange(len(content)), rng.randrange(1, 64)
        match rng.randrange(9):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                for place in rng.choices(range(len(content)), k=more):
                    content[place] = rng.randrange(256)
            case 2:
                del content[at:]
            case 3:
                del content[at : at + more]
            case 4:
                content[at:at] = rng.randbytes(more)
            case 5:
                content[at : at + more] = bytes(len(content[at : at + more]))
            case 6:
                content += content[at:]
            case 7:  # where the headers are
                place = max(0, len(content) - rng.randrange(1, 600))
                content[place : place + 4] = rng.choice(
                    [b"\xff" * 4, b"\0" * 4, b"\1\0\0\0", b"\0\0\0\x80", rng.randbytes(4)]
                )
            case 8:  # a zip that is whole, of a file that nobody signed
                name = rng.choice(sorted(entries))
                part = bytearray(entries[name])
                part[rng.randrange(len(part))] ^= 1 << rng.randrange(8)
                content = bytearray(zipped({**entries, name: bytes(part)}))
        if content != whole:
            made += 1
            yield bytes(content)
