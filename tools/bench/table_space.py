"""A search space like mobile networks', whose networks take a fraction of a millisecond to some.

Stages of widths 32, 64 and 96 behind a stem of 16 channels at 128 x 128: six inverted residuals,
each with a kernel of 3 or 7 and an expansion of 1, 3 or 8, three of which may be left out: 74088
networks of 38 distinct blocks.
"""

from __future__ import annotations

from pipeline.supernet.elastic import ElasticConvNet, StagePlan

SIZE = 128


def elastic() -> ElasticConvNet:
    """The super-network; its weights are random and stay so."""
    return ElasticConvNet(
        input_shape=(3, SIZE, SIZE),
        stem_width=16,
        stem_stride=2,
        stages=(StagePlan(32, depth=2), StagePlan(64, depth=2), StagePlan(96, depth=2)),
        kernels=(3, 7),
        expands=(1, 3, 8),
        classes=100,
    )
