"""Rows as integers and back: nothing confused, nothing lost, the unseen said to be so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profiles.errors import UsageError
from profiles.predictor import Choices, Networks
from profiles.predictor.networks import UNSEEN, label
from profiles.predictor.similarity import Similarity

WORDS = st.one_of(st.integers(-9, 9), st.text("ab", max_size=2), st.none(), st.just(2.5))


@st.composite
def tables(draw: st.DrawFn) -> list[list[object]]:
    width = draw(st.integers(1, 4))
    return draw(st.lists(st.lists(WORDS, min_size=width, max_size=width), min_size=1, max_size=12))


@given(tables())
def test_rows_come_back_from_their_codes(rows):
    choices = Choices.of(rows)
    codes = choices.encode(rows)
    assert (codes >= 0).all()
    assert choices.decode(codes) == [[label(value) for value in row] for row in rows]


@given(tables())
def test_equal_choices_are_alike_by_one_and_others_by_less(rows):
    choices = Choices.of(rows)
    codes = choices.encode(rows)
    for ordered in (0.0, 0.9):
        similarity = Similarity.of(choices, ordered)
        vectors = similarity.vectors(codes)
        alike = vectors @ vectors.T
        same = (codes[:, None] == codes[None]).sum(axis=2)
        assert np.allclose(np.diag(alike), len(choices.names))
        assert (alike >= same - 1e-9).all()
        assert (alike[same < len(choices.names)] < len(choices.names) - 1e-9).all()


def test_neighbouring_numbers_are_more_alike_than_distant_ones_and_words_are_not():
    choices = Choices.of([[3], [5], [7], [""]])
    vectors = Similarity.of(choices, 0.9).vectors(choices.encode([[3], [5], [7], [""]]))
    alike = vectors @ vectors.T
    assert alike[0, 1] == pytest.approx(0.45)
    assert alike[0, 2] == alike[0, 3] == pytest.approx(0.0)


def test_numbers_stand_by_size_whatever_type_they_come_in():
    choices = Choices.of([["10"], [9.0], [None], [float("nan")], ["wide"]], ["width"])
    assert choices.levels == (("9", "10", "", "wide"),)
    assert choices.encode([[9], ["9.0"], [10.0], [""]]).tolist() == [[0], [0], [1], [2]]


@given(st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1))
def test_an_array_of_integers_is_encoded_as_its_rows_are(rows):
    choices = Choices.of([[-1, 0], [2, 2], ["x", 1]])
    assert np.array_equal(choices.encode(np.array(rows)), choices.encode(rows))


def test_a_choice_that_was_never_seen_is_like_nothing():
    choices = Choices.of([[3], [5], [7]])
    codes = choices.encode([[9]])
    assert codes.tolist() == [[UNSEEN]]
    assert not Similarity.of(choices, 0.9).vectors(codes).any()


def test_equal_genomes_are_one_group_unless_groups_are_given():
    rows = [[1, 2], [3, 4], [1, 2.0]]
    groups = Networks.of(rows, [1, 2, 3]).groups
    assert groups[0] == groups[2] != groups[1]
    assert Networks.of(rows, [1, 2, 3], groups="aba").groups.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("rows", "target", "options", "said"),
    [
        ([], [], {}, "0 networks"),
        ([[1]], [1.0, 2.0], {}, "1 networks with 2 measurements"),
        ([[1], [2]], [1.0, 0.0], {}, "measurement 1 is 0.0"),
        ([[1], [2]], [1.0, float("nan")], {}, "measurement 1 is nan"),
        ([[1], [2]], [1.0, 2.0], {"groups": ["a"]}, "2 networks with 1 groups"),
        ([[1], [2]], [1.0, 2.0], {"features": [[1.0]]}, "features"),
        ([[1], [2]], [1.0, 2.0], {"features": [[1.0], [float("inf")]]}, "features"),
        ([[1], [2, 3]], [1.0, 2.0], {}, "genes"),
    ],
)
def test_networks_that_cannot_be_are_refused(rows, target, options, said):
    with pytest.raises(UsageError, match=said):
        Networks.of(rows, target, **options)
