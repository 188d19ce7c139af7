"""Scorers that count choices."""

from __future__ import annotations

import numpy as np

from hanorec.data.examples import Example
from hanorec.recommenders.counts import co_occurrence_scorer, popularity_scorer


def test_popularity_is_how_often_a_candidate_was_chosen():
    score = popularity_scorer(np.array([7, 0, 2]))
    assert score(Example("u", (0,), (2,), (2, 1), ())).tolist() == [2, 0]


def test_co_occurrence_is_the_cosine_of_two_items_users_weighted_by_age():
    """Users chose {0, 1}, {0, 1, 2}, {0, 3}, {1}; item 0 has 3 users, item 1 3, item 2 1, item 3 1, item 4 none.

    History 1 (age 2), 0 (age 1). Candidate 2: with 1 in 1 user, 1 / √(3·1) / 2; with 0 in 1 user, 1 / √(3·1).
    Candidate 3: with 1 in none; with 0 in 1 user, 1 / √(3·1). Candidate 4: nothing. A second choice counts once.
    """
    score = co_occurrence_scorer([(0, 1, 0), (0, 1, 2), (3, 0), (1,)], 5)
    expected = [1.5 / 3**0.5, 1 / 3**0.5, 0]
    np.testing.assert_allclose(score(Example("u", (1, 0), (0,), (2, 3, 4), ())), expected)
