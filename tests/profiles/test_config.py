"""Configuration files: all mistakes at once, each with its key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pytest
from pydantic import AfterValidator, ValidationInfo

from profiles.config import Config, parse, read_yaml
from profiles.errors import ConfigError, UsageError


def _even(value: int) -> int:
    if value % 2:
        raise ValueError("must be even")
    return value


def _in_folder(path: Path, info: ValidationInfo) -> Path:
    return (info.context or {}).get("folder") / path


class Part(Config):
    size: int
    name: str = "part"


class Whole(Config):
    title: str
    even: Annotated[int, AfterValidator(_even)] = 0
    share: float = 0.5
    parts: tuple[Part, ...] = ()
    path: Annotated[Path, AfterValidator(_in_folder)] | None = None


def problems(data: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        parse(Whole, data, "whole.yaml")
    assert str(caught.value).startswith("whole.yaml: ")
    return caught.value.problems


def test_good_data_is_typed():
    found = parse(Whole, {"title": "t", "parts": [{"size": 3}]}, "whole.yaml")
    assert found == Whole(title="t", parts=(Part(size=3, name="part"),))


def test_all_problems_are_listed_with_their_keys():
    found = problems(
        {
            "even": 3,
            "share": "half",
            "colour": "red",
            "parts": [{"size": 1}, {"size": "big", "nme": "x"}, {}, 7],
        }
    )
    assert sorted(found) == sorted(
        [
            "title: is required",
            "even: must be even",
            "share: input should be a valid number, unable to parse string as a number, got 'half'",
            "colour: no such key",
            "parts.1.size: input should be a valid integer, unable to parse string as an integer,"
            " got 'big'",
            "parts.1.nme: no such key",
            "parts.2.size: is required",
            "parts.3: input should be a valid dictionary or instance of Part, got 7",
        ]
    )


@pytest.mark.parametrize("data", [None, {}])
def test_an_empty_file_is_an_empty_mapping(data):
    assert problems(data) == ("title: is required",)


@pytest.mark.parametrize("data", [[], "text", 3, [1, 2]])
def test_data_of_another_shape(data):
    (problem,) = problems(data)
    assert problem.startswith("(top level): ")


def test_what_was_read_cannot_be_changed():
    found = parse(Whole, {"title": "t"}, "whole.yaml")
    with pytest.raises(ValueError, match="frozen"):
        found.title = "other"


def test_validators_know_the_files_folder(tmp_path):
    found = parse(Whole, {"title": "t", "path": "x"}, "whole.yaml", tmp_path)
    assert found.path == tmp_path / "x"


def test_no_internal_error_is_shown_as_the_cause():
    with pytest.raises(ConfigError) as caught:
        parse(Whole, {}, "whole.yaml")
    assert caught.value.__suppress_context__


# Files


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_yaml_is_plain_data(tmp_path):
    assert read_yaml(write(tmp_path, "a: [1, 2.5, größe]\nb: null\n")) == {
        "a": [1, 2.5, "größe"],
        "b": None,
    }


def test_yaml_cannot_run_code(tmp_path):
    attack = f"a: !!python/object/apply:pathlib.Path.touch [{tmp_path}/pwned]\n"
    with pytest.raises(UsageError, match="not valid YAML at line 1"):
        read_yaml(write(tmp_path, attack))
    assert not (tmp_path / "pwned").exists()


def test_a_mistake_in_yaml_is_shown_with_its_line(tmp_path):
    with pytest.raises(UsageError, match=r"file\.yaml is not valid YAML at line 3: ") as caught:
        read_yaml(write(tmp_path, "a: 1\nb: 2\nc: [\n"[:-1] + "}\n"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("a: 1\nb: 2\na: 3\n", ["line 3: a stands in line 1, too"]),
        ("a: 1\n'a': 3\n", ["line 2: a stands in line 1, too"]),
        ("- x: {y: [{k: 1, k: 2}]}\n", ["line 1: k stands in line 1, too"]),
        (
            "a: {b: 1,\n b: 2}\na: 3\na: 4\n",
            ["line 2: b stands", "line 3: a stands", "line 4: a stands in line 1"],
        ),
        ("? {p: 1, p: 2}\n: 3\n", ["line 1: p stands"]),
    ],
)
def test_keys_that_stand_twice_are_told_with_their_lines(tmp_path, content, told):
    """YAML would keep the last of them and not say so."""
    with pytest.raises(ConfigError, match=r"file\.yaml: ") as caught:
        read_yaml(write(tmp_path, content))
    assert len(caught.value.problems) == len(told)
    for problem, expected in zip(caught.value.problems, told, strict=True):
        assert problem.startswith(expected)


def test_keys_may_be_alike_in_different_places(tmp_path):
    content = "a: {k: 1}\nb: {k: &x [1]}\nc: [{k: *x}, {k: *x}]\n1: a\n'1': b\n"
    assert read_yaml(write(tmp_path, content))["c"] == [{"k": [1]}, {"k": [1]}]
    base = "base: &base {k: 1, j: 1}\nmore: {<<: *base, k: 2}\n"
    assert read_yaml(write(tmp_path, base))["more"] == {"k": 2, "j": 1}


def test_a_file_that_contains_itself_is_read_to_its_end(tmp_path):
    found = read_yaml(write(tmp_path, "&a {b: [*a]}\n"))
    assert found["b"][0] is found


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \xe9\n", b"a: \x00"])
def test_bytes_that_are_no_text(tmp_path, content):
    with pytest.raises(UsageError, match="not valid YAML"):
        read_yaml(write(tmp_path, content))


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_a_file_that_cannot_be_read(tmp_path, name):
    with pytest.raises(UsageError, match="cannot be read") as caught:
        read_yaml(tmp_path / name)
    assert caught.value.exit_code == 2
