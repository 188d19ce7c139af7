"""Whether two methods differ by more than chance: the same users and the same seeds, paired.

In: one difference for each seed and user. Out: their mean with a bootstrap interval and a p-value; and, where many
comparisons are made at once, Holm's correction of the p-values.

S seeds (training runs), U users.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Difference(NamedTuple):
    """A mean difference, its bootstrap interval and its two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def paired_difference(
    differences: ArrayLike, *, samples: int = 10_000, seed: int = 0, level: float = 0.95
) -> Difference:
    """The mean of differences[S, U], one method's measure less the other's, with seeds as blocks.

    A resample draws U users, the same ones for every seed, and S seeds, each with all of its users: the pigeonhole
    bootstrap (Owen, Annals of Applied Statistics 1, 2007). So an interval covers other users and, with several seeds,
    other training runs; the share of the latter is too small by (S - 1) / S, and nothing with one seed. The p-value is
    twice the smaller share of resamples on one side of 0, 0 itself counted on both; it is at least 2 / (samples + 1).

    Raises ValueError: another shape, no seeds or users, NaN, samples < 1, a level outside (0, 1).
    """
    table = np.asarray(differences, dtype=np.float64)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"expected differences[S, U] of at least one seed and one user, not {table.shape}")
    if np.isnan(table).any():
        raise ValueError("differences hold NaN")
    if samples < 1 or not 0 < level < 1:
        raise ValueError(f"samples must be at least 1 and level between 0 and 1, not {samples} and {level}")
    seeds, users = table.shape
    by_seed = _counts(users, samples, seed) @ table.T / users  # [samples, S]: each seed's mean over the users drawn
    means = (by_seed * _counts(seeds, samples, seed + 1)).sum(axis=1) / seeds
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    near_zero = 1e-12 * np.abs(table).max()  # what rounding leaves of a mean of exactly 0
    side = min((means <= near_zero).sum(), (means >= -near_zero).sum())
    p = min(1.0, 2 * (side + 1) / (samples + 1))
    return Difference(float(table.mean()), float(low), float(high), float(p))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's step-down correction (Scandinavian Journal of Statistics 6, 1979): p-values [N] -> adjusted ones [N].

    The k-th smallest of N is multiplied by N - k + 1 and is no smaller than those before it. Comparisons whose adjusted
    p-value is at most α hold together: the chance that any of them is wrong is at most α.

    Raises ValueError: another shape, p-values outside 0 to 1.
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"expected p_values[N] from 0 to 1, not {p}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


@lru_cache(maxsize=8)  # many comparisons are over the same users
def _counts(number: int, samples: int, seed: int) -> np.ndarray:
    """How often each resample of `number` things draws each of them, [samples, number]."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.multinomial(number, np.full(number, 1 / number), size=samples).astype(np.float64)
