"""What the loader refuses: everything but the one file that was signed."""

from __future__ import annotations

import datetime
import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bundle.archive import zipped
from pipeline.bundle.loaders.edgeloop_bundle import (
    ALIGNMENT,
    MANIFEST,
    SIGNATURE,
    Bundle,
    BundleError,
    read_entries,
)
from pipeline.bundle.signing import SigningKey
from tests.pipeline.bundles import (
    FILES,
    a_key,
    archive,
    broken,
    manifest_of,
    plain_zip,
    signed,
    small_bundle,
)

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,9}(/[a-z0-9][a-z0-9._-]{0,9}){0,2}", fullmatch=True)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SigningKey:
    return a_key(tmp_path, monkeypatch)


def refusal(content: bytes, key: SigningKey, **more: Any) -> str:
    with pytest.raises(BundleError) as found:
        Bundle.verified(content, [key.public_key], **more)
    return str(found.value)


@given(st.dictionaries(NAMES, st.binary(max_size=200), max_size=6))
def test_what_is_written_is_read_and_every_zip_reader_agrees(entries: dict[str, bytes]):
    content = zipped(entries)
    found = read_entries(content)
    assert {name: bytes(part) for name, part in found.items()} == entries
    with zipfile.ZipFile(io.BytesIO(content)) as other:
        assert other.testzip() is None
        assert {name: other.read(name) for name in other.namelist()} == entries
        headers = [info.header_offset for info in other.infolist()]
    for at in headers:
        name_bytes, padding = struct.unpack_from("<2H", content, at + 26)
        assert (at + 30 + name_bytes + padding) % ALIGNMENT == 0


def test_a_bundle_is_read(key: SigningKey):
    bundle = Bundle.verified(small_bundle(key), [key.public_key])
    assert {name: bytes(bundle.entries[name]) for name in FILES} == FILES


def test_every_single_bit_counts(key: SigningKey):
    whole = small_bundle(key)
    for place in range(len(whole)):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        refusal(bytes(content), key)


def test_no_beginning_and_nothing_longer_is_a_bundle(key: SigningKey):
    whole = small_bundle(key)
    for length in range(len(whole)):
        refusal(whole[:length], key)
    for content in (whole + b"\0", b"\0" + whole, whole + whole, b"#!/bin/sh\n" + whole):
        refusal(content, key)


def test_a_thousand_broken_bundles_are_refused(key: SigningKey):
    for content in broken(small_bundle(key), 1000):
        refusal(content, key)


@given(st.binary(max_size=300))
def test_no_bytes_at_all_are_a_bundle_by_chance(content: bytes):
    with pytest.raises(BundleError):
        Bundle.verified(content, ["A" * 43 + "="])


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/passwd", "a/../b", "a//b", "a/", "./a", "a\\b", "c:/a", "A", "a\nb", "", "ü"],
)
def test_a_path_that_leads_elsewhere_is_refused(key: SigningKey, name: str):
    files = {**FILES, name: b"evil"}
    content = archive(sorted(signed(key, files).items()))
    assert "no name of a bundle's entry" in refusal(content, key)


def test_a_name_that_stands_twice_is_refused(key: SigningKey):
    entries = sorted(signed(key).items())
    assert "twice or out of order" in refusal(archive([*entries[:1], *entries]), key)
    assert "twice or out of order" in refusal(archive(entries[::-1]), key)


def test_links_compressed_bombs_and_other_zips_are_refused(key: SigningKey):
    bomb = signed(key, {"artifacts/a.onnx": bytes(20_000_000)})
    for content in (
        plain_zip(bomb, zipfile.ZIP_DEFLATED),
        plain_zip(signed(key), zipfile.ZIP_STORED),
        plain_zip(signed(key), zipfile.ZIP_STORED, 0o120777),
    ):
        assert "is not a bundle's" in refusal(content, key)


def test_a_local_header_that_says_something_else_is_refused(key: SigningKey):
    whole = bytearray(small_bundle(key))
    name = whole.index(b"artifacts/a.onnx")
    whole[name : name + 16] = b"artifacts/b.onnx"
    assert "header of artifacts/a.onnx" in refusal(bytes(whole), key)


def test_sizes_that_lie_far_outside_are_refused(key: SigningKey):
    whole = small_bundle(key)
    start = struct.unpack_from("<I", whole, len(whole) - 6)[0]
    for field in (16, 20, 24, 28, 42):
        for value in (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000):
            content = bytearray(whole)
            struct.pack_into("<I", content, start + field, value)
            refusal(bytes(content), key)


def test_too_many_entries_are_refused(key: SigningKey):
    files = {f"f{number}": b"" for number in range(1001)}
    assert "1003 entries" in refusal(zipped(signed(key, files)), key)


def test_bytes_that_hide_between_the_parts_are_refused(key: SigningKey):
    entries = sorted(signed(key).items())
    for more in ({"gap": b"hidden"}, {"tail": b"hidden"}, {"tail": bytes(100)}):
        assert "bytes between" in refusal(archive(entries, **more), key)


