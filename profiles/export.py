"""What a recipe says about the artifacts it exports."""

from __future__ import annotations

from typing import Literal

from profiles.config import Config
from profiles.measure import Count

#: Examples that an artifact takes with one call; ``dynamic``: as many as it is given.
Batch = Count | Literal["dynamic"]
#: To what ExecuTorch hands the operators that it takes.
Partitioner = Literal["xnnpack", "vulkan", "coreml", "qnn", "openvino", "none"]


class Export(Config):
    """How programs become artifacts.

    Args:
        batch: see :data:`Batch`.  An artifact with a dynamic batch is measured with one example.
        partitioner: ExecuTorch's; one whose packages are not installed is refused.
    """

    batch: Batch = 1
    partitioner: Partitioner = "xnnpack"
