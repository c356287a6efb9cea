"""Keys: the same value always has the same digest, another value never."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles import canonical
from profiles.canonical import canonical_json, digest, file_sha256, settled_sha256
from profiles.records import Plan

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def typed(value: object) -> object:
    """A value in a form in which 1, 1.0 and True, and 0.0 and -0.0, differ."""
    if isinstance(value, list):
        return ("list", tuple(typed(item) for item in value))
    if isinstance(value, dict):
        return ("dict", frozenset((key, typed(item)) for key, item in value.items()))
    return (type(value).__name__, repr(value))


@given(st.dictionaries(st.text(), VALUES, max_size=6), st.randoms())
def test_the_order_of_keys_does_not_matter(value, random):
    keys = list(value)
    random.shuffle(keys)
    shuffled = {key: value[key] for key in keys}
    assert canonical_json({"outer": shuffled}) == canonical_json({"outer": value})
    assert digest(shuffled) == digest(value)


@given(VALUES, VALUES)
def test_distinct_values_have_distinct_digests(one, two):
    assert (digest(one) == digest(two)) == (typed(one) == typed(two))


@given(st.lists(VALUES, min_size=2, max_size=5, unique_by=lambda v: repr(typed(v))), st.randoms())
def test_the_order_of_a_list_matters(values, random):
    reordered = [*values[1:], values[0]]
    assert digest(reordered) != digest(values)


@given(VALUES)
def test_the_text_is_json_and_holds_the_value(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert "\n" not in text


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_is_refused_at_any_depth(number):
    for value in (number, [number], {"a": {"b": [1, (2, number)]}}):
        with pytest.raises(ValueError, match="JSON"):
            canonical_json(value)


@pytest.mark.parametrize(
    "value",
    [
        {1, 2},
        b"bytes",
        pytest.param(object(), id="object"),
        {1: "a"},
        {None: 1},
        1j,
        int,
        Plan,
        range(3),
    ],
    ids=repr,
)
def test_other_types_are_refused_rather_than_guessed(value):
    with pytest.raises(TypeError):
        canonical_json({"nested": [value]})


@dataclasses.dataclass
class Point:
    x: int
    where: Path


def test_dataclasses_paths_and_tuples():
    assert canonical_json([Point(1, Path("a/b")), (1, 2)]) == '[{"where":"a/b","x":1},[1,2]]'
    assert digest(Plan()) == digest(Plan(runs=5))
    for change in ({"runs": 6}, {"iterations": 1}, {"warmup_ns": 0}, {"seed": 1}):
        assert digest(dataclasses.replace(Plan(), **change)) != digest(Plan())


def test_a_digest_is_the_same_in_every_process():
    """Not for this Python's hash seed only: keys live in files."""
    program = "from profiles.canonical import digest; print(digest({'b': [1.5, 'é'], 'a': None}))"
    seen = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert seen == {digest({"a": None, "b": [1.5, "é"]})}
    assert seen == {hashlib.sha256(b'{"a":null,"b":[1.5,"\\u00e9"]}').hexdigest()}


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
def test_the_sha256_of_a_file(tmp_path, size):
    content = bytes(i % 251 for i in range(1000)) * (size // 1000 + 1)
    path = tmp_path / "file"
    path.write_bytes(content[:size])
    assert file_sha256(path) == hashlib.sha256(content[:size]).hexdigest()


def test_a_file_that_stays_as_it_is_is_read_once(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    monkeypatch.setattr(canonical, "_SETTLED_S", 0)
    assert settled_sha256(path) == file_sha256(path)
    with monkeypatch.context() as unread:
        unread.setattr(canonical, "file_sha256", lambda path: pytest.fail("read again"))
        settled_sha256(path)
    path.write_bytes(b"two")
    assert settled_sha256(path) == file_sha256(path)


def test_a_file_that_has_just_been_written_is_not_trusted_to_stay(tmp_path, monkeypatch):
    """Two writes within a tick of the kernel's clock leave the same times behind."""
    path = tmp_path / "file"
    monkeypatch.setattr(canonical, "_state", lambda path: ())
    for content in (b"one", b"two"):
        path.write_bytes(content)
        assert settled_sha256(path) == hashlib.sha256(content).hexdigest()
