#!/usr/bin/env python3
"""Recommenders that know items by number alone, on any dataset: popularity, item co-occurrence, SASRec and GRU4Rec.

    python experiments/recommenders.py --data DIR --name recommenders-ml-100k
    python experiments/recommenders.py --data DIR --history 5 --seeds 1 --methods sasrec

On validation and test users, by the length of the history. SASRec and GRU4Rec are trained on one thread, once a history
and seed; validation users choose their best epoch. Cells that <name>.json has already are kept, so an interrupted study
goes on where it was. Writes experiments/results/<name>.json and .md.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch

from hanorec.data.dataset import Dataset, open_dataset, split_examples
from hanorec.errors import exit_on_user_error
from hanorec.evaluation.baselines import BASELINES, baseline_answers
from hanorec.evaluation.measures import measures
from hanorec.evaluation.ranking import answer_with_scorer
from hanorec.evaluation.report import markdown
from hanorec.recommenders.networks import NETWORKS, network_scorer
from hanorec.recommenders.training import VALIDATION_USERS, train_network

RESULTS = Path(__file__).resolve().parent / "results"
METHODS = [method for method in BASELINES if method != "random"]
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
    data = open_dataset(args.data)
    path = RESULTS / f"{args.name}.json"
    cells = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = []
    for history in args.history:
        for method in args.methods:
            found = []
            for seed in args.seeds if BASELINES[method] in NETWORKS else [0]:
                key = f"{method}, history {history}, seed {seed}"
                if key not in cells:
                    cells[key] = measure(data, method, history, seed)
                    path.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
                print(f"{key}: NDCG@10 {cells[key]['val']['NDCG@10'][0]:.4f} on validation", flush=True)
                found.append(cells[key])
            rows.append([BASELINES[method], str(history), *summary(found)])
    table = markdown(["method", "history", *(f"{split}: {name}" for split, name in COLUMNS), "CPU s"], rows)
    note = (
        f"{len(split_examples(data, 'test', 'next'))} test users, 20 candidates, histories of at most so many items. "
        "Popularity and item co-occurrence: value [95 % interval over users]. SASRec and GRU4Rec: mean [least, most] "
        f"over seeds {args.seeds}. CPU s: seconds of one thread, mean. The process took at most "
        f"{max(cell['mebibytes'] for cell in cells.values()) / 1024:.1f} GiB."
    )
    (RESULTS / f"{args.name}.md").write_text(f"{note}\n\n{table}\n", encoding="utf-8")
    print(f"\n{note}\n\n{table}")


def measure(data: Dataset, method: str, history: int, seed: int) -> dict:
    """A method's measures by split, each (value, low, high), the CPU seconds it took, and the process's peak memory."""
    drawn = dict(task="next", history=history, candidates=20, seed=2025)
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
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    result = {split: measures("next", each, examples[split]) for split, each in answers.items()}
    return result | {"seconds": round(seconds, 1), "mebibytes": mebibytes}


def summary(cells: list[dict]) -> list[str]:
    """A row's values: over the seeds, or of the one cell with its interval over users; then the seconds."""
    row = []
    for split, name in COLUMNS:
        value, low, high = np.array([cell[split][name] for cell in cells]).T
        low, high = (value, value) if len(cells) > 1 else (low, high)
        row.append(f"{value.mean():.3f} [{low.min():.3f}, {high.max():.3f}]")
    return [*row, f"{np.mean([cell['seconds'] for cell in cells]):.0f}"]


if __name__ == "__main__":
    with exit_on_user_error():
        main()
