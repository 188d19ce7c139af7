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
from hanorec.evaluation.ranking import answer_with_scorer, measures
from hanorec.evaluation.recommenders import NETWORKS, network_scorer, train_network
from hanorec.evaluation.report import markdown

RESULTS = Path(__file__).resolve().parent / "results"
COLUMNS = [("val", "HR@1"), ("val", "NDCG@10"), ("test", "HR@1"), ("test", "HR@3"), ("test", "NDCG@10")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="dataset folder (default: the toy catalogue)")
    parser.add_argument("--history", type=int, nargs="+", default=[5, 20, 50], help="most items in a history")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of what is trained")
    parser.add_argument("--methods", nargs="+", choices=list(BASELINES), default=list(BASELINES))
    parser.add_argument("--name", default="recommenders", help="of the results files")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(args.data)
    path = RESULTS / f"{args.name}.json"
    cells = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for history in args.history:
        for method in args.methods:
            for seed in args.seeds if BASELINES[method] in NETWORKS else [0]:
                key = f"{method}, history {history}, seed {seed}"
                if key not in cells:
                    cells[key] = dict(method=method, history=history, **measure(data, method, history, seed))
                    path.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
                print(f"{key}: NDCG@10 {cells[key]['val']['NDCG@10'][0]:.4f} on validation", flush=True)
    text = "\n\n".join(f"Histories of up to {history} items\n\n{table(cells, history)}" for history in args.history)
    note = (
        "Random, popularity, item co-occurrence: value [95 % interval over users]. SASRec, GRU4Rec: mean [least, most] "
        f"over {len(args.seeds)} seeds. CPU s: seconds of one thread for a training, mean. The process took at most "
        f"{max(cell['mebibytes'] for cell in cells.values()) / 1024:.1f} GiB."
    )
    (RESULTS / f"{args.name}.md").write_text(f"{text}\n\n{note}\n", encoding="utf-8")
    print(f"\n{text}\n\n{note}")


def measure(data: Dataset, method: str, history: int, seed: int) -> dict:
    """A method's measures by split, each (value, low, high), the CPU seconds it took, and the process's peak memory."""
    drawn = dict(task="next", history=history, candidates=20, seed=2025)
    examples = {split: split_examples(data, split, **drawn) for split in ("val", "test")}
    begun, name = time.process_time(), BASELINES[method]
    if name in NETWORKS:
        network = train_network(name, data, drawn, seed=seed)
        seconds = time.process_time() - begun
        answers = {split: answer_with_scorer(network_scorer(network, e), e, "next") for split, e in examples.items()}
    else:
        answers = {split: baseline_answers(data, e, "next", names=[method])[name] for split, e in examples.items()}
        seconds = time.process_time() - begun
    mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    result = {split: measures("next", each, examples[split]) for split, each in answers.items()}
    return result | {"seconds": round(seconds, 1), "mebibytes": mebibytes}


def table(cells: dict[str, dict], history: int) -> str:
    """A row for each method: over its seeds, or with its interval over users where it has none."""
    rows = []
    for method, name in BASELINES.items():
        found = [cell for cell in cells.values() if (cell["method"], cell["history"]) == (method, history)]
        if not found:
            continue
        row = [name]
        for split, measure in COLUMNS:
            value, low, high = np.array([cell[split][measure] for cell in found]).T
            low, high = (value.min(), value.max()) if name in NETWORKS else (low[0], high[0])
            row.append(f"{value.mean():.3f} [{low:.3f}, {high:.3f}]")
        rows.append([*row, f"{np.mean([cell['seconds'] for cell in found]):.0f}"])
    return markdown(["method", *(f"{split}: {measure}" for split, measure in COLUMNS), "CPU s"], rows)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
