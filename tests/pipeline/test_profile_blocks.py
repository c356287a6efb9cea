"""Profiles on a scripted device, whose latencies are known: what adds up, and what is said when it
does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from devices.inventory import Device
from pipeline.examples.digits import network as digits_network
from pipeline.model import trace
from pipeline.profile import blocks, parts
from pipeline.profile.blocks import profile_network
from pipeline.profile.parts import Network
from pipeline.profile.record import (
    BlockCost,
    BlockProfile,
    OperatorCost,
    OperatorProfile,
    read_profiles,
    write_profile,
)
from pipeline.profile.words import remarks
from pipeline.programs import save_program
from pipeline.stage import Workspace
from profiles.errors import StageError, StoreError
from profiles.findings import Figure
from profiles.measure import Measure
from profiles.recipe import Tolerance, Tolerances
from profiles.records import Condition
from tests import builders
from tests.pipeline.networks import image, settled

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning:torch",
    "ignore::FutureWarning:copyreg",
    "ignore::DeprecationWarning:torch",
)

SETTINGS = Measure(runs=3, iterations=8, warmup_seconds=0)
#: What the scripted device takes for a file of no bytes.
BASE_NS = 20_000
NAMES = ["0", "3", "4", "7", "10"]


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Network:
    path = tmp_path_factory.mktemp("network") / "digits.pt2"
    x = image(1)
    save_program(trace(settled(digits_network(8), 1), torch.from_numpy(x)), path)
    return Network(path, "digits", "fp32", [x])


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Shared: what has been exported once is not exported again."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture
def workspace(root: Path) -> Iterator[Workspace]:
    opened = Workspace.open(root)
    yield opened
    opened.close()


@pytest.fixture
def device(tmp_path: Path) -> Device:
    """Calls take 20 µs and 1 ns for each byte of the file, every time."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "scripted.json").write_text(json.dumps({"between_runs": [0.0, 0.0]}))
    return builders.device(id=tmp_path.name, address=f"scripted:{home}")


def sizes(workspace: Workspace, model: str = "digits") -> dict[str, int]:
    """The bytes of each part's artifact."""
    with workspace.store._engine.connect() as connection:
        rows = connection.exec_driver_sql(
            "select variant, size_bytes from artifact where model = ?", (model,)
        )
        return {variant.partition(" ")[2]: size for variant, size in rows}


def test_blocks_whole_and_gap_are_those_of_the_device(workspace, device, network):
    found = profile_network(workspace, device, network, "onnx", SETTINGS)
    size = sizes(workspace)
    assert [block.names for block in found.blocks] == [(name,) for name in NAMES]
    for block in found.blocks:
        assert block.status == "accepted"
        assert block.latency_ns.value == pytest.approx(BASE_NS + size[block.names[0]], rel=1e-6)
    call, whole = BASE_NS + size["call"], BASE_NS + size["whole"]
    total = sum(BASE_NS + size[name] for name in NAMES) - 4 * call
    assert found.call_ns.value == pytest.approx(call, rel=1e-6)
    assert found.whole_ns.value == pytest.approx(whole, rel=1e-6)
    assert found.sum_ns.value == pytest.approx(total, rel=1e-6)
    assert found.ratio.value == pytest.approx(total / whole, rel=1e-6)
    assert found.gap_ns == pytest.approx(total - whole, rel=1e-4)
    own = {name: size[name] - size["call"] for name in NAMES}
    for block in found.blocks:
        assert block.share == pytest.approx(own[block.names[0]] / sum(own.values()), rel=1e-4)
    assert sum(block.share for block in found.blocks) == pytest.approx(1)
    assert found.emulated and found.runtime == "onnxruntime" and found.dtype == "float32"
    assert found.lacking() == {}
    assert read_profiles(workspace.root) == [found]


def test_everything_is_measured_in_the_same_processes_and_only_once(workspace, device, network):
    profile_network(workspace, device, network, "onnx", SETTINGS)
    trials = [t for t in workspace.store.trials() if t.device_id == device.id]
    assert len(trials) == 7  # five blocks, an empty network, the whole
    (turns,) = {trial.plan.turns for trial in trials}
    assert turns.startswith("profile-"), "what another campaign measured is no part of this one"
    assert {len(trial.runs) for trial in trials} == {3}
    again = profile_network(workspace, device, network, "onnx", SETTINGS)
    assert again.lacking() == {}
    assert len([t for t in workspace.store.trials() if t.device_id == device.id]) == 7


