"""Files of tables come back exactly, and damage is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from profiles.costs import Cost
from profiles.demands import demand, demand_trusted, stale
from profiles.errors import TableError, TableFileError
from profiles.once_for_all import BlockMean, read_yaml, write_yaml
from profiles.space import SearchSpace, Slot
from profiles.table import LatencyTable, build_table
from tests.profiles.test_table import KEY, summary, table

KEY_OF_FORMAT_1 = {
    "device": "pi5", "runtime": "onnxruntime", "runtime_version": "1.31.1", "dtype": "float32",
    "emulated": False, "condition": {"threads": 2, "core_mask": None, "mode": "as-shipped",
    "governor": "unknown", "power_source": "unknown", "delegate": None},
}  # fmt: skip
FORMAT_1 = {
    "format": 1, "key": KEY_OF_FORMAT_1, "slots": [{"name": "a", "choices": ["x", "y"]}],
    "latency_ns": [[5.0, None]], "half_width_ns": [[None, None]], "skips": [[False, True]],
    "call_ns": 1.0, "provenance": {"a/x": "t"}, "calibration": {"scale": 1.0, "offset_ns": 0.0,
    "n": 0}, "validation": [],
}  # fmt: skip


def test_format_1_is_still_read(tmp_path: Path):
    (tmp_path / "old.json").write_text(json.dumps(FORMAT_1))
    old = LatencyTable.load(tmp_path / "old.json")
    assert old.sum_ns([[0], [1]]).tolist() == [5, 1]
    assert (old.entries()[0].trial, old.key.device_build) == ("t", "unknown")


@pytest.mark.parametrize("name", ["t.json", "t.parquet"])
def test_every_objective_comes_back_exactly(tmp_path: Path, name: str):
    made = table(missing=(2, 1)).with_costs("energy_uj", {(0, 0): Cost(1 / 3)}, Cost(0.1))
    made = replace(made, signatures={(0, 0): "conv 3x3", (2, 1): "mul"}, measured_ns=5)
    made.save(tmp_path / name)
    assert LatencyTable.load(tmp_path / name).sha256 == made.sha256


def test_a_row_that_is_there_twice_is_named(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    table().save(path)
    read = pq.read_table(path)
    pq.write_table(pa.concat_tables([read, read.slice(1, 1)]), path)
    with pytest.raises(TableFileError, match="b1/small has two rows of latency_ns"):
        LatencyTable.load(path)


def test_once_for_all_yaml_comes_back_and_is_refused_by_key(tmp_path: Path):
    path = tmp_path / "t.yaml"
    blocks = {"Conv-input:224x224x3-output:112x112x16": BlockMean(1_234_567.0, 30)}
    write_yaml(blocks, path)
    (key,) = found = read_yaml(path)
    assert found[key].latency_ns == pytest.approx(1_234_567)
    path.write_text("a: {mean: 1.0, count: 3}\na: {mean: 2.0, count: 3}\n")
    with pytest.raises(TableFileError, match="a is there twice"):
        read_yaml(path)
    path.write_text("a: {mean: -1.0, count: 3}\nb: {mean: .nan, count: 3}\n")
    with pytest.raises(TableFileError, match=r"a: .*; b: "):
        read_yaml(path)


def test_intervals_add_up_as_simulated():
    """One trial in two slots, and the empty network taken off twice."""
    space = SearchSpace(tuple(Slot(name, ("x",)) for name in "abc"))
    entries = {(0, 0): (summary(900.0, 30.0), "t"), (1, 0): (summary(900.0, 30.0), "t"),
               (2, 0): (summary(500.0, 20.0), "u")}  # fmt: skip
    made = build_table(KEY, space, entries, summary(100.0, 15.0))
    rng = np.random.default_rng(0)
    t, u, call = (rng.normal(0, half, 200_000) for half in (30, 20, 15))
    simulated = float(np.std(2 * t + u - 2 * call))
    assert made.predict([[0, 0, 0]]).half_width[0] == pytest.approx(simulated, rel=0.02)


def test_interpolation_is_asked_for_and_wide():
    space = SearchSpace((Slot("a", ("w8", "w16", "w32")),))
    entries = {(0, 0): (summary(100.0), "t"), (0, 2): (summary(400.0), "u")}
    made = build_table(KEY, space, entries, summary(10.0))
    with pytest.raises(TableError, match="a/w16 was not measured"):
        made.predict([[1]])
    found = made.interpolated().predict([[1]])
    assert found.value.tolist() == [200]
    assert found.half_width.tolist() == [210]


def test_what_is_demanded():
    with pytest.raises(TableFileError, match="device pi5, not pi4"):
        demand(table(), device="pi4")
    assert stale(table(), runtime_version="2", device_build="9") == [
        "its runtime version is 1.31.1, the device's is 2"
    ]
    with pytest.raises(TableError, match="not to be trusted"):
        demand_trusted(table(), runtime_version="2")
