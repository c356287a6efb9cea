"""Files of tables come back exactly, and damage is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.costs import OBJECTIVES, Cost
from profiles.demands import demand, demand_trusted, stale
from profiles.errors import TableError, TableFileError
from profiles.once_for_all import BlockMean, blocks_of, read_table, read_yaml, write_yaml
from profiles.space import SearchSpace, Slot
from profiles.table import LatencyTable, build_table
from profiles.table_files import to_plain
from tests.profiles.test_table import CALL_NS, KEY, summary, table, wide

GOLDEN = Path(__file__).parents[1] / "golden/tables/format-1.json"
AGES = st.integers(0, 2**62)
NETWORKS = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0]]


def test_format_1_is_still_read():
    """A file that edgeloop 0.4.0 wrote predicts what it predicted there."""
    old = LatencyTable.load(GOLDEN)
    assert old.sum_ns(NETWORKS).tolist() == [7500, 12500, 11500]
    expected = [7805.41258543, 12871.45317261, 11858.24505518]
    np.testing.assert_allclose(old.predict_ns(NETWORKS), expected, rtol=1e-9)
    assert old.holes() == [(2, 2)]
    assert {entry.trial for entry in old.entries()} == {
        f"trial{place}" for place in [(0, 0), (1, 0), (1, 1), (2, 1), (3, 0)]
    }
    assert (old.validation[0].n, old.validation[0].kendall) == (3, 1)
    assert (old.key.device_build, old.key.delegates, old.measured_ns) == ("unknown", (), None)


def test_format_1_is_written_as_format_2(tmp_path: Path):
    old = LatencyTable.load(GOLDEN)
    old.save(tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())["format"] == 2
    assert LatencyTable.load(tmp_path / "t.json").sha256 == old.sha256


@pytest.mark.parametrize("name", ["t.json", "t.parquet"])
def test_every_objective_comes_back_exactly(tmp_path: Path, name: str):
    made = table(missing=(2, 1)).with_costs("energy_uj", {(0, 0): Cost(1 / 3)}, Cost(0.1))
    made = replace(made, signatures={(0, 0): "conv 3x3", (2, 1): "mul"}, measured_ns=5)
    made.save(tmp_path / name)
    assert LatencyTable.load(tmp_path / name).sha256 == made.sha256


@st.composite
def made_tables(draw: st.DrawFn) -> LatencyTable:
    """With holes, choices left out, several objectives, signatures, and values of any size."""
    names = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=5)
    choices = st.lists(names, min_size=1, max_size=3, unique=True).map(tuple)
    slots = draw(st.dictionaries(names, choices, min_size=1, max_size=3))
    space = SearchSpace(tuple(Slot(name, found) for name, found in slots.items()))
    places = [(r, c) for r, slot in enumerate(space.slots) for c in range(len(slot.choices))]
    costs = st.builds(
        Cost,
        value=st.floats(1, 1e12),
        half_width=st.none() | st.floats(0, 1e9),
        n=st.integers(0, 1000),
        trial=st.text(st.characters(codec="ascii"), max_size=4),
    )
    latencies = draw(st.dictionaries(st.sampled_from(places), costs))
    made = build_table(KEY, space, {}, summary(CALL_NS), measured_ns=draw(st.none() | AGES))
    made = made.with_costs("latency_ns", latencies, draw(costs))
    for objective in draw(st.sets(st.sampled_from(OBJECTIVES[1:]))):
        made = made.with_costs(objective, latencies, draw(costs))
    for place in draw(st.sets(st.sampled_from(places))) - latencies.keys():
        made.skips[place] = True
    signatures = draw(st.dictionaries(st.sampled_from(places), names))
    key = replace(KEY, device_build=draw(names), delegates=tuple(draw(st.lists(names))))
    return replace(made, signatures=signatures, key=key)


@given(made=made_tables(), name=st.sampled_from(["t.json", "t.parquet"]))
def test_any_table_comes_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, made: LatencyTable, name: str
):
    path = tmp_path_factory.mktemp("tables") / name
    made.save(path)
    loaded = LatencyTable.load(path)
    assert to_plain(loaded) == to_plain(made)
    assert (loaded.key, loaded.space, loaded.entries()) == (made.key, made.space, made.entries())


@given(
    blocks=st.dictionaries(
        st.text(min_size=1), st.builds(BlockMean, st.floats(1, 1e12), st.integers(0, 10**6))
    ).filter(bool)
)
def test_blocks_come_back_to_the_nanosecond(
    tmp_path_factory: pytest.TempPathFactory, blocks: dict[str, BlockMean]
):
    path = tmp_path_factory.mktemp("blocks") / "t.yaml"
    write_yaml(blocks, path)
    found = read_yaml(path)
    assert {key: block.count for key, block in found.items()} == {
        key: block.count for key, block in blocks.items()
    }
    for key, block in blocks.items():
        assert found[key].latency_ns == pytest.approx(block.latency_ns, rel=1e-12, abs=0.51)


def test_a_table_comes_back_from_yaml_with_what_another_has(tmp_path: Path):
    made = replace(table(), signatures={(0, 0): "conv 3x3"}).calibrated([[0, 0, 0, 0]], [9000])
    write_yaml(blocks_of(made), tmp_path / "t.yaml")
    again = read_table(tmp_path / "t.yaml", made)
    np.testing.assert_allclose(again.sum_ns(NETWORKS), made.sum_ns(NETWORKS), atol=3)
    assert np.isnan(again.half_width_ns).all(), "the file has no intervals"
    assert (again.key, again.calibration.n, again.validation) == (made.key, 0, ())
    assert [entry.n for entry in again.entries()] == [entry.n for entry in made.entries()]


def test_blocks_that_a_file_lacks_are_named(tmp_path: Path):
    (tmp_path / "t.yaml").write_text("b1/small: {mean: 1.0, count: 3}\n")
    with pytest.raises(TableFileError, match="no block stem/stem, b1/large, b2/small, b2/large"):
        read_table(tmp_path / "t.yaml", table())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[1, 2]", "no dictionary of blocks"),
        ("", "no dictionary of blocks"),
        ("a: !!python/object/apply:os.system [true]", "is no once-for-all table"),
        ("a: {mean: 1.0}", "a: "),
        ("a: {mean: 1.0, count: true}", "a: "),
        (f"a: {{mean: 1{'0' * 400}, count: 1}}", "a: "),
        ("a: {mean: 1.0, count: 1", "is no once-for-all table"),
        ("[" * 5000, "is no once-for-all table"),
    ],
)
def test_yaml_that_is_no_table_is_refused(tmp_path: Path, text: str, expected: str):
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(TableFileError, match=expected) as refusal:
        read_yaml(tmp_path / "t.yaml")
    assert len(str(refusal.value).splitlines()) == 1


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
    with pytest.raises(TableFileError, match=r"a: .*, b: "):
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


@pytest.mark.parametrize(("count", "refused"), [(9, False), (10, True)])
def test_too_few_networks_decide_nothing(count: int, refused: bool):
    made, genomes = wide()
    judged = made.validated(genomes[:count], 2 * made.sum_ns(genomes[:count]), "twice as slow")
    if refused:
        with pytest.raises(TableError, match=r"MAPE 50\.0% on twice as slow"):
            demand_trusted(judged)
    else:
        demand_trusted(judged)


def test_a_table_grows_old():
    made = replace(table(), measured_ns=0)
    day = 86_400 * 10**9
    assert stale(made, now_ns=90 * day) == []
    assert stale(made, now_ns=91 * day) == ["it is 91 days old, more than 90"]
    assert stale(table(), now_ns=91 * day) == [], "unknown is not old"
