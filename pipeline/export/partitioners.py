"""ExecuTorch's partitioners: what decides which operators a backend takes."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from profiles.errors import ExportError
from profiles.export import Partitioner


def partitioner_for(name: Partitioner) -> Any:
    """The partitioner, or ``None`` for ``none``.

    Raises:
        ExportError: if its packages are not installed, with the reason.
    """
    if name == "none":
        return None
    if name == "qnn" and not os.environ.get("QNN_SDK_ROOT"):
        # The import itself would download the SDK.
        raise ExportError(
            "the partitioner qnn needs Qualcomm's AI Engine Direct SDK: QNN_SDK_ROOT is not set",
            "install the SDK and set QNN_SDK_ROOT to its folder",
        )
    try:
        make: Callable[[], Any] = _MAKERS.get(name) or _class_of(name)
        return make()
    except ImportError as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ExportError(
            f"the partitioner {name} is not installed: {reason}", _HINTS[name]
        ) from error


def _class_of(name: str) -> Any:
    module, kind = _CLASSES[name]
    return getattr(importlib.import_module(f"executorch.backends.{module}"), kind)


def _openvino() -> Any:
    from executorch.exir.backend.compile_spec_schema import CompileSpec

    # The recipe's devices have a processor; others are a matter of OpenVINO's own drivers.
    return _class_of("openvino")([CompileSpec("device", b"CPU")])


def _qnn() -> Any:
    utilities = importlib.import_module("executorch.backends.qualcomm.utils.utils")
    schema = importlib.import_module("executorch.backends.qualcomm.serialization.qc_schema")
    options = utilities.generate_htp_compiler_spec(use_fp16=True)
    chip = getattr(schema.QcomChipset, os.environ.get("QNN_SOC", "SM8650"))
    specs = utilities.generate_qnn_executorch_compiler_spec(soc_model=chip, backend_options=options)
    return _class_of("qnn")(specs)


_CLASSES = {
    "xnnpack": ("xnnpack.partition.xnnpack_partitioner", "XnnpackPartitioner"),
    "vulkan": ("vulkan.partitioner.vulkan_partitioner", "VulkanPartitioner"),
    "coreml": ("apple.coreml.partition", "CoreMLPartitioner"),
    "qnn": ("qualcomm.partition.qnn_partitioner", "QnnPartitioner"),
    "openvino": ("openvino.partitioner", "OpenvinoPartitioner"),
}
#: Those that must be told what to compile for.
_MAKERS: dict[str, Callable[[], Any]] = {"qnn": _qnn, "openvino": _openvino}
_HINTS = {
    "xnnpack": "pip install executorch",
    "vulkan": "pip install executorch",
    "coreml": "pip install coremltools",
    "qnn": "pip install py-cpuinfo",
    "openvino": "pip install openvino nncf",
}
#: The names of the backends in a runtime, as it registers them.
BACKENDS = {
    "xnnpack": "XnnpackBackend",
    "vulkan": "VulkanBackend",
    "coreml": "CoreMLBackend",
    "qnn": "QnnBackend",
    "openvino": "OpenvinoBackend",
}
