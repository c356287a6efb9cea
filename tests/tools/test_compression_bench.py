"""What the benchmark of INT8 says, and that its networks are what they are called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tools.bench.compression import NETWORK_NAMES, Row, report
from tools.bench.networks import NETWORKS, images

ROOT = Path(__file__).parents[2]


def row(network: str, format_: str, theirs: str, ratio: float) -> Row:
    interval = (ratio - 0.1, ratio + 0.1)
    return Row(network, format_, "int8", theirs, 1e6, ratio * 1e6, ratio, interval, 4, 0.99)


def test_speedups_are_found_by_network_and_format():
    rows = [
        row("vit", "onnx", "fp32", 2.0),
        row("vit", "tflite", "fp32", 1.5),
        row("mobilenet_v2", "onnx", "fp32", 2.2),
        row("mobilenet_v2", "onnx", "quantize_static", 1.25),
    ]
    found = report(rows)
    assert found["int8_speedup"] == {
        "vit": {"onnx": 2.0, "tflite": 1.5},
        "mobilenet_v2": {"onnx": 2.2},
    }
    assert found["against_quantize_static"] == pytest.approx(0.8)
    assert [(each["n"], each["ci95"]) for each in found["rows"][:1]] == [(4, (1.9, 2.1))]
    assert report(rows[:2])["against_quantize_static"] is None


def test_the_benchmark_knows_its_networks_without_importing_them():
    assert tuple(NETWORKS) == NETWORK_NAMES


@pytest.mark.parametrize(
    ("name", "millions", "activation", "count"),
    [("mobilenet_v2", 3.50, nn.ReLU6, 35), ("mobilenet_v3", 2.54, nn.Hardswish, 19)],
)
def test_networks_keep_a_signal_and_have_the_published_size(name, millions, activation, count):
    network = NETWORKS[name]()
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert len([m for m in network.modules() if isinstance(m, activation)]) == count
    with torch.no_grad():
        outputs = network(images(4, seed=7))
    assert outputs.shape == (4, 1000)
    assert outputs.std(0).mean() > 0.1 * outputs.std()


def test_networks_are_the_same_each_time():
    one, other = NETWORKS["vit"](), NETWORKS["vit"]()
    with torch.no_grad():
        assert torch.equal(one(images(1)), other(images(1)))
    assert sum(p.numel() for p in one.parameters()) / 1e6 == pytest.approx(2.16, abs=0.01)


@pytest.mark.slow
def test_int8_is_faster_and_the_report_says_by_how_much():
    words = ["--json", "--network", "mobilenet_v3", "--format", "onnx", "--rounds", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench.compression", *words, "--turns", "4"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ((low, high),) = [each["ci95"] for each in found["rows"]]
    ratio = found["int8_speedup"]["mobilenet_v3"]["onnx"]
    assert low <= ratio <= high
    # Well above 1.25 on a processor with INT8 instructions; two rounds on a busy one say less.
    assert ratio > 1
    assert "round 2/2" in done.stderr
