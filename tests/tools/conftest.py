"""The command line in this process, with its exit code and streams; and the native agent."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from devices.agent.native import native_agent
from tests.projects import Project, make_project
from tests.tools.natives import HERE, HOST_CC, watched


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    code: int
    out: str
    err: str

    @property
    def problem(self) -> str:
        """The one line it complains in, progress apart."""
        lines = [line for line in self.err.splitlines() if line.startswith(("error:", "failed:"))]
        assert len(lines) == 1, self.err
        return lines[0]


Lab = Callable[..., Said]


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Lab:
    """``device-lab`` as :func:`tools.device_lab.main` answers it; never with a traceback."""
    from tools.device_lab import main

    def run(*arguments: Any) -> Said:
        monkeypatch.setattr(sys, "argv", ["device-lab", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        said = capfd.readouterr()
        assert "Traceback" not in said.err
        assert "internal error" not in said.err
        code = exit_.value.code
        return Said(code if isinstance(code, int) else 0, said.out, said.err)

    return run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A project on a scripted device whose run takes moments: FP32, ONNX, no search."""
    # Every project's module has the same name, and Python would remember another one's.
    monkeypatch.delitem(sys.modules, "stripes", raising=False)
    return make_project(tmp_path / "project", variants=["fp32"], formats=["onnx"])


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The native agent for this machine."""
    if HOST_CC is None:
        pytest.skip("no C compiler on this machine")
    return native_agent(HERE, folder=tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="session")
def watched_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with every access to memory checked."""
    if HOST_CC is None:
        pytest.skip("no C compiler on this machine")
    program = tmp_path_factory.mktemp("watched") / "agent"
    if problem := watched(program):
        pytest.skip(f"this compiler has no sanitizers: {problem.splitlines()[0]}")
    return program
