"""``table validate|diff|export|import``: what they print, and one line for whatever is wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from profiles.costs import Cost
from profiles.table import LatencyTable
from tests.profiles.test_table import table, wide
from tests.tools.conftest import Lab


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Tables of every state, as files."""
    made = table()
    made.save(tmp_path / "table.json")
    made.save(tmp_path / "table.parquet")
    table(missing=(2, 1)).save(tmp_path / "holed.json")
    of_blocks, genomes = wide()
    of_blocks.validated(genomes, 2 * of_blocks.sum_ns(genomes), "all").save(tmp_path / "off.json")
    tied = {(0, 0): Cost(made.call_ns)}
    made.with_costs("latency_ns", tied, made.costs["latency_ns"].shared).save(
        tmp_path / "tied.json"
    )
    (tmp_path / "some.yaml").write_text("b1/small: {mean: 1.0, count: 3}\n")
    (tmp_path / "cut.json").write_bytes((tmp_path / "table.json").read_bytes()[:-20])
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "table.parquet").read_bytes()[:-20])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["table.json", "table.parquet"])
def test_a_whole_table_is_valid(lab: Lab, folder: Path, name: str):
    said = lab("table", "validate", name, "--device", "pi5", "--runtime", "onnxruntime")
    assert said.code == 0
    assert f"{name}: no problems" in said.out


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("holed.json", "b2/small has no latency_ns"),
        ("off.json", "MAPE 50.0% on all"),
    ],
)
def test_what_a_table_lacks_is_said(lab: Lab, folder: Path, name: str, expected: str):
    said = lab("table", "validate", name)
    assert (said.code, expected in said.out) == (1, True)
    found = json.loads(lab("table", "validate", name, "--json").out)
    assert found["problems"] == [expected]


def test_tables_are_compared_choice_by_choice(lab: Lab, folder: Path):
    made = table()
    slower = {(1, 0): Cost(6000.0, 20.0)}
    other = made.with_costs("latency_ns", slower, made.costs["latency_ns"].shared)
    replace(other, key=replace(other.key, runtime_version="2")).save(folder / "new.json")
    found = json.loads(lab("table", "diff", "table.json", "new.json", "--json").out)
    assert found["key"] == {"runtime_version": ["1.31.1", "2"]}
    ratios = {(row["slot"], row["choice"]): row for row in found["ratios"]}
    assert ratios["b1", "small"]["ratio"] == 2
    low, high = ratios["b1", "small"]["ci95"]
    assert low == pytest.approx(1.9906, abs=1e-3)
    assert high == pytest.approx(2.0095, abs=1e-3)
    assert ratios["b1", "large"]["ratio"] is None, "one side was not measured"
    said = lab("table", "diff", "table.json", "new.json")
    assert "runtime_version: 1.31.1 -> 2" in said.out
    assert "unknown" in said.out


def test_json_and_parquet_are_exact_both_ways(lab: Lab, folder: Path):
    assert lab("table", "export", "table.json", "out.parquet").code == 0
    said = lab("table", "import", "out.parquet", "back.json", "--device", "pi5", "--json")
    assert json.loads(said.out) == {"table": "back.json"}
    assert (folder / "back.json").read_bytes() == (folder / "table.json").read_bytes()


def test_yaml_comes_back_with_a_table_of_the_same_device(lab: Lab, folder: Path):
    assert lab("table", "export", "table.json", "blocks.yaml").code == 0
    assert lab("table", "import", "blocks.yaml", "back.json", "--like", "table.json").code == 0
    back = LatencyTable.load(folder / "back.json")
    assert back.sum_ns([0, 1, 2, 0]) == pytest.approx(table().sum_ns([0, 1, 2, 0]))
    assert back.entries()[0].half_width_ns is None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["validate", "cut.json"], "cut.json is no latency table"),
        (["validate", "cut.parquet"], "cut.parquet is no latency table"),
        (["validate", "gone.json"], "gone.json is no latency table"),
        (["validate", "table.json", "--device", "pi4"], "device pi5, not pi4"),
        (["validate", "table.json", "--runtime", "tflite"], "runtime onnxruntime, not tflite"),
        (["diff", "table.json", "cut.json"], "cut.json is no latency table"),
        (["export", "table.json", "t.csv"], "t.csv: unknown format"),
        (["export", "table.json", "no/t.yaml"], "there is no folder no"),
        (["export", "cut.json", "t.yaml"], "cut.json is no latency table"),
        (["import", "some.yaml", "t.json"], "--like is for .yaml files, and they need it"),
        (["import", "table.json", "t.json", "--like", "table.json"], "--like is for .yaml"),
        (["import", "some.yaml", "t.json", "--like", "table.json"], "has no block stem/stem"),
        (["import", "some.yaml", "t.yaml", "--like", "table.json"], "t.yaml: unknown format"),
        (["import", "gone.yaml", "t.json", "--like", "table.json"], "gone.yaml"),
        (["import", "table.parquet", "t.json", "--device", "pi4"], "device pi5, not pi4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_nothing_is_written(
    lab: Lab, folder: Path, words: list[str], expected: str
):
    before = sorted(path.name for path in folder.iterdir())
    said = lab("table", *words)
    assert said.code == 2
    assert expected in said.problem
    assert len(said.err.splitlines()) == 1
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_block_as_fast_as_the_call_cannot_be_yaml(lab: Lab, folder: Path):
    said = lab("table", "export", "tied.json", "t.yaml")
    assert said.code == 1
    assert "no longer than an empty network: stem/stem" in said.problem
    assert not (folder / "t.yaml").exists()
