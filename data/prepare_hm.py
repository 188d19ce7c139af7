#!/usr/bin/env python3
"""Turn the H&M Personalized Fashion data (https://www.kaggle.com/c/h-and-m-personalized-fashion-recommendations) into a
dataset.

    python data/prepare_hm.py h-and-m datasets/hm

RAW holds, as published,
    transactions_train.csv    t_dat,customer_id,article_id,...; of one day's purchases the file's order is kept
    articles.csv              article_id,...,prod_name,...,detail_desc, the last as description
    images/                   049/0498480001.jpg

Article ids get back the zero that they begin with where a copy has lost it.
"""

from __future__ import annotations

import argparse

from convert import convert

from hanorec.data.log import read_log
from hanorec.data.prepare import ItemText, Raw, item_texts
from hanorec.data.raw import BadLines, find_file, find_images, has_columns, named_columns

TRANSACTIONS, ARTICLES = ("t_dat", "customer_id", "article_id"), ("article_id", "prod_name")
DIGITS = 10  # of an article's id


def main() -> None:
    convert(__doc__, read)


def read(options: argparse.Namespace, bad: BadLines) -> Raw:
    bought = find_file(options.raw, ",".join(TRANSACTIONS), has_columns(*TRANSACTIONS))
    articles = find_file(options.raw, ",".join(ARTICLES), has_columns(*ARTICLES))
    rows = named_columns(bought, bad, TRANSACTIONS)
    log = read_log(bought, ((line, user, full_id(item), day, None) for line, (day, user, item) in rows), bad)
    known, said = set(log.items), named_columns(articles, bad, ARTICLES, optional=["detail_desc"])
    texts = item_texts(((full_id(item), ItemText(name, text)) for _, (item, name, text) in said), known)
    return Raw(log, texts, find_images(options.raw, options.images, known, digits=DIGITS), (bought, articles))


def full_id(item: str) -> str:
    item = item.strip()
    return item.zfill(DIGITS) if item else item


if __name__ == "__main__":
    main()
