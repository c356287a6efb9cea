"""A search space like mobile networks', whose networks take a fraction of a millisecond to some.

Stages of widths 24, 48 and 96 behind a stem of 16 channels at 112 x 112: eight inverted residuals,
each with a kernel of 3 or 7 and an expansion of 1, 3 or 6, five of which may be left out: 3.6
million networks of 38 distinct blocks.
"""

from __future__ import annotations

from pipeline.supernet.elastic import ElasticConvNet, StagePlan

SIZE = 112


def elastic() -> ElasticConvNet:
    """The super-network; its weights are random and stay so."""
    return ElasticConvNet(
        input_shape=(3, SIZE, SIZE),
        stem_width=16,
        stem_stride=2,
        stages=(StagePlan(24, depth=2), StagePlan(48, depth=3), StagePlan(96, depth=3)),
        kernels=(3, 7),
        expands=(1, 3, 6),
        classes=100,
    )
