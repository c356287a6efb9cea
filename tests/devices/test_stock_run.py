"""Stock tools through a transport, with programs that print what a tool printed once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from devices.stock.base import StockResult, StockTool, run_stock, stock_tool
from devices.stock.benchmark_model import BenchmarkModel
from devices.stock.executor_runner import ExecutorRunner
from devices.stock.onnxruntime_perf_test import OnnxRuntimePerfTest
from devices.transport.local import LocalTransport
from profiles.errors import AgentError, UsageError
from tests.devices.test_stock import TOOLS, asked, ended, golden


class Fake:
    """A program that notes its arguments and prints a recorded output."""

    def __init__(self, folder: Path, said: str, before: str = "", code: int = 0) -> None:
        self.path = folder / "the tool"
        self._noted = folder / "noted"
        (folder / "said").write_text(said)
        self.path.write_text(
            f'#!/bin/sh\nfor word; do echo "$word"; done >> "{self._noted}"\n'
            f'echo -- >> "{self._noted}"\n{before}\ncat "{folder}/said"\nexit {code}\n'
        )
        self.path.chmod(0o755)

    def calls(self) -> list[list[str]]:
        """The arguments of each call."""
        return [part.split("\n")[:-1] for part in self._noted.read_text().split("--\n")[:-1]]


def run_fake(fake: Fake, tool: StockTool, folder: Path, **options) -> StockResult:
    given_ = {"threads": 2, "iterations": 50, "deadline_s": 60.0, **options}
    return run_stock(LocalTransport(folder), tool, str(fake.path), "a model.bin", **given_)


def test_benchmark_model_is_told_all_four_bounds(tmp_path):
    fake = Fake(tmp_path, golden("benchmark_model", "2020-cpu"))
    assert run_fake(fake, BenchmarkModel(), tmp_path).n == 50
    (words,) = fake.calls()
    assert {"--num_runs=50", "--min_secs=0", "--warmup_min_secs=0", "--max_secs=20"} < set(words)
    assert {"--graph=a model.bin", "--num_threads=2", "--warmup_runs=5"} < set(words)
    assert "--report_peak_memory_footprint=false" in words
    assert not any("delegat" in word for word in words)


@pytest.mark.parametrize(
    ("delegate", "flag"),
    [("gpu", "--use_gpu=true"), ("/lib/x.so", "--external_delegate_path=/lib/x.so")],
)
def test_benchmark_model_may_not_fall_back_when_a_delegate_is_asked_for(delegate, flag):
    words = BenchmarkModel().command(asked(delegate=delegate))
    assert {flag, "--require_full_delegation=true"} < set(words)
    with pytest.raises(UsageError, match="knows no delegate 'quantum'"):
        BenchmarkModel().command(asked(delegate="quantum"))


def test_memory_has_a_run_of_its_own(tmp_path):
    peak = "Overall peak memory footprint (MB) via periodic monitoring: 2"
    fake = Fake(tmp_path, f"{golden('benchmark_model', '2020-cpu')}{peak}\n")
    result = run_fake(fake, BenchmarkModel(), tmp_path, memory=True)
    flags = [[w.partition("=")[2] for w in c if "peak_memory" in w] for c in fake.calls()]
    assert flags == [["false"], ["true"]]
    assert (result.peak_bytes, result.notes) == (2 << 20, ())


def test_executor_runner_on_a_device_without_a_system_log(tmp_path):
    fake = Fake(tmp_path, golden("executor_runner", "2025-add"))
    result = run_fake(fake, ExecutorRunner(), tmp_path, iterations=1)
    assert result.mean_ns == 691_078
    assert fake.calls() == [["--model_path=a model.bin", "--num_executions=1", "--cpu_threads=2"]]


@pytest.mark.parametrize("shell", ["dash", "busybox", "mksh"])
def test_executor_runner_on_a_device_with_a_system_log(tmp_path, monkeypatch, shell):
    """On Android its words go there alone; the process's own part of the log is asked for."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell} on this machine")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sh").symlink_to(found)
    log = programs / "logcat"
    log.write_text(f'#!/bin/sh\n[ "$4" = "--pid=$(cat {tmp_path}/pid)" ] && cat "{tmp_path}/log"\n')
    log.chmod(0o755)
    (tmp_path / "log").write_text("Model executed successfully 50 time(s) in 100.5 ms.\n")
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    fake = Fake(tmp_path, "OutputX 0: 1\n", before=f'echo $$ > "{tmp_path}/pid"')
    assert run_fake(fake, ExecutorRunner(), tmp_path).mean_ns == 2_010_000
    fake = Fake(tmp_path, "", before=f'echo $$ > "{tmp_path}/pid"', code=3)
    with pytest.raises(AgentError, match="exit code 3"):
        run_fake(fake, ExecutorRunner(), tmp_path)


