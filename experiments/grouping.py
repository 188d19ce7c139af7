#!/usr/bin/env python3
"""Does it matter that a batch holds prompts of similar length?

    python experiments/grouping.py --data DIR --backbone runs/tiny-ml-100k --seeds 1 2 3

SFT over a quarter of the training windows, read one by one, with batches of similar lengths and with batches drawn from
all (`--mixed-lengths`). Then evaluate.py on the validation users, with true and grey images. The result of an order and
a seed is one file in experiments/results/grouping/, and is not made again where the file is there; the table is of all
of them: experiments/results/grouping.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from hanorec.data.dataset import open_dataset
from hanorec.data.interactions import windows
from hanorec.errors import exit_on_user_error
from hanorec.evaluation.report import markdown
from hanorec.training.checkpoints import replace_text

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
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results" / "grouping", metavar="DIR")
    args = parser.parse_args()
    data = open_dataset(args.data)
    number = round(args.share * len(windows(data.train, which="every")[0]))
    of_one = ["--data", args.data, "--backbone", args.backbone, "--train-users", str(number), "--epochs", "1"]
    of_one += ["--train-vision"]  # as all SFT did when the cells were made
    args.results.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for order in ORDERS:
            run, cell = args.runs / f"{order}-{seed}", args.results / f"{order}-{seed}.json"
            if cell.is_file():
                continue
            train = [*of_one, "--output", str(run), "--cache", str(args.runs / "cache"), "--seed", str(seed)]
            mixed = ["--mixed-lengths"] if order == "mixed" else []
            call(ROOT / "train_sft.py", *train, *mixed, "--windows", "every", "--overwrite")
            views = ["--split", "val", "--modality", "full", "blank", "--baselines", "popularity"]
            call(ROOT / "evaluate.py", "--runs", str(run), "--cache", str(args.runs / "cache"), *views)
            measures = json.loads((run / "evaluation-val-next.json").read_text(encoding="utf-8"))["measures"]
            figures = {name: measures[f"{run}{row}"]["HR@1"][0] for row, name in ROWS.items()}
            replace_text(cell, json.dumps({"order": order, "seed": seed, "windows": number, **figures}) + "\n")
    path = args.results.parent / f"{args.results.name}.md"
    cells = [json.loads(cell.read_text(encoding="utf-8")) for cell in sorted(args.results.glob("*.json"))]
    path.write_text(table(cells), encoding="utf-8")
    print(path.read_text(encoding="utf-8"))


def call(script: str | Path, *arguments: str) -> None:
    subprocess.run([sys.executable, str(script), *arguments], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def table(cells: list[dict]) -> str:
    """Means over seeds, [least, most]; and what the images are worth."""
    rows = []
    for order, name in ORDERS.items():
        if own := [cell for cell in cells if cell["order"] == order]:
            true, grey = (np.array([cell[column] for cell in own]) for column in ROWS.values())
            rows.append([name, str(len(true)), *map(spread, (true, grey, true - grey))])
    header = ["order", "seeds", *ROWS.values(), "images: more HR@1"]
    return (
        f"Written by `python experiments/grouping.py`: SFT over {cells[0]['windows']} windows, one epoch, on "
        f"validation users, mean [least, most] over seeds.\n\n{markdown(header, rows)}\n"
    )


def spread(values: np.ndarray) -> str:
    return f"{values.mean():.3f} [{values.min():.3f}, {values.max():.3f}]"


if __name__ == "__main__":
    with exit_on_user_error():
        main()
