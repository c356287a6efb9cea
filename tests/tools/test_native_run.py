"""What only an agent in C can get wrong: libraries, memory, children that read a sensor."""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from devices.agent.native import runtime_libraries
from tests.builders import TinyModel, write_plan
from tests.conformance.agents import litert_job
from tests.processes import alive
from tests.tools.natives import NO_MODEL, ORT, Events, library_of, of, run, watched

# Libraries that are not what they should be


def test_a_library_that_is_not_there(agent, tmp_path):
    plan = write_plan(tmp_path, [NO_MODEL], library=str(tmp_path / "none.so"))
    code, (event,), _ = run(agent, plan)
    assert (code, event["kind"]) == (1, "runtime-missing")
    assert "none.so" in event["message"]
    assert "libonnxruntime.so" in event["message"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "litert"])
def test_another_library(agent, runtime):
    other = ctypes.util.find_library("c")
    _, (event,), _ = run(agent, "--probe", f"{runtime}={other}")
    assert "has no function" in event["runtimes"][runtime]["missing"]


def test_a_library_that_dies_is_missing_and_the_others_are_looked_at(agent, tmp_path):
    fake = library_of(tmp_path, "#include <stdlib.h>\nvoid *OrtGetApiBase(void) { abort(); }\n")
    litert = runtime_libraries()["litert"]
    code, (event,), _ = run(agent, "--probe", f"onnxruntime={fake}", f"litert={litert}")
    assert code == 0
    assert "signal 6" in event["runtimes"]["onnxruntime"]["missing"]
    assert "version" in event["runtimes"]["litert"]


def test_a_library_that_dies_of_a_model_leaves_nothing_behind(agent, tmp_path, monkeypatch):
    code = """
    #include <stdlib.h>
    static void *well(void) { return NULL; }
    static void *dies(void) { abort(); }
    static void *functions[300];
    static const void *table(unsigned version) {
        (void)version;
        for (int i = 0; i < 300; i++) functions[i] = i == 7 ? dies : well;
        return functions;
    }
    static const char *version(void) { return "1.22"; }
    static const struct { void *table, *version; } base = {table, version};
    const void *OrtGetApiBase(void) { return &base; }
    """
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    _, (event,), _ = run(agent, "--probe", f"onnxruntime={library_of(tmp_path, code)}")
    assert "signal 6" in event["runtimes"]["onnxruntime"]["missing"]
    assert list(scratch.iterdir()) == []


def test_what_a_library_prints_is_no_event(agent, tmp_path):
    code = """
    #include <stdio.h>
    #include <stdlib.h>
    static const void *table(unsigned version) { (void)version; return NULL; }
    static const char *version(void) { return "1.2"; }
    static const struct { void *table, *version; } base = {table, version};
    const void *OrtGetApiBase(void) {
        puts("noise of the library"); system("echo noise of a child"); fflush(stdout);
        return &base;
    }
    """
    plan = write_plan(tmp_path, [NO_MODEL], library=str(library_of(tmp_path, code)))
    _, (event,), errors = run(agent, plan)
    assert event["kind"] == "runtime-missing"
    assert "1.2 is older" in event["message"]
    assert "noise of the library" in errors
    assert "noise of a child" in errors


OLD_ORT = """
#include <stddef.h>
static void *well(void) { return NULL; }
static const char *build(void) { return BUILD; }
static void *functions[300];
static const void *table(unsigned version) {
    for (int i = 0; i < 300; i++) functions[i] = i == 254 ? (void *)build : (void *)well;
    return version > NEWEST ? NULL : functions;
}
static const char *version(void) { return "1.22"; }
static const struct { void *table, *version; } base = {table, version};
const void *OrtGetApiBase(void) { return &base; }
"""


@pytest.mark.parametrize(
    ("newest", "build", "told"),
    [
        (15, r'"git \"abc\"\n"', 'git "abc"\n'),
        (14, r'"there is no such function yet"', None),
        (15, "NULL", None),
    ],
)
def test_a_build_is_asked_for_where_it_can_be(agent, tmp_path, newest, build, told):
    code = f"#define NEWEST {newest}\n#define BUILD {build}\n{OLD_ORT}"
    plan = write_plan(tmp_path, [NO_MODEL], library=str(library_of(tmp_path, code)))
    _, events, errors = run(agent, plan)
    assert events[0]["event"] == "hello", errors
    assert events[0]["build"] == told


# Memory


def test_the_size_of_the_library_is_no_memory_of_the_model(agent, tmp_path):
    job, libraries = {**litert_job(tmp_path), "id": "tiny"}, runtime_libraries()
    large = tmp_path / "libLiteRt.so"
    shutil.copyfile(libraries["litert"], large)
    os.truncate(large, 200_000_000)  # zeros that are never loaded
    plan = write_plan(tmp_path, [job], runtime="litert", library=str(large), kind="memory")
    code, events, errors = run(agent, plan)
    assert code == 0, errors
    (found,) = of(events, "memory")
    assert found["peak_bytes"] < 100_000_000


