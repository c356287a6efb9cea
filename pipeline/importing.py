"""Loading what a recipe names by import path."""

from __future__ import annotations

import importlib
from typing import Any

from profiles.errors import UsageError


def load_object(import_path: str) -> Any:
    """The object at ``package.module:name``.

    The recipe's folder is on the import path while a recipe runs.

    Raises:
        UsageError: if the module or the name is not there, or the module fails to import.
    """
    module_name, _, name = import_path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"{module_name} cannot be imported: {type(error).__name__}: {error}",
            "modules are looked for beside the recipe and among installed packages",
        ) from error
    if not hasattr(module, name):
        raise UsageError(f"{module_name} has no {name!r}")
    return getattr(module, name)
