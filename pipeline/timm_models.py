"""Models of the timm library, where the extra ``timm`` is installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from profiles.errors import ModelError

if TYPE_CHECKING:
    from torch import nn

#: Detection operators for which torchvision registers shape functions when it is imported.
_TORCHVISION_OPERATORS = ("nms", "qnms")


def create(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A model by its timm name.

    Args:
        name: as timm lists it.
        arguments: for ``timm.create_model``.

    Raises:
        ModelError: if timm is not installed or has no such model.
    """
    try:
        timm = _import_timm()
    except ImportError as error:
        raise ModelError(
            f"timm models need timm: {error}", "pip install 'edgeloop[timm]'"
        ) from error
    try:
        module: nn.Module = timm.create_model(name, **arguments)
    except Exception as error:
        raise ModelError(f"timm cannot make {name}: {error}") from error
    return module


def _import_timm() -> Any:
    """Import timm, also beside a PyTorch build whose torchvision lacks its compiled operators.

    timm imports torchvision for transforms; torchvision's wheel does not load its operators into a
    CPU build of PyTorch, and then fails to describe operators that are not there.  Declaring their
    names is enough: no model calls them.
    """
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in _TORCHVISION_OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    return timm
