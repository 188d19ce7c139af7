#!/usr/bin/env python3
"""Does it matter that a batch holds prompts of similar length?

    python experiments/grouping.py --data DIR --backbone runs/tiny-for-my-data --seeds 1 2 3

SFT over a quarter of the training windows, read one by one, with batches of similar lengths (as train_sft.py makes
them) and with batches drawn from all. Then evaluate.py on the validation users, with true and grey images. A finished
run is not run again; the table is of all that are there: experiments/results/grouping.md.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np

import hanorec.training.loop as loop
from hanorec.data.dataset import open_dataset
from hanorec.data.interactions import windows
from hanorec.errors import exit_on_user_error
from hanorec.evaluation.report import markdown

ROOT = Path(__file__).resolve().parent.parent
ORDERS = {"grouped": "batches of similar lengths", "mixed": "batches drawn from all"}
ROWS = {"": "HR@1", ", blank": "grey: HR@1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DIR", help="dataset folder, see data/README.md")
    parser.add_argument("--backbone", default="tiny", metavar="NAME", help="as in train_sft.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--share", type=float, default=0.25, help="of the training windows (default 0.25)")
    parser.add_argument("--runs", type=Path, default=Path("runs/grouping"), metavar="DIR")
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results", metavar="DIR")
    args = parser.parse_args()
    data = open_dataset(args.data)
    number = round(args.share * len(windows(data.train, which="every")[0]))
    of_one = ["--data", args.data, "--backbone", args.backbone, "--train-users", str(number), "--epochs", "1"]
    figures: dict[str, list[dict]] = {order: [] for order in ORDERS}
    for seed in args.seeds:
        for order in ORDERS:
            run = args.runs / f"{order}-{seed}"
            if not (run / "finished.json").is_file():
                train = [*of_one, "--output", str(run), "--cache", str(args.runs / "cache"), "--seed", str(seed)]
                call(__file__, order, *train, "--windows", "every", "--overwrite")
            views = ["--split", "val", "--modality", "full", "blank", "--baselines", "popularity"]
            if not (run / "evaluation-val-next.json").is_file():
                call(ROOT / "evaluate.py", "--runs", str(run), "--cache", str(args.runs / "cache"), *views)
            measures = json.loads((run / "evaluation-val-next.json").read_text(encoding="utf-8"))["measures"]
            figures[order].append({name: measures[f"{run}{row}"]["HR@1"][0] for row, name in ROWS.items()})
    path = args.results / "grouping.md"
    path.write_text(table(figures, number), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


def call(script: str | Path, *arguments: str) -> None:
    subprocess.run([sys.executable, str(script), *arguments], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def train(order: str, arguments: list[str]) -> None:
    """train_sft.py with batches in one of `ORDERS`."""
    if order == "mixed":
        sorted_order = loop.epoch_order
        loop.epoch_order = lambda lengths, *rest: sorted_order([0] * len(lengths), *rest)
    sys.argv = ["train_sft.py", *arguments]
    runpy.run_path(str(ROOT / "train_sft.py"), run_name="__main__")


def table(figures: dict[str, list[dict]], number: int) -> str:
    """Means over seeds, [least, most]; and what the images are worth."""
    rows = []
    for order, name in ORDERS.items():
        true, grey = (np.array([each[column] for each in figures[order]]) for column in ROWS.values())
        rows.append([name, str(len(true)), *map(spread, (true, grey, true - grey))])
    header = ["order", "seeds", *ROWS.values(), "images: more HR@1"]
    return (
        f"Written by `python experiments/grouping.py`: SFT over {number} windows, one epoch, on validation users, mean "
        f"[least, most] over seeds.\n\n{markdown(header, rows)}\n"
    )


def spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f} [{values.min():.3f}, {values.max():.3f}]"


if __name__ == "__main__":
    with exit_on_user_error():
        if sys.argv[1:2] and sys.argv[1] in ORDERS:
            train(sys.argv[1], sys.argv[2:])
        else:
            main()