def test_a_checksum_that_is_wrong_everywhere_is_refused(key: SigningKey):
    content = archive(sorted(signed(key).items()), checksum=lambda part: 5)
    assert "the checksum of artifacts/a.onnx" in refusal(content, key)


def test_a_file_that_nobody_signed_is_refused(key: SigningKey):
    entries = signed(key)
    assert "extra is not in its manifest" in refusal(zipped({**entries, "extra": b""}), key)
    for name, reason in (("vectors/v.bin", "missing"), (MANIFEST, "no manifest.json"),
                         (SIGNATURE, "no manifest.sig")):  # fmt: skip
        rest = {each: content for each, content in entries.items() if each != name}
        assert reason in refusal(zipped(rest), key)
    other = {**entries, "vectors/v.bin": b"\1" * 8}
    assert "its sha256 differs" in refusal(zipped(other), key)
    assert "bytes, not 8" in refusal(zipped({**entries, "vectors/v.bin": b""}), key)


def test_another_s_signature_is_refused(
    key: SigningKey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = a_key(tmp_path / "other", monkeypatch)
    assert "not signed by a key that is trusted" in refusal(small_bundle(other), key)
    bundle = Bundle.verified(small_bundle(other), [key.public_key, other.public_key])
    assert bundle.manifest["files"]
    with pytest.raises(BundleError, match="is no public key"):
        Bundle.verified(small_bundle(key), ["short"])
    with pytest.raises(BundleError, match="trusted"):
        Bundle.verified(small_bundle(key), [])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": "edgeloop-bundle-9"}, "this loader reads edgeloop-bundle-1"),
        ({"signer": {}}, "its manifest is none"),
        ({"signer": {"not_after": 5}}, "its manifest is none"),
        ({"files": 3}, "its manifest is none"),
        ({"files": [3]}, "its manifest is none"),
        ({"files": [{"name": []}]}, "its manifest is none"),
    ],
)
def test_a_signed_manifest_that_is_none_is_refused(key: SigningKey, changes: Any, reason: str):
    entries = signed(key, manifest=manifest_of(**changes))
    assert reason in refusal(zipped(entries), key)


@pytest.mark.parametrize("manifest", [[], "text", 5, None, True])
def test_a_signed_manifest_of_another_kind_is_refused(key: SigningKey, manifest: Any):
    text = {**FILES, MANIFEST: repr(manifest).encode()}
    content = zipped({**text, SIGNATURE: key.sign(text[MANIFEST])})
    assert "its manifest is none" in refusal(content, key)


def test_a_bundle_is_refused_once_its_key_has_expired(key: SigningKey):
    manifest = manifest_of(signer={"not_after": "2027-12-31T23:59:59Z"})
    content = zipped(signed(key, manifest=manifest))
    last = datetime.datetime(2027, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)
    Bundle.verified(content, [key.public_key], last)
    tokyo = datetime.timezone(datetime.timedelta(hours=9))
    Bundle.verified(content, [key.public_key], last.astimezone(tokyo))
    later = last + datetime.timedelta(seconds=1)
    assert "expired at 2027-12-31" in refusal(content, key, now=later)


def choices(*names: str) -> list[dict[str, Any]]:
    return [{"artifact": name, "threads": 4, "delegate": None, "evidence": None} for name in names]


def test_a_device_gets_the_first_artifact_that_its_runtimes_can_run(key: SigningKey):
    artifacts = [
        {"sha256": name, "runtime": {"name": runtime, "minimal_version": version}}
        for name, runtime, version in (
            ("quick", "litert", None),
            ("new", "onnxruntime", "1.31.1"),
            ("old", "onnxruntime", "1.9"),
        )
    ]
    devices = [
        {"names": ["pixel-8", "Pixel 8"], "choices": choices("new", "quick")},
        {"names": ["pixel-8", "mine"], "choices": choices("quick")},
        {"names": ["*"], "choices": choices("old")},
    ]
    manifest = manifest_of(artifacts=artifacts, devices=devices)
    bundle = Bundle.verified(zipped(signed(key, manifest=manifest)), [key.public_key])

    def picked(device: str, **runtimes: str | None) -> str:
        return str(bundle.choose([device], runtimes).artifact["sha256"])

    assert picked("PIXEL 8", onnxruntime="1.31.1", litert=None) == "new"
    assert picked("pixel-8", onnxruntime=None) == "new"
    assert picked("pixel-8", onnxruntime="1.31.0", litert="2.0") == "quick"
    assert picked("pixel-8", onnxruntime="1.10") == "old"
    assert picked("another", onnxruntime="1.10") == "old"
    both = bundle.choose(["mine", "pixel-8"], {"onnxruntime": None, "litert": None})
    assert both.artifact["sha256"] == "quick"
    with pytest.raises(BundleError, match="nothing for another with litert"):
        picked("another", litert=None)
