"""Users: what they chose, in order.

In flow a split file (`train.tsv`, `val.tsv`, `test.tsv`) and the catalogue; out flow `UserHistory`s of item
indices, and from these `Window`s: a short history, the targets that followed it, and what a negative must not
be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hanorec.data.catalog import Catalog
from hanorec.data.untrusted import is_blank, read_text
from hanorec.errors import DataError


@dataclass(frozen=True)
class UserHistory:
    """One line of a split file: a user's items as catalogue indices, oldest to newest."""

    user: str
    items: tuple[int, ...]


@dataclass(frozen=True)
class Window:
    """A history and the targets that followed it, both oldest to newest.

    `seen` is every item of the user, so that no negative is something the user chose; `position` is the index of the
    first target among the user's items (a key for `rng`: a target's negatives do not depend on where windows begin).
    """

    user: str
    history: tuple[int, ...]
    targets: tuple[int, ...]
    seen: frozenset[int]
    position: int


def read_sequences(path: str | Path, catalog: Catalog) -> list[UserHistory]:
    """Read lines `user<TAB>item item item ...`, in file order; blank lines are skipped.

    Raises DataError: no such file, not UTF-8, no rows, a line of another form, an item that the catalogue
    lacks, a user with two lines.
    """
    path = Path(path)
    lines: dict[str, int] = {}
    histories = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if is_blank(line):
            continue
        # exactly one tab: a raw log of user, item, rating, time must not pass for a sequence
        user, *rest = (cell.strip() for cell in line.split("\t"))
        if is_blank(user) or len(rest) != 1 or is_blank(rest[0]):
            raise DataError(f"{path}:{number}: expected user<TAB>item item item ..., found {_short(line)}")
        if user in lines:
            raise DataError(f"{path}:{number}: user {user!r} appears twice, first in line {lines[user]}")
        lines[user] = number
        try:
            items = tuple(catalog.index[item] for item in rest[0].split())
        except KeyError as error:
            raise DataError(
                f"{path}:{number}: item {error.args[0]!r} is not in the catalogue: {catalog.source} gave "
                f"{len(catalog)} items, e.g. {catalog.items[0]!r}; is it the titles file of this dataset?"
            ) from None
        histories.append(UserHistory(user, items))
    if not histories:
        raise DataError(f"{path}: no rows")
    return histories


def windows(
    histories: Iterable[UserHistory],
    *,
    history: int = 5,
    targets: int = 1,
    which: str = "last",
    minimum_history: int = 1,
) -> tuple[list[Window], int]:
    """Each user's last window (`which` = "last"), or all windows ("every", "nested"), in the order of the users and
    then oldest first.

    The targets are `targets` consecutive items, the history the `history` items before them or as many as there are.
    Nested windows cut a user's items into chunks instead, from the newest on, so that each history begins where its
    chunk does: it grows from 1 item to `history`, and then begins anew.

    Where a user chose a target before, the history would hold the answer: those occurrences are left out of it, and
    such a nested window is skipped. A window is skipped if its history then has fewer than `minimum_history` items, or
    if its targets are not `targets` different items.

    Returns the windows and the number of users who gave none. Raises ValueError for lengths that make no sense.
    """
    if targets < 1 or not 0 <= minimum_history <= history:
        raise ValueError(
            "windows need targets >= 1 and history >= minimum_history >= 0, "
            f"not targets={targets}, history={history}, minimum_history={minimum_history}"
        )
    result: list[Window] = []
    skipped = 0
    for user_history in histories:
        items, seen, before = user_history.items, frozenset(user_history.items), len(result)
        last = len(items) - targets
        for position in range(max(minimum_history, last) if which == "last" else minimum_history, last + 1):
            length = history - (last - position) % history if which == "nested" else history
            wanted, read = items[position : position + targets], items[max(0, position - length) : position]
            past = tuple([item for item in read if item not in wanted])
            trunk_holds_it = which == "nested" and past != read
            if len(past) >= minimum_history and len(set(wanted)) == targets and not trunk_holds_it:
                result.append(Window(user_history.user, past, wanted, seen, position))
        skipped += len(result) == before
    return result, skipped


def popularity(histories: Iterable[UserHistory], n_items: int) -> np.ndarray:
    """How often each item occurs: int64 [n_items]. ValueError for an item index outside the catalogue."""
    items = np.array([item for user_history in histories for item in user_history.items], dtype=np.int64)
    if len(items) and not 0 <= items.min() <= items.max() < n_items:
        raise ValueError(f"item indices reach from {items.min()} to {items.max()}, but there are {n_items} items")
    return np.bincount(items, minlength=n_items).astype(np.int64)


def _short(text: str, length: int = 80) -> str:
    return repr(text if len(text) <= length else text[:length] + "...")
