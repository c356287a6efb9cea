"""What a recipe says of compression: short forms, chains, and one clear line for each mistake."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import field_validator

from profiles.compression import (
    Budget,
    Fp32,
    Int8,
    LowRank,
    Shallow,
    Sparse,
    Structured,
    Tuned,
    Variant,
    Weights,
    check_chain,
)
from profiles.config import Config, parse
from profiles.errors import ConfigError


class Variants(Config):
    """As a recipe holds them."""

    variants: tuple[Variant, ...]

    @field_validator("variants")
    @classmethod
    def _chained(cls, variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
        check_chain(variants)
        return variants


def variants(*given: Any) -> tuple[Any, ...]:
    return parse(Variants, {"variants": given}, "recipe.yaml").variants


def problems(*given: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        variants(*given)
    return caught.value.problems


def test_a_bare_name_is_the_method_with_its_defaults():
    found = variants("fp32", "int8", "structured")
    assert found == (
        Fp32(name="fp32"),
        Int8(name="int8", method="int8"),
        Structured(name="structured", method="structured"),
    )
    assert found[2].budget == Budget(macs=0.5)


def test_a_name_stands_for_its_method_and_a_method_for_its_name():
    named, method = variants({"name": "sparse", "sparsity": 0.7}, {"method": "int8"})
    assert (named.method, named.sparsity) == ("sparse", 0.7)
    assert (method.name, method.precision) == ("int8", "everywhere")


@pytest.mark.parametrize(
    ("method", "type_"),
    [
        ("fp32", Fp32),
        ("finetune", Tuned),
        ("int8", Int8),
        ("weight-only", Weights),
        ("sparse", Sparse),
        ("structured", Structured),
        ("low-rank", LowRank),
        ("remove-layers", Shallow),
    ],
)
def test_each_method_has_a_type_and_needs_nothing_but_its_name(method: str, type_: type):
    (found,) = variants({"name": "mine", "method": method})
    assert isinstance(found, type_)
    assert found.name == "mine"


def test_a_chain_starts_each_variant_from_the_one_it_names():
    small, tuned, last = variants(
        {"name": "small", "method": "structured"},
        {"name": "tuned", "method": "finetune", "from": "small"},
        {"name": "last", "method": "int8", "from": "tuned"},
    )
    assert (small.after, tuned.after, last.after) == (None, "small", "tuned")
    # It goes by its recipe's key into what is recorded.
    assert last.model_dump(by_alias=True)["from"] == "tuned"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([], "variants: name one"),
        (["int8", {"method": "int8"}], "variants: names must differ: int8"),
        (
            [{"method": "int8", "from": "small"}, {"name": "small", "method": "structured"}],
            "variants: int8: from: no variant 'small' before it",
        ),
        (
            ["int8", {"method": "sparse", "from": "int8"}],
            "variants: sparse: from: int8 is quantized, which comes last in a chain",
        ),
        (
            [{"name": "w", "method": "weight-only"}, {"method": "finetune", "from": "w"}],
            "variants: finetune: from: w is quantized, which comes last in a chain",
        ),
        (
            [{"method": "int8", "from": "int8"}],
            "variants: int8: from: no variant 'int8' before it",
        ),
        (
            [
                {"name": "tuned", "method": "finetune"},
                {"method": "sparse", "train": {}, "distil": {"teacher": "tuned"}},
            ],
            "variants: sparse: distil.teacher: it does not come of 'tuned' by from",
        ),
    ],
)
def test_a_broken_chain_is_one_line(given: list[Any], problem: str):
    assert problems(*given) == (problem,)


def test_a_teacher_is_what_a_variant_came_of_however_long_ago():
    *_, last = variants(
        {"name": "tuned", "method": "finetune"},
        {"name": "short", "method": "remove-layers", "from": "tuned"},
        {"method": "sparse", "from": "short", "train": {}, "distil": {"teacher": "tuned"}},
    )
    assert last.distil.teacher == "tuned"


TRAIN: dict[str, Any] = {"epochs": 1}


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            {"method": "fp32", "from": "x"},
            "variants.0.fp32: fp32 is the model itself: it has no from",
        ),
        ({"sparsity": 0.5}, "variants.0: has no method"),
        ({"method": "magic"}, "variants.0.method: 'magic' is none of 'fp32', 'finetune', 'int8',"),
        (
            {"method": "int8", "max_drop": 2},
            "variants.0.int8.max_drop: input should be less than 1",
        ),
        ({"method": "int8", "keeep": []}, "variants.0.int8.keeep: no such key"),
        ({"method": "int8", "distil": {}}, "variants.0.int8: distil is a part of training: name"),
        ({"method": "weight-only", "bits": 3}, "variants.0.weight-only.bits: input should be 8 or"),
        ({"method": "weight-only", "group_size": 8}, "variants.0.weight-only.group_size: input"),
        ({"method": "finetune", "train": {"epochs": 0}}, "variants.0.finetune.train.epochs: input"),
        (
            {"method": "finetune", "distil": {"features": 1.0}},
            "variants.0.finetune.distil: features (a weight) and at (which modules) go together",
        ),
        (
            {"method": "finetune", "distil": {"at": ["model.conv"]}},
            "variants.0.finetune.distil: features (a weight) and at (which modules) go together",
        ),
        ({"method": "sparse", "sparsity": 1.0}, "variants.0.sparse.sparsity: input should be less"),
        (
            {"method": "sparse", "schedule": "gradual"},
            "variants.0.sparse: it happens while training: name train",
        ),
        (
            {"method": "sparse", "scope": "regularised"},
            "variants.0.sparse: it happens while training: name train",
        ),
        (
            {"method": "sparse", "scope": "regularised", "schedule": "gradual", "train": TRAIN},
            "variants.0.sparse: regularised training has a schedule of its own: name none",
        ),
        ({"method": "sparse", "pattern": "2-4"}, "variants.0.sparse.pattern: string should match"),
        (
            {"method": "sparse", "pattern": "4:4"},
            "variants.0.sparse: pattern 4:4 removes nothing: N must be below M",
        ),
        *(
            (
                {"method": "sparse", "pattern": "2:4", "train": TRAIN, **more},
                "variants.0.sparse: a pattern says how sparse, where and when: no sparsity, scope",
            )
            for more in ({"sparsity": 0.5}, {"scope": "local"}, {"schedule": "cyclical"})
        ),
        (
            {"method": "structured", "budget": {"macs": 0.5, "latency": 0.5}},
            "variants.0.structured.budget: name exactly one of macs, parameters, latency and",
        ),
        (
            {"method": "low-rank", "budget": {}},
            "variants.0.low-rank.budget: name exactly one of macs, parameters, latency and energy",
        ),
        (
            {"method": "structured", "budget": {"macs": 0.5, "device": "phone"}},
            "variants.0.structured.budget: macs is counted: no device, no format",
        ),
        (
            {"method": "structured", "how": "hesso"},
            "variants.0.structured: hesso happens while training: name train",
        ),
        ({"method": "structured", "round_to": 0}, "variants.0.structured.round_to."),
        ({"method": "remove-layers", "remove": 0}, "variants.0.remove-layers.remove: input should"),
        ({"name": "a b", "method": "int8"}, "variants.0.int8.name: string should match pattern"),
    ],
)
def test_each_mistake_has_its_key_and_its_line(given: dict[str, Any], problem: str):
    first = problems(given)[0]
    assert first.startswith(problem)
    assert "\n" not in first


@pytest.mark.parametrize("cost", ["macs", "parameters", "latency", "energy"])
def test_a_budget_knows_its_cost_its_share_and_who_measures(cost: str):
    budget = Budget.model_validate({cost: 0.25})
    assert (budget.cost, budget.share) == (cost, 0.25)
    assert budget.is_measured == (cost in ("latency", "energy"))


def test_a_measured_budget_may_name_its_device():
    budget = Budget(latency=0.5, device="phone", format="tflite")
    assert (budget.device, budget.format) == ("phone", "tflite")


def test_a_pattern_says_how_many_of_how_many_stay():
    assert Sparse(name="s", method="sparse", pattern="2:16").kept_of == (2, 16)


def test_what_is_dumped_is_read_again():
    """A record holds settings as JSON; they are a recipe's settings still."""
    found = variants(
        {"name": "s", "method": "sparse", "schedule": "cyclical", "train": TRAIN, "distil": {}},
        {"name": "i", "method": "int8", "from": "s"},
    )
    dumped = [v.model_dump(mode="json", by_alias=True, exclude_none=True) for v in found]
    assert variants(*dumped) == found
