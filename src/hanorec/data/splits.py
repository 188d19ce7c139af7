"""Which of a user's interactions are for training, which for validation and which for testing.

In flows a log; out flow the rows of train.tsv, val.tsv and test.tsv. A row of the last two ends with its target.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hanorec.data.log import Log, moment
from hanorec.errors import DataError

Rows = dict[str, list[str]]  # items by user, oldest first


def split_rows(log: Log, kind: str, cuts: Sequence[str], target: str) -> dict[str, Rows]:
    """The rows of "train", "val" and "test".

    kind: "leave-one-out": the last item of every user is a target of testing, the one before it of validation, and
    users with fewer than three items are left out. "time": training rows hold what came before the first of two `cuts`;
    a target of validation is a user's "first" or "last" item (`target`) between them, a target of testing the first or
    last one from the second cut on. A row has all that came before its target. A user has rows where there is something
    to train on, or a target with something before it.
    cuts: dates as 2018-09-20, or shares between 0 and 1 of all interactions that came before.
    Errors: DataError for a split by time of interactions without times, for cuts that are none, and for an empty split.
    """
    names = np.array(log.items, dtype=object)[log.item]
    users, starts = np.unique(log.user, return_index=True)
    ends = np.append(starts[1:], len(log))
    rows: dict[str, Rows] = {"train": {}, "val": {}, "test": {}}
    if kind == "time":
        if not log.timed:
            raise DataError("a split by time needs times, and the raw files have none")
        first, second = cut_times(log, cuts)
    for user, start, end in zip(users.tolist(), starts.tolist(), ends.tolist()):
        if kind == "time":
            # of this user's interactions, how many came before each cut
            a, b = (start + np.searchsorted(log.time[start:end], (first, second))).tolist()
            val, test = (a, b) if target == "first" else (b - 1, end - 1)
            stops = {"train": a, "val": val + 1 if a < b else start, "test": test + 1 if b < end else start}
        else:
            stops = {"train": end - 2, "val": end - 1, "test": end} if end - start > 2 else {}
        for split, stop in stops.items():
            if stop - start > (split != "train"):  # a target needs something before it
                rows[split][log.users[user]] = names[start:stop].tolist()
    for split, found in rows.items():
        if not found:
            raise DataError(f"the split leaves no row for {split}.tsv")
    return rows


def cut_times(log: Log, cuts: Sequence[str]) -> tuple[float, float]:
    """The two cuts in seconds since 1970. Errors: DataError unless they are two shares, or two dates, in order."""
    try:
        shares = [float(cut) for cut in cuts]
    except ValueError:
        shares = []
    if shares and not all(0 < share < 1 for share in shares):
        raise DataError(f"a split's shares must be between 0 and 1, not {' '.join(cuts)}")
    try:
        times = np.sort(log.time)[[int(share * len(log)) for share in shares]] if shares else list(map(moment, cuts))
    except ValueError as error:
        raise DataError(f"a split's cuts must be two shares or two dates: {error}") from None
    if not times[0] < times[1]:
        raise DataError(f"a split's first cut must come before its second, and {' '.join(cuts)} do not")
    return float(times[0]), float(times[1])
