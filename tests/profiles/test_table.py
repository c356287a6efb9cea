"""Latency tables: sums that can be checked by hand, and nothing unknown that counts as nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from profiles.errors import TableError
from profiles.records import Condition
from profiles.space import SearchSpace, Slot
from profiles.statistics import Summary
from profiles.table import LatencyTable, TableKey, build_table

KEY = TableKey(
    device="pi5",
    runtime="onnxruntime",
    runtime_version="1.31.1",
    dtype="float32",
    condition=Condition(threads=2),
)
SPACE = SearchSpace(
    (
        Slot("stem", ("stem",)),
        Slot("b1", ("small", "large")),
        Slot("b2", ("skip", "small", "large")),
        Slot("head", ("head",)),
    )
)
CALL_NS = 1000.0
LATENCY_NS = {
    (0, 0): 5000.0,
    (1, 0): 3000.0,
    (1, 1): 7000.0,
    (2, 0): None,
    (2, 1): 2000.0,
    (2, 2): 4000.0,
    (3, 0): 1500.0,
}


def summary(median_ns: float, half_width_ns: float | None = 10.0) -> Summary:
    interval = (
        None if half_width_ns is None else (median_ns - half_width_ns, median_ns + half_width_ns)
    )
    return Summary(
        n=30,
        runs=3,
        median_ns=median_ns,
        ci95_ns=interval,
        mean_ns=median_ns,
        p90_ns=1.1 * median_ns,
        p99_ns=None,
        min_ns=0.9 * median_ns,
        mad_ns=0.01 * median_ns,
    )


def table(**without: object) -> LatencyTable:
    """The table above; ``missing`` names a (slot, choice) that was not measured."""
    entries = {
        place: None if ns is None else (summary(ns), f"trial{place}")
        for place, ns in LATENCY_NS.items()
        if place != without.get("missing")
    }
    return build_table(KEY, SPACE, entries, summary(CALL_NS))


ENTRIES = {
    place: None if ns is None else (summary(ns), f"trial{place}")
    for place, ns in LATENCY_NS.items()
}


def test_a_network_costs_its_blocks_less_all_calls_but_one():
    assert table().sum_ns([0, 1, 2, 0]).tolist() == [5000 + 7000 + 4000 + 1500 - 3 * 1000]


def test_a_skipped_slot_costs_nothing():
    """Not even a call."""
    assert table().sum_ns([0, 0, 0, 0]).tolist() == [5000 + 3000 + 1500 - 2 * 1000]


@st.composite
def tables(draw: st.DrawFn) -> tuple[LatencyTable, np.ndarray]:
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    space = SearchSpace(
        tuple(Slot(f"s{i}", tuple(f"c{j}" for j in range(n))) for i, n in enumerate(sizes))
    )
    latencies = st.floats(1, 1e9)
    entries = {
        (row, column): draw(st.none() | latencies)
        for row, n in enumerate(sizes)
        for column in range(n)
    }
    made = build_table(
        KEY,
        space,
        {p: None if ns is None else (summary(ns), "trial") for p, ns in entries.items()},
        summary(draw(latencies)),
    )
    seed = draw(st.integers(0, 1000))
    return made, space.sample(draw(st.integers(1, 8)), np.random.default_rng(seed))


@given(drawn=tables())
def test_sums_of_a_matrix_are_those_of_a_plain_loop(drawn: tuple[LatencyTable, np.ndarray]):
    made, genomes = drawn
    expected = []
    for genome in genomes:
        total, blocks = 0.0, 0
        for slot, choice in enumerate(genome):
            if not made.skips[slot, choice]:
                total += made.latency_ns[slot, choice]
                blocks += 1
        expected.append(total - (blocks - 1) * made.call_ns)
    np.testing.assert_allclose(made.sum_ns(genomes), expected, rtol=1e-9, atol=1e-3)
    np.testing.assert_array_equal(made.predict_ns(genomes), made.sum_ns(genomes))


@given(drawn=tables())
def test_a_table_comes_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[LatencyTable, np.ndarray]
):
    made, genomes = drawn
    path = tmp_path_factory.mktemp("table") / "table.json"
    made.save(path)
    loaded = LatencyTable.load(path)
    assert loaded.sha256 == made.sha256
    assert loaded.key == made.key
    assert loaded.space == made.space
    assert loaded.entries() == made.entries()
    np.testing.assert_array_equal(loaded.sum_ns(genomes), made.sum_ns(genomes))
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_calibration_and_validation_come_back_too(tmp_path: Path):
    genomes = [[0, 0, 0, 0], [0, 1, 2, 0], [0, 1, 1, 0]]
    made = table().calibrated(genomes, [8000, 16000, 14000])
    made = made.validated(genomes, [8100, 15000, 14000], "three networks")
    made.save(tmp_path / "table.json")
    loaded = LatencyTable.load(tmp_path / "table.json")
    assert loaded.calibration == made.calibration
    assert loaded.validation == made.validation
    np.testing.assert_array_equal(loaded.predict_ns(genomes), made.predict_ns(genomes))


def test_a_choice_that_was_not_measured_is_an_error_and_never_nothing():
    holed = table(missing=(2, 1))
    assert holed.sum_ns([0, 0, 2, 0]) > 0
    for method in (holed.sum_ns, holed.predict_ns):
        with pytest.raises(TableError) as refusal:
            method([[0, 0, 2, 0], [0, 0, 1, 0]])
        message = str(refusal.value)
        assert all(word in message for word in ("b2/small", "pi5", "onnxruntime")), message
    assert "b2/small" not in [f"{e.slot}/{e.choice}" for e in holed.entries()]


@pytest.mark.parametrize(
    ("genome", "expected"),
    [
        ([0, 2, 0, 0], r"gene 1 \(b1\) is 2, outside 0\.\.1"),
        ([0, 0, -1, 0], r"gene 2 \(b2\) is -1, outside 0\.\.2"),
        ([[0, 0, 0, 0], [1, 0, 0, 0]], r"genome 1: gene 0 \(stem\)"),
        ([0, 0, 0], "a genome has 4 genes"),
        ([0.0, 0.0, 0.0, 0.0], "integers"),
    ],
)
def test_a_genome_outside_the_space_is_named(genome: list, expected: str):
    with pytest.raises(TableError, match=expected):
        table().sum_ns(genome)


def test_entries_list_what_was_measured_with_its_trial():
    entries = {f"{e.slot}/{e.choice}": e for e in table().entries()}
    assert sorted(entries) == [
        "b1/large",
        "b1/small",
        "b2/large",
        "b2/small",
        "head/head",
        "stem/stem",
    ]
    assert entries["b1/large"].latency_ns == 7000
    assert entries["b1/large"].half_width_ns == 10
    assert entries["b1/large"].trial == "trial(1, 1)"


def test_an_interval_that_is_unknown_stays_unknown(tmp_path: Path):
    made = build_table(
        KEY,
        SearchSpace((Slot("a", ("x",)),)),
        {(0, 0): (summary(100.0, None), "t")},
        summary(10.0),
    )
    made.save(tmp_path / "table.json")
    (entry,) = LatencyTable.load(tmp_path / "table.json").entries()
    assert entry.half_width_ns is None


VALUE = ("costs", "latency_ns", "value")
SHARED = ("costs", "latency_ns", "shared", "value")


def damaged(path: Path, change: object) -> None:
    content = json.loads(path.read_text())
    change(content)  # type: ignore[operator]
    path.write_text(json.dumps(content))


def _set(*keys: object, value: object):
    def change(content: dict) -> None:
        target = content
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (_set("format", value=3), "format 3, this edgeloop reads 1 to 2"),
        (_set(*VALUE, 0, 0, value=0), "zero or less"),
        (_set(*VALUE, 1, 0, value=-5.0), "b1/small of latency_ns is -5: zero or less"),
        (_set(*SHARED, value=0), "zero or less"),
        (_set(*SHARED, value=float("inf")), "Infinity stands where a number must"),
        (lambda content: content.pop("key"), "is no latency table"),
        (lambda content: content.pop("slots"), "is no latency table"),
        (_set(*VALUE, 0, 0, value="fast"), "is no latency table"),
        (_set(*VALUE, value=[[1.0], [2.0]]), "table"),
        (_set("slots", 1, "choices", value=["small", "large", "huge", "vast"]), "table"),
        (_set("key", "condition", value={"cores": 4}), "is no latency table"),
    ],
)
def test_a_damaged_table_is_refused_by_name(tmp_path: Path, change: object, expected: str):
    path = tmp_path / "table.json"
    table().save(path)
    damaged(path, change)
    with pytest.raises(TableError, match=expected) as refusal:
        LatencyTable.load(path)
    assert "table.json" in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"null", b"{", b"\xff\xfe"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "table.json").write_bytes(content)
    with pytest.raises(TableError, match=r"table\.json"):
        LatencyTable.load(tmp_path / "table.json")


def test_a_file_cut_short_is_refused(tmp_path: Path):
    path = tmp_path / "table.json"
    table().save(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TableError, match=r"table\.json"):
        LatencyTable.load(path)


def test_a_table_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(TableError, match=r"table\.json"):
        LatencyTable.load(tmp_path / "table.json")


def wide(seed: int = 0) -> tuple[LatencyTable, np.ndarray]:
    """A table over 6 slots of 4 choices, and 40 networks."""
    rng = np.random.default_rng(seed)
    space = SearchSpace(tuple(Slot(f"s{i}", tuple("abcd")) for i in range(6)))
    entries = {
        (row, column): (summary(float(rng.uniform(2e4, 2e5))), "t")
        for row in range(6)
        for column in range(4)
    }
    return build_table(KEY, space, entries, summary(1e4)), space.sample(40, rng)


@given(
    scale=st.floats(0.8, 1.3),
    offset_ns=st.floats(-3e4, 3e4),
    noise=st.floats(0, 0.03),
    seed=st.integers(0, 100),
)
def test_calibration_recovers_a_scale_and_an_offset_from_noisy_sums(
    scale: float, offset_ns: float, noise: float, seed: int
):
    made, genomes = wide(seed)
    rng = np.random.default_rng(seed + 1)
    truth = scale * made.sum_ns(genomes) + offset_ns
    assume((truth > 1e4).all())
    measured = truth * np.exp(noise * rng.standard_normal(len(truth)))
    found = made.calibrated(genomes, measured)
    error = np.abs(found.predict_ns(genomes) / truth - 1)
    before = np.abs(made.predict_ns(genomes) / truth - 1)
    assert found.calibration.n == 40
    assert error.mean() <= 0.25 * before.mean() + 0.6 * noise + 0.01


def test_one_network_corrects_little_and_many_decide():
    made, genomes = wide()
    factors = []
    for count in (1, 40):
        chosen = genomes[:count]
        found = made.calibrated(chosen, 1.5 * made.sum_ns(chosen))
        factors.append(float(np.mean(found.predict_ns(chosen) / made.sum_ns(chosen))))
    assert 1.1 < factors[0] < 1.4
    assert factors[1] == pytest.approx(1.5, abs=0.05)


def test_measurements_that_agree_change_nothing():
    made, genomes = wide()
    found = made.calibrated(genomes, made.sum_ns(genomes)).calibration
    assert found.scale == pytest.approx(1)
    assert found.offset_ns == pytest.approx(0, abs=1e-3)


def test_calibrating_again_starts_from_the_sums():
    made, genomes = wide()
    once = made.calibrated(genomes, 1.2 * made.sum_ns(genomes))
    twice = once.calibrated(genomes, 1.2 * made.sum_ns(genomes))
    assert twice.calibration == once.calibration
    assert made.calibration.n == 0, "a table is never changed in place"


@pytest.mark.parametrize("measured", [[1000.0], [0.0, 1.0], [-1.0, 1.0], [np.nan, 1.0]])
def test_calibration_needs_a_positive_latency_for_each_network(measured: list[float]):
    with pytest.raises(TableError, match="one positive latency for each genome"):
        table().calibrated([[0, 0, 0, 0], [0, 1, 0, 0]], measured)


def test_validation_records_population_and_number():
    made = table()
    genomes = [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 2, 0], [0, 0, 1, 0]]
    measured = made.predict_ns(genomes) / np.array([1.0, 1.04, 1.08, 1.2])
    once = made.validated(genomes, measured, "round 1")
    twice = once.validated(genomes[:2], measured[:2], "round 2")
    assert [(a.population, a.n) for a in twice.validation] == [("round 1", 4), ("round 2", 2)]
    first = twice.validation[0]
    assert first.mape == pytest.approx(0.08)
    assert (first.within_5_percent, first.within_10_percent) == (0.5, 0.75)
    assert made.validation == ()


def test_the_digest_follows_everything_the_numbers_depend_on():
    made = table()
    others = [
        replace(made, key=replace(KEY, runtime_version="1.32.0")),
        replace(made, key=replace(KEY, condition=Condition(threads=4))),
        replace(made, key=replace(KEY, emulated=True)),
        replace(made, key=replace(KEY, device_build="1")),
        build_table(KEY, SPACE, ENTRIES, summary(CALL_NS + 1)),
        made.calibrated([[0, 0, 0, 0]], [9000]),
        table(missing=(2, 2)),
    ]
    digests = {other.sha256 for other in (made, *others)}
    assert len(digests) == len(others) + 1
    assert table().sha256 == made.sha256
