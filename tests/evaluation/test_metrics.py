"""Every metric against numbers counted by hand, with ties, and against what chance must give."""

from __future__ import annotations

import numpy as np
import pytest

from hanorec.evaluation.metrics import (
    auc,
    bootstrap_interval,
    hit_rate,
    list_hit_rate,
    list_ndcg,
    ndcg,
    positions,
    reciprocal_rank,
)

# gains of the places 0, 1, 2, ... : 1/log2(2), 1/log2(3), 1/log2(4), 1/log2(5)
GAIN = [1.0, 0.6309297535714575, 0.5, 0.43067655807339306]

INF = np.inf


# --- one target among candidates


def test_positions_counts_what_is_ahead_and_what_ties():
    scores = [
        [0.1, 0.9, 0.5, 0.3],  # target 0.5: 0.9 is ahead
        [0.7, 0.7, 0.7, 0.9],  # target 0.7: 0.9 is ahead, two others tie
        [2.0, 1.0, 1.0, 1.0],  # target 2.0: first
        [3.0, 4.0, -INF, -INF],  # target 3.0 of two candidates: last of two, padding counts for nothing
    ]
    ahead, tied = positions(np.array(scores), np.array([2, 0, 0, 0]))
    assert ahead.tolist() == [1, 1, 0, 1]
    assert tied.tolist() == [0, 2, 0, 0]
    assert ahead.dtype.kind == tied.dtype.kind == "i"


def test_positions_takes_integer_scores_and_no_users():
    assert [x.tolist() for x in positions([[1, 0, 1]], [1])] == [[2], [0]]
    assert [x.tolist() for x in positions(np.empty((0, 5)), np.empty(0, int))] == [[], []]


@pytest.mark.parametrize(
    ("scores", "target", "message"),
    [
        ([[0.1, np.nan]], [0], "NaN"),
        ([[0.1, 0.2]], [2], "0 to 1"),
        ([[0.1, 0.2]], [-1], "0 to 1"),
        ([[0.1, -INF]], [1], "absent candidate"),
        ([[0.1, 0.2]], [0, 1], r"\(1, 2\) and \(2,\)"),
        ([0.1, 0.2], [0, 1], r"\(2,\) and"),
    ],
)
def test_positions_errors(scores, target, message):
    with pytest.raises(ValueError, match=message):
        positions(scores, target)


def test_metrics_without_ties():
    ahead, tied = [0, 1, 2, 3], [0, 0, 0, 0]
    assert hit_rate(ahead, tied, 2).tolist() == [1, 1, 0, 0]
    assert hit_rate(ahead, tied, 1).tolist() == [1, 0, 0, 0]
    np.testing.assert_allclose(ndcg(ahead, tied, 3), [*GAIN[:3], 0])
    np.testing.assert_allclose(ndcg(ahead, tied, 1), [1, 0, 0, 0])
    np.testing.assert_allclose(reciprocal_rank(ahead, tied), [1, 1 / 2, 1 / 3, 1 / 4])


def test_a_tied_target_takes_each_of_its_places_with_equal_chance():
    # one ahead, two others tie: places 1, 2, 3 with 1/3 each
    np.testing.assert_allclose(hit_rate([1], [2], 1), [0])
    np.testing.assert_allclose(hit_rate([1], [2], 2), [1 / 3])
    np.testing.assert_allclose(hit_rate([1], [2], 3), [2 / 3])
    np.testing.assert_allclose(hit_rate([1], [2], 4), [1])
    np.testing.assert_allclose(ndcg([1], [2], 3), [(GAIN[1] + GAIN[2]) / 3])
    np.testing.assert_allclose(ndcg([1], [2], 9), [(GAIN[1] + GAIN[2] + GAIN[3]) / 3])
    np.testing.assert_allclose(reciprocal_rank([1], [2]), [(1 / 2 + 1 / 3 + 1 / 4) / 3])


def test_a_constant_scorer_measures_as_a_random_one():
    # 20 candidates, all the same: HR@k is k/20 exactly, wherever the target stands
    constant = positions(np.zeros((20, 20)), np.arange(20))
    for k in (1, 5, 20, 50):
        np.testing.assert_allclose(hit_rate(*constant, k), min(k, 20) / 20)
    random = positions(np.random.default_rng(0).random((40_000, 20)), np.zeros(40_000, int))
    assert ndcg(*constant, 5)[0] == pytest.approx(ndcg(*random, 5).mean(), abs=0.01)
    assert reciprocal_rank(*constant)[0] == pytest.approx(reciprocal_rank(*random).mean(), abs=0.01)