def test_operators_of_the_whole_network_come_with_it(workspace, device, network, monkeypatch):
    seen = {}

    def understood(trace_, calls, artifact, operators):
        seen.update(trace=trace_, calls=calls, blocks=list(operators))
        return OperatorProfile((), 1.0, 2.0, calls)

    monkeypatch.setattr(blocks, "operators_of", understood)
    found = profile_network(workspace, device, network, "onnx", SETTINGS, operators=True)
    assert found.operators.gap_ns == 1.0
    assert seen["calls"] == blocks.OPERATOR_CALLS
    assert [event["name"] for event in seen["trace"]] == ["model_run", "scripted_kernel_time"]
    assert seen["blocks"] == NAMES
    assert read_profiles(workspace.root)[-1].operators == found.operators


def test_a_profile_that_is_not_understood_is_named(workspace, device, network):
    # The scripted device's trace has one call, not thirty.
    found = profile_network(workspace, device, network, "onnx", SETTINGS, operators=True)
    assert found.operators is None
    assert "1 calls, not 30" in found.lacking()["operators"]
    assert found.sum_ns is not None


def test_a_block_that_computes_something_else_is_named_and_nothing_adds_up(
    workspace, device, network, monkeypatch
):
    real = parts._host_call

    def wrong(artifact, inputs):
        outputs, delegates = real(artifact, inputs)
        return ([-o for o in outputs] if artifact.variant == "other 4" else outputs), delegates

    monkeypatch.setattr(parts, "_host_call", wrong)
    # With another tolerance the parts are checked anew.
    strict = Tolerances(float32=Tolerance(max_abs_error=2e-3, cosine=0.999, top1_agreement=1))
    found = profile_network(
        workspace, device, replace(network, variant="other"), "onnx", SETTINGS, tolerances=strict
    )
    by_name = {block.names[0]: block for block in found.blocks}
    assert by_name["4"].status == "failed"
    assert "computes something else" in by_name["4"].reason
    assert by_name["4"].latency_ns is None
    assert {name for name, block in by_name.items() if block.latency_ns} == {"0", "3", "7", "10"}
    assert found.sum_ns is found.ratio is found.gap_ns is None
    assert all(block.share is None for block in found.blocks)
    assert list(found.lacking()) == ["4"]
    assert found.remarks == ("sum and whole cannot be compared: 4 not known",)


def test_refused_blocks_are_named_with_the_reason(workspace, device, network):
    home = Path(device.address.removeprefix("scripted:"))
    (home / "scripted.json").write_text(json.dumps({"khz": [[2_000_000, 1_000_000]]}))
    # More calls than one slice has: the clock falls between slices.
    settings = SETTINGS.model_copy(update={"iterations": 40})
    found = profile_network(workspace, device, network, "onnx", settings)
    assert {block.status for block in found.blocks} == {"refused"}
    assert all(block.latency_ns is None and block.reason for block in found.blocks)
    assert set(found.lacking()) == {*NAMES, "call", "whole"}
    assert found.whole_ns is None


def test_blocks_alike_are_measured_once_and_count_each(workspace, device, tmp_path):
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = torch.nn.ModuleList(torch.nn.Conv2d(1, 1, 3, padding=1) for _ in range(3))
            self.head = torch.nn.Linear(32, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for part in self.parts:
                x = part(x)
            return self.head(x)

    torch.manual_seed(0)
    path, x = tmp_path / "twice.pt2", image(1)
    save_program(trace(Twice().eval(), torch.from_numpy(x)), path)
    twice = Network(path, "twice", "fp32", [x])
    found = profile_network(workspace, device, twice, "onnx", SETTINGS)
    assert [block.names for block in found.blocks] == [
        ("parts.0", "parts.1", "parts.2"),
        ("head",),
    ]
    first, last = (block.latency_ns.value for block in found.blocks)
    assert found.sum_ns.value == pytest.approx(3 * first + last - 3 * found.call_ns.value, rel=1e-6)
    own = [3 * (first - found.call_ns.value), last - found.call_ns.value]
    assert found.blocks[0].share == pytest.approx(own[0] / sum(own))
    assert len(list(workspace.root.glob("stages/cut-*/*.pt2"))) >= 3


def figure(value: float, low: float, high: float) -> Figure:
    return Figure(value, (low, high), 100, 5)


PROFILE = BlockProfile(
    model="net",
    variant="int8",
    format="onnx",
    dtype="int8",
    artifact_sha256=builders.SHA,
    device="board",
    emulated=False,
    runtime="onnxruntime",
    runtime_version="1.31.1",
    condition=Condition(),
    depth=2,
    blocks=(
        BlockCost(("a", "b"), "Block", figure(2e5, 1.9e5, 2.1e5), 0.8, "accepted", "", "f" * 64),
        BlockCost(("c",), "Linear", Figure(1e5, None, 100, 2), 0.2, "accepted"),
    ),
    call_ns=figure(1e3, 0.9e3, 1.1e3),
    whole_ns=figure(4e5, 3.9e5, 4.1e5),
    sum_ns=figure(4.98e5, 4.9e5, 5e5),
    ratio=figure(1.245, 1.2, 1.3),
    unknown={},
    remarks=("nothing is fused over a border",),
    operators=OperatorProfile((OperatorCost("n", "Conv", "CPU", 5e4, "a"),), 3e5, 3.5e5, 30),
)


def test_profiles_are_read_as_they_were_written(tmp_path):
    unknown = replace(
        PROFILE, model="a/b c", whole_ns=None, ratio=None, unknown={"whole": "x"}, operators=None
    )
    other_depth = replace(PROFILE, depth=3)
    written = [write_profile(tmp_path, profile) for profile in (PROFILE, unknown, other_depth)]
    assert len(set(written)) == 3
    found = read_profiles(tmp_path)
    assert sorted(map(repr, found)) == sorted(map(repr, (PROFILE, unknown, other_depth)))
    assert read_profiles(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"format":1,"profile":{}}', b'{"format":2}', b"\xff"]
)
def test_a_damaged_profile_is_told(tmp_path, content):
    path = write_profile(tmp_path, PROFILE)
    path.write_bytes(content)
    with pytest.raises(StoreError, match=path.name):
        read_profiles(tmp_path)


