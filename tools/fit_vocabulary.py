#!/usr/bin/env python3
"""Give the tiny backbone a vocabulary that has a dataset's words.

The vocabulary that ships with it was learnt from the toy catalogue's words and from English prose, so that a real title
falls into a dozen pieces. This script learns one from the same texts and the dataset's titles, in which most words of a
title are one token: a prompt gets shorter, and an item is told from others by fewer tokens. With --whole-titles each
title is one token, and so is each question of the prompts. A title starts at the mean of its words; what it means
beyond them is learnt from the rows that it occurs in, so it does not suit catalogues with items that training never
sees. Only titles are read, no user's row.

    python tools/fit_vocabulary.py --data DIR --output runs/tiny-for-my-data
    python train_sft.py --data DIR --backbone runs/tiny-for-my-data
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pretrain_tiny import vocabulary_texts
from transformers import AutoTokenizer

from hanorec.data.catalog import read_catalog
from hanorec.errors import DataError, exit_on_user_error
from hanorec.models import tiny
from hanorec.models.prompts import HISTORY, QUESTIONS

PHRASES = [HISTORY, *QUESTIONS.values(), "\nAssistant:"]  # of every prompt
COPIES = 400  # of the titles beside the prose, so that their words become tokens first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="dataset folder, see data/README.md")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the new checkpoint")
    parser.add_argument("--size", type=int, default=6144, help="most tokens of the vocabulary (default 6144)")
    parser.add_argument("--whole-titles", action="store_true", help="make each title and question one token, too")
    args = parser.parse_args()
    if args.output.exists():
        raise DataError(f"{args.output}: exists already")
    titles = list(read_catalog(args.data).titles)
    before = AutoTokenizer.from_pretrained(tiny.PRETRAINED)
    whole = [*titles, *PHRASES] if args.whole_titles else ()
    now = tiny.save_with_vocabulary(args.output, vocabulary_texts() + titles * COPIES, args.size, whole)
    old, new = (sum(map(len, tokenizer(titles).input_ids)) / len(titles) for tokenizer in (before, now))
    print(f"made {args.output}: {len(now)} tokens; a title has {old:.1f} tokens before and {new:.1f} now")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
