"""One canonical text per value, and its sha256: what every key in this project is made of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_CHUNK_BYTES = 1 << 20
#: Hashes by path, with what :func:`_state` was when they were made.
_HASHED: dict[Path, tuple[tuple[int, ...], str]] = {}
#: A younger file may change again without its times changing: the kernel's clock ticks slowly.
_SETTLED_S = 2.0


def canonical_json(value: Any) -> str:
    """The one JSON text of ``value``: sorted keys, no spaces, no NaN.

    Args:
        value: numbers, strings, booleans, ``None``, lists, tuples, mappings with string keys,
            dataclasses and paths, nested as deep as you like.

    Raises:
        TypeError: for a value of any other type.
        ValueError: for NaN or an infinity: neither equals itself in every JSON reader.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """The sha256, in hex, of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    """The sha256, in hex, of a file's bytes."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def settled_sha256(path: Path) -> str:
    """:func:`file_sha256`, made once in a process for a file that stays as it is."""
    state = _state(path)
    known = _HASHED.get(path)
    if known and known[0] == state:
        return known[1]
    sha256 = file_sha256(path)
    if time.time() - path.stat().st_ctime > _SETTLED_S:
        _HASHED[path] = state, sha256
    return sha256


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file does."""
    now = path.stat()
    return now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("only mappings with string keys have a canonical form")
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"{type(value).__name__} has no canonical form")
