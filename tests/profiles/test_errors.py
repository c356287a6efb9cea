"""The tree at the top of errors.py is the tree of classes, and says what they do."""

from __future__ import annotations

import inspect
import pickle
import re

import pytest

from profiles import errors
from profiles.errors import ConfigError, DeviceError, EdgeError, UsageError


def all_classes() -> dict[str, type[EdgeError]]:
    return {
        name: found
        for name, found in vars(errors).items()
        if inspect.isclass(found) and issubclass(found, EdgeError)
    }


def drawn_tree() -> dict[str, tuple[str | None, str]]:
    """From each class in the drawing to its parent and the text beside it."""
    lines = inspect.getdoc(errors).split("::\n", 1)[1].splitlines()
    drawn: dict[str, tuple[str | None, str]] = {}
    above: list[tuple[int, str]] = []
    for line in lines:
        found = re.match(r"^ {4}([│├└─ ]*)(\w+)(?: {2,}(.*))?$", line)
        if not found:
            continue
        depth, name = len(found[1]), found[2]
        above = [entry for entry in above if entry[0] < depth]
        drawn[name] = (above[-1][1] if above else None, found[3] or "")
        above.append((depth, name))
    return drawn


def test_the_drawing_names_every_class_and_no_other():
    assert set(drawn_tree()) == set(all_classes())
    assert len(all_classes()) > 15


def test_the_drawing_has_every_class_under_its_parent():
    for name, (parent, _) in drawn_tree().items():
        expected = Exception if parent is None else getattr(errors, parent)
        assert all_classes()[name].__bases__ == (expected,), name


def test_the_drawing_says_what_is_retryable():
    marked = {name for name, (_, text) in drawn_tree().items() if text.endswith("retryable")}
    assert marked == {name for name, found in all_classes().items() if found.retryable}


def test_the_drawing_says_the_exit_codes():
    """A code that is written stands for the class and what is below it."""
    drawn = drawn_tree()

    def code(name: str) -> int:
        parent, text = drawn[name]
        if found := re.search(r"exit (\d)$", text):
            return int(found[1])
        return code(parent) if parent else 1

    assert {name: code(name) for name in drawn} == {
        name: found.exit_code for name, found in all_classes().items()
    }


def test_wrong_input_exits_with_2_and_everything_else_with_1():
    for found in all_classes().values():
        assert found.exit_code == (
            2 if issubclass(found, UsageError | errors.TableFileError) else 1
        )


def test_only_device_errors_may_pass_by_themselves():
    for found in all_classes().values():
        assert not found.retryable or issubclass(found, DeviceError)


def test_every_class_says_what_it_is_for():
    for found in all_classes().values():
        assert found.__doc__
        assert found.__doc__.strip()


def test_an_error_reads_as_one_sentence():
    assert str(EdgeError("it broke")) == "it broke"
    assert str(EdgeError("it broke", "mend it")) == "it broke (mend it)"
    assert str(EdgeError("it broke", "mend it", "pi5")) == "pi5: it broke (mend it)"


@pytest.mark.parametrize(
    ("problems", "text"),
    [
        (["a: is required"], "x.yaml: 1 problem\n  a: is required"),
        (["a: is required", "b: no such key"], "x.yaml: 2 problems\n  a: is required\n  b: no"),
    ],
)
def test_a_config_error_lists_its_problems(problems, text):
    error = ConfigError("x.yaml", problems)
    assert str(error).startswith(text)
    assert error.problems == tuple(problems)
    assert error.exit_code == 2


@pytest.mark.parametrize("name", sorted(all_classes()))
def test_errors_cross_process_borders(name):
    """A worker process that fails must be able to say so."""
    kind = all_classes()[name]
    error = kind("x.yaml", ["a: no"]) if kind is ConfigError else kind("m", "h", "pi5")
    error.device = "pi5"
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (str(back), back.device, back.hint) == (str(error), "pi5", error.hint)
