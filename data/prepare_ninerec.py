#!/usr/bin/env python3
"""Turn a dataset of NineRec (https://github.com/westlake-repl/NineRec) into a dataset, with English titles.

    python data/prepare_ninerec.py NineRec/QB datasets/qb

RAW holds, as published,
    *_pair.csv         user,item,timestamp, or item,user,timestamp: the item is what the file of items knows
or  *_behaviour.tsv    user<TAB>item item item ..., oldest first, which is read where the pairs have no times
and *_item.csv         item,Chinese,English without a header; where there is no English title, the Chinese one is taken
and *_cover/           <item>.jpg
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from pathlib import Path

from convert import convert

from hanorec.data.log import is_time, read_log
from hanorec.data.prepare import ItemText, Raw, item_texts
from hanorec.data.raw import (
    BadLines,
    csv_rows,
    find_file,
    find_images,
    first_row,
    item_column,
    sequence_rows,
    shortened,
)


def main() -> None:
    convert(__doc__, read)


def read(options: argparse.Namespace, bad: BadLines) -> Raw:
    expected = "user,item,timestamp or user<TAB>item item item ..."
    chosen = find_file(options.raw, expected, is_interactions, "*_pair.csv", "*_behaviour.tsv")
    if len(first_row(chosen)[1]) < 3:  # pairs without times: the rows of the other file are in order
        chosen = find_file(options.raw, expected, is_interactions, "*_behaviour.tsv")
    items = find_file(options.raw, "item,Chinese title,English title", is_items, "*_item.csv")
    texts = item_texts(title_rows(items, bad))
    rows = sequence_rows(chosen, bad) if first_row(chosen)[0] == "tsv" else pair_rows(chosen, texts, bad)
    log = read_log(chosen, rows, bad)
    return Raw(log, texts, find_images(options.raw, options.images, set(log.items), "*_cover"), (chosen, items))


def is_interactions(kind: str, cells: list[str]) -> bool:
    """Whether a first row is user<TAB>items, a pair, or a pair with a time; the last may be a header."""
    words = [len(cell.split()) == 1 and "://" not in cell for cell in cells]
    if kind == "tsv":
        return len(cells) == 2 and words[0]
    return (
        kind == "csv"
        and all(words)
        and (len(cells) == 2 or len(cells) == 3 and (is_header(cells) or is_time(cells[2])))
    )


def is_items(kind: str, cells: list[str]) -> bool:
    return kind == "csv" and len(cells) == 3 and not is_interactions(kind, cells)


def is_header(cells: list[str]) -> bool:
    return "time" in cells[2].lower() and not is_time(cells[2])


def pair_rows(path: Path, known: Collection[str], bad: BadLines) -> Iterator[tuple[int, str, str, str | None, None]]:
    """Line, user, item and time of every interaction; no time in a file without."""
    place, columns = item_column(path, csv_rows(path, BadLines(bad.skip)), known), len(first_row(path)[1])
    for number, (line, cells) in enumerate(csv_rows(path, bad)):
        if len(cells) != columns:
            bad(path, line, f"expected {columns} cells, found {shortened(','.join(cells))}")
        elif columns == 2 or number or not is_header(cells):
            yield line, cells[1 - place], cells[place], cells[2] if columns > 2 else None, None


def title_rows(path: Path, bad: BadLines) -> Iterator[tuple[str, ItemText]]:
    for line, cells in csv_rows(path, bad):
        if len(cells) == 3:
            yield cells[0], ItemText(cells[2] if cells[2].strip() else cells[1])
        else:
            bad(path, line, f"expected item,Chinese title,English title, found {shortened(','.join(cells))}")


if __name__ == "__main__":
    main()
