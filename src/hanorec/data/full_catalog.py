"""The whole catalogue as the candidates of every example.

In: the items that can be a target. Out: which of them compete with an example's target.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hanorec.data.examples import Example


class FullCatalog:
    """The whole catalogue as candidates: every item of `pool` [M] that the user has not chosen, and the target."""

    def __init__(self, pool: np.ndarray):
        self.pool = frozenset(pool.tolist())

    def is_candidate(self, example: Example) -> Callable[[int], bool]:
        """A test of whether an item is a candidate besides the target."""
        return lambda item: item in self.pool and item not in example.seen

    def candidates(self, example: Example) -> tuple[int, ...]:
        """The target, and after it all other candidates."""
        return (*example.targets, *(self.pool - example.seen - set(example.targets)))
