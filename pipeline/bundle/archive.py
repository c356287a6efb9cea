"""Writing the zip: for given names and bytes always the same file, bit by bit."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

from pipeline.bundle.loaders.edgeloop_bundle import central_header, end_record, local_header


def zipped(entries: Mapping[str, bytes]) -> bytes:
    """A zip of stored entries in the one form that loaders accept.

    Args:
        entries: bytes by name; relative paths of lower-case letters, digits, ``.``, ``_``, ``-``.
    """
    files, directory = bytearray(), bytearray()
    for name, content in sorted(entries.items()):
        known = name, zlib.crc32(content), len(content), len(files)
        directory += central_header(*known)
        files += local_header(*known) + content
    return bytes(files + directory + end_record(len(entries), len(directory), len(files)))
