"""What only an agent in C can get wrong: libraries, memory, children, a device's odd files."""

from __future__ import annotations

import ctypes.util
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from devices.agent.native import runtime_libraries
from tests.builders import TinyModel, write_plan
from tests.conformance.agents import litert_job
from tests.processes import alive, children, eventually
from tests.tools.natives import library_of, run

Events = list[dict[str, Any]]
ORT = str(runtime_libraries().get("onnxruntime"))


def of(events: Events, name: str) -> Events:
    return [event for event in events if event["event"] == name]


# Libraries that are not what they should be


def test_a_library_that_is_not_there(agent, tmp_path):
    plan = write_plan(tmp_path, [], library=str(tmp_path / "none.so"))
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
    plan = write_plan(tmp_path, [], library=str(library_of(tmp_path, code)))
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
    plan = write_plan(tmp_path, [], library=str(library_of(tmp_path, code)))
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


def energy_plan(folder: Path, job: dict[str, Any], **sampling: Any) -> Path:
    meter = {"period_ns": 10_000_000, "files": [], "command": [], **sampling}
    return write_plan(folder, [job], library=ORT, kind="energy", window_ns=50_000_000, meter=meter)


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


def test_a_command_that_does_not_stop_talking(watched_agent, tiny_model: TinyModel, tmp_path):
    words = ["sh", "-c", f"echo $$ >> {tmp_path}/pids; exec yes"]
    code, events, errors = run(
        watched_agent, energy_plan(tmp_path, tiny_model.plan_job(), command=words)
    )
    assert (code, events[-1]["event"]) == (0, "done"), errors
    for (text,) in values_of(events):
        assert set(text) == {"y", "\n"}
        assert len(text) < 100_000
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    assert not any(alive(pid) for pid in pids)


