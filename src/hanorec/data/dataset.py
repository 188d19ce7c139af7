"""A dataset folder, opened: catalogue, splits, and the examples of a task.

In: a folder in the layout of `data/README.md` (or none: then the toy catalogue is made) and the options that say
how histories, candidates and negatives are drawn. Out: `Example`s of a split, the same for whoever asks.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hanorec import distributed
from hanorec.data.catalog import Catalog, read_catalog
from hanorec.data.examples import HISTORY, TARGETS, Example, Negatives, make_examples
from hanorec.data.interactions import Sequence, popularity, read_sequences, windows
from hanorec.data.toy import make_toy
from hanorec.errors import DataError

TOY_FOLDER = Path("data/toy")


@dataclass(frozen=True)
class Dataset:
    """counts [items]: how often each item occurs in the training rows; items that do are warm."""

    folder: Path
    catalog: Catalog
    train: list[Sequence]
    counts: np.ndarray

    @property
    def warm(self) -> np.ndarray:
        return np.flatnonzero(self.counts)


def open_dataset(folder: str | Path | None) -> Dataset:
    """Read catalogue and training rows. Without a folder: the toy catalogue, made on first use.

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
    every: bool = False,
    users: int | None = None,
    candidates: int = 20,
    rejected: int = 1,
    negatives: str = "random",
    neighbours: np.ndarray | None = None,
    seed: int = 2025,
) -> list[Example]:
    """The examples of a split. users: only so many windows, drawn from all by the seed (None: all).

    Rows that are too short for the task are skipped, with one warning that counts them. Errors: DataError where
    the split cannot be read, has no row long enough, or asks for more candidates than there are items.
    """
    sequences = data.train if split == "train" else read_sequences(data.folder / f"{split}.tsv", data.catalog)
    found, skipped = windows(sequences, history=history or HISTORY[task], targets=TARGETS[task], every=every)
    if skipped:
        warnings.warn(
            f"{data.folder / f'{split}.tsv'}: {skipped} of {len(sequences)} rows are too short for "
            f"the task {task} and are skipped",
            stacklevel=2,
        )
    if not found:
        raise DataError(f"{data.folder / f'{split}.tsv'}: no row is long enough for the task {task}")
    if users is not None and users < len(found):
        drawn = np.random.default_rng(seed).choice(len(found), users, replace=False)
        found = [found[i] for i in np.sort(drawn)]
    if candidates > len(data.catalog):
        raise DataError(f"--candidates {candidates}: the catalogue has {len(data.catalog)} items")
    sampler = Negatives(data.warm, data.counts, negatives, neighbours)
    return make_examples(found, sampler, task, candidates=candidates, rejected=rejected, seed=seed)