def some_parts(repeated: int) -> parts.Parts:
    return parts.Parts("k", Path(), 2, repeated, 4096, (), {}, "int8")


def test_sum_and_ratio_are_of_one_round_even_after_a_process_broke_off():
    """It broke off when the whole had not had its first call: only its numbers are as before."""
    levels = {(4, 0): 1.0, (5, 1): 3.0, (5, 2): 7.0}

    def trial(base_ns: int, broken: bool):
        made = []
        for at, level in levels.items():
            if broken and at == (5, 1):
                made.append(((4, 1), 50.0, False))
            made.append((at, level, True))
        runs = tuple(
            builders.run(
                number,
                [round(base_ns * level)] * 3,
                complete=complete,
                environment={"preflight": {"fence": fence, "round": round_}},
            )
            for number, ((fence, round_), level, complete) in enumerate(made)
        )
        return builders.trial(runs=runs, status="accepted")

    found = {
        parts.CALL: trial(1_000, True),
        "00": trial(100_000, True),
        parts.WHOLE: trial(80_000, False),
    }
    cut = replace(some_parts(0), blocks=((("a",), "Linear"),))
    total, ratio = blocks._sum(found, cut)
    assert total.runs == ratio.runs == 3
    assert ratio.ci95 == pytest.approx((1.25, 1.25))


def test_the_gap_is_named_in_words():
    said = " ".join(remarks(PROFILE, some_parts(4)))
    assert "2 borders hand over 4.1 kB" in said
    assert "fused over a border" in said
    assert "4 conversions to integers" in said
    assert "integers" not in " ".join(remarks(PROFILE, some_parts(0)))
    less = replace(PROFILE, ratio=figure(0.9, 0.88, 0.93))
    assert "caches" in " ".join(remarks(less, some_parts(4)))
    same = replace(PROFILE, ratio=figure(1.01, 0.98, 1.03))
    assert remarks(same, some_parts(4)) == ("sum and whole differ by no more than runs do",)


def test_parity_of_parts():
    tolerance = Tolerances().float32
    good = [np.array([1.0, 2.0], np.float32)]
    parts._demand_parity("a", good, [np.array([1.0, 2.0001], np.float32)], tolerance)
    for wrong in ([1.0, 2.1], [np.nan, 2.0], [-1.0, -2.0]):
        with pytest.raises(StageError, match="a computes something else"):
            parts._demand_parity("a", [np.array(wrong, np.float32)], good, tolerance)
    turned = [np.array([1, -0.09, -0.09, -0.09], np.float32)]
    with pytest.raises(StageError, match=r"cosine 0\.7"):  # no value is far from what it should be
        expected = [np.array([1, 0.4, 0.4, 0.4], np.float32)]
        parts._demand_parity("a", turned, expected, Tolerances().int8)
    with pytest.raises(StageError, match="other shapes"):
        parts._demand_parity("a", [good[0][:1]], good, tolerance)
    zero = [np.zeros(2, np.float32)]
    parts._demand_parity("a", zero, zero, tolerance)
