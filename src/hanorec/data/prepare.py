"""From a raw log, texts and images to a dataset folder, whole or not at all.

In flows `Raw`, what a script in data/ has read: a log of interactions, what items say of themselves, and image files or
their URLs. The log is cleaned, step by step and with counts; users' rows are split; out flow the files that
docs/data.md describes, with `prepared.json`, which has the counts and everything that they depend on.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from tqdm import tqdm

import hanorec
from hanorec import files
from hanorec.data.cleaning import cut, without_html
from hanorec.data.log import Log, Step, drop_duplicates, drop_repeats, keep_core
from hanorec.data.splits import split_rows
from hanorec.data.untrusted import is_blank, load_image
from hanorec.errors import DataError


class ItemText(NamedTuple):
    """What the raw files say of an item; empty where they say nothing."""

    title: str
    description: str = ""
    url: str = ""  # of its image


@dataclass
class Raw:
    """A dataset's raw files, read. texts, images: by item id; images are files."""

    log: Log
    texts: Mapping[str, ItemText]
    images: Mapping[str, Path]
    files: tuple[Path, ...]


def item_texts(rows: Iterable[tuple[str, ItemText]], known: Collection[str] | None = None) -> dict[str, ItemText]:
    """What is said of the `known` items (None: of all). Of several rows of an item, the first with a title counts."""
    texts: dict[str, ItemText] = {}
    for item, text in rows:
        item = item.strip()
        if (known is None or item in known) and (item not in texts or is_blank(texts[item].title)):
            texts[item] = text
    return texts


@dataclass(frozen=True)
class Settings:
    """How a dataset is cleaned and split.

    min_rating: the lowest rating that stays (None: all). min_user, min_item: fewest interactions of a user and of an
    item. keep_repeats: keep a user's later interactions with the same item. keep_without_image: keep items that have
    neither an image nor its URL. image_size: most pixels, width and height; a larger image is stored smaller. If
    given, all are stored as JPEG. title_words: most words of a title or description. split, cut, target: as in
    `split_rows`.
    """

    min_rating: float | None = None
    min_user: int = 3
    min_item: int = 1
    keep_repeats: bool = False
    keep_without_image: bool = False
    image_size: tuple[int, int] | None = None
    title_words: int = 64
    split: str = "leave-one-out"
    cut: tuple[str, str] = ("0.8", "0.9")
    target: str = "first"


@dataclass(frozen=True)
class Prepared:
    """What prepared.json says. files: bytes of each raw file. steps: what was left after each step of cleaning. counts:
    what was changed or is of note. rows: of each split."""

    version: str
    settings: Settings
    files: dict[str, int]
    steps: list[Step]
    counts: dict[str, int]
    rows: dict[str, int]


def prepare(raw: Raw, out: Path, settings: Settings, *, bad_lines: int = 0) -> Prepared:
    """Clean and split what was read, and put the dataset in the place of the folder `out`.

    bad_lines: how many were left out, for the record. Errors: DataError where a step leaves nothing, and for a split
    that cannot be made; then, and after every other failure, `out` is as it was.
    """
    log = raw.log
    said = {item: raw.texts[item] for item in log.items if item in raw.texts}
    plain = {item: without_html(text.title) for item, text in said.items()}
    titles = {item: cut(title, settings.title_words) for item, title in plain.items() if not is_blank(title)}
    urls = {item: text.url for item, text in said.items() if item not in raw.images and _is_url(text.url)}
    clean(log, settings, titles, raw.images.keys() | urls.keys())
    with in_place_of(out) as folder:
        broken = _write_images(raw.images, _items(log), folder / "images", settings.image_size)
        if broken and not settings.keep_without_image:
            log.keep("images that can be read", _of_items(log, set(log.items) - broken))
            keep_core(log, settings.min_user, settings.min_item)
        items = _items(log)
        for path in (folder / "images").iterdir():
            if path.stem not in items:
                path.unlink()
        rows = split_rows(log, settings.split, settings.cut, settings.target)
        texts = {item: cut(without_html(said[item].description), settings.title_words) for item in items}
        urls = {item: urls[item] for item in items if item in urls}
        _write_rows(folder, rows)
        _write_texts(folder / "titles.csv", "title", {item: titles[item] for item in items})
        _write_texts(folder / "descriptions.csv", "description", {item: text for item, text in texts.items() if text})
        _write_texts(folder / "image_urls.csv", "url", urls)
        counts = {
            "bad lines left out": bad_lines,
            "times before 1970": int((log.time < 0).sum()),
            "titles with HTML or control characters": sum(
                plain[item] != " ".join(said[item].title.split()) for item in items
            ),
            f"titles cut after {settings.title_words} words": sum(titles[item] != plain[item] for item in items),
            "titles that an earlier item has": len(items) - len({titles[item] for item in items}),
            "images": len(os.listdir(folder / "images")),
            "images that cannot be read": len(broken),
            "images to be fetched": len(urls),
        }
        prepared = Prepared(
            version=hanorec.__version__,
            settings=settings,
            files={path.name: path.stat().st_size for path in raw.files},
            steps=log.steps,
            counts=counts,
            rows={split: len(users) for split, users in rows.items()},
        )
        (folder / "prepared.json").write_text(json.dumps(asdict(prepared), indent=1) + "\n", encoding="utf-8")
    return prepared


