"""The runtimes' own tools: what they are asked, and that only whole, honest outputs are read."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from devices.stock.base import StockResult, StockRun, StockTool
from devices.stock.benchmark_model import BenchmarkModel
from devices.stock.executor_runner import ExecutorRunner
from devices.stock.onnxruntime_perf_test import (
    RESULT_BEGINS,
    RESULT_ENDS,
    OnnxRuntimePerfTest,
    parse_summary,
)
from devices.transport.base import Completed
from profiles.errors import AgentError

GOLDEN = Path(__file__).parents[1] / "golden/stock"
TOOLS: dict[str, StockTool] = {
    tool.name: tool for tool in (BenchmarkModel(), ExecutorRunner(), OnnxRuntimePerfTest())
}


def golden(tool: str, name: str) -> str:
    return (GOLDEN / tool / f"{name}.txt").read_text()


def ended(stdout: str = "", stderr: str = "", exit_code: int = 0) -> Completed:
    return Completed(stdout.encode(), stderr.encode(), exit_code)


def asked(iterations: int = 50, **changes: object) -> StockRun:
    return replace(StockRun("/opt/tool", "/root/model", iterations=iterations), **changes)


def with_rows(summary: str, times_s: list[str], columns: int = 5) -> str:
    """What the perf_test command prints: the tool's own words, and its result file's rows."""
    both = {5: "{t},{m},{c},{i}", 6: "0.000001,{t},{m},{c},{i}"}[columns]
    rows = [
        f"resnet,{both.format(t=t, m=1 << 20, c=97, i=index)}" for index, t in enumerate(times_s)
    ]
    return "\n".join([summary, RESULT_BEGINS, *rows, RESULT_ENDS, ""])


#: For each golden file that is read, what the tool was asked, and what it tells.
EXPECTED = json.loads((GOLDEN / "told.json").read_text())


def of(tool: str) -> list[str]:
    """The names of a tool's golden files that are read."""
    return [name.partition("/")[2] for name in EXPECTED if name.startswith(f"{tool}/")]


def expected(tool: str, name: str) -> tuple[StockRun, dict[str, object]]:
    entry = EXPECTED[f"{tool}/{name}"]
    return asked(**entry["asked"]), entry["told"]


def told(result: StockResult) -> dict[str, object]:
    """Everything but the names, the notes, and what is not told."""
    plain = json.loads(json.dumps(asdict(result)))
    for name in ("tool", "runtime", "notes"):
        del plain[name]
    return {name: value for name, value in plain.items() if value is not None}


def test_every_golden_file_is_read_by_a_test():
    refused = {"executor_runner/2023-no-time", "executor_runner/2025-xnnpack-etdump"}
    files = {str(path.relative_to(GOLDEN).with_suffix("")) for path in GOLDEN.rglob("*.txt")}
    assert files == {*EXPECTED, *refused}
    listed = (GOLDEN / "README.md").read_text()
    assert [name for name in files if f"`{name}.txt`" not in listed] == []


@pytest.mark.parametrize("name", of("benchmark_model"))
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_benchmark_model_is_read_as_it_was_printed(name, stream):
    run, figures = expected("benchmark_model", name)
    result = BenchmarkModel().parse(run, ended(**{stream: golden("benchmark_model", name)}))
    assert told(result) == figures


@pytest.mark.parametrize("name", of("executor_runner"))
def test_executor_runner_is_read_as_it_was_printed(name):
    run, figures = expected("executor_runner", name)
    result = ExecutorRunner().parse(run, ended(stderr=golden("executor_runner", name)))
    assert told(result) == figures
    assert "no warm-up" in result.notes[0]


@pytest.mark.parametrize("name", of("onnxruntime_perf_test"))
def test_perf_test_is_read_as_it_was_printed(name):
    _, figures = expected("onnxruntime_perf_test", name)
    assert told(parse_summary(golden("onnxruntime_perf_test", name))) == figures


@pytest.mark.parametrize("columns", [5, 6])
def test_perf_tests_result_file_has_every_call(columns):
    times = ["0.0958204", "0.099", "0.099", "0.0994706", "0.101519"]
    said = with_rows(golden("onnxruntime_perf_test", "2026-cost-total"), times, columns)
    result = OnnxRuntimePerfTest().parse(asked(5), ended(said))
    assert result.samples_ns == (95_820_400, 99_000_000, 99_000_000, 99_470_600, 101_519_000)
    assert (result.p50_ns, result.delegates) == (99_000_000, ("cpu",))


def test_several_calls_of_executor_runner():
    said = "".join(f"I x:1] Iteration {i} of 3: {ms} ms\n" for i, ms in [(1, 9.5), (2, 1), (3, 2)])
    said += "I x:1] Model executed successfully 3 time(s) in 12.500000 ms.\n"
    result = ExecutorRunner().parse(asked(3), ended(stderr=said))
    assert result.samples_ns == (9_500_000, 1_000_000, 2_000_000)
    assert (result.mean_ns, result.p50_ns) == (4_166_667, 2_000_000)
    older = said.splitlines(keepends=True)[-1]
    result = ExecutorRunner().parse(asked(3), ended(stderr=older))
    assert (result.mean_ns, result.samples_ns, result.first_ns) == (4_166_667, None, None)


