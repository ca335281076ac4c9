"""Matching pursuit of tokens, the guess by frequency, and what counts as the template."""

from __future__ import annotations

import math

import numpy as np

from shepherd.evaluation.attacks.tokens import matching_pursuit, most_frequent, recall, template_tokens


def problem(tokens, rows=12, size=40, vocabulary=300, seed=0):
    rng = np.random.default_rng(seed)
    atoms = rng.normal(size=(vocabulary, size)) * rng.uniform(0.2, 5, (vocabulary, 1))
    return rng.normal(size=(rows, len(tokens))) @ atoms[list(tokens)], atoms


def test_a_few_tokens_are_found_exactly_for_any_length_of_their_vectors():
    tokens = {3, 77, 150, 222, 299}
    observed, atoms = problem(sorted(tokens))
    assert set(matching_pursuit([observed], [atoms], 5)) == tokens


def test_two_layers_with_unlike_vectors_of_the_tokens_are_attacked_together():
    tokens = sorted({5, 60, 200})
    one, atoms = problem(tokens, seed=1)
    other, more = problem(tokens, rows=6, size=8, seed=2)
    assert set(matching_pursuit([one, 1e-6 * other], [atoms, more], 3)) == set(tokens)


def test_known_tokens_are_explained_away_and_do_not_count():
    observed, atoms = problem([1, 2, 3, 4])
    assert set(matching_pursuit([observed], [atoms], 2, known={1, 2})) == {3, 4}


def test_fewer_are_found_where_nothing_is_left_to_explain():
    observed, atoms = problem([8, 9])
    assert sorted(matching_pursuit([observed], [atoms], 10)) == [8, 9]
    assert matching_pursuit([np.zeros((3, 40))], [atoms], 4) == []


def test_the_template_is_what_more_than_half_of_the_rows_have():
    rows = [np.array([1, 2, 2, 5]), np.array([1, 3, 5]), np.array([1, 2, 4]), np.array([1, 7, 7])]
    assert template_tokens(rows) == {1}
    assert template_tokens(rows[:3]) == {1, 2, 5}


def test_the_guess_takes_the_tokens_of_most_rows_and_not_those_of_the_template():
    rows = [np.array([1, 2, 2, 2, 9]), np.array([1, 3, 9]), np.array([1, 3, 4])]
    assert most_frequent(rows, 2, without={1}) == [3, 9]


def test_recall_is_the_share_of_what_is_there():
    assert recall([1, 2, 8], [1, 2, 3, 4]) == 0.5
    assert math.isnan(recall([1], []))
