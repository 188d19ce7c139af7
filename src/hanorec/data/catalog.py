"""Items: what can be recommended.

In flows a dataset folder (`titles.csv` and `images/`, see docs/data.md); out flows a `Catalog`, three
parallel tuples of ids, titles and image files. Everywhere else an item is its index in them. Bad input
raises `DataError`, which names the file, the line and the value; a bad image is no error, only an item
without an image.
"""

from __future__ import annotations

import csv
import io
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hanorec.data.untrusted import IMAGE_SUFFIXES, is_blank, listing, read_text
from hanorec.errors import DataError

ID_HEADER = {"item", "item_id", "id", "itemid"}  # names of the first column
TEXT_HEADER = re.compile(r"([a-z]+_?)?(title|name|description|caption)s?(_[a-z]+)?")  # of the second: movie_title, …


@dataclass(frozen=True)
class Catalog:
    """N items in file order: ids, titles, image files (None: no image), the index of each id, and the titles file
    that they were read from."""

    items: tuple[str, ...]
    titles: tuple[str, ...]
    images: tuple[Path | None, ...]
    index: dict[str, int]
    source: Path | None = None

    def __len__(self) -> int:
        return len(self.items)


def read_catalog(folder: str | Path) -> Catalog:
    """Read `titles.csv` (or the only `*titles.csv`) and list `images/`.

    A header row is optional: a first line with the name of either column, whose first cell no row names as an item.
    Whitespace within a title becomes single spaces, because a title is one line of
    a prompt. Two items may share a title: they stay two items, and one warning counts them.

    Raises DataError: no folder, no or several titles files, not UTF-8, a row that is not item,title, an
    id twice.
    """
    folder = Path(folder)
    path = _titles_file(folder)
    titles: dict[str, str] = {}
    for line, cells in _csv_rows(path):
        if not titles and _is_header(cells) and not _is_chosen(cells[0].strip(), folder):
            continue
        if len(cells) != 2:
            hint = 'quote a title that holds a comma, as in 7,"Paris, Texas"' if len(cells) > 2 else "no title"
            raise DataError(f"{path}:{line}: expected item,title ({hint}), found {','.join(cells)!r}")
        item, title = cells[0].strip(), " ".join(cells[1].split())
        if len(item.split()) != 1 or is_blank(
            item
        ):  # sequences are split at spaces, so such an id could never be named there
            raise DataError(f"{path}:{line}: an item id must be one word, found {item!r}")
        if is_blank(title):
            raise DataError(f"{path}:{line}: item {item!r} has an empty title")
        if item in titles:
            raise DataError(f"{path}:{line}: item {item!r} appears twice")
        titles[item] = title
    if not titles:
        raise DataError(f"{path}: no items")
    _warn_of_shared_titles(path, titles)
    files = _image_files(folder / "images")
    images = tuple(files.get(item) for item in titles)
    index = {item: number for number, item in enumerate(titles)}
    return Catalog(tuple(titles), tuple(titles.values()), images, index, path)


def missing_images(catalog: Catalog, folder: Path) -> str:
    """How many items have no image, and what else is in `images/`, in one line; empty where every item has one.

    Files with another suffix, a prefix in their names or in a folder of their own belong to no item: nobody sees that a
    model is trained on titles alone."""
    missing = catalog.images.count(None)
    if not missing:
        return ""
    line, images = f"{missing} of {len(catalog)} items have no image", folder / "images"
    if not images.is_dir():
        return f"{line}: there is no folder {images}"
    used = {path.name for path in catalog.images if path is not None}
    others = []
    with os.scandir(images) as entries:
        for entry in entries:
            stem, suffix = os.path.splitext(entry.name)
            second = (
                stem in catalog.index and suffix.lower() in IMAGE_SUFFIXES and not entry.is_dir(follow_symlinks=False)
            )
            if entry.name not in used and not second and not entry.name.startswith("."):
                others.append(entry.name + "/" * entry.is_dir(follow_symlinks=False))
    if not others:
        return f"{line}: {images} has no file for them"
    named = f"for instance {', '.join(sorted(others)[:3])}; an image is named <item>{', '.join(IMAGE_SUFFIXES)}"
    return f"{line}; {len(others)} files in {images} belong to no item, {named}"


