"""What the native agent makes of a device's own account: clocks, counters, memory."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.builders import write_plan
from tests.tools.natives import ORT, library_of, of, run

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


@pytest.mark.parametrize("peak", [8300, None])
def test_memory_is_what_the_system_says(agent, machine, tiny_model, tmp_path, peak):
    """A mark far above what is resident was not reset, and not of the model."""
    status = STATUS.replace("9000", str(peak or 9000))
    machine.write("/proc/self/status", f"{status}RssAnon:\t 5000 kB\nRssFile:\t 3000 kB\n")
    forgotten = machine.write("/proc/self/clear_refs", "")
    plan = write_plan(tmp_path, [tiny_model.plan_job()], library=ORT, kind="memory")
    _, events, _ = run(agent, plan, env=machine.env)
    (found,) = of(events, "memory")
    assert {
        name: value and value // 1024 for name, value in found.items() if name.endswith("_bytes")
    } == {
        "base_bytes": 8000,
        "loaded_bytes": 8000,
        "peak_bytes": peak,
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
