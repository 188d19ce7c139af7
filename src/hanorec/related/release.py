"""The protocol of the authors' release (github.com/wangyu0627/HaNoRec): which rows, candidates and pairs it uses.

In: user histories and the catalogue. Out: `Example`s that carry what its prompts and preference pairs carry, so that a
model can be measured as the release measures its own. One example a user:

    top3    3 items, then the 3 that followed, newest first; listed are these and 4 negatives; 3 of the 4 are rejected
    yesno   5 items; a coin decides whether the next one is asked about (Yes) or a negative (No); 4 other negatives are
            listed as not chosen, without images

What it cannot take over, such as ids that have no title, is in docs/differences.md.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hanorec.data.catalog import Catalog
from hanorec.data.dataset import Dataset, check_skipped, draw_windows, read_split
from hanorec.data.examples import HISTORY, TARGETS, Example, Negatives
from hanorec.data.interactions import UserHistory, Window
from hanorec.errors import DataError
from hanorec.randomness import rng

TASKS = ("top3", "yesno")
LENGTH = 6  # items that a user history must have, and the last of which are used
NEGATIVES = 4
MOST_TRAINED, MOST_RANKED = 100_000, 3_000  # examples of train.tsv, and of another split
SUBSTITUTE = "627"  # the item whose image stands for those of items without one


def fixed_options(task: str) -> dict[str, Any]:
    """The options that the protocol fixes, by name. Errors: DataError for a task that it does not have."""
    if task not in TASKS:
        raise DataError(f"the protocol release has the tasks {' and '.join(TASKS)}; the task is {task}")
    listed = {"candidates": TARGETS[task] + NEGATIVES} if task == "top3" else {}
    pairs = {"negatives": "random", "rejected": 1}
    return {"history": HISTORY[task], "windows": "last", "list_candidates": True, **listed, **pairs}


def release_split(data: Dataset, split: str, task: str, *, users: int | None = None, seed: int = 2025) -> list[Example]:
    """The examples of a split, as `dataset.split_examples` gives those of the standard protocol.

    users: take only so many, drawn by the seed (None: all). Errors: DataError as `release_windows` and
    `release_examples` raise it, with the file's name, and where no row is long enough.
    """
    histories = read_split(data, split)
    windows, skipped = release_windows(histories, split, task)
    check_skipped(data, split, task, histories, skipped, shortest=LENGTH)
    drawn = draw_windows(windows, users, nested=False, seed=seed)
    try:
        return release_examples(drawn, data.catalog, split, task, seed=seed)
    except DataError as error:
        raise DataError(f"{data.folder / split}.tsv: {error}") from error


def check_release_rows(data: Dataset, task: str, *, seed: int) -> None:
    """Warn, before hours of training, of what an evaluation on test.tsv would stop at. A dataset without that file has
    nothing to be checked."""
    if os.path.lexists(data.folder / "test.tsv"):
        try:
            release_split(data, "test", task, seed=seed)
        except DataError as error:
            warnings.warn(str(error), stacklevel=3)


def release_windows(histories: Iterable[UserHistory], split: str, task: str) -> tuple[list[Window], int]:
    """The last `LENGTH` items of every user history that has as many, as a window whose targets stand newest first.

    The history of a window stays as it is, also where it holds a target. Returns the first 3,000 windows (100,000 of
    the split "train"), in their order, and the number of users who gave none: those of fewer items, and those whose
    targets are not different items. Errors: DataError for a task that the protocol does not have.
    """
    fixed_options(task)
    result: list[Window] = []
    skipped = 0
    for user in histories:
        history, targets = user.items[-LENGTH : -TARGETS[task]], user.items[-TARGETS[task] :][::-1]
        if len(user.items) < LENGTH or len(set(targets)) < len(targets):
            skipped += 1
            continue
        position = len(user.items) - len(targets)
        result.append(Window(user.user, history, targets, frozenset(user.items), position))
    return result[: MOST_TRAINED if split == "train" else MOST_RANKED], skipped


def release_examples(
    windows: Sequence[Window], catalog: Catalog, split: str, task: str, *, seed: int = 2025
) -> list[Example]:
    """One example a window of `release_windows`, in their order; negatives are drawn from the whole catalogue.

    Errors: DataError where the catalogue is too small for the negatives, and where the coin gave all yes/no examples of
    a split that is not trained on the same answer.
    """
    everything = Negatives(np.arange(len(catalog)), np.ones(len(catalog)))
    substitute = catalog.index.get(SUBSTITUTE)
    if substitute is not None and catalog.images[substitute] is None:
        substitute = None
    examples = []
    for window in windows:
        generator = rng(seed, window.user, window.position)
        targets, user = window.targets, window.user
        if task == "top3":
            others = everything.draw(window, NEGATIVES, generator)
            candidates = tuple(generator.permutation([*targets, *others]).tolist())
            unchosen: list[int] = []
            rejected = tuple(others[: len(targets)])  # they were drawn in random order
        elif generator.random() < 0.5:
            asked, *unchosen = everything.draw(window, 1 + NEGATIVES, generator)
            candidates = rejected = (asked,)
        else:
            unchosen = everything.draw(window, NEGATIVES, generator)
            candidates, rejected = targets, (int(generator.choice(unchosen)),)
        shown = tuple(item if catalog.images[item] or substitute is None else substitute for item in window.history)
        examples.append(
            Example(user, window.history, targets, candidates, (rejected,), window.seen, shown, tuple(unchosen))
        )
    answers = {example.candidates == example.targets for example in examples}
    if task == "yesno" and split != "train" and len(answers) == 1:
        raise DataError(
            f"the answer to all {len(examples)} examples is {'Yes' if answers.pop() else 'No'}, and AUC "
            f"compares the two; take more users or another seed"
        )
    return examples