RUNS: dict[str, dict[str, Any]] = {
    "turns": {"window_ns": 5_000_000},
    "sustained": {"kind": "sustained", "window_ns": 5_000_000},
    "app": {"kind": "app", "period_ns": 1_000_000},
    "memory": {"kind": "memory"},
    "operators": {"kind": "operators"},
}


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_run_is_clean(watched_agent, tiny_model: TinyModel, tmp_path, name):
    """Models are kept until the process ends, so leaks are not looked for."""
    jobs = [tiny_model.plan_job(job) for job in ("ab" if name == "turns" else "a")]
    code, events, errors = run(watched_agent, write_plan(tmp_path, jobs, library=ORT, **RUNS[name]))
    assert (code, events[-1]["event"]) == (0, "done"), errors


# The sampler


def energy_plan(
    folder: Path, job: dict[str, Any], window_ns: int = 50_000_000, **sampling: Any
) -> Path:
    meter = {"period_ns": 10_000_000, "files": [], "command": [], **sampling}
    return write_plan(folder, [job], library=ORT, kind="energy", window_ns=window_ns, meter=meter)


@pytest.mark.parametrize(("iterations", "kept"), [(20, 100), (150, 150)])
def test_of_many_calls_for_energy_not_all_latencies_are_kept(
    tiny_model: TinyModel, tmp_path, few_kept_agent, iterations, kept
):
    """All count; what the plan asked for is there."""
    plan = energy_plan(tmp_path, tiny_model.plan_job(), files=["/proc/uptime"])
    plan.write_text(json.dumps({**json.loads(plan.read_text()), "iterations": iterations}))
    code, events, errors = run(few_kept_agent, plan)
    assert (code, events[-1]["event"]) == (0, "done"), errors
    assert sum(len(event["ns"]) for event in of(events, "samples")) == kept
    assert of(events, "mark")[1]["calls"] > 2 * kept


@pytest.fixture(scope="module")
def few_kept_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("few") / "agent"
    trouble = watched(program, "-DKEPT_CALLS=100")
    if trouble:
        pytest.skip(trouble)
    return program


def values_of(events: Events) -> set[tuple[str, ...]]:
    (power,) = of(events, "power")
    return {tuple(reading) for reading in power["values"]}


def test_odd_files_are_read_without_harm(watched_agent, tiny_model: TinyModel, tmp_path):
    """A pipe nobody writes to would block; not every driver writes text."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "bytes").write_bytes(b'\xff\x01"\\caf\xc3\xa9\n')
    (tmp_path / "endless").symlink_to("/dev/zero")
    files = [str(tmp_path / name) for name in ("pipe", "bytes", "endless", "none")]
    code, events, errors = run(
        watched_agent, energy_plan(tmp_path, tiny_model.plan_job(), files=files)
    )
    assert (code, events[-1]["event"]) == (0, "done"), errors
    assert values_of(events) == {("", '?\x01"\\café\n', "", "")}


def test_commands_that_do_not_end(watched_agent, tiny_model: TinyModel, tmp_path):
    """Of one that only talks there is enough at some time; half an answer is none."""
    script = (
        f"cd {tmp_path}; echo $$ >> pids; rm turn && exec yes; touch turn; echo x; exec sleep 9"
    )
    plan = energy_plan(tmp_path, tiny_model.plan_job(), command=["sh", "-c", script])
    code, events, errors = run(watched_agent, plan)
    assert (code, events[-1]["event"]) == (0, "done"), errors
    nothing, much = sorted(text for (text,) in values_of(events))
    assert nothing == ""
    assert set(much) == {"y", "\n"}
    assert 10_000 < len(much) < 100_000
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert not any(alive(pid) for pid in pids)


def test_readings_that_take_long(agent, tiny_model: TinyModel, tmp_path):
    """The time of one is its middle; the next waits for its turn, two periods after the last."""
    words = ["sh", "-c", "cat /proc/uptime; exec sleep 0.2"]
    job, period_ns = tiny_model.plan_job(), 150_000_000
    plan = energy_plan(tmp_path, job, 600_000_000, command=words, period_ns=period_ns)
    _, events, _ = run(agent, plan)
    (power,) = of(events, "power")
    steps = [later - earlier for earlier, later in pairwise(power["at_ns"])]
    assert median(steps[:-1]) > 260_000_000  # the end cuts the last reading short
    asleep_s = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
    begun_s = [float(text.split()[0]) - asleep_s for (text,) in power["values"]]
    into_s = [at / 1e9 - begun for at, begun in zip(power["at_ns"], begun_s, strict=True)]
    assert median(into_s) > 0.05


def test_a_profile_leaves_nothing_behind_however_it_ends(agent, tiny_model, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    plan = write_plan(
        tmp_path, [tiny_model.plan_job()], library=ORT, kind="operators", iterations=900_000_000
    )
    env = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen(
        [agent, plan], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env
    ) as process:
        assert process.stdout is not None
        while json.loads(process.stdout.readline())["event"] != "samples":
            continue
        os.kill(process.pid, signal.SIGKILL)
    assert list(scratch.iterdir()) == []
