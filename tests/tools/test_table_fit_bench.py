"""The benchmark of predictors runs, on few networks, and reads what it says it reads."""

from __future__ import annotations

import csv
import json
import sys

import numpy as np
import pytest

from tools.bench import table_fit
from tools.bench.imaginary_devices import NAMES, SOURCE, TARGET, ImaginaryDevice, sample

NET = {"wid": None, "ks": [5, 7, 5, 3] * 5, "e": [4, 3, 6, 6] * 5, "d": [2, 3, 2, 4, 3], "r": [224]}


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["table_fit", *map(str, words)])
    table_fit.main()


def test_absent_blocks_are_a_choice_of_their_own(tmp_path, monkeypatch):
    folder = tmp_path / "accuracies"
    folder.mkdir()
    with (folder / "one.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["Sub-network", "Top-1 Acc (%)"], [str(NET), "75.5"]])
    run(monkeypatch, "--data", folder, "--flatten", tmp_path / "flat.csv")
    header, row = csv.reader((tmp_path / "flat.csv").read_text().splitlines())
    assert header == [*(f"g{index}" for index in range(45)), "top1"]
    assert row[:8] == ["5", "7", "0", "0", "5", "7", "5", "0"]
    assert row[20:24] == ["4", "3", "0", "0"]
    assert row[40:] == ["2", "3", "2", "4", "3", "75.5"]


def test_a_file_of_two_devices_is_transferred_between(tmp_path, monkeypatch, capsys):
    rng = np.random.default_rng(0)
    rows = sample(560, rng)[:, 30:]
    path = tmp_path / "pair.csv"
    times = 10.0 + rows.sum(axis=1) + rng.normal(0, 0.1, 560)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*NAMES[30:], "a", "b"])
        writer.writerows(
            [*row, time, 2 * time] for row, time in zip(rows.tolist(), times, strict=True)
        )
    words = ("--part", "pair", "--pair", path, "--choices", ",".join(NAMES[30:]))
    run(monkeypatch, *words, "--source", "a", "--target", "b", "--seeds", 1, "--json")
    (found,) = json.loads(capsys.readouterr().out)
    assert found["seeds"] == 1
    assert found["ours_mape"] < 0.05


def test_an_imaginary_device_repeats_itself_and_differs_from_another():
    rows = sample(50, np.random.default_rng(0))
    first, again = (SOURCE.latency_ns(rows, np.random.default_rng(1)) for _ in range(2))
    assert np.array_equal(first, again)
    ratio = TARGET.latency_ns(rows, np.random.default_rng(1)) / first
    assert ratio.max() / ratio.min() > 1.1


def test_a_deeper_network_is_never_faster_without_noise():
    device = ImaginaryDevice(noise=0.0)
    row = np.array([[*[3] * 20, *[3] * 20, *[4] * 5, 224]])
    shallow = row.copy()
    shallow[0, [3, 23]] = 0
    shallow[0, 40] = 3
    both = device.latency_ns(np.concatenate([row, shallow]), np.random.default_rng(0))
    assert both[0] > both[1]
