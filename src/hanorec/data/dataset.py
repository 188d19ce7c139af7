"""A dataset folder, opened: catalogue, splits, and the examples of a task.

In: a folder in the layout of `docs/data.md` (or none: then the toy catalogue is made) and the options that say
how histories, candidates and negatives are drawn. Out: the `Example`s of a split, so that the training scripts,
`evaluate.py` and every baseline work on the same ones.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hanorec import distributed
from hanorec.data.catalog import Catalog, read_catalog, read_descriptions
from hanorec.data.examples import HISTORY, TARGETS, Example, Negatives, groups, make_examples
from hanorec.data.interactions import UserHistory, Window, popularity, read_sequences
from hanorec.data.interactions import windows as cut_windows
from hanorec.data.toy import make_toy
from hanorec.errors import DataError

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


def open_dataset(folder: str | Path | None) -> Dataset:
    """Read catalogue and training rows. Without a folder it is the toy catalogue in `TOY_FOLDER`, made on first use.

    Errors: DataError as `read_catalog` and `read_sequences` raise it.
    """
    if not folder and not (TOY_FOLDER / "world.json").is_file() and distributed.is_main_process():
        print(f"making the toy catalogue in {TOY_FOLDER}")
        make_toy(TOY_FOLDER)
    distributed.barrier()
    folder = Path(folder or TOY_FOLDER)
    catalog = read_catalog(folder)
    train = read_sequences(folder / "train.tsv", catalog)
    return Dataset(folder, catalog, train, popularity(train, len(catalog)))


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
    Rows that are too short for the task are skipped, with one warning that counts them. Errors: DataError where
    the split cannot be read, has no row that is long enough, or where more candidates are wanted than there are items.
    """
    histories = read_split(data, split)
    found, skipped = cut_windows(histories, history=history or HISTORY[task], targets=TARGETS[task], which=windows)
    check_skipped(data, split, task, len(histories), len(found), skipped)
    if candidates > len(data.catalog):
        raise DataError(f"{candidates} candidates asked for, but the catalogue has {len(data.catalog)} items")
    drawn = draw_windows(found, users, nested=windows == "nested", seed=seed)
    sampler = Negatives(data.warm, data.counts, negatives, neighbours)
    return make_examples(drawn, sampler, task, candidates=candidates, rejected=rejected, seed=seed)


def read_split(data: Dataset, split: str) -> list[UserHistory]:
    """The rows of `<split>.tsv`. Errors: DataError as `read_sequences` raises it."""
    return data.train if split == "train" else read_sequences(data.folder / f"{split}.tsv", data.catalog)


def check_skipped(data: Dataset, split: str, task: str, rows: int, found: int, skipped: int) -> None:
    """Warn of the `skipped` of so many `rows` that gave no window. Errors: DataError where none gave one."""
    file = data.folder / f"{split}.tsv"
    if skipped:
        warnings.warn(
            f"{file}: {skipped} of {rows} rows are too short for the task {task} and are skipped", stacklevel=3
        )
    if not found:
        raise DataError(f"{file}: no row is long enough for the task {task}")


def draw_windows(found: list[Window], users: int | None, *, nested: bool, seed: int) -> list[Window]:
    """`users` of the windows, drawn by the seed, in their order (None: all); of nested ones whole groups."""
    if users is None or users >= len(found):
        return found
    grouped = groups(found, nested=nested)
    number = max(1, users * len(grouped) // len(found))
    chosen = np.random.default_rng(seed).choice(len(grouped), number, replace=False)
    return [window for i in np.sort(chosen) for window in grouped[i]]
