"""Which examples share a forward, and which an optimizer step.

In: the number of tokens of every example. Out: their numbers in batches of similar lengths, so that little is padded.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache

import numpy as np


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """All numbers 0 … len(lengths) - 1 in batches of similar lengths, each with at most `tokens` tokens after padding
    to its longest (or one number alone, and then a warning says so, once)."""
    if max(lengths, default=0) > tokens:
        _warn_of_long(tokens)
    result: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):  # the longest comes first and sets the width
        if not result or (len(result[-1]) + 1) * lengths[result[-1][0]] > tokens:
            result.append([])
        result[-1].append(number)
    return result


@cache
def _warn_of_long(tokens: int) -> None:
    warnings.warn(
        f"some prompts with their responses are longer than the {tokens:,} tokens that a forward takes at most; each "
        "is read alone, whatever memory that needs",
        stacklevel=3,
    )


def epoch_order(lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """All examples in batches of `size` (the last one in what is left), in an order that seed and epoch decide. So that
    little is padded, every 50 batches' worth of the shuffled examples is sorted by length before it is cut."""
    generator = np.random.default_rng([seed, epoch])
    order = generator.permutation(len(lengths))
    length = np.asarray(lengths)
    for start in range(0, len(order), 50 * size):
        block = order[start : start + 50 * size]
        order[start : start + 50 * size] = block[np.argsort(length[block], kind="stable")]
    result = [order[at : at + size].tolist() for at in range(0, len(order), size)]
    return [result[k] for k in generator.permutation(len(result))]
