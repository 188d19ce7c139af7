"""From windows of users' sequences to examples: history, targets, candidates, rejected items.

In: `interactions.Window`s and a way to draw negatives. Out: `Example`s, a function of the seed, the user and the
window. There are three tasks, as in the paper's experiments:

    next    name the next item                                 chosen: its title       rejected: another title
    top3    name the next three items in order                 chosen: three titles    rejected: three others
    yesno   will the user choose this item?                    chosen: Yes (or No)     rejected: No (or Yes)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from hanorec.data.catalog import Catalog
from hanorec.data.interactions import Window, read_sequences
from hanorec.errors import DataError
from hanorec.randomness import rng

TASKS = ("next", "top3", "yesno")
TARGETS = {"next": 1, "top3": 3, "yesno": 1}
HISTORY = {"next": 5, "top3": 3, "yesno": 5}  # most history items in a prompt, as in the paper

T = TypeVar("T", "Example", Window)


@dataclass(frozen=True)
class Example:
    """One prompt with its chosen and rejected responses, as catalogue indices.

    candidates: the items that the target is ranked among, in the order in which a prompt lists them; for yes/no the one
    item of the question, which is a target (Yes) or not (No). rejected: for each pair the items of the rejected
    response, as many as there are targets; for yes/no the item that was not chosen (the pair's hardness is that of the
    two items, though both responses speak of one). seen: every item of the user's row.
    With the protocol of the release (`release.py`) alone: shown, the items whose images stand in the history (empty:
    its own); unchosen, items that a yes/no prompt lists as not chosen.
    """

    user: str
    history: tuple[int, ...]
    targets: tuple[int, ...]
    candidates: tuple[int, ...]
    rejected: tuple[tuple[int, ...], ...]
    seen: frozenset[int] = frozenset()
    shown: tuple[int, ...] = ()
    unchosen: tuple[int, ...] = ()

    @property
    def item_pairs(self) -> list[list[tuple[int, int]]]:
        """(chosen item, rejected item) for every rejected response."""
        return [list(zip(self.targets, items)) for items in self.rejected]


@dataclass(frozen=True)
class Negatives:
    """Draws items that a user has not chosen.

    pool [M]: the items to draw from, each once. They are the warm ones, which occur in training, so that a negative is
    never given away by never having been seen. counts [items]: how often each item occurs in training. strategy:
    "random", every item with one probability; "popularity", in proportion to `counts`; "neighbours", every one of the
    K nearest items of the targets with one probability (`neighbours` [items, K], -1 for none). The nearest item itself
    is often one that the user would have liked, so the K nearest are sampled and not taken in order. "listed" is the
    same with the items that `listed_negatives` has for a target in place of neighbours.
    """

    pool: np.ndarray
    counts: np.ndarray
    strategy: str = "random"
    neighbours: np.ndarray | None = None

    def draw(
        self, window: Window, number: int, generator: np.random.Generator, *, hard: int | None = None
    ) -> list[int]:
        """`number` distinct items of the pool, none of them from the user's row: the first `hard` (None: all) are drawn
        by the strategy, the others at random.

        Errors: DataError where the pool has too few items; ValueError for neighbours that were not given.
        """
        if number == 0:
            return []
        free = np.setdiff1d(self.pool, list(window.seen), assume_unique=True)  # in the pool's order
        if len(free) < number:
            raise DataError(
                f"user {window.user}: {number} negatives asked for, but only {len(free)} items are left "
                f"of the {len(self.pool)} that they are drawn from"
            )
        hard = number if hard is None else hard
        if self.strategy == "popularity":
            first = generator.choice(free, hard, replace=False, p=self.counts[free] / self.counts[free].sum())
        elif self.strategy in ("neighbours", "listed"):  # fewer than `hard` where the user has chosen the others
            if self.neighbours is None:
                raise ValueError(f"negatives: the strategy {self.strategy} needs each item's neighbours")
            similar = np.intersect1d(free, self.neighbours[list(window.targets)])
            first = generator.permutation(similar)[:hard]
        else:
            first = free[:0]
        others = generator.choice(np.setdiff1d(free, first, assume_unique=True), number - len(first), replace=False)
        return [*first.tolist(), *others.tolist()]


def listed_negatives(folder: Path, catalog: Catalog) -> np.ndarray:
    """The items that `negatives.tsv` lists for every item, [items, longest row], -1 where there are no more.

    Errors: DataError as `read_sequences` raises it (a row is an item, a tab, and items), and for an unknown first item.
    """
    path = folder / "negatives.tsv"
    rows = read_sequences(path, catalog)
    table = np.full((len(catalog), max(len(row.items) for row in rows)), -1)
    for row in rows:
        if row.user not in catalog.index:
            raise DataError(f"{path}: a row is of item {row.user!r}, which is not in the catalogue")
        table[catalog.index[row.user], : len(row.items)] = row.items
    return table


def make_examples(
    windows: Sequence[Window],
    negatives: Negatives,
    task: str,
    *,
    candidates: int = 20,
    rejected: int = 1,
    seed: int = 2025,
) -> list[Example]:
    """Examples of a task, in the order of the windows (yes/no: two a window, first the Yes).

    candidates: how many items are ranked, targets included. rejected: how many rejected responses an example has; their
    items are drawn by `negatives.strategy` and are among the candidates, which are filled up at random.
    Errors: DataError where the catalogue is too small for that.
    """
    examples = []
    for window in windows:
        targets = window.targets
        if not rejected and candidates <= len(targets) and task != "yesno":  # nothing is drawn
            examples.append(Example(window.user, window.history, targets, targets, (), window.seen))
            continue
        generator = rng(seed, window.user, window.position)
        if task == "yesno":
            other = negatives.draw(window, 1, generator)[0]
            for item in (*targets, other):
                examples.append(Example(window.user, window.history, targets, (item,), ((other,),), window.seen))
            continue
        hard = rejected * len(targets)
        others = negatives.draw(window, max(hard, candidates - len(targets)), generator, hard=hard)
        listed = generator.permutation([*targets, *others]).tolist()
        groups = tuple(tuple(others[k:hard:rejected]) for k in range(rejected))
        examples.append(Example(window.user, window.history, targets, tuple(listed), groups, window.seen))
    return examples


def groups(examples: Sequence[T], *, nested: bool) -> list[list[T]]:
    """The examples (or windows), in their order, in groups whose prompts share a forward: each alone, or, `nested`,
    together as long as a user's histories go on from one another."""
    result: list[list[T]] = []
    for example in examples:
        before = result[-1][-1] if result else None
        if nested and before and example.user == before.user:
            if example.history[: len(before.history)] == before.history:
                result[-1].append(example)
                continue
        result.append([example])
    return result
