"""Which of a recipe's variants are profiled, and what goes wrong with one of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pipeline.compress.variants import Compressed
from pipeline.flow import Checked, Failure
from pipeline.profile import flow
from pipeline.profile.flow import profile_variants
from profiles.errors import StageError
from profiles.measure import Measure
from profiles.recipe import Recipe, Tolerances
from tests import builders
from tests.pipeline.test_profile_blocks import PROFILE

X = np.arange(8, dtype=np.float32).reshape(2, 4)


def profiled(monkeypatch: pytest.MonkeyPatch, answer: Any) -> tuple[list[tuple], list[Failure]]:
    """What is asked for, and the failures, for two variants in two formats, one without parity."""
    asked = []

    def profile_network(workspace, device, network, format_, settings, **options):
        asked.append((device.id, network.variant, format_, settings.threads, options["operators"]))
        assert network.model == "net"
        assert options["tolerances"] == Tolerances()
        np.testing.assert_array_equal(network.inputs[0], X[:1])
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(flow, "profile_network", profile_network)
    pairs = [("fp32", "onnx"), ("fp32", "tflite"), ("int8", "onnx"), ("int8", "tflite")]
    compressed = [Compressed(v, f, Path(f"{v}.pt2"), "float32", Path()) for v, f in pairs]
    checked = [
        Checked(
            builders.artifact(variant=v, format=f),
            builders.parity(passed=(v, f) != ("int8", "tflite")),
        )
        for v, f in pairs
    ]
    recipe = SimpleNamespace(
        name="net", measure=Measure(threads=(1, 4)), tolerances=Tolerances(), profile=True
    )
    data = SimpleNamespace(arrays=SimpleNamespace(test=SimpleNamespace(x=X)))
    failures: list[Failure] = []
    profile_variants(
        SimpleNamespace(), recipe, compressed, checked, [builders.device()], data, failures
    )
    return asked, failures


def test_every_variant_that_passed_is_profiled_for_each_number_of_threads(monkeypatch):
    asked, failures = profiled(monkeypatch, PROFILE)
    assert asked == [
        ("board", variant, format_, (threads,), format_ == "onnx")
        for variant, format_ in (("fp32", "onnx"), ("fp32", "tflite"), ("int8", "onnx"))
        for threads in (1, 4)
    ]
    assert failures == []


def test_what_is_not_known_is_a_failure_but_a_missing_account_of_operators_is_none(monkeypatch):
    profile = replace(PROFILE, unknown={"whole": "refused: hot", "operators": "not told"})
    _, failures = profiled(monkeypatch, profile)
    assert failures[0] == Failure("profile", "whole of fp32 onnx on board", "refused: hot")
    assert len(failures) == 6


def test_a_network_that_cannot_be_cut_does_not_keep_the_others_from_it(monkeypatch):
    asked, failures = profiled(monkeypatch, StageError("no"))
    assert len(asked) == len(failures) == 6
    assert {failure.stage for failure in failures} == {"profile"}


def test_recipes_do_not_profile_unless_they_say_so():
    assert Recipe.model_fields["profile"].default is False
