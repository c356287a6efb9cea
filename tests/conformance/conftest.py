"""Every agent there is, for the suites that all of them must pass."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from devices.agent.native import native_agent
from devices.agent.program import build
from profiles.errors import AgentError
from tests.builders import TinyModel
from tests.conformance.agents import EXECUTED_BY, Agent, agent_for


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...] | str]:
    """By agent: the command that starts it, or why there is none."""
    found: dict[str, tuple[str, ...] | str] = {
        "python": (sys.executable, str(build(tmp_path_factory.mktemp("python") / "agent.pyz")))
    }
    try:
        folder = tmp_path_factory.mktemp("native")
        found["native"] = (str(native_agent(platform.machine(), folder=folder)),)
    except AgentError as error:
        found["native"] = str(error)
    return found


@pytest.fixture(params=[(k, r) for k in ("python", "native") for r in EXECUTED_BY], ids="-".join)
def agent(request, programs, tiny_model: TinyModel, tmp_path: Path) -> Agent:
    kind, runtime = request.param
    return agent_for(kind, runtime, programs, tiny_model, tmp_path)


@pytest.fixture(params=["python", "native"])
def ort_agent(request, programs, tiny_model: TinyModel, tmp_path: Path) -> Agent:
    """Where it is the agent alone that matters, one runtime will do."""
    return agent_for(request.param, "onnxruntime", programs, tiny_model, tmp_path)
