"""Recommenders that know items by number alone, on any dataset: popularity, item co-occurrence, SASRec and GRU4Rec.

    python -m experiments.real_data.recommenders --data DIR --name recommenders-ml-100k
    python -m experiments.real_data.recommenders --data DIR --history 5 --seeds 1 --methods sasrec

In: a dataset folder. Out: <name>.jsonl, a row for each method, history and seed, and <name>.md, their table, on
validation and test users. SASRec and GRU4Rec are trained on one thread; validation users choose their best epoch. Rows
that are there are kept, so the same command goes on after a stop.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from experiments.cells import Cell, latest, make_cells, missing
from experiments.common import read_rows
from hanorec.data.dataset import Dataset, open_dataset, split_examples
from hanorec.data.examples import Example
from hanorec.errors import exit_on_user_error
from hanorec.evaluation.baselines import BASELINES, baseline_answers
from hanorec.evaluation.measures import Answers, measures
from hanorec.evaluation.ranking import answer_with_scorer
from hanorec.evaluation.report import markdown
from hanorec.recommenders.networks import NETWORKS, network_scorer
from hanorec.recommenders.training import VALIDATION_USERS, train_network

METHODS = [method for method in BASELINES if method != "random"]
NAMES = ("method", "history", "seed")  # a cell's key
CANDIDATES, SEED = 20, 2025  # as evaluate.py draws them
Examples = dict[str, list[Example]]  # by split
COLUMNS = [("val", "HR@1"), ("val", "NDCG@10"), ("test", "HR@1"), ("test", "HR@3"), ("test", "NDCG@10")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="dataset folder (default: the toy catalogue)")
    parser.add_argument("--history", type=int, nargs="+", default=[5, 20, 50], help="most items in a history")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of what is trained")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--name", default="recommenders", help="of the results files")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data, path = open_dataset(args.data), Path(__file__).parent / f"{args.name}.jsonl"
    keys = [
        (method, history, seed)
        for history in args.history
        for method in args.methods
        for seed in (args.seeds if BASELINES[method] in NETWORKS else [0])
    ]
    cells = [Cell(key, {"candidates": CANDIDATES}) for key in keys]
    todo = missing(cells, latest(read_rows(path), NAMES))
    make_cells(todo, NAMES, path, lambda cell, _: measure(data, *cell.key))
    rows = latest(read_rows(path), NAMES)
    text = table([rows[key] for key in keys], args.seeds, len(split_examples(data, "test", "next")))
    path.with_suffix(".md").write_text(text, encoding="utf-8")
    print(f"\n{text}")


def answers_of(data: Dataset, method: str, history: int, seed: int) -> tuple[dict[str, Answers], Examples, float]:
    """A method's answers for validation and test users by split, what they answer, and the CPU seconds of it all.
    seed: of what is trained."""
    drawn = dict(task="next", history=history, candidates=CANDIDATES, seed=SEED)
    examples = {split: split_examples(data, split, **drawn) for split in ("val", "test")}
    begun, name = time.process_time(), BASELINES[method]
    if name in NETWORKS:
        validation = split_examples(data, "val", users=VALIDATION_USERS, **drawn)
        network = train_network(name, data, validation, seed=seed)
        seconds = time.process_time() - begun
        answers = {split: answer_with_scorer(network_scorer(network, e), e, "next") for split, e in examples.items()}
    else:
        answers = {split: baseline_answers(data, e, "next", names=[method])[name] for split, e in examples.items()}
        seconds = time.process_time() - begun
    return answers, examples, round(seconds, 1)


def measure(data: Dataset, method: str, history: int, seed: int) -> dict:
    """The content of a method's row: measures by split, each (value, low, high), CPU seconds, peak memory."""
    answers, examples, seconds = answers_of(data, method, history, seed)
    result = {split: measures("next", each, examples[split]) for split, each in answers.items()}
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result | {"seconds": seconds, "mebibytes": mebibytes}


def table(rows: Sequence[dict], seeds: Sequence[int], users: int) -> str:
    """The table of rows, a line for each method and history. users: how many are tested."""
    lines = []
    for method, history in dict.fromkeys((row["method"], row["history"]) for row in rows):
        cells = [row for row in rows if (row["method"], row["history"]) == (method, history)]
        lines.append([BASELINES[method], str(history), *summary(cells)])
    note = (
        f"{users} test users, {CANDIDATES} candidates, histories of at most so many items. "
        "Popularity and item co-occurrence: value [95 % interval over users]. SASRec and GRU4Rec: mean [least, most] "
        f"over seeds {list(seeds)}. CPU s: seconds of one thread, mean. The process took at most "
        f"{max(row['mebibytes'] for row in rows) / 1024:.1f} GiB."
    )
    header = ["method", "history", *(f"{split}: {name}" for split, name in COLUMNS), "CPU s"]
    return f"{note}\n\n{markdown(header, lines)}\n"


def summary(cells: list[dict]) -> list[str]:
    """A line's values: over the seeds, or of the one cell with its interval over users; then the seconds."""
    line = []
    for split, name in COLUMNS:
        value, low, high = np.array([cell[split][name] for cell in cells]).T
        low, high = (value, value) if len(cells) > 1 else (low, high)
        line.append(f"{value.mean():.3f} [{low.min():.3f}, {high.max():.3f}]")
    return [*line, f"{np.mean([cell['seconds'] for cell in cells]):.0f}"]


if __name__ == "__main__":
    with exit_on_user_error():
        main()
