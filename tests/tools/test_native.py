"""Building the native agent, and what only an agent in C can get wrong."""

from __future__ import annotations

import ctypes.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.agent import native
from devices.agent.native import (
    FOLDER,
    MACHINES,
    compiled,
    native_agent,
    runtime_libraries,
    sources,
)
from devices.agent.tiny import tiny_model as tiny_bytes
from profiles.errors import AgentError
from tests.builders import TinyModel, agent_plan
from tests.conformance.agents import litert_job
from tools.native import main

HERE = platform.machine()
ROOT = Path(__file__).parents[2]
HOST_CC = shutil.which("cc")
needs_cc = pytest.mark.skipif(HOST_CC is None, reason="no C compiler on this machine")
SANITIZERS = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if HOST_CC is None:
        pytest.skip("no C compiler on this machine")
    return native_agent(HERE, folder=tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module")
def watched_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent with every access to memory checked."""
    if HOST_CC is None:
        pytest.skip("no C compiler on this machine")
    program = tmp_path_factory.mktemp("watched") / "agent"
    words = [HOST_CC, "-std=c11", *SANITIZERS, "-o", str(program), *map(str, compiled()), "-ldl"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this compiler has no sanitizers: {done.stderr.splitlines()[0]}")
    return program


def run(*words: str | Path) -> tuple[int, list[dict[str, Any]], str]:
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, timeout=60, check=False
    )
    events = [json.loads(line) for line in done.stdout.decode().splitlines()]
    return done.returncode, events, done.stderr.decode(errors="replace")


def library_of(folder: Path, code: str) -> Path:
    """A library that is taken for ONNX Runtime's."""
    (folder / "fake.c").write_text(code)
    path = folder / "libfake.so"
    subprocess.run(
        [str(HOST_CC), "-shared", "-fPIC", "-o", str(path), str(folder / "fake.c")], check=True
    )
    return path


# Building


def test_it_is_built_once(agent):
    assert native_agent(HERE, folder=agent.parent) == agent
    assert [path.name for path in agent.parent.iterdir()] == [agent.name]


def test_another_compiler_is_another_program(agent, tmp_path):
    compiler = tmp_path / "my-cc"
    compiler.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && echo mine && exit\nexec {HOST_CC} "$@"\n'
    )
    compiler.chmod(0o755)
    assert native_agent(HERE, compiler=compiler, folder=agent.parent) != agent


@pytest.mark.parametrize("source", [path.name for path in sources()])
def test_another_source_is_another_program(source, tmp_path, monkeypatch):
    """A compiler that only leaves a file, so that no build is waited for."""
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit\n'
        'while [ "$1" != -o ]; do shift; done; echo built > "$2"\n'
    )
    compiler.chmod(0o755)
    before = native_agent(HERE, compiler=compiler, folder=tmp_path / "out")
    shutil.copytree(FOLDER, tmp_path / "sources")
    monkeypatch.setattr(native, "FOLDER", tmp_path / "sources")
    assert native_agent(HERE, compiler=compiler, folder=tmp_path / "out") == before
    changed = tmp_path / "sources" / source
    changed.write_text(changed.read_text() + "\n")
    assert native_agent(HERE, compiler=compiler, folder=tmp_path / "out") != before


def test_every_source_is_packed():
    """What a wheel leaves out cannot be compiled where it is installed."""
    packed = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = packed["tool"]["setuptools"]["package-data"]["devices"]
    found = {path for pattern in patterns for path in (ROOT / "devices").glob(pattern)}
    assert set(sources()) <= found


