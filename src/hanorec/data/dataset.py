"""A dataset folder, opened: catalogue, splits, and the examples of a task.

In: a folder in the layout of `docs/data.md` (or none: then the toy catalogue is made) and the options that say
how histories, candidates and negatives are drawn. Out: the `Example`s of a split, so that the training scripts,
`evaluate.py` and every baseline work on the same ones.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hanorec import distributed
from hanorec.data.catalog import Catalog, missing_images, read_catalog, read_descriptions
from hanorec.data.examples import HISTORY, TARGETS, Example, Negatives, groups, make_examples
from hanorec.data.interactions import UserHistory, Window, popularity, read_sequences
from hanorec.data.interactions import windows as cut_windows
from hanorec.data.toy import make_toy
from hanorec.errors import DataError
from hanorec.memory import no_collection

TOY_FOLDER = Path("data/toy")


@dataclass(frozen=True)
class Dataset:
    """A folder with its catalogue and training rows. counts [items]: how often each item occurs in these rows."""

    folder: Path
    catalog: Catalog
    train: list[UserHistory]
    counts: np.ndarray

    @property
    def warm(self) -> np.ndarray:
        """Indices of the warm items, those that occur in the training rows, in ascending order. The others are cold."""
        return np.flatnonzero(self.counts)

    def descriptions(self, item_view: str) -> tuple[str, ...]:
        """What stands for each item in words, [items]: nothing where the view of an item shows no descriptions.

        Errors: DataError as `read_descriptions` raises it.
        """
        if item_view in ("description", "both"):
            return read_descriptions(self.folder / "descriptions.csv", self.catalog)
        return ("",) * len(self.catalog)


@no_collection()
def open_dataset(folder: str | Path | None) -> Dataset:
    """Read catalogue and training rows. Without a folder it is the toy catalogue in `TOY_FOLDER`, made on first use.

    A warning counts items without an image. Errors: DataError as `read_catalog` and `read_sequences` raise it.
    """
    if not folder and not (TOY_FOLDER / "world.json").is_file() and distributed.is_main_process():
        print(f"making the toy catalogue in {TOY_FOLDER}")
        make_toy(TOY_FOLDER)
    distributed.barrier()
    folder = Path(folder or TOY_FOLDER)
    catalog = read_catalog(folder)
    if line := missing_images(catalog, folder):
        warnings.warn(line, stacklevel=2)
    train = read_sequences(folder / "train.tsv", catalog)
    return Dataset(folder, catalog, train, popularity(train, len(catalog)))


@no_collection()
def split_examples(
    data: Dataset,
    split: str,
    task: str,
    *,
    history: int | None = None,
    windows: str = "last",
    users: int | None = None,
    candidates: int = 20,
    rejected: int = 1,
    negatives: str = "random",
    neighbours: np.ndarray | None = None,
    seed: int = 2025,
) -> list[Example]:
    """The examples of a split.

    history: most items in a history (None: the paper's number for the task). windows: which windows of a row are taken,
    as in `interactions.windows`. users: take only so many windows, drawn by the seed (None: all; of nested windows
    whole groups are drawn, and so many on average). candidates, rejected: as in `make_examples`. negatives, neighbours:
    strategy and neighbours of `Negatives`.
    Rows that give no window for the task are skipped, with warnings that count them and say why. Errors: DataError
    where the split cannot be read, has no row that gives one, or where more candidates are wanted than any row, drawn
    or not, leaves items to draw.
    """
    histories = read_split(data, split)
    found, skipped = cut_windows(histories, history=history or HISTORY[task], targets=TARGETS[task], which=windows)
    check_skipped(data, split, task, histories, skipped, shortest=TARGETS[task] + 1)
    if candidates > len(data.catalog):
        raise DataError(f"{candidates} candidates asked for, but the catalogue has {len(data.catalog)} items")
    if reason := too_few_items(data, split, task, found, candidates=candidates, rejected=rejected):
        raise DataError(reason)
    drawn = draw_windows(found, users, nested=windows == "nested", seed=seed)
    sampler = Negatives(data.warm, data.counts, negatives, neighbours)
    return make_examples(drawn, sampler, task, candidates=candidates, rejected=rejected, seed=seed)


def read_split(data: Dataset, split: str) -> list[UserHistory]:
    """The rows of `<split>.tsv`; of another split than "train", a warning says how many users' last item, which is a
    target, stands in their training row. Errors: DataError as `read_sequences` raises it."""
    if split == "train":
        return data.train
    file = data.folder / f"{split}.tsv"
    histories = read_sequences(file, data.catalog)
    trained = {row.user: row.items for row in data.train}
    known = sum(row.items[-1] in trained.get(row.user, ()) for row in histories)
    if known:
        share = f"{known} of {len(histories)} users ({known / len(histories):.1%})"
        warnings.warn(f"{file}: the last item of {share} is in their row of train.tsv as well", stacklevel=3)
    return histories


def check_skipped(
    data: Dataset, split: str, task: str, histories: Sequence[UserHistory], skipped: int, *, shortest: int
) -> None:
    """Warn of those `skipped` of the rows that gave no window: they have fewer than `shortest` items, or they repeat
    their targets. Errors: DataError where no row gave one."""
    file, rows = data.folder / f"{split}.tsv", len(histories)
    short = sum(len(row.items) < shortest for row in histories)
    if short:
        warnings.warn(f"{file}: {short} of {rows} rows are too short for the task {task} and are skipped", stacklevel=3)
    if skipped > short:
        warnings.warn(
            f"{file}: {skipped - short} of {rows} rows repeat their targets, so that too few different items are left, "
            "and are skipped",
            stacklevel=3,
        )
    if skipped == rows:
        reason = "is long enough" if short == rows else "has the different items that are needed"
        raise DataError(f"{file}: no row {reason} for the task {task}")


def too_few_items(
    data: Dataset, split: str, task: str, found: Sequence[Window], *, candidates: int, rejected: int
) -> str:
    """Why negatives cannot be drawn for all windows of a split; empty where they can.

    candidates, rejected: as in `make_examples`.
    """
    targets = TARGETS[task]
    needed = 1 if task == "yesno" else max(rejected * targets, candidates - targets)
    warm = frozenset(data.warm.tolist())
    left = {window.user: len(warm) - len(window.seen & warm) for window in {w.user: w for w in found}.values()}
    short = [user for user, number in left.items() if number < needed]
    if not short or needed <= 0:
        return ""
    user = min(short, key=left.__getitem__)
    most = f"; at most {left[user] + targets} candidates can be drawn for all rows" if task != "yesno" else ""
    return (
        f"{data.folder / split}.tsv: {len(short)} of {len(left)} rows leave fewer than {needed} items to draw negatives"
        f" from, for {candidates} candidates: of {len(warm)} items in train.tsv user {user} leaves {left[user]}{most}"
    )


@no_collection()
def check_test_rows(data: Dataset, task: str, *, history: int | None, candidates: int) -> None:
    """Warn, before hours of training, of what an evaluation on test.tsv with so many candidates would stop at.

    A dataset without that file has nothing to be checked. Errors: DataError as `read_sequences` raises it.
    """
    if not os.path.lexists(data.folder / "test.tsv"):
        return
    found, _ = cut_windows(read_split(data, "test"), history=history or HISTORY[task], targets=TARGETS[task])
    if reason := too_few_items(data, "test", task, found, candidates=candidates, rejected=0):
        warnings.warn(reason, stacklevel=3)


def draw_windows(found: list[Window], users: int | None, *, nested: bool, seed: int) -> list[Window]:
    """`users` of the windows, drawn by the seed, in their order (None: all); of nested ones whole groups."""
    if users is None or users >= len(found):
        return found
    grouped = groups(found, nested=nested)
    number = max(1, users * len(grouped) // len(found))
    chosen = np.random.default_rng(seed).choice(len(grouped), number, replace=False)
    return [window for i in np.sort(chosen) for window in grouped[i]]
