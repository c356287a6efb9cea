"""Which artifact goes to which device, and what is said where none is good enough."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.bundle.choosing import Limit, Wish, choose, parse_limits
from profiles.errors import ConfigError
from profiles.findings import Energy, Figure, Measurement
from profiles.records import RUNTIME_OF, Condition
from tests import builders
from tests.measurements import measurement

MS = 1_000_000


def measured(
    name: str, ms: float, accuracy: float = 0.9, device: str = "pi5", **changes: Any
) -> Measurement:
    """Of ``variant:format``, with an interval of 5 % to each side."""
    variant, format_ = name.split(":")
    given = {
        "artifact_sha256": (name.encode().hex() + "0" * 64)[:64],
        "variant": variant,
        "format": format_,
        "runtime": RUNTIME_OF[format_],
        "device": device,
        "status": "accepted",
        "median_ns": ms * MS,
        "ci95_ns": (0.95 * ms * MS, 1.05 * ms * MS),
        "size_bytes": 4_000_000,
        "parity": builders.parity(accuracy=accuracy),
        "trial": f"{name} {device}",
    }
    return measurement(**{**given, **changes})


def names(found: dict[str, list[Measurement]]) -> dict[str, list[str]]:
    return {device: [f"{m.variant}:{m.format}" for m in mine] for device, mine in found.items()}


def chosen(*measurements: Measurement, limits: tuple[str, ...] = (), **wish: Any) -> Any:
    known = {"pi5": ["raspberry-pi-5", "pi5"], "pixel": ["pixel-8", "Pixel 8"]}
    return names(choose(measurements, known, Wish(parse_limits(limits), **wish)))


def refused(*measurements: Measurement, **wish: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as found:
        chosen(*measurements, **wish)
    return found.value.problems


def test_the_most_accurate_of_each_runtime_comes_first():
    found = chosen(
        measured("fp32:onnx", 9, 0.91),
        measured("int8:onnx", 4, 0.90),
        measured("int8:tflite", 3, 0.92),
        measured("fp32:tflite", 8, 0.91),
    )
    assert found == {"pi5": ["int8:tflite", "fp32:onnx"]}


def test_of_equals_the_fastest_then_the_smallest():
    assert chosen(
        measured("fp32:onnx", 9), measured("int8:onnx", 4), measured("half:onnx", 4, size_bytes=1)
    ) == {"pi5": ["half:onnx"]}


def test_the_thread_count_is_the_one_that_is_best():
    one = measured("fp32:onnx", 9)
    four = measured("fp32:onnx", 4, condition=Condition(threads=4))
    (best,) = choose([one, four], {}, Wish())["pi5"]
    assert best.condition.threads == 4


def test_what_is_best_can_be_chosen():
    fast, small = measured("fast:onnx", 1, 0.5), measured("small:onnx", 5, 0.6, size_bytes=9)
    assert chosen(fast, small, best="latency") == {"pi5": ["fast:onnx"]}
    assert chosen(fast, small, best="size") == {"pi5": ["small:onnx"]}
    frugal = measured("frugal:onnx", 9, 0.4, energy=energy(500))
    assert chosen(fast, frugal, best="energy") == {"pi5": ["frugal:onnx"]}


def energy(net_uj: float, ci95: tuple[float, float] | None = None) -> Energy:
    figure = Figure(net_uj, ci95, 100, 5)
    return Energy(figure, figure, figure, "ina219", "the board", 1.0, "integrated")


def test_nothing_refused_or_without_parity_is_taken():
    assert chosen(
        measured("a:onnx", 1, 0.99, status="refused"),
        measured("b:onnx", 1, 0.98, parity=None),
        measured("c:onnx", 1, 0.97, parity=builders.parity(passed=False)),
        measured("d:onnx", 1, 0.5),
    ) == {"pi5": ["d:onnx"]}


def test_a_workspace_without_measurements_is_refused():
    assert refused(measured("a:onnx", 1, status="refused")) == (
        "nothing in it was measured and accepted",
    )


def test_a_limit_holds_where_its_whole_interval_keeps_it():
    fast, slow = measured("fast:onnx", 7.6, 0.8), measured("slow:onnx", 7.7, 0.9)
    assert chosen(fast, slow, limits=("latency<=8ms",)) == {"pi5": ["fast:onnx"]}
    vague = measured("vague:onnx", 1, 0.99, ci95_ns=None)
    assert chosen(fast, vague, limits=("latency<=8ms",)) == {"pi5": ["fast:onnx"]}


def test_limits_on_a_device_are_for_its_bundle_alone():
    rows = [measured("a:onnx", 7), measured("a:onnx", 70, device="pixel"),
            measured("b:onnx", 2, 0.8), measured("b:onnx", 20, 0.8, device="pixel")]  # fmt: skip
    assert chosen(*rows, limits=("latency<=30ms on pixel-8",)) == {"pixel": ["b:onnx"]}
    assert chosen(*rows, limits=("latency<=30ms on pixel", "latency<=3ms on pi5")) == {
        "pi5": ["b:onnx"],
        "pixel": ["b:onnx"],
    }
    assert chosen(*rows, limits=("size≤5MB",)) == {"pi5": ["a:onnx"], "pixel": ["a:onnx"]}


def test_where_nothing_keeps_them_the_nearest_is_told_for_each_device():
    rows = [
        measured("a:onnx", 10, size_bytes=6_000_000),
        measured("b:onnx", 9),
        measured("c:onnx", 8, ci95_ns=None),
        measured("d:onnx", 99),
        measured("a:onnx", 4, device="pixel"),
    ]
    problems = refused(*rows, limits=("latency<=8 ms", "size<=5MB", "accuracy>=95%"))
    assert problems == (
        "pi5: nothing keeps latency<=8 ms and size<=5MB and accuracy>=95%; nearest:"
        " b:onnx with 1 thread (latency up to 9.45 ms, 18 % over, accuracy 90.00 %, 5.3 % under);"
        " a:onnx with 1 thread (latency up to 10.5 ms, 31 % over, size 6.00 MB, 20 % over,"
        " accuracy 90.00 %, 5.3 % under);"
        " d:onnx with 1 thread (latency up to 104 ms, 1199 % over, accuracy 90.00 %, 5.3 % under)",
        "pixel: nothing keeps latency<=8 ms and size<=5MB and accuracy>=95%; nearest:"
        " a:onnx with 1 thread (accuracy 90.00 %, 5.3 % under)",
    )


def test_an_energy_that_is_unknown_keeps_no_limit():
    (problem,) = refused(measured("a:onnx", 1), limits=("energy<=2mJ",))
    assert "(energy is unknown)" in problem
    frugal = measured("b:onnx", 1, energy=energy(1900, (1800, 2000)))
    assert chosen(frugal, limits=("energy<=2mJ",)) == {"pi5": ["b:onnx"]}
    (problem,) = refused(frugal, limits=("energy<=1.6mJ",))
    assert "(energy up to 2.00 mJ, 25 % over)" in problem


def test_artifacts_can_be_named_and_all_of_them_are_taken():
    rows = [measured("a:onnx", 1), measured("b:onnx", 2, 0.95), measured("c:onnx", 3, 0.99)]
    assert chosen(*rows, artifacts=("a:onnx", "b:onnx")) == {"pi5": ["b:onnx", "a:onnx"]}
    assert chosen(*rows, artifacts=(rows[2].artifact_sha256[:8].upper(),)) == {"pi5": ["c:onnx"]}


def test_all_that_is_not_there_is_told_at_once():
    problems = refused(
        measured("a:onnx", 1),
        measured("b:tflite", 1),
        artifacts=("a:pte", "0123", "6", ""),
        limits=("latency<=8ms on mars", "size<=1MB on moon"),
    )
    assert [problem.split(": ")[0] for problem in problems] == [
        "a:pte", "0123", "6", "", "'latency<=8ms on mars'", "'size<=1MB on moon'"
    ]  # fmt: skip
    assert problems[0].endswith("one of a:onnx, b:tflite")
    assert problems[4].endswith("nothing was measured on mars; on pi5")


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("latency<=8ms on pixel-8", ("latency", 8e6, "pixel-8")),
        ("latency ≤ 1.5 s", ("latency", 1.5e9, None)),
        ("size<=5MB", ("size", 5e6, None)),
        ("energy<=2mJ on pi5", ("energy", 2000, "pi5")),
        ("accuracy>=90%", ("accuracy", 0.9, None)),
        ("accuracy>=57%", ("accuracy", 0.57, None)),
        ("accuracy ≥ 0.9 on pi5", ("accuracy", 0.9, "pi5")),
    ],
)
def test_a_limit_is_read(text: str, limit: tuple[Any, ...]):
    (found,) = parse_limits([text])
    assert (found.metric, found.bound, found.device, found.text) == (*limit, text)


def test_all_limits_that_are_none_are_told():
    wrong = ("fast", "latency<=8", "latency>=8ms", "size<=5ms", "colour<=1", "accuracy>=")
    with pytest.raises(ConfigError) as found:
        parse_limits(["size<=1MB", *wrong])
    assert [problem.split(": ")[0] for problem in found.value.problems] == [repr(w) for w in wrong]


@given(st.text(max_size=30))
def test_no_text_breaks_it(text: str):
    try:
        (limit,) = parse_limits([text])
    except ConfigError:
        return
    assert isinstance(limit, Limit)


ROWS = st.lists(
    st.builds(
        measured,
        st.sampled_from(["a:onnx", "b:onnx", "c:tflite", "d:executorch"]),
        st.integers(1, 9).map(float),
        st.sampled_from([0.8, 0.9]),
        st.sampled_from(["pi5", "pixel"]),
    ),
    min_size=1,
    unique_by=lambda m: m.trial,
)


@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_in_which_it_was_measured_does_not_matter(rows: list[Measurement], rng: Any):
    shuffled = rows[:]
    rng.shuffle(shuffled)
    assert choose(rows, {}, Wish()) == choose(shuffled, {}, Wish())
