"""What README and docs say exists: commands, options, make targets; and the other way round."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer

from tools.device_lab import app

ROOT = Path(__file__).parents[2]
PAGES = [path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))]
SHELL = "".join(re.findall(r"```sh\n(.*?)```", "".join(PAGES), flags=re.DOTALL))


def commands(
    group: click.Group, prefix: tuple[str, ...] = ()
) -> dict[tuple[str, ...], click.Command]:
    found: dict[tuple[str, ...], click.Command] = {}
    for name, command in group.commands.items():
        # typer's groups are groups by behaviour, whichever click they are built on.
        if hasattr(command, "commands"):
            found |= commands(command, (*prefix, name))
        else:
            found[(*prefix, name)] = command
    return found


ALL = commands(typer.main.get_command(app))
# What follows " -- " is another program's.
DOCUMENTED = [
    shlex.split(line.split("  #")[0].split(" -- ")[0])
    for line in SHELL.splitlines()
    if line.startswith("device-lab ")
]


def named(words: list[str]) -> tuple[str, ...]:
    for length in (2, 1):
        if tuple(words[1 : 1 + length]) in ALL:
            return tuple(words[1 : 1 + length])
    raise AssertionError(f"there is no command {' '.join(words)}")


@pytest.mark.parametrize("words", DOCUMENTED, ids=" ".join)
def test_a_documented_command_and_its_options_exist(words):
    options = {option for parameter in ALL[named(words)].params for option in parameter.opts}
    used = {word for word in words if word.startswith("-")}
    assert used <= options | {"--help"}


def test_every_command_is_documented():
    assert {named(words) for words in DOCUMENTED} == set(ALL)


@pytest.mark.parametrize("name", ALL, ids=" ".join)
def test_every_command_says_what_it_does_with_an_example(name):
    text = ALL[name].help or ""
    example = re.search(r"Example: (device-lab .*)", text)
    assert example, f"{' '.join(name)} has no example"
    words = shlex.split(example[1])
    assert named(words) == name
    options = {option for parameter in ALL[name].params for option in parameter.opts}
    assert {word for word in words if re.match(r"-\D", word)} <= options


def test_every_make_target_that_is_mentioned_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    for document in ("README.md", "ARCHITECTURE.md"):
        mentioned = set(re.findall(r"`?make ([a-z]+)", (ROOT / document).read_text()))
        assert mentioned <= targets | {"sure"}, document


def test_every_module_that_the_architecture_names_exists():
    """The tree of files in it is what is there: no more, no less, but for package files."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rooms = ("profiles", "devices", "pipeline")
    for room in rooms:
        for path in (ROOT / room).glob("*.py"):
            if path.stem != "__init__":
                assert re.search(rf"\b{path.stem}\b", text), f"{room}/{path.name} is not mentioned"
