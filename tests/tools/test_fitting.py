"""``table fit``, ``evaluate`` and ``next``, from file to answer."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.profiles.predictor.problems import genomes, interacting_target
from tests.tools.conftest import Lab

METRICS = {
    "mape",
    "mae",
    "within_5_percent",
    "within_10_percent",
    "spearman",
    "kendall",
    "interval_coverage",
    "seconds",
}


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    rows = genomes(90, 0)
    path = tmp_path / "nets.csv"
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([*(f"g{index}" for index in range(6)), "ms"])
        writer.writerows([*row, ms] for row, ms in zip(rows, interacting_target(rows), strict=True))
    return path


def test_evaluate_reports_the_unseen_beside_the_additive_model(lab: Lab, nets: Path):
    words = ("--data", nets, "--choices", "g0,g1,g2,g3,g4,g5", "--target", "ms")
    said = lab("table", "evaluate", *words, "--train", 60, "--seeds", 2, "--json")
    assert said.code == 0
    found = json.loads(said.out)
    assert METRICS | {"n_train", "n_test", "seeds", "population", "additive"} <= set(found)
    assert set(found["additive"]) == METRICS
    assert found["n_train"] == 60
    assert found["mape"] < found["additive"]["mape"]
    table = lab("table", "evaluate", *words, "--train", 60, "--seeds", 1)
    assert "process" in table.out
    assert "interval_coverage" in table.out


def test_what_fit_writes_next_reads(lab: Lab, nets: Path, tmp_path: Path):
    model = tmp_path / "ms.npz"
    words = ("--data", nets, "--choices", "g*", "--target", "ms")
    fitted = lab("table", "fit", *words, "--output", model, "--json")
    assert json.loads(fitted.out)["kind"] == "process"
    asked = ("--candidates", nets, "--count", 3, "--json")
    first = lab("table", "next", "--model", model, *asked)
    second = lab("table", "next", *words, *asked)
    assert len(json.loads(first.out)) == 3
    assert first.out == second.out
    plain = lab("table", "next", "--model", model, "--candidates", nets, "--count", 2)
    assert plain.out.count("row ") == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evaluate", "--choices", "g0,h1", "--target", "ns", "--train", "20"), "2 problems"),
        (("evaluate", "--choices", "g*", "--target", "ms", "--train", "90"), "at least 95"),
        (("evaluate", "--choices", "g*", "--target", "ms", "--train", "5"), "at least 10"),
        (("fit", "--choices", "g*", "--target", "ms", "--output", "x.pkl"), "suffix .npz"),
        (("fit", "--choices", "g*", "--target", "ms", "--output", "none/x.npz"), "no folder"),
        (("next", "--choices", "g*", "--candidates", "x.csv", "--count", "2"), "give either"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(lab: Lab, nets: Path, words, said):
    found = lab("table", words[0], "--data", nets, *words[1:])
    assert found.code == 2
    assert said in found.problem
    assert found.out == ""
