"""What the quantizer for ONNX Runtime is tested with: networks, samples, and their annotations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipeline.compress.ort_quantizer import OrtQuantizer

F = nn.functional
IMAGE = (1, 3, 32, 32)
SAMPLES = 16


class Traced(nn.Module):
    """What the exporter sees: the network under the attribute ``model``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.model(*inputs)


class Net(nn.Module):
    """Layers, and a function that connects them."""

    def __init__(self, connect: Callable[..., torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.connect = connect
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.connect(self, *inputs)


def conv(narrow: int, wide: int, size: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(narrow, wide, size, padding=size // 2, **options)


def unit(narrow: int, wide: int, size: int, activation: type[nn.Module], **options: int):
    layers = [conv(narrow, wide, size, **options), nn.BatchNorm2d(wide)]
    return nn.Sequential(*layers, activation())


Sample = tuple[torch.Tensor, ...]


def images(shape: tuple[int, ...] = IMAGE) -> list[Sample]:
    """Smooth patterns with some noise: unlike noise alone, they differ after global pooling."""
    patterns = torch.randn(SAMPLES, *shape[1:])
    if len(shape) == 4:
        patterns = F.interpolate(patterns[..., :2, :2], size=shape[-2:], mode="bilinear")
    return [(pattern[None] + 0.2 * torch.randn(shape),) for pattern in patterns]


def export(model: nn.Module, sample: Sample, *, functional: bool = False) -> torch.fx.GraphModule:
    program = torch.export.export(Traced(model.eval()), sample, strict=False)
    return (program.run_decompositions({}) if functional else program).module()


def annotated(model: nn.Module, sample: Sample, **choices: Any) -> torch.fx.GraphModule:
    quantizer = OrtQuantizer(**choices)
    return quantizer.annotate(quantizer.transform_for_annotation(export(model, sample)))


def specs(graph: torch.fx.GraphModule) -> dict[str, object]:
    """The annotations, by the name of the node."""
    key = "quantization_annotation"
    return {node.name: node.meta[key] for node in graph.graph.nodes if key in node.meta}