def test_the_command_of_an_agent_that_is_killed_goes_with_it(agent, tiny_model, tmp_path):
    """With all that it has started: what still measures would hold a sensor, or a port."""
    words = ["sh", "-c", "sleep 600 & wait"]
    plan = energy_plan(tmp_path, tiny_model.plan_job(), command=words, period_ns=600 * 10**9)
    with subprocess.Popen(
        [agent, plan], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert eventually(lambda: len(children(process.pid)) >= 3)
        (sampler, *_) = started = children(process.pid)
        standard = {str(Path(f"/proc/{sampler}/fd/{number}").readlink()) for number in range(3)}
        assert standard == {"/dev/null"}  # a host may listen to its agent's errors, too
        os.kill(process.pid, signal.SIGKILL)
        assert process.stdout is not None
        process.stdout.read()
    assert eventually(lambda: not any(alive(pid) for pid in started))


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


# What a device tells of itself

# Uses files under $FAKE_ROOT where there are such, or links that lead nowhere; threads are not told
# apart.
MOVED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
static const char *moved(const char *path, char *place) {
    struct stat found;
    const char *wanted = strstr(path, "/schedstat") ? "/schedstat" : path;
    snprintf(place, 4096, "%s%s", getenv("FAKE_ROOT"), wanted);
    return lstat(place, &found) ? path : place;
}
FILE *fopen(const char *path, const char *mode) {
    char place[4096];
    FILE *(*real)(const char *, const char *) = dlsym(RTLD_NEXT, "fopen");
    return real(moved(path, place), mode);
}
int open(const char *path, int flags, ...) {
    char place[4096];
    va_list more;
    va_start(more, flags);
    int mode = flags & O_CREAT ? va_arg(more, int) : 0;
    va_end(more);
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    return real(moved(path, place), flags, mode);
}
int getrusage(__rusage_who_t who, struct rusage *usage) {
    memset(usage, 0, sizeof *usage);
    usage->ru_utime.tv_sec = who == RUSAGE_SELF ? 10 : 200;
    usage->ru_stime.tv_usec = who == RUSAGE_SELF ? 3000 : 40000;
    return 0;
}
"""


class Machine:
    """Files of a device that the agent reads instead of this machine's."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.root.mkdir()
        library = library_of(folder, MOVED)
        self.env = {**os.environ, "LD_PRELOAD": str(library), "FAKE_ROOT": str(self.root)}

    def write(self, path: str, text: str) -> Path:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        return place

    def remove(self, path: str) -> None:
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to("/nowhere")

    def core(self, number: int, khz: str, governor: str) -> Path:
        folder = f"/sys/devices/system/cpu/cpu{number}/cpufreq"
        self.write(f"{folder}/scaling_governor", f"{governor}\n")
        return self.write(f"{folder}/scaling_cur_freq", f"{khz}\n")


@pytest.fixture
def machine(agent, tmp_path) -> Machine:
    return Machine(tmp_path)


def test_cores_tell_their_clocks_and_governors(agent, machine, tiny_model, tmp_path):
    cores = sorted(os.sched_getaffinity(0))
    for core in range(12):
        governor = "schedutil" if core < 10 else "walt"
        machine.core(core, str(1_000_000 + core), governor)
    machine.core(11, "<unknown>", "schedutil")
    for core in cores[-2:]:
        plan = write_plan(
            tmp_path, [tiny_model.plan_job()], library=ORT, core_mask=f"{1 << core:x}"
        )
        code, events, errors = run(agent, plan, env=machine.env)
        assert code == 0, errors
        for event in of(events, "environment"):
            assert event["frequencies_khz"] == [1_000_000 + number for number in range(11)]
            assert event["governors"] == ["schedutil", "walt"]
        assert [event["khz"] for event in of(events, "samples")] == [1_000_000 + core] * 3


def test_a_clock_is_that_of_its_slice(agent, machine, tiny_model, tmp_path):
    files = [machine.core(core, "2000000", "walt") for core in os.sched_getaffinity(0)]
    job, many = tiny_model.plan_job(), 900_000_000
    plan = write_plan(tmp_path, [job], library=ORT, iterations=many, slice_iterations=500)
    process = subprocess.Popen(
        [agent, plan], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=machine.env
    )
    with process:
        assert process.stdout is not None
        for khz in (2_000_000, 1_500_000, None, 1_800_000):
            for file in files:
                with file.open("r+") as stream:  # as the kernel does: the same file, another text
                    stream.write(f"{khz or 'unknown'}\n")
            assert any(
                json.loads(line).get("khz", 0) == khz for line in lines(process.stdout, 2000)
            )
        process.kill()


def lines(stream: Any, count: int) -> Any:
    return (stream.readline() for _ in range(count))


def test_what_a_device_does_not_tell_is_left_out(agent, machine, tiny_model, tmp_path):
    machine.remove("/proc/loadavg")
    machine.remove("/schedstat")
    machine.write("/proc/stat", "cpu0 1 2 3\n")
    plan = write_plan(tmp_path, [tiny_model.plan_job()], library=ORT)
    code, events, errors = run(agent, plan, env=machine.env)
    assert code == 0, errors
    for event in of(events, "environment"):
        assert not set(event) & {"load_1min", "busy_ms", "stolen_ms", "waited_ms"}
        assert set(event) >= {"own_ms", "clock", "at_ns"}


def test_counters_are_read_as_the_kernel_means_them(agent, machine, tiny_model, tmp_path):
    machine.write("/proc/stat", "cpu  1 20 300 4000 50000 600000 7000000 80000000 9 9\ncpu0 1\n")
    machine.write("/schedstat", "5000000 7000000 3\n")
    plan = write_plan(tmp_path, [tiny_model.plan_job()], library=ORT)
    _, events, _ = run(agent, plan, env=machine.env)
    tick_ms = 1000 // os.sysconf("SC_CLK_TCK")
    before = of(events, "environment")[0]
    assert before["busy_ms"] == 7_600_321 * tick_ms
    assert before["stolen_ms"] == 80_000_000 * tick_ms
    assert before["waited_ms"] % 7 == 0 < before["waited_ms"]
    assert before["own_ms"] == 210_043


STATUS = "Name:\tagent\nVmPeak:\t 99 kB\nVmHWM:\t 9000 kB\nVmRSS:\t 8000 kB\n"


def test_memory_is_what_the_system_says(agent, machine, tiny_model, tmp_path):
    machine.write("/proc/self/status", f"{STATUS}RssAnon:\t 5000 kB\nRssFile:\t 3000 kB\n")
    forgotten = machine.write("/proc/self/clear_refs", "")
    plan = write_plan(tmp_path, [tiny_model.plan_job()], library=ORT, kind="memory")
    _, events, _ = run(agent, plan, env=machine.env)
    (found,) = of(events, "memory")
    assert {name: value // 1024 for name, value in found.items() if name.endswith("_bytes")} == {
        "base_bytes": 8000,
        "loaded_bytes": 8000,
        "peak_bytes": 9000,
        "file_bytes": 3000,
    }
    assert forgotten.read_text() == "5"


def test_memory_that_is_not_told_is_never_nothing(agent, machine, tiny_model, tmp_path):
    """RssFile came with Linux 4.5."""
    machine.write("/proc/self/status", STATUS)
    plan = write_plan(tmp_path, [tiny_model.plan_job()], library=ORT, kind="memory")
    code, events, _ = run(agent, plan, env=machine.env)
    assert (code, events[-1]["kind"]) == (1, "failed")
    assert "RssFile" in events[-1]["message"]
