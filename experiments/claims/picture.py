"""Draw one user: the history as images and titles, and what each observer makes of the candidates.

    python -m experiments.claims.picture --runs runs/sft runs/hanorec

Bars are the share of the probability that each candidate gets among all (for a model: the softmax of the candidates'
log-likelihoods). The picture says which user it is. Writes docs/picture.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

from hanorec.data.dataset import open_dataset, split_examples
from hanorec.evaluation.oracles import read_oracles
from hanorec.evaluation.ranking import answer_with_model
from hanorec.training.inputs import open_prompts
from hanorec.training.runs import load_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", nargs="+", default=["runs/sft", "runs/hanorec"], help="finished runs on the toy catalogue"
    )
    parser.add_argument("--split", default="cold", help="the split the user is of (default cold)")
    parser.add_argument("--user", type=int, default=0, help="which row (default 0, the first)")
    parser.add_argument("--candidates", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("docs/picture.png"))
    args = parser.parse_args()

    data = open_dataset(None)
    examples = split_examples(data, args.split, "next", candidates=args.candidates)
    example = examples[args.user]
    oracle = read_oracles(data.folder, data.catalog, data.warm, know_candidates=args.split == "cold")["both"](example)
    columns = {"best possible": oracle / oracle.sum()}
    for run in args.runs:
        backbone, sft = load_run(run)
        scores = answer_with_model(backbone, open_prompts(backbone, data, sft), [example]).scores[0]
        columns[Path(run).name] = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()

    figure = plt.figure(figsize=(11, 5), layout="constrained")
    head, below = figure.subfigures(2, 1, height_ratios=(0.3, 4.7))
    which = f"One user of the split {args.split}: row {args.user + 1} of {len(examples)}. An example, no average."
    head.suptitle(which, fontsize=12, fontweight="bold")
    left, right = below.subfigures(1, 2, width_ratios=(5, 7))
    left.suptitle("The user chose, oldest first", fontsize=11)
    for number, item in enumerate(example.history, 1):
        axes = left.add_subplot(2, 3, number)
        axes.imshow(Image.open(data.catalog.images[item]))
        axes.set_title(data.catalog.titles[item], fontsize=9)
        axes.axis("off")
    right.suptitle("Which of these is next?  Share of the probability among the candidates", fontsize=11)
    order = np.argsort(columns["best possible"])
    target = example.candidates.index(example.targets[0])
    for number, (name, shares) in enumerate(columns.items(), 1):
        axes = right.add_subplot(1, len(columns), number)
        bars = axes.barh(range(len(order)), shares[order], color="0.65", edgecolor="0.2")
        mark = int(np.flatnonzero(order == target)[0])
        bars[mark].set(color="0.15", hatch="//")
        titles = [data.catalog.titles[example.candidates[i]] + ("  ◀ chosen" if i == target else "") for i in order]
        axes.set_yticks(range(len(order)), titles if number == 1 else [""] * len(order), fontsize=9)
        axes.set_title(name, fontsize=10)
        axes.set_xlim(0, max(max(s) for s in columns.values()) * 1.05)
        axes.spines[["top", "right"]].set_visible(False)
    args.output.parent.mkdir(exist_ok=True)
    figure.savefig(args.output, dpi=110)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
