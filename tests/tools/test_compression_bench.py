"""What the benchmark of INT8 says, and that its networks are what they are called."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
import torch
from torch import nn

from profiles.compression import Int8
from tools.bench import compression
from tools.bench.compression import NETWORK_NAMES, Row, report
from tools.bench.networks import NETWORKS, images


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


def main(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """What the benchmark prints as JSON."""
    monkeypatch.setattr(sys, "argv", ["compression", "--json", *words])
    compression.main()
    return json.loads(capsys.readouterr().out)


def test_each_network_has_a_speedup_in_each_format(capsys, monkeypatch):
    monkeypatch.setattr(compression, "program_of", lambda network: None)
    monkeypatch.setattr(compression, "export", lambda *_: {})
    monkeypatch.setattr(
        compression, "measure", lambda _, network, format_, *__: [row(network, format_, "fp32", 2)]
    )
    found = main(capsys, monkeypatch)
    assert found["int8_speedup"].keys() == {"mobilenet_v2", "mobilenet_v3", "vit"}
    for ratios in found["int8_speedup"].values():
        assert ratios == {"executorch": 2, "onnx": 2, "tflite": 2}


def test_int8_is_what_a_recipe_makes_by_default():
    asked = Int8(name="int8", method="int8").model_dump(exclude_none=True)
    assert asked.items() >= report([])["int8"].items()


@pytest.mark.filterwarnings("ignore::FutureWarning:torch", "ignore::DeprecationWarning:torch")
def test_artifacts_are_measured_in_turns_and_against_the_other_tool(capsys, monkeypatch):
    def small() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 16, 16),
            nn.ReLU(),
            nn.Conv2d(8, 8, 7, 7),
            nn.Flatten(),
            nn.Linear(32, 9),
        ).eval()

    monkeypatch.setitem(NETWORKS, "mobilenet_v2", small)
    words = ("--network", "mobilenet_v2", "--format", "onnx", "--rounds", "2", "--turns", "2")
    found = main(capsys, monkeypatch, *words)
    assert [each["theirs"] for each in found["rows"]] == ["fp32", "quantize_static"]
    for each in found["rows"]:
        assert (each["ours"], each["format"], each["n"]) == ("int8", "onnx", 2)
        assert 0 < each["ci95"][0] <= each["ratio"] <= each["ci95"][1]
        assert each["ours_ns"] > 0
        assert each["theirs_ns"] > 0
        assert 0.95 < each["cosine"] < 1 - 1e-9, "it is another program than FP32"
    fp32, static = (each["ratio"] for each in found["rows"])
    assert found["int8_speedup"] == {"mobilenet_v2": {"onnx": fp32}}
    assert found["against_quantize_static"] == pytest.approx(1 / static)


@pytest.mark.parametrize("option", ["--turns", "--rounds"])
def test_without_turns_there_is_nothing_to_say(option, capsys, monkeypatch):
    with pytest.raises(SystemExit) as refusal:
        main(capsys, monkeypatch, option, "0")
    assert refusal.value.code == 2
    assert f"{option}: 0 is less than two" in capsys.readouterr().err
