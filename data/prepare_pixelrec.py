#!/usr/bin/env python3
"""Turn PixelRec, or one of its parts such as Pixel200K (https://github.com/westlake-repl/PixelRec), into a dataset.

    python data/prepare_pixelrec.py Pixel200K datasets/pixel200k

RAW holds, as published, in itself or in folders of its own,
    one file of interactions    item_id,user_id,timestamp
    one file of items           item_id,...,title,tag,description
    cover/                      <item_id>.jpg
"""

from __future__ import annotations

import argparse

from convert import convert

from hanorec.data.log import read_log
from hanorec.data.prepare import ItemText, Raw, item_texts
from hanorec.data.raw import BadLines, find_file, find_images, has_columns, named_columns

INTERACTIONS, ITEMS = ("item_id", "user_id", "timestamp"), ("item_id", "title")


def main() -> None:
    convert(__doc__, read)


def read(options: argparse.Namespace, bad: BadLines) -> Raw:
    chosen = find_file(options.raw, ",".join(INTERACTIONS), has_columns(*INTERACTIONS))
    items = find_file(options.raw, ",".join(ITEMS), has_columns(*ITEMS))
    rows = named_columns(chosen, bad, INTERACTIONS)
    log = read_log(chosen, ((line, user, item, time, None) for line, (item, user, time) in rows), bad)
    known, said = set(log.items), named_columns(items, bad, ITEMS, optional=["description"])
    texts = item_texts(((item, ItemText(title, text)) for _, (item, title, text) in said), known)
    return Raw(log, texts, find_images(options.raw, options.images, known, "cover", "*/cover"), (chosen, items))


if __name__ == "__main__":
    main()
