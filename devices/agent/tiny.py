"""One ReLU over float32[1, 4] in each format: a runtime that runs it works here.

Part of the program that runs on a board: standard library, Python 3.9.

*Source*: written with ``onnx.helper``, with the schema of ``ai_edge_litert`` and with
``executorch.exir``; the native agent holds the same bytes.
"""

from __future__ import annotations

import base64
import zlib

_PACKED = {
    "executorch": (
        "eNqtUcFOwkAQnZaKK3KoSAgHDs2GgwdigvEiZ/0Db5Uo0jU2aQop26gxJH6Sn8DBgwc/wi+hvi1bslQ0MbHN2+nM"
        "7rx5+9ohoovL/gkCudTG2kSsEyMHUWVER8CpASfLMgfRos1H5Uzt5+9mvZN/tcDVJQ9Z25jTwk7X4L8CFsAb8A68"
        "gODDJrINTq/Er+a9LrNMza8DFWCSSqohjqSIB4NEROnqrJt31dbza7rnXMPSOcO6j3227iGL6RsyPbNiaLBKmsya"
        "0n5T6IR/ymnaaVCDDvJpLD/lIF953i48q1ZzjVXNZWty27g3ww32tKaCt0mH33hdkxfMn9Dh/sq78ofp/6q8OQP8"
        "fs975vJpKvjAi9Mo6nl8PImleJRG4T6MgkTE17OpGKPsD+dD9C7L/fw2DSMZxrNjmU4jwTe4uCLj29j+rf8v+udb"
        "dQfhWJbG+kP+EwVM2IUHd5PkYZQE9AXXSYt+"
    ),
    "onnxruntime": (
        "eNrjYBdisLLm4uFirBBirFRiCUrNKRViLIkSBgnwcfFwMApxcDFxMAIxSxJQsBJd0ImFi0GAFwBE9Qdj"
    ),
    "litert": (
        "eNqTYGBgCHHzMWZg4GMQYRBg4GHgAIqwAHkMQB4DgwwQ3wBiZiBmBGKILAhC+CA1PHCdLEASImYDxA5A7IKkjoGB"
        "CywPUscFNYsHKg/DDFj4TEBsAraXgeHB////kfVVQuUZofI8UB8wQN2CrLYCTS3C/TwM3Eh6hCHWCgMAAWgKDA=="
    ),
}


def tiny_model(runtime: str) -> bytes:
    """The model in the format that a runtime reads."""
    return zlib.decompress(base64.b64decode(_PACKED[runtime]))
