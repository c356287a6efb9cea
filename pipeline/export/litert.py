"""TFLite files, through LiteRT's converter; quantized programs keep their INT8 kernels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import litert_torch
from litert_torch.quantize import pt2e_quantizer as litert
from litert_torch.quantize.quant_config import QuantConfig

from pipeline.export.float_io import with_float_io

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def write(program: ExportedProgram, path: Path) -> dict[str, Any]:
    """Write ``program`` as a ``.tflite``; returns whether it was converted as quantized."""
    inputs, _ = program.example_inputs
    quantized = any("quantize_per" in str(node.target) for node in program.graph.nodes)
    # The converter only asks it whether ranges are known beforehand, whoever put integers where.
    static = litert.PT2EQuantizer().set_global(litert.get_symmetric_quantization_config())
    settings = {"quant_config": QuantConfig(pt2e_quantizer=static)}
    converted = litert_torch.convert(program.module(), inputs, **(settings if quantized else {}))
    converted.export(str(path))
    path.write_bytes(with_float_io(path.read_bytes()))
    return {"quantized": quantized}