def read_descriptions(path: Path, catalog: Catalog) -> tuple[str, ...]:
    """What a `descriptions.csv` says of every item, [items], as `read_texts` reads it.

    Raises DataError: no such file, and as `read_texts` raises it.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file, and the item view shows descriptions; data/describe_items.py writes it")
    return read_texts(path, catalog, "description")


def read_texts(path: Path, catalog: Catalog, column: str) -> tuple[str, ...]:
    """The texts of a file whose rows are an item and a text, [items], on one line each; empty for an item that it
    leaves out. column: what the text is.

    A header row is optional. Raises DataError: not UTF-8, a row that is not two cells, an item that is not in the
    catalogue, or twice.
    """
    texts: dict[str, str] = {}
    for line, cells in _csv_rows(path):
        if not texts and _is_header(cells) and cells[0].strip() not in catalog.index:
            continue
        if len(cells) != 2:
            raise DataError(f"{path}:{line}: expected item,{column}, found {','.join(cells)!r}")
        item = cells[0].strip()
        if item not in catalog.index or item in texts:
            reason = "appears twice" if item in texts else "is not in the catalogue"
            raise DataError(f"{path}:{line}: item {item!r} {reason}")
        texts[item] = "" if is_blank(cells[1]) else " ".join(cells[1].split())
    return tuple(texts.get(item, "") for item in catalog.items)


def _titles_file(folder: Path) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    if (folder / "titles.csv").exists():
        return folder / "titles.csv"
    files = sorted(folder.glob("*titles.csv"))
    if len(files) > 1:
        raise DataError(f"{folder}: several titles files: {', '.join(path.name for path in files)}")
    if not files:
        raise DataError(f"{folder}: no titles.csv or *titles.csv; {listing(folder)}")
    return files[0]


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of every row that is not blank."""
    # strict: without it, a quote that is never closed swallows the rest of the file into one title
    reader = csv.reader(io.StringIO(read_text(path)), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{path}:{line}: not CSV ({error})") from None
        if any(cell.strip() for cell in cells):
            yield line, cells


def _is_header(cells: list[str]) -> bool:
    """Whether a row of two cells names a column, with or without a type as RecBole has it (item_id:token)."""
    first, second = (cell.strip().lower().split(":")[0] for cell in (cells + ["", ""])[:2])
    return first in ID_HEADER or (not first.isdigit() and TEXT_HEADER.fullmatch(second) is not None)


def _is_chosen(item: str, folder: Path) -> bool:
    """Whether a row of the splits has this item."""
    for path in (folder / f"{split}.tsv" for split in ("train", "val", "test")):
        lines = read_text(path).split("\n") if path.is_file() else ()
        if any(item in line.split("\t")[-1].split() for line in lines if item in line):
            return True
    return False


def _warn_of_shared_titles(path: Path, titles: dict[str, str]) -> None:
    first: dict[str, str] = {}
    shared = [(first[title], item, title) for item, title in titles.items() if first.setdefault(title, item) != item]
    if shared:
        one, other, title = shared[0]
        example = f"e.g. {title!r} is {one} and {other}; they are kept apart by id"
        warnings.warn(f"{path}: {len(shared)} items have the title of an earlier item, {example}", stacklevel=3)


def _image_files(folder: Path) -> dict[str, Path]:
    """Image file of each file stem, from one directory listing."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        paths = [Path(entry.path) for entry in entries if not entry.is_dir(follow_symlinks=False)]
    ranked = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    ranked.sort(key=lambda path: (IMAGE_SUFFIXES.index(path.suffix.lower()), path.name), reverse=True)
    return {path.stem: path for path in ranked}  # the preferred suffix comes last and stays
