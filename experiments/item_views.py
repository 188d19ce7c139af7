#!/usr/bin/env python3
"""Do pixels carry more than their words? SFT with an image before each title, a description, both, or nothing.

    python experiments/item_views.py --list                  every cell and its state
    python experiments/item_views.py --seeds 1               the toy catalogue, described by the tiny backbone
    python experiments/item_views.py --data DIR --describe-with CHECKPOINT     real data, one of two catalogues
    python experiments/item_views.py --table                 writes experiments/results/item-views.md

In place of pictures stand captions, as in MLLMRec (arXiv 2508.15304), which data/describe_items.py lets a backbone
write once. A cell (catalogue, view, seed) is a run of train_sft.py on one thread, with the options of a fully trained
start of the study, and evaluate.py on test users and, on the toy catalogue, on those whose histories were never seen in
training. Its result is one JSON file in --results; a cell whose file is there is skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from study_cells import ROOT, start_command, start_folder
from study_run import Failed, Scripts, make_catalogues, make_start, measured, rounded, write_cell
from study_table import shown, values
from study_worlds import REAL

from hanorec.errors import DataError, exit_on_user_error
from hanorec.evaluation.paired import paired_difference
from hanorec.evaluation.report import markdown

VIEWS = {"image": "image", "description": "description", "both": "image and description", "title": "nothing"}
STARTS_OF = {"toy": "full-every", REAL: "ml-100k-20"}  # of the study: what SFT is like
SPLITS = {"toy": ("test", "cold"), REAL: ("test",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="a real dataset's folder (default: the toy catalogue)")
    parser.add_argument("--describe-with", default="tiny", metavar="NAME", help="the backbone that captions images")
    parser.add_argument("--list", action="store_true", help="show the cells and their states, and run nothing")
    parser.add_argument("--table", action="store_true", help="write the tables from the files there, and run nothing")
    parser.add_argument("--views", nargs="+", choices=list(VIEWS), default=list(VIEWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results" / "item-views", metavar="DIR")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "study", metavar="DIR", help="weights and logs")
    args = parser.parse_args()
    if args.table:
        path = args.results.parent / "item-views.md"
        path.write_text(tables(args.results), encoding="utf-8")
        print(path.read_text(encoding="utf-8"))
        return
    os.chdir(ROOT)
    catalogue = REAL if args.data else "toy"
    scripts, runs = Scripts(), Path(os.path.relpath(args.runs, ROOT))
    for seed in args.seeds:
        for view in args.views:
            path = args.results / f"{catalogue}--{view}--{seed}.json"
            if args.list or path.is_file():
                print(f"{path.stem:30} {'done' if path.is_file() else 'to do'}", flush=True)
                continue
            make_catalogues([catalogue], runs, args.data and args.data.resolve())
            if view in ("description", "both"):
                describe(runs / "data" / catalogue, args.describe_with)
            write_cell(path, run_cell(catalogue, view, seed, runs, scripts))
            print(f"{path.stem}: done", flush=True)


def describe(data: Path, backbone: str) -> None:
    """Write descriptions.csv into a dataset folder, or what it lacks."""
    command = [sys.executable, ROOT / "data" / "describe_items.py", "--data", data, "--backbone", backbone]
    subprocess.run(command, check=True)


def run_cell(catalogue: str, view: str, seed: int, runs: Path, scripts: Scripts) -> dict:
    """Train and measure a cell; returns the content of its file. With images it is the study's start itself. Errors:
    DataError where a script fails."""
    start = STARTS_OF[catalogue]
    train, content = start_command(start, seed, runs), {"catalogue": catalogue, "view": view, "seed": seed, "views": {}}
    try:
        if view == "image":
            run, made = start_folder(start, seed, runs), make_start(start, seed, runs, scripts, any_code=True)
            if "failed" in made:
                raise Failed(made["failed"])
        else:
            run = runs / f"view-{catalogue}-{view}-{seed}"
            train += ["--item-view", view, "--output", str(run)]
            made = {"seconds": rounded(scripts.run(train, run.with_suffix(".log")))}
        content |= {"command": " ".join(train), "seconds": made["seconds"]}
        for split in SPLITS[catalogue]:
            command = ["evaluate.py", "--runs", str(run), "--data", str(runs / "data" / catalogue)]
            command += ["--cache", str(runs / "cache"), "--users", "1000", "--baselines", "popularity"]
            command += ["--split", split]
            scripts.run(command, run.with_suffix(".log"))
            content["views"] |= measured(split, run, command)
    except Failed as error:
        raise DataError(f"{catalogue}, {view}, seed {seed}: {error}") from None
    return content


def tables(results: Path) -> str:
    """A table for each catalogue and split. Errors: DataError where there is no cell."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    if not cells:
        raise DataError(f"{results}: no cells; the script makes them")
    parts = [
        "Written by `python experiments/item_views.py --table`: SFT by what stands before each title. Means over "
        "seeds and users; what images have more, paired, with 95 % intervals over users and seeds."
    ]
    for catalogue, splits in SPLITS.items():
        of = {view: {c["seed"]: c for c in cells if (c["catalogue"], c["view"]) == (catalogue, view)} for view in VIEWS}
        for split in splits if any(of.values()) else ():
            rows = [row(of, view, split) for view in VIEWS if of[view]]
            header = ["before a title", "seeds", "HR@1", "images: more HR@1", "NDCG@10", "images: more NDCG@10"]
            parts.append(f"{catalogue}, `{split}`\n\n{markdown(header, rows)}")
    return "\n\n".join(parts) + "\n"


def row(of: dict[str, dict[int, dict]], view: str, split: str) -> list[str]:
    line = [VIEWS[view], str(len(of[view]))]
    for measure in ("HR@1", "NDCG@10"):
        own = {seed: values(cell, split, measure) for seed, cell in of[view].items()}
        images = {seed: values(cell, split, measure) for seed, cell in of["image"].items()}
        more = [images[seed] - own[seed] for seed in own if seed in images and view != "image"]
        line += [f"{np.mean(list(own.values())):.3f}", shown(paired_difference(more) if more else None, False)]
    return line


if __name__ == "__main__":
    with exit_on_user_error():
        main()
