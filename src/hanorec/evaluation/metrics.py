"""Recommendation metrics.

In flow scores of candidates (or ranked lists, for a model that writes its answer), out flow one number a
user, and an interval for their mean. Scores can tie: hard yes/no answers do, and so does a model that has
learned nothing. A target tied with m others takes each of the m + 1 possible ranks with equal chance, and a
metric is its mean over them. So a constant scorer measures exactly as a random one; neither the order of the
candidates nor a sort's whim counts.

U users, C candidates, ranks counted from 0.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike


def positions(scores: ArrayLike, target: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Where each user's target stands among the candidates.

    scores[U, C]: higher is better, -inf marks an absent candidate (padding). target[U]: the target's column.
    Returns ahead[U], how many candidates score strictly more, and tied[U], how many others score the same;
    int64.
    Raises ValueError: shapes that do not match, NaN, a target outside the columns or without a score.
    """
    scores, target = np.asarray(scores), np.asarray(target)
    if scores.ndim != 2 or target.shape != scores.shape[:1]:
        raise ValueError(f"expected scores[U, C] and target[U], not {scores.shape} and {target.shape}")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    if ((target < 0) | (target >= scores.shape[1])).any():
        raise ValueError(f"target must be a column of scores, 0 to {scores.shape[1] - 1}")
    target_score = np.take_along_axis(scores, target.astype(np.int64)[:, None], axis=1)
    if np.isneginf(target_score).any():
        raise ValueError("the target of a user has the score -inf, which marks an absent candidate")
    return (scores > target_score).sum(1), (scores == target_score).sum(1) - 1


def hit_rate(ahead: ArrayLike, tied: ArrayLike, k: int) -> np.ndarray:
    """HR@k of every user: the chance that the target is among the first k. ahead, tied [U] -> [U]."""
    return _mean_gain(ahead, tied, lambda rank: np.ones(rank.shape), k)


def ndcg(ahead: ArrayLike, tied: ArrayLike, k: int) -> np.ndarray:
    """NDCG@k of every user: 1 / log2(rank + 2) within the first k. ahead, tied [U] -> [U]."""
    return _mean_gain(ahead, tied, _discount, k)


def reciprocal_rank(ahead: ArrayLike, tied: ArrayLike) -> np.ndarray:
    """1 / (rank + 1) of every user; its mean is the MRR. ahead, tied [U] -> [U]."""
    return _mean_gain(ahead, tied, lambda rank: 1 / (rank + 1))


def list_hit_rate(ranked: ArrayLike, targets: ArrayLike) -> np.ndarray:
    """Share of a user's targets that the list holds (HR@3 for lists and targets of three).

    ranked[U, k]: item indices, best first, -1 where a shorter list ends. targets[U, t]: different item
    indices.
    Returns [U]. Raises ValueError: shapes that do not match, an empty axis, a negative or repeated target.
    """
    return _first_hits(*_checked_lists(ranked, targets)).any(2).mean(1)


def list_ndcg(ranked: ArrayLike, targets: ArrayLike) -> np.ndarray:
    """NDCG@k of lists with binary relevance: the ideal list opens with min(k, t) hits.

    ranked[U, k], targets[U, t], and what it raises: those of `list_hit_rate`. Returns [U].
    """
    ranked, targets = _checked_lists(ranked, targets)
    discount = _discount(np.arange(ranked.shape[1]))
    gains = _first_hits(ranked, targets).any(1) @ discount
    return gains / discount[: targets.shape[1]].sum()


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Chance that a positive scores more than a negative, ties counted half (Mann-Whitney); O(N log N).

    scores[N], labels[N] of 0 and 1 (or bool). Hard 0/1 answers give (TPR + TNR) / 2.
    Raises ValueError: shapes that do not match, NaN, other labels, one class absent.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 1 or labels.shape != scores.shape:
        raise ValueError(f"expected scores[N] and labels[N], not {scores.shape} and {labels.shape}")
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if np.unique(labels).size != 2:
        raise ValueError("auc needs both positive and negative labels")
    values, level = np.unique(scores, return_inverse=True)
    positives = np.bincount(level[labels == 1], minlength=values.size)
    negatives = np.bincount(level[labels == 0], minlength=values.size)
    below = np.cumsum(negatives) - negatives
    twice = positives @ (2 * below + negatives)  # twice the pairs in order: a tie counts 1, a win 2
    return float(twice / (2 * positives.sum() * negatives.sum()))


