"""Keys of tables: the order of fields means nothing, each field's value everything."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from profiles.canonical import digest
from profiles.records import Condition
from profiles.table import KEY_VERSION, TableKey

WORDS = st.text(min_size=1, max_size=8)
CONDITIONS = st.builds(
    Condition,
    threads=st.integers(1, 64),
    mode=st.sampled_from(["as-shipped", "pinned"]),
    governor=WORDS,
    power_source=WORDS,
    delegate=st.none() | WORDS,
)
PARTS: dict[str, st.SearchStrategy[Any]] = {
    "device": WORDS,
    "runtime": WORDS,
    "runtime_version": WORDS,
    "dtype": WORDS,
    "condition": CONDITIONS,
    "emulated": st.booleans(),
    "device_build": WORDS,
    "delegates": st.lists(WORDS, max_size=3).map(tuple),
}
KEYS = st.builds(TableKey, **PARTS)


def test_every_field_is_tried():
    assert PARTS.keys() == {field.name for field in fields(TableKey)}


@given(key=KEYS, signature=WORDS, order=st.randoms(use_true_random=False))
def test_the_order_of_fields_means_nothing(key: TableKey, signature: str, order: Any):
    """The digest of the documented JSON, written in any order, is the key."""
    content = {"version": KEY_VERSION, "table": asdict(key), "signature": signature}

    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        names = list(value)
        order.shuffle(names)
        return {name: shuffled(value[name]) for name in names}

    assert digest(json.loads(json.dumps(shuffled(content)))) == key.of_block(signature)


@given(data=st.data(), key=KEYS, signature=WORDS)
def test_another_value_of_any_field_is_another_key(
    data: st.DataObject, key: TableKey, signature: str
):
    name = data.draw(st.sampled_from(sorted(PARTS)))
    other = replace(key, **{name: data.draw(PARTS[name])})
    assume(other != key)
    assert other.of_block(signature) != key.of_block(signature)


@given(data=st.data(), key=KEYS, condition=CONDITIONS)
def test_so_is_another_value_in_its_condition(
    data: st.DataObject, key: TableKey, condition: Condition
):
    name = data.draw(st.sampled_from([field.name for field in fields(Condition)]))
    changed = replace(key.condition, **{name: getattr(condition, name)})
    assume(changed != key.condition)
    assert replace(key, condition=changed).of_block("x") != key.of_block("x")


@given(key=KEYS, signatures=st.lists(WORDS, min_size=2, max_size=2, unique=True))
def test_two_blocks_never_share_a_key(key: TableKey, signatures: list[str]):
    assert len({key.of_block(signature) for signature in signatures}) == 2
