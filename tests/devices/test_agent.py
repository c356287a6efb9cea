"""The Python agent as boards run it: a program of its own, copied alone into some folder.

What both agents must do is in ``tests/conformance/test_agent.py``.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from devices.agent.engines import RUNTIMES, prove
from devices.agent.program import build, sources
from devices.transport.scripted import play_agent
from tests.builders import TinyModel, agent_plan, write_plan
from tests.devices import fake_runtime

Events = list[dict[str, Any]]


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    """The program, away from the project it comes from."""
    folder = tmp_path / "board"
    folder.mkdir()
    return build(folder / "agent.pyz")


def command(agent: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(agent), *arguments]


def run(
    agent: Path, *arguments: str | Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(agent, *map(str, arguments)),
        cwd=agent.parent,
        env={**os.environ, **(env or {})},
        capture_output=True,
        timeout=60,
        check=False,
    )


def events_of(done: subprocess.CompletedProcess[bytes]) -> Events:
    """Every line is one JSON object, or this raises."""
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def measure(agent: Path, jobs: Sequence[dict[str, Any]], **plan: Any) -> Events:
    done = run(agent, write_plan(agent.parent, jobs, **plan))
    assert done.returncode == 0, done.stderr.decode()
    return events_of(done)


def kinds(events: Events) -> list[str]:
    """Names of the events in order, repetitions folded."""
    return [kind for kind, _ in groupby(event["event"] for event in events)]


def samples(events: Events, job: str, kind: str = "samples") -> list[int]:
    mine = [event for event in events if event["event"] == kind and event["job"] == job]
    return [ns for event in mine for ns in event["ns"]]


# One whole model


def test_a_latency_is_that_of_the_call(agent, tiny_model):
    """A call of 5 ms is timed as such: neither less, nor with what lies between calls."""
    env = {**fake_runtime.install(agent.parent / "fake"), "FAKE_CALL_S": "0.005"}
    done = run(agent, write_plan(agent.parent, [tiny_model.plan_job()]), env=env)
    taken = samples(events_of(done), "tiny")
    assert len(taken) == 20
    assert min(taken) >= 5_000_000
    assert sorted(taken)[10] < 50_000_000


def test_the_core_mask_is_in_force(agent, tiny_model):
    core = max(os.sched_getaffinity(0))
    env = fake_runtime.install(agent.parent / "fake")
    plan = write_plan(agent.parent, [tiny_model.plan_job()], core_mask=f"{1 << core:x}")
    loaded = next(e for e in events_of(run(agent, plan, env=env)) if e["event"] == "loaded")
    assert loaded["delegates"] == [f"cores {core}"]


# What goes wrong


def test_a_missing_runtime_is_named_as_such(agent, tiny_model):
    env = fake_runtime.install_broken(agent.parent / "fake")
    done = run(agent, write_plan(agent.parent, [tiny_model.plan_job()]), env=env)
    (event,) = events_of(done)
    assert (event["event"], event["kind"]) == ("error", "runtime-missing")
    assert "libgomp" in event["message"]
    assert "pip install onnxruntime" in event["message"]
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr


def test_a_runtime_nobody_knows_is_missing_too(agent, tiny_model):
    done = run(agent, write_plan(agent.parent, [tiny_model.plan_job()], runtime="abacus"))
    (event,) = events_of(done)
    assert (event["kind"], done.returncode) == ("runtime-missing", 1)
    assert "abacus" in event["message"]


def test_standard_output_is_events_alone_whatever_the_runtime_prints(agent, tiny_model):
    env = fake_runtime.install(agent.parent / "fake")
    done = run(agent, write_plan(agent.parent, [tiny_model.plan_job()]), env=env)
    assert done.returncode == 0
    assert kinds(events_of(done))[-1] == "done"
    for noise in (b"by print", b"by the C library", b"by a child", b"in the timed part"):
        assert b"noise " + noise in done.stderr


def start_slow(
    agent: Path, tiny_model: TinyModel, good_calls: int = 10**9, **plan: Any
) -> subprocess.Popen[bytes]:
    """An agent whose run would take minutes."""
    env = {
        **fake_runtime.install(agent.parent / "fake"),
        "FAKE_CALL_S": "0.01",
        "FAKE_GOOD_CALLS": str(good_calls),
    }
    path = write_plan(
        agent.parent, [tiny_model.plan_job()], iterations=10_000, slice_iterations=5, **plan
    )
    return subprocess.Popen(
        command(agent, str(path)),
        cwd=agent.parent,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def test_lines_are_not_held_back(agent, tiny_model):
    """What was measured before a call that never ends has already been said."""
    # One call while loading, three and two of warm-up, and two slices of one untimed and five.
    process = start_slow(agent, tiny_model, good_calls=1 + 3 + 2 + 12, deadline_s=10)
    with process:
        events = [json.loads(process.stdout.readline()) for _ in range(8)]
        assert process.poll() is None
        process.kill()
    assert len(samples(events, "tiny")) == 10


def test_an_agent_whose_runtime_hangs_still_says_that_its_deadline_passed(agent, tiny_model):
    """The call does not return to Python, so no Python signal handler would run."""
    process = start_slow(agent, tiny_model, good_calls=5, deadline_s=1)
    with process:
        lines = process.stdout.read().splitlines()
    assert process.returncode == 1
    assert json.loads(lines[-1])["kind"] == "deadline"


def test_a_runtime_that_keeps_the_interpreter_to_itself_is_ended_by_the_kernel(agent, tiny_model):
    env = {**fake_runtime.install(agent.parent / "fake"), "FAKE_HOLD_S": "60"}
    done = run(agent, write_plan(agent.parent, [tiny_model.plan_job()], deadline_s=1), env=env)
    assert done.returncode == -signal.SIGALRM
    assert "done" not in kinds(events_of(done))


# Looking at the device


def test_probe_names_versions_and_delegates(agent):
    import onnxruntime

    done = run(agent, "--probe", "onnxruntime=/device/libonnxruntime.so", "litert")
    (event,) = events_of(done)
    assert (event["event"], event["agent"]) == ("probe", "python")
    assert event["runtimes"]["onnxruntime"] == {
        "version": onnxruntime.__version__,
        "delegates": onnxruntime.get_available_providers(),
    }
    assert event["runtimes"]["litert"]["version"].startswith("ai_edge_litert ")
    assert "XNNPACK" in event["runtimes"]["litert"]["delegates"]
    assert done.returncode == 0


def test_every_runtime_here_proves_itself_with_a_tiny_model():
    for runtime in RUNTIMES:
        prove(runtime)


def test_a_runtime_that_imports_and_fails_on_use_is_missing(agent):
    """As tflite-runtime does next to numpy 2."""
    env = {**fake_runtime.install(agent.parent / "fake"), "FAKE_GOOD_CALLS": "-1"}
    (event,) = events_of(run(agent, "--probe", "onnxruntime", env=env))
    assert set(event["runtimes"]["onnxruntime"]) == {"missing", "hint"}


def test_tflite_runtime_needs_an_older_numpy(agent):
    folder = agent.parent / "fake" / "tflite_runtime"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "interpreter.py").write_text("")
    (folder.parent / "ai_edge_litert.py").write_text('raise ImportError("not here")\n')
    env = {"PYTHONPATH": str(folder.parent)}
    (event,) = events_of(run(agent, "--probe", "litert", env=env))
    found = event["runtimes"]["litert"]
    assert "numpy 1" in found["missing"]
    assert "numpy<2" in found["hint"]


def test_probe_says_what_to_install(agent):
    env = fake_runtime.install_broken(agent.parent / "fake")
    done = run(agent, "--probe", "onnxruntime", env=env)
    (event,) = events_of(done)
    assert done.returncode == 0  # a missing runtime is an answer
    found = event["runtimes"]["onnxruntime"]
    assert "libgomp" in found["missing"]
    assert found["hint"] == "pip install onnxruntime"


def test_probe_without_names_looks_for_all_runtimes(agent):
    """Importing all three is slow, so each is a stand-in that is broken."""
    folder = agent.parent / "fake"
    env = fake_runtime.install_broken(folder)
    for name in ("executorch", "ai_edge_litert", "tflite_runtime", "torch"):
        (folder / f"{name}.py").write_text('raise ImportError("not here")\n')
    (event,) = events_of(run(agent, "--probe", env=env))
    assert set(event["runtimes"]) == {"executorch", "onnxruntime", "litert"}
    assert all(set(found) == {"missing", "hint"} for found in event["runtimes"].values())


def test_probe_of_a_runtime_that_does_not_exist(agent):
    (event,) = events_of(run(agent, "--probe", "abacus"))
    assert "missing" in event["runtimes"]["abacus"]


# What a board must have


def test_the_agent_needs_nothing_but_the_standard_library_to_answer(agent):
    """Neither this project nor any package is there: no runtime works, and that is said."""
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(agent), "--probe"],
        cwd=agent.parent,
        capture_output=True,
        timeout=60,
        check=False,
    )
    (event,) = events_of(done)
    assert set(event["runtimes"]) == {"executorch", "onnxruntime", "litert"}
    assert all("missing" in found for found in event["runtimes"].values())


def test_the_same_sources_make_the_same_program(tmp_path):
    """Its name on the device is its hash: another one each time would be sent each time."""
    assert build(tmp_path / "a.pyz").read_bytes() == build(tmp_path / "b.pyz").read_bytes()


def test_the_agent_imports_the_standard_library_and_runtimes_only():
    allowed = {"numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime", "executorch", "torch"}
    imported: set[str] = set()
    own = {"devices.agent", *(f"devices.agent.{module.stem}" for module in sources())}
    trees = [ast.parse(module.read_text()) for module in sources()]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and node.level == 0
            if node.module not in own:
                imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) <= allowed


@pytest.mark.parametrize("module", sources(), ids=lambda module: module.name)
def test_the_agent_is_written_for_python_3_9(module):
    """Boards with Debian 11 have it; newer syntax would fail there before the first event."""
    tree = ast.parse(module.read_text(), feature_version=(3, 9))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    strict = [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Name)
        and call.func.id == "zip"
        and any(keyword.arg == "strict" for keyword in call.keywords)
    ]
    assert strict == [], "zip(strict=) came with Python 3.10"


def _python_3_9() -> str | None:
    program = shutil.which("python3.9")
    works = program and subprocess.run([program, "-V"], capture_output=True, check=False)
    return program if works and works.returncode == 0 else None


@pytest.mark.skipif(_python_3_9() is None, reason="no python3.9 on this machine")
def test_the_agent_answers_on_python_3_9(agent):
    done = subprocess.run(
        [_python_3_9(), str(agent), "--probe"], capture_output=True, timeout=60, check=False
    )
    (event,) = events_of(done)
    assert event["event"] == "probe"


def test_the_scripted_agent_speaks_as_the_real_one_does(agent, tiny_model):
    """Same events with the same keys, so that what is tested with the fake holds."""
    jobs = [tiny_model.plan_job(name) for name in "ab"]
    real = measure(agent, jobs, settle_iterations=0, iterations=8)
    (agent.parent / "plan.json").write_text(json.dumps(agent_plan(jobs, iterations=8)))
    played = [
        json.loads(line)
        for line in play_agent(agent.parent, ["agent.py", "plan.json"]).splitlines()
    ]

    def shapes(events: Events) -> set[tuple[str, frozenset[str]]]:
        return {(e["event"], frozenset(e)) for e in events if e["event"] != "environment"}

    assert shapes(played) == shapes(real)
    assert [len(samples(played, job)) for job in "ab"] == [8, 8]
    assert played == [
        json.loads(line)
        for line in play_agent(agent.parent, ["agent.py", "plan.json"]).splitlines()
    ]
    probed = json.loads(play_agent(agent.parent, ["agent.py", "--probe", "litert"]))
    real_probe = events_of(run(agent, "--probe", "onnxruntime"))[0]
    assert set(probed) == set(real_probe)
    assert set(probed["runtimes"]["litert"]) == set(real_probe["runtimes"]["onnxruntime"])