def clean(log: Log, settings: Settings, titled: Collection[str], pictured: Collection[str]) -> None:
    """Take interactions away, step by step. titled, pictured: the items that have a title, and an image."""
    if settings.min_rating is not None:
        if np.isnan(log.rating).any():
            raise DataError(f"a rating of {settings.min_rating:g} is asked for, and the raw files have no ratings")
        log.keep(f"rated {settings.min_rating:g} or better", log.rating >= settings.min_rating)
    drop_duplicates(log)
    if not settings.keep_repeats:
        drop_repeats(log)
    log.keep("items with a title", _of_items(log, titled))
    if not settings.keep_without_image:
        log.keep("items with an image", _of_items(log, pictured))
    keep_core(log, settings.min_user, settings.min_item)


def _is_url(text: str) -> bool:
    try:
        return urlsplit(text).scheme in ("http", "https") and len(text.split()) == 1
    except ValueError:
        return False


def _of_items(log: Log, items: Collection[str]) -> np.ndarray:
    """The interactions with these items, as a mask."""
    return np.array([item in items for item in log.items])[log.item]


def in_order(ids: Iterable[str]) -> list[str]:
    """Ids in order, numbers by their size and before others."""
    return sorted(ids, key=lambda text: (not text.isdecimal(), len(text) if text.isdecimal() else 0, text))


def _items(log: Log) -> dict[str, None]:
    """The items that interactions are left of, in order."""
    return dict.fromkeys(in_order(log.items[number] for number in np.unique(log.item)))


# what is written


@contextmanager
def in_place_of(out: Path) -> Iterator[Path]:
    """A new folder, which takes the place of `out` at the end; if anything fails, nothing has changed."""
    place = out.resolve()
    folder = place.with_name(f".{place.name}.{os.getpid()}{files.PARTIAL}")  # beside it, so that a rename finishes it
    try:
        (folder / "images").mkdir(parents=True)
        yield folder
        if hasattr(os, "sync"):
            os.sync()  # thousands of images at once: one by one they take ten times as long
        files.replace_folder(folder, place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write_images(
    images: Mapping[str, Path], items: Mapping[str, None], folder: Path, largest: tuple[int, int] | None
) -> set[str]:
    """Write <item>.<suffix> for every item that has a file; returns the items whose file cannot be read."""
    wanted, broken = [item for item in items if item in images], set()
    for item in tqdm(wanted, desc="images", disable=None):
        if "/" in item or "\0" in item:
            raise DataError(f"{images[item]}: the item id {item!r} cannot be a file's name")
        image = load_image(images[item])
        if image is None:
            broken.add(item)
        elif largest:
            image.thumbnail(largest, Image.Resampling.LANCZOS)
            image.save(folder / f"{item}.jpg", quality=90)
        else:
            shutil.copyfile(images[item], folder / f"{item}{images[item].suffix.lower()}")
    return broken


def _write_rows(folder: Path, rows: Mapping[str, Mapping[str, list[str]]]) -> None:
    for split, users in rows.items():
        with (folder / f"{split}.tsv").open("w", encoding="utf-8", newline="\n") as file:
            for user in in_order(users):
                file.write(f"{user}\t{' '.join(users[user])}\n")


def _write_texts(path: Path, what: str, texts: Mapping[str, str]) -> None:
    """Write a file of item and text, unless there is none."""
    if texts:
        header = [] if "item" in texts and what != "url" else [("item", what)]  # such an item would be the header
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([*header, *texts.items()])
