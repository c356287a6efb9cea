"""What the gap between the sum of a network's blocks and the whole network consists of."""

from __future__ import annotations

from pipeline.profile.parts import Parts
from pipeline.profile.record import BlockProfile
from profiles import units

#: How each runtime stores what PyTorch stores as channels, rows and columns.
#: Source: MLAS' NCHWc kernels (``onnxruntime/core/mlas/lib/snchwc.cpp``), XNNPACK's NHWC
#: operators (``include/xnnpack.h``), TFLite's operator definitions.
_LAYOUT = {
    "onnx": "ONNX Runtime computes convolutions in blocks of channels",
    "executorch": "XNNPACK computes with the channels last",
    "tflite": "LiteRT computes with the channels last",
}


def remarks(profile: BlockProfile, parts: Parts) -> tuple[str, ...]:
    """Sentences on a profile, without full stops: first what the gap comes to, then its parts."""
    if profile.ratio is None or profile.gap_ns is None:
        return (f"sum and whole cannot be compared: {_lacking(profile)}",)
    if profile.ratio.ci95 is not None and profile.ratio.ci95[0] <= 1 <= profile.ratio.ci95[1]:
        return ("sum and whole differ by no more than runs do",)
    if profile.gap_ns < 0:
        return (
            "the blocks take less alone: in turns of a few calls a block's own weights and values"
            " stay in the caches, from which the rest of the network displaces them",
        )
    borders = sum(block.count for block in profile.blocks) - 1
    size = units.format_bytes(parts.handed_bytes)
    found = [
        f"the {borders} borders hand over {size}, written and read in PyTorch's layout, where the"
        f" runtime keeps its own within a network ({_LAYOUT[profile.format]})",
        "nothing is fused over a border",
    ]
    if parts.repeated:
        many = "conversions" if parts.repeated > 1 else "conversion"
        found.append(f"{parts.repeated} {many} to integers and back, at borders, made twice")
    return tuple(found)


def _lacking(profile: BlockProfile) -> str:
    names = list(profile.lacking())
    return f"{', '.join(names)} not known" if names else "the parts have no run in common"
