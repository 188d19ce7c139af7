#!/usr/bin/env python3
"""What the LoRA dropout of `models/lora.py` saves of a HaNoRec step on a CPU, against torch's own.

    python experiments/dropout.py
    python experiments/dropout.py --backbone DIR --data DIR --batch-size 4 --pairs 24 --rounds 6 --steps 1

The two take turns on the same batches in one process; a ratio is the median over rounds of neighbouring turns. Writes
experiments/results/dropout.json and .md; rows that are there already for other backbones are kept.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from bench_models import catalogue, pixels_of
from bench_worker import set_up, train

from hanorec.evaluation.report import markdown
from hanorec.models.lora import Dropout

RESULTS = Path(__file__).resolve().parent / "results"
KINDS = {"ours": Dropout, "torch's": torch.nn.Dropout, "none": torch.nn.Identity}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny", help="a checkpoint folder or hub id (default: the tiny backbone)")
    parser.add_argument("--data", type=Path, help="dataset folder (default: a small toy catalogue)")
    parser.add_argument("--batch-size", type=int, default=16, help="pairs a step (default 16)")
    parser.add_argument("--pairs", type=int, default=128, help="how many different pairs (default 128)")
    parser.add_argument("--rounds", type=int, default=20, help="turns of each (default 20)")
    parser.add_argument("--steps", type=int, default=2, help="steps a turn (default 2)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or catalogue(Path(folder), pixels_of(args.backbone))
        torch.manual_seed(0)
        worker = dict(side="ours", work="hanorec", exact=False, profile=False)
        state = set_up(SimpleNamespace(**vars(args) | worker | {"data": data}))
        rounds = alternate(state, args.rounds, args.steps)
    row = {
        "backbone": Path(args.backbone).name,
        "parameters": state.facts["parameters"],
        "batch_size": args.batch_size,
        "threads": torch.get_num_threads(),
        "steps": args.steps,
        "seconds": rounds,
    }
    write(row)


def alternate(state: SimpleNamespace, rounds: int, steps: int) -> dict[str, list[float]]:
    """CPU seconds of every turn of each kind of dropout; one turn each warms up."""
    layers = [layer.lora_dropout for layer in state.policy.model.modules() if hasattr(layer, "lora_dropout")]
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    state.spent = {"model": 0.0, "data": 0.0, "flops": 0.0}
    for number in range(rounds + 1):
        batches = [state.batches[(number * steps + step) % len(state.batches)] for step in range(steps)]
        order = list(KINDS)
        for kind in order[number % 3 :] + order[: number % 3]:
            for layer in layers:
                layer["default"] = KINDS[kind](0.05).train()
            begun = time.process_time()
            for batch in batches:
                train(state, batch)
            if number:
                seconds[kind].append(time.process_time() - begun)
    return seconds


def write(row: dict) -> None:
    path = RESULTS / "dropout.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    rows = [old for old in rows if old["parameters"] != row["parameters"]] + [row]
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")

    def of(row: dict, kind: str) -> str:
        ratios = [a / b for a, b in zip(row["seconds"][kind], row["seconds"]["ours"])]
        low, middle, high = statistics.quantiles(ratios, n=4)
        return f"{middle:.2f}× [{low:.2f}, {high:.2f}]"

    header = ["parameters", "pairs a step", "threads", "CPU seconds a step, ours", "torch's takes", "no dropout takes"]
    lines = [
        [f"{r['parameters'] / 1e6:.1f} M", str(r["batch_size"]), str(r["threads"]),
         f"{statistics.median(r['seconds']['ours']) / r['steps']:.2f}", of(r, "torch's"), of(r, "none")]
        for r in rows
    ]  # fmt: skip
    note = "LoRA dropout of 0.05 in a HaNoRec step on a CPU; ratios of CPU time, median [quartiles] over rounds."
    text = f"{note}\n\n{markdown(header, lines)}\n"
    (RESULTS / "dropout.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
