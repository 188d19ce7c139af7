#!/usr/bin/env python3
"""Turn any table of interactions and any table of items into a dataset.

    python data/prepare_table.py shop datasets/shop --interactions orders.csv --items products.csv
    python data/prepare_table.py shop datasets/shop --interactions log.tsv --user 1 --item 3 --items products.jsonl
    python data/prepare_table.py ml-100k datasets/ml-100k        RecBole's atomic files, ml-100k.inter and ml-100k.item

RAW holds both files, as CSV, TSV or JSON lines, packed with gzip or not, or as Parquet where pyarrow is installed, and
images named <item>.jpg, .jpeg, .png or .webp in images/ or its folders. A column is given by its name or, in CSV and
TSV, by its position from 1. Columns with usual names are found. Types behind names, as in user_id:token, do not matter.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from datetime import date
from itertools import chain, count, islice
from pathlib import Path

from convert import convert

from hanorec.data.log import is_time, read_log
from hanorec.data.prepare import ItemText, Raw, item_texts
from hanorec.data.raw import BadLines, csv_rows, find_images, first_row, json_rows, shortened
from hanorec.data.untrusted import listing
from hanorec.errors import DataError

ITEM = (
    "item_id",
    "item",
    "itemid",
    "parent_asin",
    "asin",
    "product_id",
    "article_id",
    "movie_id",
    "movieid",
    "video_id",
)
INTERACTIONS = {  # usual names by what a column says, the preferred first
    "user": ("user_id", "user", "userid", "uid", "customer_id", "reviewerid", "visitorid", "session_id"),
    "item": ITEM,
    "time": ("timestamp", "time", "datetime", "date", "unixreviewtime", "event_time", "created_at"),
    "rating": ("rating", "overall", "stars", "score"),
}
ITEMS = {
    "item-id": (*ITEM, "id"),
    "title": ("title", "name", "item_name", "product_name", "movie_title", "item_title", "prod_name"),
    "description": ("description", "item_description", "detail_desc", "abstract"),
    "image-url": ("image_url", "imageurl", "img_url", "imurl", "image_link"),
}
NEEDED = ("user", "item", "item-id", "title")
Rows = Iterable[tuple[int, list]]  # number of the line, and of a row's columns those that are wanted


def main() -> None:
    convert(__doc__, read, add=add_options)


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--interactions", metavar="FILE", help="file of interactions, in RAW (default: *.inter or interactions.*)")
    add("--items", metavar="FILE", help="file of items, in RAW (default: *.item or items.*)")
    text = "character between the cells of a CSV (default: a tab where the first line has one, else a comma)"
    add("--delimiter", type=one_character, metavar="C", help=text)
    for names, of in ((INTERACTIONS, "interactions"), (ITEMS, "items")):
        for column, usual in names.items():
            text = f"column of the {of} (default: {', '.join(usual[:3])} or the like)"
            add(f"--{column}", metavar="COLUMN", help=text if column in NEEDED else f"{text[:-1]}, if there is one)")


def one_character(text: str) -> str:
    character = "\t" if text == "\\t" else text
    if len(character) != 1:
        raise argparse.ArgumentTypeError(f"expected one character, not {text!r}")
    return character


def read(options: argparse.Namespace, bad: BadLines) -> Raw:
    given = {name: getattr(options, name.replace("-", "_")) for name in (*INTERACTIONS, *ITEMS)}
    chosen = one_file(options.raw, options.interactions, "interactions", "*.inter", "interactions.*")
    about = one_file(options.raw, options.items, "items", "*.item", "items.*")
    rows = columns(chosen, {name: given[name] for name in INTERACTIONS}, INTERACTIONS, options.delimiter, bad)
    log = read_log(chosen, ((line, *row) for line, row in rows), bad)
    said = columns(about, {name: given[name] for name in ITEMS}, ITEMS, options.delimiter, bad)
    known = set(log.items)
    texts = item_texts(((text(row[0]), ItemText(*map(text, row[1:]))) for _, row in said), known)
    return Raw(log, texts, find_images(options.raw, options.images, known), (chosen, about))


def text(value: object) -> str:
    """A cell as text; of a list, as JSON may have it, the first."""
    if isinstance(value, list):
        value = next(iter(value), None)
    return "" if value is None else str(value)


def one_file(raw: Path, given: str | None, option: str, *patterns: str) -> Path:
    if given:
        return raw / given
    found = sorted({path for pattern in patterns for path in raw.glob(pattern)})
    if len(found) != 1:
        raise DataError(f"{raw}: which file has the {option}? --{option} names it; {listing(raw)}")
    return found[0]


def columns(
    path: Path, given: dict[str, str | None], usual: dict[str, tuple[str, ...]], delimiter: str | None, bad: BadLines
) -> Rows:
    """The columns of a file that have names or positions as given, or else usual names, in the order of `given`; None
    where there is none. Errors: DataError that says what was expected and what was found."""
    header, rows = opened(path, delimiter, bad)
    plain = [name.split(":")[0].strip().lower() for name in header]
    places: dict[str, int | None] = {}
    by_name = False
    for column, name in given.items():
        names = (name.split(":")[0].strip().lower(),) if name else usual[column]
        if name and name.isdecimal():
            place = int(name) - 1 if 0 < int(name) <= len(header) else None
        else:
            place = next((plain.index(one) for one in names if one in plain), None)
            by_name |= place is not None
        if place is None and (name or column in NEEDED):
            hint = "is there another --delimiter?" if len(header) == 1 else f"--{column} names it"
            found = shortened(", ".join(header))
            raise DataError(f"{path}: expected a column {' or '.join(names)}, found {found}; {hint}")
        places[column] = place
    for line, cells in rows:
        if len(cells) != len(header):
            bad(path, line, f"expected {len(header)} cells, found {len(cells)}: {shortened(str(cells))}")
            continue
        row = [None if place is None else cells[place] for place in places.values()]
        if cells == header and (by_name or any(cell is not None and not is_time(cell) for cell in row[2:])):
            continue  # the header; a file whose columns all go by position may have none
        yield line, row


def opened(path: Path, delimiter: str | None, bad: BadLines) -> tuple[list[str], Rows]:
    """The names of a file's columns, and its rows, of CSV and TSV the header as well."""
    if path.suffix.lower() == ".parquet":
        return opened_parquet(path)
    kind, _ = first_row(path)
    if kind == "json":
        start = [row for _, row in islice(json_rows(path, BadLines(bad.skip)), 1000)]
        names = list(dict.fromkeys(chain.from_iterable(start)))  # what the first row lacks, others may have
        return names, ((line, [row.get(name) for name in names]) for line, row in json_rows(path, bad))
    delimiter = delimiter or ("\t" if kind == "tsv" else ",")
    return next(csv_rows(path, BadLines(bad.skip), delimiter), (0, [""]))[1], csv_rows(path, bad, delimiter)


def opened_parquet(path: Path) -> tuple[list[str], Rows]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError(f"{path}: Parquet is read where pyarrow is installed (pip install pyarrow)") from None
    try:
        file = ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None

    def rows() -> Rows:
        numbers = count(1)
        for batch in file.iter_batches():
            for row in zip(*(column.to_pylist() for column in batch.columns)):
                yield next(numbers), [str(cell) if isinstance(cell, date) else cell for cell in row]

    return file.schema_arrow.names, rows()


if __name__ == "__main__":
    main()
