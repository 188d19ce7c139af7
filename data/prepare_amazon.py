#!/usr/bin/env python3
"""Turn a category of Amazon Reviews, of 2023 (https://amazon-reviews-2023.github.io), 2018 or 2014, into a dataset.

    python data/prepare_amazon.py raw/All_Beauty datasets/beauty --min-user 5 --min-item 5

RAW holds two files as published, packed with gzip or not. Which release it is, is told by what is in them.
    2023          <Category>.jsonl with user_id, parent_asin, rating, timestamp, or the benchmark's CSV of these,
                  and meta_<Category>.jsonl with parent_asin, title, images
    2018, 2014    reviews in JSON with reviewerID, asin, overall, unixReviewTime, or a CSV of ratings without a header,
                  and metadata with asin, title and imageURLHighRes, imageURL, image or imUrl
Images are on Amazon's servers: their addresses go to image_urls.csv in OUT.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
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
    json_rows,
    named_columns,
    named_values,
    shortened,
)

NAMES = {"parent_asin": ("user_id", "parent_asin", "timestamp", "rating"),  # 2023
         "asin": ("reviewerID", "asin", "unixReviewTime", "overall")}  # 2018 and 2014  # fmt: skip
UNREADABLE = "getTime"  # in titles of 2018 that are a script of the shop's page
Interactions = Iterator[tuple[int, object, object, object, object]]


def main() -> None:
    convert(__doc__, read)


def read(options: argparse.Namespace, bad: BadLines) -> Raw:
    expected = " or ".join(",".join(names) for names in NAMES.values())
    reviews = find_file(options.raw, f"reviews ({expected}), or a CSV of ratings", is_reviews)
    key = "parent_asin" if "parent_asin" in first_row(reviews)[1] else "asin"
    metadata = find_file(options.raw, f"metadata ({key},title,...)", lambda kind, cells: is_metadata(kind, cells, key))
    log = read_log(reviews, interactions(reviews, metadata, key, bad), bad)
    known = set(log.items)
    texts = item_texts(((str(row.get(key)), text(row)) for _, row in json_rows(metadata, bad)), known)
    return Raw(log, texts, find_images(options.raw, options.images, known), (reviews, metadata))


def is_reviews(kind: str, cells: list[str]) -> bool:
    named = any(set(names) <= set(cells) for names in NAMES.values())
    return named or kind == "csv" and len(cells) == 4 and all(map(is_time, cells[2:]))


def is_metadata(kind: str, cells: list[str], key: str) -> bool:
    return kind == "json" and key in cells and not is_reviews(kind, cells)


def interactions(reviews: Path, metadata: Path, key: str, bad: BadLines) -> Interactions:
    """Line, user, item, time and rating of every interaction."""
    kind, first = first_row(reviews)
    if set(NAMES[key]) <= set(first):
        for line, values in (named_values if kind == "json" else named_columns)(reviews, bad, NAMES[key]):
            yield line, *values
        return
    sample = list(islice(csv_rows(reviews, BadLines(bad.skip)), 1000))
    ids = {cell for _, cells in sample for cell in cells[:2]}
    known = {row[key] for _, row in json_rows(metadata, BadLines(bad.skip)) if row.get(key) in ids}
    place = item_column(reviews, sample, known)
    for line, cells in csv_rows(reviews, bad):
        if len(cells) == 4:
            yield line, cells[1 - place], cells[place], cells[3], cells[2]
        else:
            bad(reviews, line, f"expected user, item, rating and time, found {shortened(','.join(cells))}")


def text(row: dict) -> ItemText:
    title = row.get("title")
    return ItemText(title if isinstance(title, str) and UNREADABLE not in title else "", url=image_url(row))


def image_url(row: dict) -> str:
    """The address of an item's main image, as large as there is one; empty where there is none."""
    images = row.get("images")
    if isinstance(images, dict):  # of lists, as some copies have it
        lists = {name: values for name, values in images.items() if isinstance(values, list)}
        images = [dict(zip(lists, values)) for values in zip(*lists.values())]
    if isinstance(images, list):
        shown = [image for image in images if isinstance(image, dict)]
        for image in sorted(shown, key=lambda image: image.get("variant") != "MAIN"):
            if url := next((image[size] for size in ("hi_res", "large", "thumb") if image.get(size)), ""):
                return str(url)
    for name in ("imageURLHighRes", "imageURL", "image", "imUrl"):
        urls = row.get(name)
        if url := next(iter(urls), "") if isinstance(urls, list) else urls:
            return str(url)
    return ""


if __name__ == "__main__":
    main()
