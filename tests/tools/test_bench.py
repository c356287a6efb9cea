"""The benchmarks run as documented, and say what they should."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools.bench.harness import LEAST_NS
from tools.bench.paired import compare, in_turns

ROOT = Path(__file__).parents[2]


def test_documented_benchmarks_exist():
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"python -m (tools\.[\w.]+)", text)
    assert found
    for module in found:
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


def test_the_readme_has_a_figure_for_every_runtime():
    table = (ROOT / "README.md").read_text().partition("agent / bare loop")[2]
    row = r"^\| ([\w ]+), [\d.]+ ms \| (Python|native) \| [\d.]+ \| [\d.]+ to [\d.]+ \|$"
    assert sorted(re.findall(row, table, re.M)) == [
        ("ExecuTorch", "Python"),
        ("LiteRT", "Python"),
        ("LiteRT", "native"),
        ("ONNX Runtime", "Python"),
        ("ONNX Runtime", "native"),
    ]


@pytest.mark.parametrize("module", ["harness", "agents"])
@pytest.mark.parametrize("pairs", ["1", "0", "-3", "many"])
def test_one_pair_has_no_interval(module, pairs):
    words = [sys.executable, "-m", f"tools.bench.{module}", "--pairs", pairs]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--pairs" in done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_the_harness_reports_every_runtime_and_both_agents():
    found = bench("harness", "--pairs", "2", "--turns", "4")
    assert {(item["runtime"], item["agent"]) for item in found} == {
        ("executorch", "python"),
        ("onnxruntime", "python"),
        ("onnxruntime", "native"),
        ("litert", "python"),
        ("litert", "native"),
    }
    for item in found:
        low, high = item["ci95"]
        assert low <= item["ratio"] <= high
        assert item["bare_ns"] >= LEAST_NS
        # A harness that timed something else than the call would be off by far more.
        assert 0.5 < item["ratio"] < 2


def bench(module: str, *arguments: str) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", f"tools.bench.{module}", "--json", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LINKS = [
    pytest.param("ssh", marks=pytest.mark.sshd),
    pytest.param("adb", marks=pytest.mark.adbd),
]


@pytest.fixture
def link(request: pytest.FixtureRequest) -> str:
    """A link whose server this machine has."""
    request.getfixturevalue({"ssh": "loopback", "adb": "phone"}[request.param])
    return request.param


@pytest.mark.parametrize("link", LINKS, indirect=True)
def test_the_push_benchmark_names_its_raw_ways_and_what_a_second_push_costs(link):
    found = bench("push", "--rounds", "2", "--megabytes", "1", "--link", link)
    raw = {"ssh": ["ssh cat", "paramiko cat"], "adb": ["adb push"]}[link]
    assert [item["raw"] for item in found] == raw
    for item in found:
        low, high = item["speed"]["ci95"]
        assert low <= item["speed"]["ratio"] <= high
        assert item["again_calls"] == 1


@pytest.mark.parametrize("link", LINKS, indirect=True)
def test_the_command_benchmark_compares_with_the_bare_client(link):
    (item,) = bench("commands", "--rounds", "5", "--link", link)
    low, high = item["ratio"]["ci95"]
    assert 0 < low <= item["ratio"]["ratio"] <= high
    assert item["raw"] == {"ssh": "paramiko", "adb": "adbutils"}[link]


def test_the_turns_are_fair_and_the_first_is_to_warm_up():
    order: list[str] = []
    ways = {name: (lambda name=name: order.append(name)) for name in "ab"}
    taken = in_turns(ways, 3, before=lambda: order.append("-"))
    assert "".join(order) == "-a-b-b-a-a-b-b-a"
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 3, "b": 3}


def test_a_ratio_of_times_and_its_inverse():
    found = compare([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found.ratio == pytest.approx(2.0)
    assert found.ci95 == pytest.approx((2.0, 2.0))
    noisy = compare([1.0, 2.0, 1.5, 1.2], [1.0, 1.0, 1.0, 1.0])
    assert noisy.ci95[0] < noisy.ratio < noisy.ci95[1]
    speed = noisy.inverse()
    assert speed.ratio == pytest.approx(1 / noisy.ratio)
    assert speed.ci95[0] < speed.ratio < speed.ci95[1]