def test_all_calls_of_benchmark_model_may_take_the_same_time():
    said = golden("benchmark_model", "2020-cpu").splitlines()
    said[14] = "count=50 curr=7(all same)"
    said[16] = "Inference timings in us: Init: 9, First inference: 8, Warmup (avg): 8, "
    said[16] += "Inference (avg): 7"
    result = BenchmarkModel().parse(asked(), ended("\n".join([*said, ""])))
    assert (result.mean_ns, result.min_ns, result.max_ns) == (7000, 7000, 7000)


# Outputs that are not whole


@pytest.mark.parametrize("case", EXPECTED)
def test_cut_off_anywhere_an_output_gives_the_same_figures_or_none(case):
    tool, _, name = case.partition("/")
    run, figures = expected(tool, name)
    said = golden(tool, name)
    if tool == "onnxruntime_perf_test":
        said = with_rows(said, [f"{figures['mean_ns'] / 1e9:.9f}"] * figures["n"])
    whole = TOOLS[tool].parse(run, ended(said))
    tail = max(len(said) - 2000, 0)  # each character of the end, and each line before it
    ends = [at for at, letter in enumerate(said) if letter == "\n" or at >= tail]
    refused = 0
    for at in ends:
        try:
            assert TOOLS[tool].parse(run, ended(said[:at])) == whole
        except AgentError as error:
            assert error.message
            refused += 1
    assert refused > len(ends) // 3


@given(said=st.text(), exit_code=st.sampled_from([0, 1, 127, 139]), tool=st.sampled_from([*TOOLS]))
@example("count=0\ncount=0\nInference timings in us: Init: 0, First inference: 0, ", 0, "x")
def test_nothing_a_tool_prints_breaks_its_parser(said, exit_code, tool):
    for run in (asked(), asked(delegate="gpu"), asked(memory=True)):
        with pytest.raises(AgentError):
            TOOLS.get(tool, BenchmarkModel()).parse(run, ended(said, said, exit_code))


@given(data=st.data())
def test_nothing_like_an_output_breaks_its_parser(data):
    """Lines of real outputs, with numbers changed, in any order and number."""
    tool = data.draw(st.sampled_from([*TOOLS]))
    texts = [path.read_text() for path in sorted((GOLDEN / tool).glob("*.txt"))]
    lines = sorted({line for text in texts for line in text.splitlines()} | {RESULT_BEGINS})
    chosen = data.draw(st.lists(st.sampled_from(lines), max_size=20))
    number = st.sampled_from(["0", "9" * 30, "1e99", "1e-99", "-1", "nan", "0.0", "5e999999999"])
    said = "\n".join(
        line.replace(data.draw(st.sampled_from(line.split() or [""])), data.draw(number), 1)
        for line in chosen
    )
    try:
        result = TOOLS[tool].parse(asked(), ended(said))
    except AgentError:
        return
    assert result.n > 0
    assert result.mean_ns > 0


# What must not pass for a measurement


@pytest.mark.parametrize(
    ("tool", "said", "reason"),
    [
        ("benchmark_model", "count=0\n\ncount=0\n\nInference timings in us: Init: 7, First "
         "inference: 0, Warmup (avg): 0, Inference (avg): 0\n", "no timed call"),
        ("executor_runner", "Model executed successfully 0 time(s) in 0.000000 ms.\n", "no timed"),
        ("executor_runner", "Model executed successfully 5 time(s) in 0.000000 ms.\n", "took 0"),
        ("executor_runner", golden("executor_runner", "2023-no-time"), "measures no time"),
        ("executor_runner", golden("executor_runner", "2025-xnnpack-etdump"), "traces every"),
        ("onnxruntime_perf_test", with_rows("Total inference time cost: 0 s\nTotal inference "
         "requests: 0\nAverage inference time cost: 1 ms\n", []), "no timed call"),
        ("onnxruntime_perf_test", with_rows("Total inference time cost: 0 s\nTotal inference "
         "requests: 0\nAverage inference time cost: nan ms\n", []), "does not tell"),
        ("onnxruntime_perf_test", golden("onnxruntime_perf_test", "2020-acl"), "result file"),
        ("onnxruntime_perf_test",
         with_rows(golden("onnxruntime_perf_test", "2020-acl"), ["0.144871"] * 9), "contradicts"),
        ("onnxruntime_perf_test",
         with_rows(golden("onnxruntime_perf_test", "2020-acl"), ["0.1"] * 10), "contradicts"),
    ],
)  # fmt: skip
def test_what_was_not_measured_is_refused_with_its_reason(tool, said, reason):
    with pytest.raises(AgentError, match=reason):
        TOOLS[tool].parse(asked(), ended(said))


def of_200_calls(requests: int = 200, total_s: float = 2.0) -> str:
    return (
        f"Total inference time cost: {total_s} s\nTotal inference requests: {requests}\n"
        "Average inference time cost: 10 ms\n"
    )


