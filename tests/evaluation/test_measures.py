"""Measures are means over users, with intervals, and apart for each length of history."""

from __future__ import annotations

import numpy as np
import pytest

from hanorec.data.dataset import split_examples
from hanorec.evaluation.measures import Answers, measures, measures_by_length, point_measures
from hanorec.evaluation.ranking import answer_with_scorer


def test_measures_are_the_values_with_their_intervals(data):
    """Three users, the target first, second and fifth of five: HR@1 is 1/3, HR@3 2/3."""
    examples = split_examples(data, "test", "next", candidates=5, users=3)
    scores = np.zeros((3, 5))
    for row, (example, place) in enumerate(zip(examples, (0, 1, 4))):
        column = example.candidates.index(example.targets[0])
        others = np.delete(np.arange(5), column)
        scores[row, others] = [5 if k < place else -5 for k in range(4)]
    results = measures("next", Answers(scores=scores), examples)
    assert [results[name][0] for name in ("HR@1", "HR@3", "HR@5")] == pytest.approx([1 / 3, 2 / 3, 1])
    assert results["MRR"][0] == pytest.approx((1 + 1 / 2 + 1 / 5) / 3)
    assert all(low <= value <= high for value, low, high in results.values())


def test_measures_by_length_are_those_of_the_users_of_that_length(data):
    examples = split_examples(data, "test", "next", candidates=5)
    answers = {"popularity": answer_with_scorer(lambda e: data.counts[list(e.candidates)], examples, "next")}
    by_length = measures_by_length("next", answers, examples)
    assert sorted(by_length) == sorted({len(example.history) for example in examples}) and len(by_length) > 1
    for length, rows in by_length.items():
        alone = [example for example in examples if len(example.history) == length]
        again = answer_with_scorer(lambda e: data.counts[list(e.candidates)], alone, "next")
        assert rows["popularity"] == pytest.approx(point_measures("next", again, alone))
