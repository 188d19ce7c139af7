"""Measures are means over users, with intervals, and apart for each length of history."""

from __future__ import annotations

import numpy as np
import pytest

from hanorec.data.dataset import split_examples
from hanorec.data.examples import Example
from hanorec.evaluation.measures import (
    Answers,
    examples_by_length,
    measures,
    measures_by_length,
    point_measures,
    user_measures,
)
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
    groups = examples_by_length([len(example.history) for example in examples])
    by_length = measures_by_length("next", answers, examples, groups)
    assert list(by_length) == sorted({str(len(example.history)) for example in examples}) and len(by_length) > 1
    for length, rows in by_length.items():
        alone = [example for example in examples if str(len(example.history)) == length]
        again = answer_with_scorer(lambda e: data.counts[list(e.candidates)], alone, "next")
        assert rows["popularity"] == pytest.approx(point_measures("next", again, alone))


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([5, 3, 5], {"3": [1], "5": [0, 2]}),
        ([20, 6, 10, 7, 8, 9, 11, 5], {"5": [7], "6 to 10": [1, 2, 3, 4, 5], "11": [6], "20": [0]}),
        (range(1, 51), {f"{n + 1} to {n + 10}": list(range(n, n + 10)) for n in range(0, 50, 10)}),
    ],
)
def test_many_lengths_are_put_together(lengths, expected):
    found = examples_by_length(list(lengths))
    assert {length: rows.tolist() for length, rows in found.items()} == expected
    assert list(found) == list(expected)


def test_the_releases_top3_measures_count_the_newest_target_alone():
    """Targets 5, 4, 3, newest first. The first list has the newest one in place 2 (of 0, 1, 2), so it gains
    1 / log2(2 + 2) = 1/2; the second has it in place 0; the third has both other targets, which count for nothing."""
    examples = [Example(f"u{k}", (0,), (5, 4, 3), (0, 1, 2, 3, 4, 5, 6), ((0, 1, 2),)) for k in range(3)]
    answers = Answers(lists=np.array([[1, 4, 5], [5, 1, 2], [4, 3, 1]]))
    of_users = user_measures("top3", answers, examples, "release")
    assert of_users["HR@3"].tolist() == [1, 1, 0]
    assert of_users["NDCG@3"] == pytest.approx([1 / 2, 1, 0])
    assert measures("top3", answers, examples, "release")["HR@3"][0] == pytest.approx(2 / 3)
    by_length = measures_by_length("top3", {"model": answers}, examples, {"1": np.arange(3)}, "release")
    assert by_length["1"]["model"]["NDCG@3"] == pytest.approx(1.5 / 3)
    # Ours counts all three: of the targets the lists hold 2, 1 and 2.
    assert user_measures("top3", answers, examples)["HR@3"] == pytest.approx([2 / 3, 1 / 3, 2 / 3])


def test_the_releases_auc_is_that_of_hard_answers_to_one_question_a_user():
    """Yes and No to the two users who were asked about a target, and No, Yes, No to the three who were not: of the 2 · 3
    pairs, the first target (Yes) is ahead in two and tied in one, the second (No) is behind in one and tied in two:
    (2 + 1/2 + 0 + 2/2) / 6 = 3.5 / 6."""
    asked = [5, 5, 9, 9, 9]
    examples = [Example(f"u{k}", (0,), (5,), (item,), ((9,),)) for k, item in enumerate(asked)]
    hard = np.array([1, 0, 0, 1, 0])
    answers = Answers(scores=np.array([[0.9], [0.4], [0.1], [0.6], [0.3]]), hard=hard)
    result = measures("yesno", answers, examples, "release")
    assert result["AUC hard"][0] == pytest.approx(3.5 / 6)
    assert result["AUC"][0] == pytest.approx(5 / 6)  # 0.9 > 0.6, 0.3, 0.1 and 0.4 > 0.3, 0.1
    assert all(0 <= low <= value <= high <= 1 for value, low, high in result.values())