def test_one_call_of_200_is_not_lost_in_their_mean():
    perf_test, runner = OnnxRuntimePerfTest(), ExecutorRunner()
    assert perf_test.parse(asked(), ended(with_rows(of_200_calls(), ["0.01"] * 200))).n == 200
    with pytest.raises(AgentError, match="contradicts"):
        perf_test.parse(asked(), ended(with_rows(of_200_calls(), ["0.01"] * 199)))
    rows = with_rows(of_200_calls(), ["0.01"] * 200).replace(",97,150\n", ",97,151\n")
    with pytest.raises(AgentError, match="every call"):
        perf_test.parse(asked(), ended(rows))
    calls = [f"Iteration {i} of 200: 10.0 ms\n" for i in range(1, 201)]
    total = "Model executed successfully 200 time(s) in 2000.0 ms.\n"
    assert runner.parse(asked(), ended("".join([*calls, total]))).n == 200
    with pytest.raises(AgentError, match="contradicts"):
        runner.parse(asked(), ended("".join([*calls[:-1], total])))
    with pytest.raises(AgentError, match="every call"):
        runner.parse(asked(), ended("".join([*calls[:7], *calls[8:], total])))


@pytest.mark.parametrize("said", [of_200_calls(requests=190), of_200_calls(total_s=3.0)])
def test_sum_number_and_mean_have_to_agree(said):
    with pytest.raises(AgentError, match="sum, number and mean"):
        parse_summary(said)


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_that_crashed_after_its_figures_is_not_believed(tool):
    said = {
        "benchmark_model": golden("benchmark_model", "2020-cpu"),
        "executor_runner": golden("executor_runner", "2025-add"),
        "onnxruntime_perf_test": with_rows(
            golden("onnxruntime_perf_test", "2020-acl"), ["0.144871"] * 10
        ),
    }[tool]
    TOOLS[tool].parse(asked(), ended(said))
    with pytest.raises(AgentError, match=r"exit code 139.*Segmentation fault"):
        TOOLS[tool].parse(asked(), ended(said, "Segmentation fault", 139))


@pytest.mark.parametrize(
    ("name", "delegate"),
    [
        ("2024-xnnpack", "gpu"),  # says nothing of it: older builds did not check
        ("2020-cpu", "xnnpack"),
        ("2019-average", "gpu"),
        ("2022-nnapi-partly", "nnapi"),
        ("median-two-delegates", "nnapi"),  # not executed by it at all
        ("2020-gpu-whole", "/vendor/lib64/libnpu.so"),
    ],
)
def test_a_fallback_is_never_recorded_as_the_delegate(name, delegate):
    said = golden("benchmark_model", name)
    with pytest.raises(AgentError, match="does not execute the whole model") as caught:
        BenchmarkModel().parse(asked(delegate=delegate), ended(stderr=said))
    assert "--delegate" in caught.value.hint


def test_a_fallback_that_the_tool_refuses_has_its_reason():
    said = "ERROR: Disallowed CPU fallback detected.\nERROR: Benchmarking failed.\n"
    with pytest.raises(AgentError, match="GPU delegate does not execute the whole model"):
        BenchmarkModel().parse(asked(delegate="gpu"), ended(stderr=said, exit_code=1))


def test_onnxruntimes_own_refusal_of_a_fallback_is_recognised(tiny_model):
    """The words are those of the runtime that is installed here."""
    import onnxruntime

    others = [name for name in onnxruntime.get_available_providers() if "CPU" not in name]
    if not others:
        pytest.skip("this build of ONNX Runtime has the CPU's provider alone")
    words = OnnxRuntimePerfTest().command(asked(delegate="xnnpack"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry(*words[words.index("-C") + 1].split("|"))
    with pytest.raises(Exception, match="FAIL") as refused:
        onnxruntime.InferenceSession(str(tiny_model.path), options, providers=others[:1])
    done = ended(stderr=f"{refused.value}\n", exit_code=255)
    with pytest.raises(AgentError, match="xnnpack does not execute the whole model"):
        OnnxRuntimePerfTest().parse(asked(delegate="xnnpack"), done)


def test_nnapis_reference_code_is_not_an_accelerator():
    said = golden("benchmark_model", "2020-gpu-whole").replace("GPU delegate,", "NNAPI delegate,")
    BenchmarkModel().parse(asked(delegate="nnapi"), ended(said))
    said = f"INFO: NNAPI accelerators available: [nnapi-reference]\n{said}"
    with pytest.raises(AgentError, match="reference code"):
        BenchmarkModel().parse(asked(delegate="nnapi"), ended(said))


def test_a_run_for_memory_without_a_peak_is_refused():
    said = golden("benchmark_model", "2020-cpu")  # "overall" there is a difference, not a peak
    with pytest.raises(AgentError, match="peak of memory"):
        BenchmarkModel().parse(asked(memory=True), ended(said))
    assert BenchmarkModel().parse(asked(), ended(said)).peak_bytes is None


def test_bounds_that_ended_a_run_early_are_noted():
    said = golden("benchmark_model", "2020-cpu")
    result = BenchmarkModel().parse(asked(1000), ended(said))
    assert result.notes == ("50 timed calls where 1000 were asked for",)