def test_a_compiler_that_fails_leaves_nothing(tmp_path):
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit\necho "no headers" >&2; exit 1\n')
    compiler.chmod(0o755)
    with pytest.raises(AgentError, match="no headers"):
        native_agent(HERE, compiler=compiler, folder=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_machine_nobody_builds_for():
    with pytest.raises(AgentError, match="sparc"):
        native_agent("sparc")


def test_a_phone_needs_an_ndk(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv("ANDROID_NDK", raising=False)
    monkeypatch.delenv("ANDROID_NDK_HOME", raising=False)
    code = main(["--target", "aarch64", "--system", "android", "--output", str(tmp_path)])
    assert code != 0
    assert "ANDROID_NDK" in capsys.readouterr().err


def test_the_clang_of_an_ndk_is_found(monkeypatch, tmp_path):
    """A recorded layout; the compiler in it is this machine's."""
    bins = tmp_path / "toolchains/llvm/prebuilt/linux-x86_64/bin"
    bins.mkdir(parents=True)
    clang = bins / "aarch64-linux-android24-clang"
    clang.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo clang && exit\n'
        'while [ "$1" != -o ]; do shift; done; echo built > "$2"\n'
    )
    clang.chmod(0o755)
    monkeypatch.setenv("ANDROID_NDK", str(tmp_path))
    program = native_agent("aarch64", "android", folder=tmp_path / "out")
    assert program.read_text() == "built\n"
    assert program.name.startswith("agent-android-aarch64-")


@needs_cc
def test_the_command_prints_the_program(tmp_path):
    words = [sys.executable, "-m", "tools.native", "--output", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    program = Path(done.stdout.strip())
    assert program.parent == tmp_path
    assert program.stat().st_mode & 0o111


def test_libraries_of_this_host_are_found():
    found = runtime_libraries()
    assert set(found) == {"onnxruntime", "litert"}
    assert all(path.is_file() for path in found.values())


@pytest.mark.parametrize("machine", MACHINES)
def test_it_needs_libc_alone(machine, tmp_path):
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("no readelf (apt-get install binutils)")
    try:
        program = native_agent(machine, folder=tmp_path)
    except AgentError as error:
        pytest.skip(str(error))
    said = subprocess.run([readelf, "-d", str(program)], capture_output=True, text=True, check=True)
    needed = re.findall(r"NEEDED.*\[(.*)\]", said.stdout)
    assert all(re.match(r"(libc|libdl|ld-linux.*)\.so", name) for name in needed), needed


def test_the_cross_compiled_agent_answers_under_emulation(tmp_path):
    emulator, root = shutil.which("qemu-aarch64"), Path("/usr/aarch64-linux-gnu")
    if emulator is None or not root.is_dir():
        pytest.skip("no qemu-aarch64 or no aarch64 libc here")
    try:
        program = native_agent("aarch64", folder=tmp_path)
    except AgentError as error:
        pytest.skip(str(error))
    start = [emulator, "-L", str(root), str(program)]
    code, (event,), _ = run(*start, "--probe", "onnxruntime=/nowhere/libonnxruntime.so")
    assert (code, event["agent"]) == (0, "native")
    assert "/nowhere" in event["runtimes"]["onnxruntime"]["missing"]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(agent_plan([], library="/nowhere/libonnxruntime.so")))
    code, (event,), _ = run(*start, plan)
    assert (code, event["kind"]) == (1, "runtime-missing")


# Libraries that are not what they should be


def test_both_agents_prove_a_runtime_with_the_same_models():
    for runtime, name in (("onnxruntime", "TINY_ONNX"), ("litert", "TINY_TFLITE")):
        array = re.search(rf"{name}\[\] = \{{(.*?)\}};", (FOLDER / "probe.c").read_text(), re.S)
        assert array
        assert bytes(map(int, re.findall(r"\d+", array[1]))) == tiny_bytes(runtime)


def test_a_library_that_is_not_there(agent, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(agent_plan([], library=str(tmp_path / "none.so"))))
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


def test_the_size_of_the_library_is_no_memory_of_the_model(agent, tmp_path):
    job, libraries = {**litert_job(tmp_path), "id": "tiny"}, runtime_libraries()
    large = tmp_path / "libLiteRt.so"
    shutil.copyfile(libraries["litert"], large)
    os.truncate(large, 200_000_000)  # zeros that are never loaded
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(agent_plan([job], runtime="litert", library=str(large))))
    code, events, errors = run(agent, plan)
    assert code == 0, errors
    assert events[-1]["peak_bytes"] < 100_000_000


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
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(agent_plan([], library=str(library_of(tmp_path, code)))))
    _, (event,), errors = run(agent, plan)
    assert event["kind"] == "runtime-missing"
    assert "1.2 is older" in event["message"]
    assert "noise of the library" in errors
    assert "noise of a child" in errors


# Plans, whatever is in them


@pytest.fixture(scope="module")
def plan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


def _plans() -> st.SearchStrategy[bytes]:
    whole = json.dumps(
        agent_plan(
            [{"id": "a", "path": "m", "inputs": [], "expect": ["x\u00e9"]}], library="/nowhere"
        )
    ).encode()
    cut = st.integers(0, len(whole)).map(lambda size: whole[:size])
    spot = st.tuples(st.integers(0, len(whole) - 1), st.binary(max_size=6))
    changed = spot.map(lambda at: whole[: at[0]] + at[1] + whole[at[0] + 1 :])
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=6,
    )
    keys = st.sampled_from([*json.loads(whole), "library"])
    replaced = st.tuples(keys, values).map(
        lambda at: json.dumps({**json.loads(whole), at[0]: at[1]}).encode()
    )
    return (
        cut
        | changed
        | replaced
        | st.binary(max_size=40)
        | values.map(lambda value: json.dumps(value).encode())
    )


@settings(max_examples=150)
@given(_plans())
def test_no_plan_makes_it_crash(watched_agent, plan_folder, content):
    path = plan_folder / "plan.json"
    path.write_bytes(content)
    code, events, errors = run(watched_agent, path)
    assert code == 1, errors
    assert [event["event"] for event in events] == ["error"], errors


@settings(max_examples=80)
@given(
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Z")), min_size=1, max_size=30),
    st.booleans(),
)
def test_strings_are_read_as_json_means_them(watched_agent, plan_folder, name, escaped):
    job = {"id": name, "path": "m", "inputs": []}
    path = plan_folder / "plan.json"
    path.write_text(json.dumps(agent_plan([job, job]), ensure_ascii=escaped))
    _, (event,), _ = run(watched_agent, path)
    assert event["message"] == f"two jobs are called {name}"


def test_a_whole_run_is_clean(watched_agent, tiny_model: TinyModel, tmp_path):
    """Models are kept until the process ends, so leaks are not looked for."""
    library = str(runtime_libraries()["onnxruntime"])
    jobs = [tiny_model.plan_job(name) for name in "ab"]
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(agent_plan(jobs, library=library)))
    code, events, errors = run(watched_agent, plan)
    assert (code, events[-1]["event"]) == (0, "done"), errors


# Both agents on the same models


@pytest.mark.slow
@needs_cc
def test_the_benchmark_of_agreement_reports_every_runtime_with_a_library():
    words = [sys.executable, "-m", "tools.bench.agents", "--json", "--pairs", "2", "--turns", "3"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert {item["runtime"] for item in found} == set(runtime_libraries())
    for item in found:
        # An agent that timed something else than the call would be off by far more.
        assert 0.5 < item["ratio"] < 2