@pytest.mark.parametrize("asks", [{"delegate": "xnnpack"}, {"memory": True}])
def test_executor_runner_refuses_what_it_cannot_do(tmp_path, asks):
    fake = Fake(tmp_path, golden("executor_runner", "2025-add"))
    with pytest.raises(UsageError, match="executor_runner"):
        run_fake(fake, ExecutorRunner(), tmp_path, **asks)
    assert not (tmp_path / "noted").exists()


def test_an_older_executor_runner_says_what_it_lacks():
    said = "ERROR: unknown command line flag 'cpu_threads'\n"
    with pytest.raises(AgentError, match="not all the options") as caught:
        ExecutorRunner().parse(asked(), ended(stderr=said, exit_code=1))
    assert "--cpu_threads" in caught.value.hint


@pytest.mark.parametrize("shell", ["dash", "busybox", "mksh"])
@pytest.mark.parametrize("code", [0, 1])
def test_perf_tests_result_file_is_brought_along_and_removed(tmp_path, monkeypatch, shell, code):
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"no {shell} on this machine")
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "sh").symlink_to(found)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    rows = "".join(f"m,0.144871,1,2,{i}\\n" for i in range(10))
    before = f'for last; do :; done; [ -e "$last" ] && exit 9; printf "{rows}" > "$last"'
    fake = Fake(tmp_path, golden("onnxruntime_perf_test", "2020-acl"), before, code)
    if code:
        with pytest.raises(AgentError, match="exit code 1"):
            run_fake(fake, OnnxRuntimePerfTest(), tmp_path, iterations=10)
    else:
        result = run_fake(fake, OnnxRuntimePerfTest(), tmp_path, iterations=10)
        assert (result.n, result.samples_ns) == (10, (144_871_000,) * 10)
    (words,) = fake.calls()
    flags = "-m times -r 10 -x 2 -y 1 -o 99 -e cpu -I"
    assert words[:-1] == [*flags.split(), "a model.bin"]
    assert list(scratch.iterdir()) == []


def test_perf_test_may_not_fall_back_when_a_provider_is_asked_for():
    words = OnnxRuntimePerfTest().command(asked(delegate="xnnpack"))
    at = words.index("-C")
    assert words[at + 1] == "session.disable_cpu_ep_fallback|1"
    assert words[words.index("-e") + 1] == "xnnpack"
    assert "-C" not in OnnxRuntimePerfTest().command(asked(delegate="cpu"))


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_is_not_there(tmp_path, tool):
    with pytest.raises(AgentError, match="cannot be started") as caught:
        run_stock(LocalTransport(tmp_path), TOOLS[tool], "/no/tool", "m", threads=1, iterations=1)
    assert "path" in caught.value.hint


def test_the_tool_goes_by_the_files_ending():
    assert stock_tool(TOOLS.values(), ".pte").name == "executor_runner"
    with pytest.raises(UsageError, match=r"\.bin") as caught:
        stock_tool(TOOLS.values(), ".bin")
    assert ".tflite (benchmark_model)" in caught.value.hint
