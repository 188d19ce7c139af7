"""A dataset folder, opened: catalogue, splits, and the examples of a task.

In: a folder in the layout of `data/README.md` (or none: then the toy catalogue is made) and the options that say
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
from hanorec.data.interactions import Sequence, popularity, read_sequences, rng
from hanorec.data.interactions import windows as cut_windows
from hanorec.data.release import release_examples, release_windows
from hanorec.data.toy import make_toy
from hanorec.errors import DataError

TOY_FOLDER = Path("data/toy")


@dataclass(frozen=True)
class Dataset:
    """A folder with its catalogue and training rows. counts [items]: how often each item occurs in these rows."""

    folder: Path
    catalog: Catalog
    train: list[Sequence]
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
    protocol: str = "standard",
    history: int | None = None,
    windows: str = "last",
    cuts: int = 1,
    reorder: int = 0,
    users: int | None = None,
    candidates: int = 20,
    rejected: int = 1,
    negatives: str = "random",
    neighbours: np.ndarray | None = None,
    seed: int = 2025,
) -> list[Example]:
    """The examples of a split.

    protocol: "standard", or "release" for those of the authors' release (`release.py`), which fixes all that follows
    but users and seed. history: most items in a history (None: the paper's number for the task). windows: which windows
    of a row are taken, as in `interactions.windows`; cuts: so often, nested ones cut at other places each time;
    reorder: and in another order each time, in which only items fewer than so many places apart change places.
    users: take only so many windows, drawn by the seed (None: all; of nested windows whole groups are drawn, and so
    many on average). candidates, rejected: as in `make_examples`. negatives, neighbours: strategy and neighbours of
    `Negatives`.
    Rows that are too short for the task are skipped, with one warning that counts them. Errors: DataError where
    the split cannot be read, has no row that is long enough, or where more candidates are wanted than there are items;
    for cuts and another order of windows that are not nested; for more cuts of one order than a history has items;
    for a task that the protocol does not have, and for answers that its coin made alike where they are to be ranked.
    """
    sequences = data.train if split == "train" else read_sequences(data.folder / f"{split}.tsv", data.catalog)
    if protocol == "release":
        all_windows, skipped = release_windows(sequences, split, task)
    else:
        length, targets = history or HISTORY[task], TARGETS[task]
        for name, given in (("cuts", cuts > 1), ("reorder", reorder > 0)):
            if given and windows != "nested":
                raise DataError(f"--{name}: is of nested windows, and these are not ({windows})")
        if cuts > length and reorder < 2:
            raise DataError(f"--cuts {cuts}: chunks of {length} items can be cut at {length} places")
        found = [
            cut_windows(
                sequences,
                history=length,
                targets=targets,
                which=windows,
                shift=length * cut // cuts,
                reorder=reorder,
                generator=rng(seed, "reorder", cut),
            )
            for cut in range(cuts)
        ]
        all_windows, skipped = [window for cut_at, _ in found for window in cut_at], found[0][1]
    if skipped:
        warnings.warn(
            f"{data.folder / f'{split}.tsv'}: {skipped} of {len(sequences)} rows are too short for "
            f"the task {task} and are skipped",
            stacklevel=2,
        )
    if not all_windows:
        raise DataError(f"{data.folder / f'{split}.tsv'}: no row is long enough for the task {task}")
    if users is not None and users < len(all_windows):
        grouped = groups(all_windows, nested=windows == "nested")
        number = max(1, users * len(grouped) // len(all_windows))
        chosen = np.random.default_rng(seed).choice(len(grouped), number, replace=False)
        all_windows = [window for i in np.sort(chosen) for window in grouped[i]]
    if protocol == "release":
        return release_examples(all_windows, data.catalog, split, task, seed=seed)
    if candidates > len(data.catalog):
        raise DataError(f"--candidates {candidates}: the catalogue has {len(data.catalog)} items")
    sampler = Negatives(data.warm, data.counts, negatives, neighbours)
    return make_examples(all_windows, sampler, task, candidates=candidates, rejected=rejected, seed=seed)
