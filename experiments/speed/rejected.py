#!/usr/bin/env python3
"""What several rejected responses a prompt cost: a training step with 1, 3, 7 and 15 of them, on the same prompts.

    python experiments/rejected.py                                  the tiny backbone on the toy catalogue
    python experiments/rejected.py --backbone DIR --data DIR --batch-size 4 --name rejected-135m

A step is a forward over policy and responses, S-DPO's loss, backward and optimizer step; log π_ref is known, as in a
run. Sides take turns, and each turn times all of them. Writes experiments/results/<name>.json and .md.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median

import torch

from hanorec.data.dataset import open_dataset, split_examples
from hanorec.evaluation.report import markdown
from hanorec.models.backbone import load_backbone
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score
from hanorec.related.objectives import sdpo_loss
from hanorec.training.optimization import adamw, clip_gradients

REJECTED = (1, 3, 7, 15)
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--data", type=Path, help="dataset folder (default: the toy catalogue)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--name", default="rejected", help="of the results files")
    args = parser.parse_args()
    torch.manual_seed(0)
    data = open_dataset(args.data)
    backbone = load_backbone(args.backbone, dtype="float32")
    images = CatalogImages(backbone, data.catalog.images, frozen=True)
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    examples = split_examples(data, "train", "next", users=args.batch_size, rejected=max(REJECTED))
    x = [prompts.prompt(example) for example in examples]
    y = [[prompts.chosen(example), *prompts.rejected(example)] for example in examples]
    policy = add_lora(backbone)
    policy.model.train()
    optimizer = adamw(policy.model, weight_decay=0.01)

    def step(rejected: int) -> float:
        responses = [answers[: 1 + rejected] for answers in y]
        begun = time.perf_counter()
        logps = score(policy, images, x, responses).view(len(x), -1)
        sdpo_loss(logps, logps.detach()).loss.backward()
        clip_gradients(policy.model, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - begun

    step(max(REJECTED))  # touches memory
    turns = [{rejected: step(rejected) for rejected in REJECTED} for _ in range(args.turns)]
    rows = []
    for rejected in REJECTED:
        ratios = sorted(turn[rejected] / turn[1] for turn in turns)
        quartiles = f"[{ratios[len(ratios) // 4]:.2f}, {ratios[-1 - len(ratios) // 4]:.2f}]"
        milliseconds = 1000 * median(turn[rejected] for turn in turns) / len(x)
        rows.append([str(rejected), f"{milliseconds:.1f}", f"{median(ratios):.2f}× {quartiles}"])
    table = markdown(["rejected responses", "ms a prompt", "against 1, median [quartiles]"], rows)
    millions = f"{backbone.num_parameters / 1e6:.1f} M"
    print(table)
    (RESULTS / f"{args.name}.json").write_text(json.dumps({"parameters": millions, "turns": turns}, indent=1) + "\n")
    (RESULTS / f"{args.name}.md").write_text(
        f"A step on {len(x)} prompts by the number of rejected responses of each; {millions} parameters, {args.turns} "
        f"turns.\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