def test_with_k_of_all_candidates_everyone_hits():
    scores = np.random.default_rng(1).integers(0, 3, (50, 6))
    ahead, tied = positions(scores, np.arange(50) % 6)
    for k in (6, 7, 10**9):
        assert hit_rate(ahead, tied, k).tolist() == [1] * 50


def test_no_users_no_values():
    nobody = positions(np.empty((0, 5)), np.empty(0, int))
    assert hit_rate(*nobody, 3).shape == ndcg(*nobody, 3).shape == reciprocal_rank(*nobody).shape == (0,)


def test_metric_errors():
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        hit_rate([0], [0], 0)
    with pytest.raises(ValueError, match=r"\(1,\) and \(2,\)"):
        ndcg([0], [0, 0], 3)
    with pytest.raises(ValueError, match=r"\(1, 1\) and \(1, 1\)"):
        ndcg([[0]], [[0]], 3)
    for ahead, tied in (([-1], [0]), ([0], [-1])):
        with pytest.raises(ValueError, match="below 0"):
            reciprocal_rank(ahead, tied)


# --- lists


def test_list_metrics_by_hand():
    ranked = [
        [7, 8, 9],  # all three targets, in another order
        [5, 1, 6],  # 1 in place 1
        [2, 4, 3],  # 2 and 3 in places 0 and 2
        [4, 5, 6],  # none
        [3, -1, -1],  # a list of one, which hits
        [1, 1, 1],  # 1 three times counts once
    ]
    targets = [[9, 7, 8], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]]
    ideal = GAIN[0] + GAIN[1] + GAIN[2]
    np.testing.assert_allclose(list_hit_rate(ranked, targets), [1, 1 / 3, 2 / 3, 0, 1 / 3, 1 / 3])
    np.testing.assert_allclose(
        list_ndcg(ranked, targets),
        [1, GAIN[1] / ideal, (GAIN[0] + GAIN[2]) / ideal, 0, GAIN[0] / ideal, GAIN[0] / ideal],
    )


def test_list_metrics_where_list_and_targets_differ_in_length():
    # one target in place 2 of 3: the ideal list has one hit
    np.testing.assert_allclose(list_hit_rate([[4, 5, 6]], [[6]]), [1])
    np.testing.assert_allclose(list_ndcg([[4, 5, 6]], [[6]]), [GAIN[2]])
    # two places for three targets: at most two hits, which is the ideal
    np.testing.assert_allclose(list_hit_rate([[6, 5]], [[4, 5, 6]]), [2 / 3])
    np.testing.assert_allclose(list_ndcg([[6, 5]], [[4, 5, 6]]), [1])


def test_a_list_with_one_target_measures_as_its_place():
    for place in range(4):
        ranked = [[7 if column == place else column for column in range(3)]]
        np.testing.assert_allclose(list_hit_rate(ranked, [[7]]), hit_rate([place], [0], 3))
        np.testing.assert_allclose(list_ndcg(ranked, [[7]]), ndcg([place], [0], 3))


@pytest.mark.parametrize(
    ("ranked", "targets", "message"),
    [
        ([[1, 2]], [[1], [2]], r"\(1, 2\) and \(2, 1\)"),
        ([1, 2], [[1], [2]], r"\(2,\)"),
        ([[1, 2]], [1], r"\(1,\)"),
        ([[1, 2]], [[]], "at least one column"),
        ([[]], [[1]], "at least one column"),
        ([[1, -1]], [[-1]], "not negative"),
        ([[1, 2]], [[2, 3, 2]], "must differ"),
    ],
)
def test_list_errors(ranked, targets, message):
    for metric in (list_hit_rate, list_ndcg):
        with pytest.raises(ValueError, match=message):
            metric(ranked, targets)


# --- AUC


def test_auc_by_hand():
    assert auc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == 0.75  # of four pairs, only 0.35 against 0.4 is wrong
    assert auc([1, 2, 3, 4], [False, False, True, True]) == 1
    assert auc([1, 2, 3, 4], [1, 1, 0, 0]) == 0
    assert auc([5, 5, 5], [1, 0, 0]) == 0.5
    assert auc([-INF, 0.0, INF], [0, 1, 1]) == 1


