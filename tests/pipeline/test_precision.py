"""What a device's measurements decide: which candidates there are, and which is taken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from devices.inventory import Device
from devices.transport.truth import NAME
from pipeline.compress import int8, precision, quantize
from pipeline.compress.int8 import Choice, make
from pipeline.compress.precision import gains, verdict
from pipeline.compress.variants import Compressed, Job, original
from pipeline.export.parity import compare
from pipeline.profile.record import BlockCost
from pipeline.stage import Workspace
from profiles.comparison import Effect
from profiles.compression import Int8
from profiles.errors import StageError
from profiles.findings import Figure
from profiles.store import Store
from tests import builders
from tests.pipeline import gratings
from tests.pipeline.scripted import settings
from tests.pipeline.test_profile_blocks import PROFILE

MEASURED = Int8(name="int8", method="int8", precision="measured")


@dataclass
class Bench:
    """A job on scripted devices, and which of the network's blocks are slower in INT8 there."""

    folder: Path
    job: Job
    slow: tuple[str, ...] = ()

    def device(self, name: str, **truth_ns: int) -> Device:
        """A device on which candidates take so long, by their names."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        shas = self.shas()
        truth = {shas[f"int8 candidate {key}"]: ns for key, ns in truth_ns.items()}
        quick = {"between_runs": [0.0, 0.0], "within": 0.001, "truth_ns": truth}
        (home / NAME).write_text(json.dumps(quick))
        return builders.device(id=name, address=f"scripted:{home}")

    def shas(self) -> dict[str, str]:
        """By variant, of everything that was measured so far."""
        with Store(self.folder / "work/store.db") as store:
            return {m.variant: m.artifact_sha256 for m in store.measurements()}

    def made(self, device: Device, changes: dict[str, Any] | None = None) -> Compressed:
        job = replace(self.job, devices={device.id: device})
        (made,) = make(job, MEASURED.model_copy(update=changes or {}), original(job, "onnx"))
        return made

    def profile(self, *args: Any, **options: Any) -> Any:
        """Stands in for minutes of measuring blocks."""
        network = args[2]
        names = ["stem.0", "down.0", "deep.0", "head"]
        integer = "fp32" not in network.variant
        blocks = tuple(
            BlockCost(
                (name,),
                "Block",
                Figure(
                    3000.0 if name in self.slow and integer else 2000.0 - 500 * integer, None, 3, 3
                ),
                None,
                "accepted",
            )
            for name in names
        )
        return replace(PROFILE, blocks=blocks, depth=2)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("precision")
    workspace = Workspace.open(folder / "work")
    with pytest.MonkeyPatch.context() as patch:
        found = Bench(folder, gratings.job(folder, workspace, {}, factor=1.0))
        found.job.recipe.__dict__["measure"] = settings()
        patch.setattr(precision, "profile_network", found.profile)
        other = {"onnx": {"deep in FP32": {"skip": ("model.deep",)}, "nothing new": {}}}
        patch.setattr(quantize, "quantizer_for", _with_skip(quantize.quantizer_for))
        patch.setattr(quantize, "ALTERNATIVES", {**quantize.ALTERNATIVES, **other})
        first = folder / "first"
        first.mkdir()
        yield found
    workspace.close()


def _with_skip(quantizer_for: Any) -> Any:
    """A runtime whose quantizer has a setting: what else to leave."""

    def with_skip(format_: Any, *, keep: Any = (), skip: Any = ()) -> Any:
        return quantizer_for(format_, keep=(*keep, *skip))

    return with_skip


def test_the_fastest_is_taken_and_the_record_says_what_it_was_measured_against(bench: Bench):
    bench.slow = ()
    made = bench.made(bench.device("first"))
    policy = made.details["policy"]
    idle = policy["candidates"].pop("int8, nothing new")
    assert (idle["reason"], idle["median_ns"]) == ("the same file as int8", None)
    assert policy["candidates"].keys() == {"fp32", "int8", "int8, deep in FP32"}
    times = {name: one["median_ns"] for name, one in policy["candidates"].items()}
    # A scripted device takes 1 ns a byte, and 20 us.
    assert min(times, key=lambda name: times[name]) == policy["chosen"] == "int8"
    assert (made.device, made.dtype) == ("first", "int8")
    ratio = policy["candidates"]["int8"]["against_fp32"]["ratio"]
    assert ratio == pytest.approx(times["int8"] / times["fp32"], rel=1e-3)
    assert made.details["notes"][0] == policy["why"]
    assert policy["why"].startswith(f"int8: {1 / ratio:.2f} times as fast as FP32 (")
    assert "0 of 4 blocks are slower" in policy["blocks"]
    assert policy["fp16"].startswith("not offered: ONNX Runtime")


def test_candidates_are_no_rows_of_the_report_and_are_measured_once(bench: Bench):
    device = bench.device("first")
    with Store(bench.folder / "work/store.db") as store:
        before = store.measurements()
    assert before
    assert all(m.role == "block" and m.turns for m in before)
    bench.made(device)
    with Store(bench.folder / "work/store.db") as store:
        assert store.measurements() == before


def test_another_setting_of_the_quantizer_wins_where_it_is_faster(bench: Bench):
    bench.slow = ()
    device = bench.device("second", **{"int8": 90_000, "int8, deep in FP32": 50_000})
    made = bench.made(device)
    assert made.details["policy"]["chosen"] == "int8, deep in FP32"
    assert made.details["choices"] == {"skip": ["model.deep"]}
    assert "model.deep.0" in made.details["quantization"]["float_layers"]


def test_blocks_that_are_slower_in_int8_are_left_where_the_whole_is_faster_for_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    choices: list[Choice] = []

    def quantized(job: Job, settings: Int8, base: Compressed, choice: Choice) -> Compressed:
        choices.append(choice)
        return int8.quantized(job, settings, base, choice)

    monkeypatch.setattr(precision, "quantized", quantized)
    bench.slow = ("down.0",)
    name = "int8, 1 of 4 blocks in FP32"
    taken = bench.made(bench.device("third")).details["policy"]
    assert taken["chosen"] == "int8", "its file is larger, so it takes longer on this device"
    assert taken["candidates"][name]["keep"] == ["model.down"]
    # What holds a drop knows which blocks these costs are of.
    assert (choices[-1].name, choices[-1].depth) == (name, 2)
    assert choices[-1].costs_ns["down.0"] < 0
    slow = {"int8": 60_000, "int8, deep in FP32": 90_000}
    found = bench.made(bench.device("fourth", **slow, **{name: 40_000}))
    assert found.details["policy"]["chosen"] == name
    assert "model.down.0" in found.details["quantization"]["float_layers"]
    assert found.details["policy"]["blocks"] == "1 of 4 blocks are slower in INT8"


def test_int8_that_is_slower_than_fp32_says_so(bench: Bench):
    bench.slow = ()
    slow = {"fp32": 30_000, "int8": 60_000, "int8, deep in FP32": 70_000}
    made = bench.made(bench.device("fifth", **slow))
    assert made.details["policy"]["chosen"] == "int8"
    (note, *_) = made.details["notes"]
    assert "0.50 times as fast as FP32" in note
    assert "slower" in note
    assert "ship FP32 on this device" in note


def test_a_candidate_that_computes_something_else_is_not_measured(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    def refusing(outputs: Any, *others: Any) -> Any:
        parity = compare(outputs, *others)
        return replace(parity, reason="cosine 0.1 < 0.98" if others[-1].cosine < 0.99 else "")

    monkeypatch.setattr(precision, "compare", refusing)
    changed = {"keep": ("model.head",)}
    with pytest.raises(StageError, match=r"no candidate has a latency: .*cosine 0\.1"):
        bench.made(bench.device("sixth"), changed)


def test_a_block_gains_what_it_takes_longer_in_fp32():
    def profile(**ns: float | None) -> Any:
        blocks = tuple(
            BlockCost((name, f"{name} again"), "B", Figure(v, None, 3, 3) if v else None, None, "x")
            for name, v in ns.items()
        )
        return replace(PROFILE, blocks=blocks)

    found = gains(profile(a=5.0, b=2.0, c=None, d=1.0), profile(a=3.0, b=6.0, c=1.0))
    assert found == {"a": 2.0, "a again": 2.0, "b": -4.0, "b again": -4.0}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.4, 0.6, "x: 2.00 times as fast as FP32 (1.67 to 2.50)"),
        (0.4, 1.1, "no faster beyond noise, but smaller"),
        (1.1, 1.3, "slower, and the least slow"),
    ],
)
def test_the_verdict_follows_the_interval(low: float, high: float, expected: str):
    assert expected in verdict("x", Effect(0.5, (low, high), None))
