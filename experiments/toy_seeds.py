#!/usr/bin/env python3
"""HaNoRec and plain DPO on the toy catalogue, over several seeds, on the test and the cold split.

    python experiments/toy_seeds.py --sft runs/sft --seeds 1 2 3

Every run starts from the same SFT model. Finished cells are kept, so an interrupted study goes on where it was.
Writes experiments/results/toy_seeds.json and .md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from hanorec.evaluation.report import markdown

HERE = Path(__file__).resolve().parent
METHODS = {
    "DPO": ["--loss", "dpo"],
    "HaNoRec, paper": ["--loss", "hanorec", "--recipe", "paper"],
    "HaNoRec, calibrated": ["--loss", "hanorec", "--recipe", "calibrated"],
}
MEASURES = ("HR@1", "NDCG@10")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft", default="runs/sft", help="the finished SFT run all start from (default runs/sft)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/toy_seeds"), help="where the runs go (default runs/toy_seeds)"
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--users", type=int, default=1000, help="users to rank in each split (default 1000)")
    parser.add_argument("--splits", nargs="+", default=["test", "cold"])
    parser.add_argument("--train", nargs=argparse.REMAINDER, default=[], help="further options for train_dpo.py; last")
    args = parser.parse_args()

    cells = {}
    for method in args.methods:
        for seed in args.seeds:
            run = args.runs / f"{method.lower().replace(', ', '-')}-{seed}"
            if not (run / "finished.json").is_file():
                call(
                    "train_dpo.py",
                    "--sft",
                    args.sft,
                    "--output",
                    run,
                    "--seed",
                    seed,
                    "--overwrite",
                    *METHODS[method],
                    *args.train,
                )
            cells[method, seed] = run
    table = {}
    for split in args.splits:
        runs = [args.sft, *cells.values()]
        name = f"evaluation-{split}-next.json"
        if not all((Path(run) / name).is_file() for run in runs):
            call(
                "evaluate.py",
                "--runs",
                *runs,
                "--split",
                split,
                "--users",
                args.users,
                "--baselines",
                "random",
                "popularity",
            )
        first = json.loads((Path(args.sft) / name).read_text())["measures"]
        table[split] = {method: {m: first[method][m] for m in MEASURES} for method in first if method != str(args.sft)}
        table[split]["SFT"] = {m: first[str(args.sft)][m] for m in MEASURES}
        for method in args.methods:
            values = {
                m: [
                    json.loads((cells[method, s] / name).read_text())["measures"][str(cells[method, s])][m][0]
                    for s in args.seeds
                ]
                for m in MEASURES
            }
            table[split][method] = {m: [float(np.mean(v)), min(v), max(v)] for m, v in values.items()}

    text = []
    for split, rows in table.items():
        lines = [
            [method, *(f"{v:.3f} [{low:.3f}, {high:.3f}]" for v, low, high in row.values())]
            for method, row in rows.items()
        ]
        text.append(f"`{split}` split\n\n" + markdown(["method", *MEASURES], lines))
    note = (
        f"{args.users} users. DPO and HaNoRec: mean [least, most] over seeds {args.seeds}; "
        "the others: value [95 % interval over users]."
    )
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "toy_seeds.md").write_text("\n\n".join([*text, note]) + "\n", encoding="utf-8")
    content = {"seeds": args.seeds, "train": args.train, "table": table}
    (HERE / "results" / "toy_seeds.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print("\n\n".join([*text, note]))


def call(script: str, *arguments: object) -> None:
    print(f"$ python {script} {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([sys.executable, HERE.parent / script, *map(str, arguments)], check=True)


if __name__ == "__main__":
    main()