@pytest.mark.parametrize("seed", range(20))
def test_auc_equals_the_count_over_all_pairs(seed):
    random = np.random.default_rng(seed)
    scores, labels = random.integers(0, 6, 30).astype(float), random.integers(0, 2, 30)
    labels[:2] = 0, 1
    pairs = [(high > low) + (high == low) / 2 for high in scores[labels == 1] for low in scores[labels == 0]]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_auc_of_hard_answers_is_the_balanced_accuracy():
    # 3 of 4 positives answered yes, 5 of 6 negatives answered no
    answers, labels = [1, 1, 1, 0] + [1, 0, 0, 0, 0, 0], [1] * 4 + [0] * 6
    assert auc(answers, labels) == pytest.approx((3 / 4 + 5 / 6) / 2)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([1, 2], [1, 1], "both"),
        ([1, 2], [0, 0], "both"),
        ([], [], "both"),
        ([1, np.nan], [0, 1], "NaN"),
        ([1, 2], [0, 2], "0 or 1"),
        ([1, 2], [0, 1, 1], r"\(2,\) and \(3,\)"),
        ([[1, 2]], [[0, 1]], r"\(1, 2\)"),
    ],
)
def test_auc_errors(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        auc(scores, labels)


# --- intervals


def test_the_interval_of_the_mean_is_the_normal_one():
    # 400 users of variance 1: a standard error of 0.05; 95 % lie within 1.96 of it, 80 % within 1.2816
    values = np.random.default_rng(3).normal(size=400)
    values = 5 + (values - values.mean()) / values.std()
    for level, width in ((0.95, 1.96), (0.8, 1.2816)):
        low, high = bootstrap_interval(values, samples=8000, level=level)
        assert type(low) is type(high) is float
        assert (low, high) == pytest.approx((5 - width * 0.05, 5 + width * 0.05), abs=0.006)


def test_the_interval_covers_as_often_as_it_says():
    random = np.random.default_rng(4)
    bounds = [bootstrap_interval(random.random(60), samples=300, seed=trial, level=0.9) for trial in range(300)]
    covered = np.mean([low <= 0.5 <= high for low, high in bounds])
    assert 0.84 < covered < 0.95  # a binomial with p = 0.9 over 300 trials has a standard deviation of 0.017


def test_the_seed_determines_the_interval():
    values = np.random.default_rng(5).random(50)
    assert bootstrap_interval(values) == bootstrap_interval(values, seed=0, samples=1000, level=0.95)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)


def test_columns_and_a_callable_give_what_the_columns_mean_gives():
    values = np.random.default_rng(6).random((70, 3))
    low, high = bootstrap_interval(values, samples=200)
    assert low.shape == high.shape == (3,)
    for column in range(3):
        expected = pytest.approx((low[column], high[column]), abs=1e-12)
        assert bootstrap_interval(values[:, column], samples=200) == expected
        means = bootstrap_interval(values, samples=200, statistic=lambda index, c=column: values[index, c].mean())
        assert means == expected
    both = bootstrap_interval(values, samples=200, statistic=lambda index: values[index].mean(0))
    np.testing.assert_allclose(both, (low, high))


def test_the_least_that_an_interval_can_be_made_of():
    assert bootstrap_interval([3, 3], samples=1) == (3, 3)
    assert bootstrap_interval([0.25]) == (0.25, 0.25)


def test_many_users_are_drawn_in_blocks():
    # 300,000 users: 3 samples a block, so 4 samples need two
    values = np.random.default_rng(7).random(300_000)
    means = []
    expected = bootstrap_interval(values, samples=4, statistic=lambda index: means.append(0) or values[index].mean())
    assert bootstrap_interval(values, samples=4) == pytest.approx(expected, abs=1e-12)
    assert len(means) == 4


def test_a_callable_draws_users_and_not_rows():
    # users of one positive and one negative score each; every positive wins, in every resample
    scores, labels = np.array([[2.0, 1.0], [4.0, 0.5], [3.0, 1.5]]), np.array([[1, 0]] * 3)
    interval = bootstrap_interval(
        np.zeros(3), samples=20, statistic=lambda index: auc(scores[index].ravel(), labels[index].ravel())
    )
    assert interval == (1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "at least one user"),
        (np.zeros((2, 2, 2)), {}, r"\(2, 2, 2\)"),
        (1.0, {}, "at least one user"),
        ([1, np.nan], {}, "NaN"),
        ([1, 2], {"samples": 0}, "not 0 and"),
        ([1, 2], {"level": 1}, "and 1$"),
        ([1, 2], {"level": 0}, "and 0$"),
    ],
)
def test_interval_errors(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **options)
