"""Building the native agent, and what it makes of the plans it is given."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from devices.agent import native
from devices.agent.native import FOLDER, MACHINES, native_agent, runtime_libraries, sources
from devices.agent.tiny import tiny_model as tiny_bytes
from profiles.errors import AgentError
from tests.builders import agent_plan
from tests.tools.natives import HERE, HOST_CC, NO_MODEL, run
from tools.native import main

ROOT = Path(__file__).parents[2]
needs_cc = pytest.mark.skipif(HOST_CC is None, reason="no C compiler on this machine")


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
    plan.write_text(json.dumps(agent_plan([NO_MODEL], library="/nowhere/libonnxruntime.so")))
    code, (event,), _ = run(*start, plan)
    assert (code, event["kind"]) == (1, "runtime-missing")


# Plans, whatever is in them


@pytest.fixture(scope="module")
def plan_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


def _plans() -> st.SearchStrategy[bytes]:
    whole = json.dumps(
        agent_plan(
            [{"id": "a", "path": "m", "inputs": [], "expect": ["x\u00e9"]}],
            library="/nowhere",
            kind="energy",
            meter={"period_ns": 1_000_000, "files": ["/proc/uptime"], "command": []},
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


# Both agents on the same models


def test_both_agents_prove_a_runtime_with_the_same_models():
    for runtime, name in (("onnxruntime", "TINY_ONNX"), ("litert", "TINY_TFLITE")):
        array = re.search(rf"{name}\[\] = \{{(.*?)\}};", (FOLDER / "probe.c").read_text(), re.S)
        assert array
        assert bytes(map(int, re.findall(r"\d+", array[1]))) == tiny_bytes(runtime)


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
