"""Reading configuration: YAML in, typed models out, all mistakes at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from profiles.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from yaml import Node


class Config(BaseModel):
    """Base of everything that is read from a file: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def read_yaml(path: Path) -> Any:
    """The plain data in a YAML file.

    Raises:
        UsageError: if the file cannot be read or is not YAML.
        ConfigError: lists keys that stand twice in one place, of which YAML keeps the last.
    """
    import yaml

    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        try:
            root = loader.get_single_node()
            if twice := _keys_twice(root):
                raise ConfigError(str(path), twice)
            return None if root is None else loader.construct_document(root)
        finally:
            loader.dispose()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UsageError(f"{path} is not valid YAML{line}: {_first_line(error)}") from error


def parse(model: type[ConfigT], data: Any, source: str, folder: Path | None = None) -> ConfigT:
    """Validate plain data.

    Args:
        model: the configuration's type.
        data: what a YAML file held.
        source: the file's name, for messages.
        folder: where relative paths in it start, handed to validators as context.

    Raises:
        ConfigError: lists every mistake with its key.
    """
    try:
        return model.model_validate(data if data is not None else {}, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(source, [_problem(item) for item in error.errors()]) from None


def _keys_twice(root: Node | None) -> list[str]:
    """Keys that are written again in the same mapping, at any depth, by line."""
    import yaml

    found, seen, left = [], set[int](), [root]
    while left:
        node = left.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))  # an alias leads to the same node again, perhaps to one around it
        if isinstance(node, yaml.SequenceNode):
            left += node.value
            continue
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            left += (key, value)
            line, name = key.start_mark.line + 1, (key.tag, str(key.value))
            if name in lines:
                found.append((line, f"line {line}: {key.value} stands in line {lines[name]}, too"))
            lines.setdefault(name, line)
    return [problem for _, problem in sorted(found)]


def _problem(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "(top level)"
    if item["type"] == "extra_forbidden":
        return f"{key}: no such key"
    if item["type"] == "missing":
        return f"{key}: is required"
    if item["type"].startswith("value_error"):
        return f"{key}: {item['ctx']['error']}"
    if item["type"] == "union_tag_invalid":
        context = item["ctx"]
        which = context["discriminator"].strip("'")
        return f"{key}.{which}: {context['tag']!r} is none of {context['expected_tags']}"
    message = item["msg"][0].lower() + item["msg"][1:]
    given = item["input"]
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool) else ""
    return f"{key}: {message}{shown}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