def bootstrap_interval(
    values: ArrayLike,
    *,
    statistic: Callable[[np.ndarray], ArrayLike] | None = None,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple:
    """Percentile bootstrap interval over users: (low, high), floats for values[U], arrays [M] for [U, M].

    The statistic is the mean over users, or `statistic(index)`, which computes it (a float or [M]) from the
    users in index[U], int64, some of them several times. The seed determines the result.
    Raises ValueError: no users, another shape, NaN, samples < 1, a level outside (0, 1).
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim not in (1, 2) or not values.size:
        raise ValueError(f"expected values[U] or [U, M] of at least one user, not {values.shape}")
    if np.isnan(values).any():
        raise ValueError("values hold NaN")
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"samples must be at least 1 and level between 0 and 1, not {samples} and {level}")
    users, generator = len(values), np.random.Generator(np.random.PCG64(seed))
    resampled = []
    block = 1 if statistic else max(1, 2**20 // users)  # samples at once: a few arrays of at most 8 MB
    for start in range(0, samples, block):
        size = min(block, samples - start)
        index = generator.integers(0, users, size=(size, users))
        if statistic:
            resampled.append(np.asarray(statistic(index[0]), dtype=np.float64)[None])
        else:  # the mean of a resample is a product with how often it drew each user
            flat = (index + users * np.arange(size)[:, None]).ravel()
            resampled.append(np.bincount(flat, minlength=size * users).reshape(size, users) @ values / users)
    low, high = np.quantile(np.concatenate(resampled), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return (low, high) if np.ndim(low) else (float(low), float(high))


def _discount(rank: np.ndarray) -> np.ndarray:
    return 1 / np.log2(rank + 2)


def _mean_gain(
    ahead: ArrayLike, tied: ArrayLike, gain: Callable[[np.ndarray], np.ndarray], k: int | None = None
) -> np.ndarray:
    """Mean of gain(rank) over the ranks ahead .. ahead + tied, where a rank from k on gains nothing."""
    ahead, tied = np.asarray(ahead), np.asarray(tied)
    if ahead.ndim != 1 or ahead.shape != tied.shape or (ahead < 0).any() or (tied < 0).any():
        raise ValueError(f"expected counts ahead[U] and tied[U], not {ahead.shape} and {tied.shape} or below 0")
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    end = ahead + tied + 1
    ranks = int(end.max(initial=0)) if k is None else min(k, int(end.max(initial=0)))
    total = np.concatenate([[0.0], np.cumsum(gain(np.arange(ranks)))])  # [r]: what the first r ranks gain
    return (total[np.minimum(end, ranks)] - total[np.minimum(ahead, ranks)]) / (tied + 1)


def _checked_lists(ranked: ArrayLike, targets: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    ranked, targets = np.asarray(ranked), np.asarray(targets)
    if ranked.ndim != 2 or targets.ndim != 2 or len(ranked) != len(targets):
        raise ValueError(f"expected ranked[U, k] and targets[U, t], not {ranked.shape} and {targets.shape}")
    if not ranked.shape[1] or not targets.shape[1]:
        raise ValueError("ranked and targets need at least one column")
    if (targets < 0).any():
        raise ValueError("a target is a catalogue index, not negative")
    if (np.diff(np.sort(targets, axis=1), axis=1) == 0).any():
        raise ValueError("the targets of a user must differ")
    return ranked, targets


def _first_hits(ranked: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[U, t, k]: whether the list names the target at that rank for the first time."""
    hits = ranked[:, None, :] == targets[:, :, None]
    return hits & (np.cumsum(hits, axis=2) == 1)
