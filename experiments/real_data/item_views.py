"""Do pixels carry more than their words? SFT with an image before each title, a description, both, or nothing.

    python -m experiments.real_data.item_views --list            every cell and its state
    python -m experiments.real_data.item_views                   the toy catalogue, described by the tiny backbone
    python -m experiments.real_data.item_views --data DIR --describe-with CHECKPOINT    MovieLens-100K with posters
    python -m experiments.real_data.item_views --table           writes item-views.md

Captions stand in place of pictures, as in MLLMRec (arXiv 2508.15304); a backbone writes them once
(data/describe_items.py). In: a catalogue. Out: a row in item-views.jsonl for each cell (catalogue, view, seed). A cell
is a run of train_sft.py on one thread, and one of evaluate.py on test users. On the toy catalogue, a second evaluation
is on users whose histories were never seen in training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.cells import Cell, Scripts
from experiments.common import letters, shown, user_values
from experiments.real_data.real_sft import SETTINGS, add_options, list_make_or_write, train
from hanorec.errors import exit_on_user_error
from hanorec.evaluation.paired import paired_difference
from hanorec.evaluation.report import markdown

NAMES = ("catalogue", "view", "seed")  # a cell's key
VIEWS = {"image": "image", "description": "description", "both": "image and description", "title": "nothing"}
OPTIONS = {  # of train_sft.py, by catalogue
    "toy": ("--epochs", "2", "--windows", "every"),
    "ml-100k-titles-8": SETTINGS["ml-100k-titles-8"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="a real dataset's folder (default: the toy catalogue)")
    parser.add_argument("--describe-with", default="tiny", metavar="NAME", help="the backbone that captions images")
    parser.add_argument("--views", nargs="+", choices=list(VIEWS), default=list(VIEWS))
    add_options(parser, "item-views")
    args = parser.parse_args()
    catalogue = "ml-100k-titles-8" if args.data else "toy"
    cells = [
        Cell((catalogue, view, seed), {"options": list(OPTIONS[catalogue])})
        for seed in args.seeds
        for view in args.views
    ]

    def make(cell: Cell, scripts: Scripts) -> dict:
        data = args.data.resolve() if args.data else args.runs / "toy"
        if not data.is_dir():
            scripts.run(["data/make_toy.py", str(data)], args.runs / "toy.log")
        if cell.key[1] in ("description", "both"):  # what descriptions.csv lacks
            describe = ["data/describe_items.py", "--data", str(data), "--backbone", args.describe_with]
            scripts.run(describe, args.runs / "describe.log")
        return run_cell(cell, data, args.runs, scripts)

    list_make_or_write(args, cells, NAMES, make, tables)


def run_cell(cell: Cell, data: Path, runs: Path, scripts: Scripts) -> dict:
    """Train and measure a cell; returns the content of its row. Errors: Failed where a script fails."""
    catalogue, view, seed = cell.key
    run = runs / f"view-{cell.name}"
    seconds = train([*cell.settings["options"], "--item-view", view], seed, run, data, scripts)
    content: dict = {"seconds": seconds, "views": {}}
    for split in ("test", "cold") if catalogue == "toy" else ("test",):
        command = ["evaluate.py", "--runs", str(run), "--data", str(data), "--cache", str(runs / "cache")]
        command += ["--users", "1000", "--baselines", "popularity", "--split", split]
        scripts.run(command, run.with_suffix(f".{split}.log"))
        evaluation = json.loads((run / f"evaluation-{split}-next.json").read_text(encoding="utf-8"))
        ahead, tied = (evaluation["per_user"][part][str(run)] for part in ("ahead", "tied"))
        content["views"][split] = {
            "candidates": int(evaluation["options"]["candidates"]),
            "ahead": letters(ahead),
            "tied": letters(tied) if any(tied) else "",  # none for anyone
        }
    return content


def tables(rows: Sequence[dict]) -> str:
    """A table for each catalogue and split."""
    parts = [
        "Written by `python -m experiments.real_data.item_views --table`: SFT by what stands before each title. Means "
        "over seeds and users; what images have more, paired, with 95 % intervals over users and seeds."
    ]
    for catalogue in dict.fromkeys(row["catalogue"] for row in rows):
        cells = [row for row in rows if row["catalogue"] == catalogue]
        of = {view: {row["seed"]: row["views"] for row in cells if row["view"] == view} for view in VIEWS}
        for split in cells[0]["views"]:
            lines = [line(of, view, split) for view in VIEWS if of[view]]
            header = ["before a title", "seeds", "HR@1", "images: more HR@1", "NDCG@10", "images: more NDCG@10"]
            parts.append(f"{catalogue}, `{split}`\n\n{markdown(header, lines)}")
    return "\n\n".join(parts) + "\n"


def line(of: dict[str, dict[int, dict]], view: str, split: str) -> list[str]:
    """A view's line. of: by view and seed, what was measured by split."""
    result = [VIEWS[view], str(len(of[view]))]
    for measure in ("HR@1", "NDCG@10"):
        own, images = (
            {seed: values(splits[split], measure) for seed, splits in of[name].items()} for name in (view, "image")
        )
        more = [images[seed] - own[seed] for seed in own if seed in images and view != "image"]
        result += [f"{np.mean(list(own.values())):.3f}", shown(paired_difference(more) if more else None)]
    return result


def values(seen: dict, measure: str) -> np.ndarray:
    """A measure of every user, [U]."""
    return user_values(seen["ahead"], seen["tied"], seen["candidates"], measure)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
