"""Reading configuration: YAML in, typed models out, all mistakes at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from profiles.errors import ConfigError, UsageError


class Config(BaseModel):
    """Base of everything that is read from a file: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def read_yaml(path: Path) -> Any:
    """The plain data in a YAML file.

    Raises:
        UsageError: if the file cannot be read or is not YAML.
    """
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
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


def _problem(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"]) or "(top level)"
    if item["type"] == "extra_forbidden":
        return f"{key}: no such key"
    if item["type"] == "missing":
        return f"{key}: is required"
    if item["type"].startswith("value_error"):
        return f"{key}: {item['ctx']['error']}"
    message = item["msg"][0].lower() + item["msg"][1:]
    given = item["input"]
    shown = f", got {given!r}" if isinstance(given, str | int | float | bool) else ""
    return f"{key}: {message}{shown}"


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
