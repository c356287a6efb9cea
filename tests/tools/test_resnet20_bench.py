"""What the benchmark of ResNet-20 makes of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.data import Split
from pipeline.flow import RunSummary
from profiles.errors import UsageError
from profiles.recipe import Recipe
from profiles.store import Store
from tests import builders, showcase
from tests.builders import matrix_product
from tools.bench import resnet20

FP32, INT8 = "a" * 64, "b" * 64
ROUNDS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FP32 repeats its input; INT8 tells the first two classes wrong; it takes half the time, which
    changes from round to round."""
    root = tmp_path_factory.mktemp("work")
    (root / "artifacts").mkdir()
    same = np.eye(4, dtype=np.float32)
    with Store(root / "store.db") as store:
        for sha256, variant, weights, share, size in (
            (FP32, "fp32", same, 1.0, 1000),
            (INT8, "int8", same[[1, 0, 2, 3]], 0.5, 300),
        ):
            matrix_product(root / "artifacts" / f"{sha256}.onnx", weights)
            made = builders.artifact(sha256=sha256, variant=variant, size_bytes=size)
            store.put_artifact(made, builders.parity())
            trial = store.open_trial(builders.trial(sha256=sha256))
            for number in range(ROUNDS):
                environment = showcase.environment()
                environment["preflight"] |= {"fence": 1, "round": number}
                ns = round(1e6 * (1 + 0.2 * number) * share)
                store.add_run(trial.key, builders.run(number, [ns] * 3, environment=environment))
            store.close_trial(trial.key, "accepted")
    return root


def summary(root: Path) -> RunSummary:
    with Store(root / "store.db") as store:
        return RunSummary("resnet20", 1.0, 10, tuple(store.measurements()), None, ())


def test_a_variant_is_compared_with_its_base_round_by_round(root: Path):
    y = np.arange(40) % 4
    test = Split(np.eye(4, dtype=np.float32)[y], y)
    (found,) = resnet20.compared(summary(root), root, test)
    assert (found.variant, found.against, found.format) == ("int8", "fp32", "onnx")
    assert (found.accuracy, found.drop) == (0.5, 0.5)
    assert 0.3 < found.drop_ci95[0] < 0.5 < found.drop_ci95[1] < 0.7
    assert found.size == pytest.approx(0.3)
    # The rounds differ by twice; within each the ratio is the same.
    assert found.latency == pytest.approx(0.5)
    assert found.latency_ci95 == pytest.approx((0.5, 0.5))
    words = resnet20._line(found).split()
    assert words[:5] == ["int8", "fp32", "onnx", "50.00", "+50.00"]
    assert words[-5:] == ["0.300", "0.500", "0.500", "to", "0.500"]


def test_rounds_that_do_not_match_give_no_latency():
    assert resnet20._latency({(1, 0): 1e6}, {(1, 1): 1e6}) == (None, None)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("devices", {"devices": ["pi", "phone"]}),
        ("measure.threads", {"measure": {"threads": [1, 4]}}),
    ],
)
def test_several_conditions_are_refused_before_the_run(key: str, changes: dict):
    plain = {
        "name": "small",
        "model": {"factory": "made.up:Net"},
        "data": {"factory": "made.up:data"},
        "variants": ["fp32"],
        "formats": ["onnx"],
        "devices": ["pi"],
    }
    resnet20.demand_one_condition(Recipe.model_validate(plain))
    with pytest.raises(UsageError, match=rf"{key}: .*, .*: this compares under one condition"):
        resnet20.demand_one_condition(Recipe.model_validate({**plain, **changes}))
