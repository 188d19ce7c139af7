#!/usr/bin/env python3
"""Make the embedded toy catalogue: a world small enough that the best possible recommender is known exactly.

python data/make_toy.py                     the default world in data/toy, as the scripts make it on first use
python data/make_toy.py OUT --users 500 --affinity 2.5 --seed 7
python data/make_toy.py OUT --exchanged 0.75          the same rows, with images that are mostly another item's
"""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from hanorec.data.toy import World, make_toy
from hanorec.errors import DataError, exit_on_user_error
from hanorec.files import check_new_folder
from hanorec.training.bounds import LARGEST_SEED, BoundedOption

MEANING = {
    "warm_per_cell": "items of each theme and style that users choose from in training",
    "cold_per_cell": "items of each theme and style that occur in cold.tsv alone",
    "users": "rows of train.tsv, val.tsv and test.tsv",
    "cold_users": "rows of cold.tsv",
    "longest_row": "items of the longest row of test.tsv",
    "shortest_row": "items of the shortest one",
    "affinity": "log-odds of a user's favourite theme, and style, over another",
    "spread": "standard deviation of the tastes' log-popularity",
    "shortest_cold": "items of the shortest history of cold.tsv, where cold_per_cell is larger",
    "exchanged": "probability that an item has another item's image; nothing else changes",
    "near": "share of items of the same theme or style in a row of negatives.tsv",
    "seed": "of everything drawn",
}

AT_LEAST_ONE = ("warm_per_cell", "users", "longest_row", "shortest_row", "shortest_cold")
MOST = {"affinity": 100, "spread": 20, "seed": LARGEST_SEED}  # of more, e to the power of it is infinite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path("data/toy"), help="where it goes (default data/toy)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a toy catalogue that is there")
    for field in fields(World):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default,
            help=f"{MEANING[field.name]} (default {field.default})",
            action=BoundedOption, least=int(field.name in AT_LEAST_ONE), most=MOST.get(field.name),
        )  # fmt: skip
    args = vars(parser.parse_args())
    folder, overwrite = args.pop("folder"), args.pop("overwrite")
    check_new_folder(folder)
    if folder.exists() and any(folder.iterdir()):
        if not overwrite:
            raise DataError(f"{folder}: exists and is not empty; give --overwrite to replace it")
        if not (folder / "world.json").is_file():
            raise DataError(f"{folder}: is no toy catalogue (no world.json), so --overwrite leaves it alone")
    try:
        make_toy(folder, World(**args))
    except ValueError as error:
        raise DataError(str(error)) from error
    print(f"made {folder}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
