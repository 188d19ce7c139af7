#!/usr/bin/env python3
"""Turn MicroLens-50k, -100k or -1M (https://github.com/westlake-repl/MicroLens) into a dataset.

    python data/prepare_microlens.py MicroLens-50k datasets/microlens-50k

RAW holds, as published,
    *_pairs.csv     user,item,timestamp in milliseconds; columns go by position, for their names vary
or  *_pairs.tsv     user<TAB>item item item ..., oldest first, without times
and *_titles.csv    item,title, or *_title_en.csv: the same without a header, and commas are not always quoted
and *_covers/       <item>.jpg
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from convert import convert

from hanorec.data.log import read_log
from hanorec.data.prepare import ItemText, Raw, item_texts
from hanorec.data.raw import (
    BadLines,
    csv_rows,
    find_file,
    find_images,
    first_row,
    sequence_rows,
    shortened,
    text_lines,
    unquoted,
)
from hanorec.errors import DataError


def read(options: argparse.Namespace, bad: BadLines) -> Raw:
    """The interactions of either file, with titles and covers."""
    expected = "user,item,timestamp or user<TAB>item item item ..."
    pairs = find_file(options.raw, expected, is_pairs, "*_pairs.csv", "*_pairs.tsv")
    titles = find_file(options.raw, "item,title", is_titles, "*_titles.csv", "*_title_en.csv")
    log = read_log(pairs, (sequence_rows if first_row(pairs)[0] == "tsv" else pair_rows)(pairs, bad), bad)
    known = set(log.items)
    texts = item_texts(title_rows(titles, bad), known)
    return Raw(log, texts, find_images(options.raw, options.images, known, "*_covers"), (pairs, titles))


def is_pairs(kind: str, cells: list[str]) -> bool:
    if kind == "tsv":
        return len(cells) == 2 and all(item.isdecimal() for item in cells[1].split())
    numbers = [cell.isdecimal() for cell in cells[:3]]  # all of a row, none of a header
    return kind == "csv" and len(cells) > 2 and len(set(numbers)) == 1


def is_titles(kind: str, cells: list[str]) -> bool:
    return kind == "csv" and (len(cells) == 2 or cells[0].isdecimal() and not cells[1].isdecimal())


def pair_rows(path: Path, bad: BadLines) -> Iterator[tuple[int, str, str, str, None]]:
    """Line, user, item and time of every interaction."""
    for number, (line, cells) in enumerate(csv_rows(path, bad)):
        if len(cells) < 3:
            bad(path, line, f"expected user,item,timestamp, found {shortened(','.join(cells))}")
        elif number or cells[2].strip().isdecimal():  # the first line may be a header
            yield line, cells[0], cells[1], cells[2], None


def title_rows(path: Path, bad: BadLines) -> Iterator[tuple[str, ItemText]]:
    """Item and title of every row, a header's too. What is CSV is read as CSV, and else lines are split at their first
    comma."""
    try:
        rows = [cells for _, cells in csv_rows(path, BadLines())]
    except DataError:
        rows = [[]]
    if all(len(cells) == 2 for cells in rows):
        yield from ((item, ItemText(title)) for item, title in rows)
        return
    for line, text in text_lines(path, bad):
        item, comma, title = text.partition(",")
        if comma:
            yield item, ItemText(unquoted(title.strip()))
        elif text.strip():
            bad(path, line, f"expected item,title, found {shortened(text)}")


def main() -> None:
    convert(__doc__, read)


if __name__ == "__main__":
    main()
