"""Interactions as they are logged: who chose what, and when.

In flow rows (user, item, time, rating) in the order of a file; out flows a `Log`, arrays of numbers in the order of
users and times. Each step of cleaning takes interactions away and is counted, so that others can reproduce an item
count.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from hanorec.data.raw import BadLines, shortened
from hanorec.data.untrusted import is_blank
from hanorec.errors import DataError

UNITS = ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3))  # (where the median of the times is above, so many make a second)
NEVER = float("nan")  # the time, or rating, of an interaction that has none


@dataclass(frozen=True)
class Step:
    """What is left after a step of cleaning."""

    step: str
    users: int
    items: int
    interactions: int


@dataclass
class Log:
    """N interactions, sorted by user and then by time; where times are equal, the file's order holds.

    users, items: ids by number. user, item [N]: those numbers. time [N]: seconds since 1970, rating [N]: both NaN where
    the files have none. steps: what was left after each step of cleaning.
    """

    users: list[str]
    items: list[str]
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    rating: np.ndarray
    steps: list[Step] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.user)

    @property
    def timed(self) -> bool:
        """Whether every interaction has a time."""
        return not np.isnan(self.time).any()

    def keep(self, step: str, mask: np.ndarray) -> None:
        """Keep the interactions of a mask [N], and count what is left. Errors: DataError where nothing is."""
        if not mask.all():
            self.user, self.item, self.time, self.rating = (
                values[mask] for values in (self.user, self.item, self.time, self.rating)
            )
        before = self.steps[-1].interactions if self.steps else 0
        users, items = (int(np.count_nonzero(np.bincount(numbers))) for numbers in (self.user, self.item))
        self.steps.append(Step(step, users, items, len(self)))
        if not len(self):
            raise DataError(f"no interaction is left: the step {step!r} took the last {before:,}")


def read_log(path: Path, rows: Iterable[tuple[int, object, object, object, object]], bad: BadLines) -> Log:
    """The log of a file's rows: line, user, item, time and rating, the last two None where the file has none.

    A time is a number, of seconds, milliseconds or smaller parts since 1970, or a date as 2018-09-20 or 2018-09-20
    10:30:00. Errors: DataError for ids with white space, and for what is no time or rating.
    """
    numbers: tuple[dict[object, int], dict[object, int]] = {}, {}  # of users and of items, as the file writes them
    ids: tuple[dict[str, int], dict[str, int]] = {}, {}
    user_numbers, item_numbers, times, ratings = array("i"), array("i"), array("d"), array("d")
    for line, user, item, time, rating in rows:
        try:
            user_number, item_number = numbers[0].get(user), numbers[1].get(item)
            if user_number is None:
                user_number = numbers[0][user] = ids[0].setdefault(_user_id(user), len(ids[0]))
            if item_number is None:
                item_number = numbers[1][item] = ids[1].setdefault(item_id(item), len(ids[1]))
            seconds = NEVER if time is None else _time(time)
            stars = NEVER if rating is None else _number(rating, "a rating")
        except ValueError as error:
            bad(path, line, str(error))
            continue
        except TypeError:  # a list in JSON
            bad(path, line, f"expected ids, found {shortened(f'{user}, {item}')}")
            continue
        user_numbers.append(user_number)
        item_numbers.append(item_number)
        times.append(seconds)
        ratings.append(stars)
    if not user_numbers:
        raise DataError(f"{path}: no interactions" + (f"; the first bad line: {bad.first}" if bad.count else ""))
    user, item = (np.frombuffer(values, dtype=np.int32) for values in (user_numbers, item_numbers))
    time, rating = (np.frombuffer(values, dtype=np.float64) for values in (times, ratings))
    middle = np.median(np.abs(time))
    time = time / next((parts for least, parts in UNITS if middle > least), 1.0)
    order = np.lexsort((time, user))  # stable
    log = Log(list(ids[0]), list(ids[1]), user[order], item[order], time[order], rating[order])
    log.keep("in the raw files", np.ones(len(log), dtype=bool))
    return log


def item_id(value: object) -> str:
    """An item's id as the dataset writes it. Errors: ValueError unless it is one word."""
    text = _text(value)
    if len(text.split()) != 1 or is_blank(text):
        raise ValueError(f"an item id must be one word, found {shortened(text)}")
    return text


def _user_id(value: object) -> str:
    text = _text(value)
    if is_blank(text) or "\t" in text or len(text.splitlines()) != 1:
        raise ValueError(f"a user id must be on one line, without tabs, found {shortened(text)}")
    return text


def _text(value: object) -> str:
    text = "" if value is None else str(value).strip()
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"half a character in {text!a}")
    return text


def _number(value: Any, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = NEVER
    if not isfinite(number):
        raise ValueError(f"expected {what}, found {shortened(str(value))}")
    return number


def _time(value: object) -> float:
    return moment(value) if isinstance(value, str) and "-" in value[1:] else _number(value, "a time or a date")


def is_time(value: str) -> bool:
    """Whether a cell is a time as `read_log` reads it."""
    try:
        _time(value)
    except ValueError:
        return False
    return True


@lru_cache(maxsize=100_000)  # days repeat
def moment(text: str) -> float:
    """The seconds since 1970 of a date, or of a date and a time, in UTC where it names no other zone. Errors:
    ValueError."""
    try:
        found = datetime.fromisoformat(text.strip().replace("Z", "+00:00"))
    except ValueError:
        raise ValueError(f"expected a date as 2018-09-20, found {shortened(text)}") from None
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()


# steps of cleaning


def drop_duplicates(log: Log) -> None:
    """Keep one of several interactions that agree in user, item, time and rating. Without times nothing is known to be
    a duplicate."""
    mask = np.ones(len(log), dtype=bool)
    if log.timed:
        columns = [log.rating.view(np.int64), log.time.view(np.int64), log.item, log.user]  # bits: NaN equals NaN
        order = np.lexsort(columns)
        same = np.logical_and.reduce([np.diff(values[order]) == 0 for values in columns])
        mask[order[1:][same]] = False  # lexsort is stable: the first stays
    log.keep("without exact duplicates", mask)


def drop_repeats(log: Log) -> None:
    """Keep a user's first interaction with each item."""
    mask = np.zeros(len(log), dtype=bool)
    mask[np.unique(log.user.astype(np.int64) * len(log.items) + log.item, return_index=True)[1]] = True
    log.keep("each item once a user", mask)


def keep_core(log: Log, min_user: int, min_item: int) -> None:
    """Drop users of fewer than `min_user` interactions and items of fewer than `min_item`, until no more go."""
    mask = np.ones(len(log), dtype=bool)
    while True:
        users = np.bincount(log.user[mask], minlength=len(log.users))
        items = np.bincount(log.item[mask], minlength=len(log.items))
        core = mask & (users[log.user] >= min_user) & (items[log.item] >= min_item)
        if core.sum() == mask.sum():
            break
        mask = core
    log.keep(f"users with {min_user} or more, items with {min_item} or more", mask)
