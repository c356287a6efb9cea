"""INT8 post-training quantization with NNCF: one calibration, a quantizer per runtime.

``quantize_pt2e`` is the one entry of NNCF whose result reaches all three formats.  ONNX Runtime
and XNNPACK (LiteRT, ExecuTorch) get quantizers that speak their kernels' language; the calibration
samples are the same.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch

from pipeline.compress import silence_telemetry
from pipeline.compress.units import drop_idle_clamps
from pipeline.data import Images
from pipeline.model import trace_graph
from pipeline.profile.grouping import is_quantize
from pipeline.quiet import quiet
from pipeline.training import torch_threads
from profiles.errors import StageError, UsageError
from profiles.records import ArtifactFormat

if TYPE_CHECKING:
    from torch.export import ExportedProgram


#: What each runtime's quantizer may be told instead of its defaults, by a name for people: keyword
#: arguments of :func:`quantizer_for`.  A device's measurements decide (``precision: measured``).
ALTERNATIVES: Mapping[ArtifactFormat, Mapping[str, Mapping[str, Any]]] = {
    "executorch": {
        "hardswish integer": {"swish": "integer"},
        "large depthwise integer": {"deep": "integer"},
    },
    "onnx": {
        "hardswish float": {"swish": "float"},
        "integer from the start": {"start": "integer"},
    },
    "tflite": {},
}


def quantizer_for(format_: ArtifactFormat, *, keep: Collection[str] = (), **choices: Any) -> Any:
    """The torchao quantizer whose annotations the format's runtime turns into INT8 kernels.

    Args:
        format_: which runtime it is for.
        keep: modules to leave in FP32, submodules included: ``fnmatch`` patterns of paths in the
            exported module.
        choices: what this runtime's quantizer may be told beside; see :data:`ALTERNATIVES`.
    """
    if format_ == "onnx":
        from pipeline.compress.ort_quantizer import OrtQuantizer

        return OrtQuantizer(skip=keep, **choices)
    from pipeline.compress.xnnpack_quantizer import XnnpackQuantizer

    # ExecuTorch computes hardswish in FP32 within its delegate; LiteRT makes an INT8 operator of
    # it that is outside, and has fast integer kernels for large depthwise convolutions.
    own = {"swish": "float", "deep": "float"} if format_ == "executorch" else {}
    return XnnpackQuantizer(keep=keep, **{**own, **choices})


def quantize(
    program: ExportedProgram,
    format_: ArtifactFormat,
    samples: Images,
    *,
    keep: Collection[str] = (),
    choices: Mapping[str, Any] | None = None,
) -> ExportedProgram:
    """Quantize weights and activations to INT8 for one format.

    Args:
        program: in FP32, exported for one example at a time.
        format_: which runtime it is for.
        samples: calibration inputs, shape ``(n, channels, height, width)``.
        keep, choices: see :func:`quantizer_for`.

    Raises:
        UsageError: if ``keep`` names nothing.
        StageError: if NNCF refuses the model.
    """
    found = calibrated(program, format_, samples, keep=keep, choices=choices)
    return lowered(found, format_, torch.from_numpy(samples[:1]))


def calibrated(
    program: ExportedProgram,
    format_: ArtifactFormat,
    samples: Images,
    *,
    keep: Collection[str] = (),
    choices: Mapping[str, Any] | None = None,
) -> ExportedProgram:
    """The first half of :func:`quantize`: conversions with their scales, all values still floats.

    Weights are in FP32 before their conversions, and every clamp is there: what conversions do can
    be seen by leaving some of them out (:mod:`pipeline.compress.simulate`).
    """
    inputs = [torch.from_numpy(samples[i : i + 1]) for i in range(len(samples))]
    try:
        with quiet(), torch_threads(1):  # one example at a time, as in reference_outputs
            silence_telemetry()
            import nncf
            from nncf.experimental.torch.fx import quantize_pt2e
            from nncf.quantization.range_estimator import RangeEstimatorParametersSet

            quantized = quantize_pt2e(
                program.module(),
                quantizer_for(format_, keep=keep, **(choices or {})),
                nncf.Dataset(inputs),
                subset_size=len(inputs),
                # NNCF's defaults average each sample's extremes, which clips, and then correct the
                # biases for it: ResNet-20 on CIFAR-10 kept less accuracy so in every format.
                activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                fast_bias_correction=None,
                fold_quantize=False,
            )
            return trace_graph(quantized, inputs[0])
    except UsageError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "")
        raise StageError(
            f"NNCF cannot quantize the model for {format_}: {type(error).__name__}: {reason}"
        ) from error


def lowered(
    program: ExportedProgram, format_: ArtifactFormat, example: torch.Tensor
) -> ExportedProgram:
    """The second half of :func:`quantize`: as the format's exporter wants it.

    Args:
        program: of :func:`calibrated`.
        format_: which runtime it is for.
        example: one input.
    """
    with quiet():
        from nncf.experimental.torch.fx.constant_folding import constant_fold

        module: Any = program.module(check_guards=False)
        # LiteRT's converter folds constants itself, and stumbles over folded ones.
        if format_ != "tflite":
            constant_fold(module, is_quantize)
        if format_ != "onnx":  # ONNX Runtime drops them itself
            drop_idle_clamps(module)
        return trace_graph(module, example)
