"""The native agent as a program that tests run: built plainly, or with its memory watched."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from devices.agent.native import compiled, runtime_libraries

Events = list[dict[str, Any]]
HERE = platform.machine()
#: The C library of ONNX Runtime on this machine.
ORT = str(runtime_libraries().get("onnxruntime"))
HOST_CC = shutil.which("cc")
#: A job of plans that end before it is loaded.
NO_MODEL: dict[str, Any] = {"id": "none", "path": "none", "inputs": []}
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def watched(program: Path, *more: str) -> str:
    """Build the agent so that every access to memory is checked; what went wrong, if it did."""
    flags = ["-std=c11", *SANITIZERS, *more]
    words = [str(HOST_CC), *flags, "-o", str(program), *map(str, compiled())]
    done = subprocess.run([*words, "-ldl"], capture_output=True, text=True, check=False)
    return done.stderr if done.returncode else ""


def run(*words: str | Path, env: dict[str, str] | None = None) -> tuple[int, Events, str]:
    """An agent's exit code, its events and what else was said."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, timeout=60, check=False, env=env
    )
    events = [json.loads(line) for line in done.stdout.decode().splitlines()]
    return done.returncode, events, done.stderr.decode(errors="replace")


def of(events: Events, name: str) -> Events:
    """The events of this name."""
    return [event for event in events if event["event"] == name]


def library_of(folder: Path, code: str) -> Path:
    """A library of this code, such as one that is taken for ONNX Runtime's."""
    (folder / "fake.c").write_text(code)
    path = folder / "libfake.so"
    words = [str(HOST_CC), "-shared", "-fPIC", "-o", str(path), str(folder / "fake.c"), "-ldl"]
    subprocess.run(words, check=True)
    return path
