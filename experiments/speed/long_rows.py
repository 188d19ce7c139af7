#!/usr/bin/env python3
"""What a step over one long nested row costs: attention in blocks of queries, and with the whole mask.

    python experiments/long_rows.py

A row of the toy catalogue's items, as long as makes so many tokens, is read with the chosen and a rejected title behind
each position: a HaNoRec step's forward and backward on the tiny backbone, with LoRA. Times are processor time of one
thread; ways take turns. Memory is the peak of a step above what is held before it. Writes
experiments/results/long_rows.md.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from nested import RESULTS, Step, here, measure

from hanorec.data.dataset import open_dataset
from hanorec.data.examples import Example
from hanorec.evaluation.report import markdown
from hanorec.models import attention
from hanorec.models.backbone import Backbone, load_backbone
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score

TOKENS = (1000, 2000, 4000)
WAYS = {"blocks": attention.NAME, "whole mask": "sdpa"}  # as transformers knows them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = open_dataset(None)
    policy = add_lora(load_backbone("tiny", dtype="float32", device=torch.device("cpu")))
    policy.model.train()
    images = CatalogImages(policy, data.catalog.images, frozen=True, progress=False)
    prompts = Prompts(policy, images, data.catalog.titles, "next", list_candidates=False)
    rows = []
    for tokens in args.tokens:
        x, y, length = row(prompts, tokens, len(data.catalog.titles))
        steps = {way: (here(step_of(policy, images, x, y, name)), len(y) // 2) for way, name in WAYS.items()}
        for way, own in measure(steps, args.turns).items():
            figures = [f"{np.median(own['milliseconds']):.1f}", f"{np.median(own['mib']):.0f}"]
            rows.append([f"{length:,}", str(len(y) // 2), way, *figures])
    table = markdown(["tokens", "pairs", "attention", "ms a pair", "MiB above rest"], rows)
    (RESULTS / "long_rows.md").write_text(f"Made by `python experiments/long_rows.py`.\n\n{table}\n", encoding="utf-8")
    print(table)


def row(prompts: Prompts, tokens: int, items: int) -> tuple[object, list[list[int]], int]:
    """A nested prompt with its responses, at least so many tokens long."""
    drawn = np.random.default_rng(0).integers(0, items, tokens).tolist()
    for targets in range(1, tokens):
        examples = [
            Example(user="1", history=tuple(drawn[:k]), targets=(drawn[k],), candidates=(), rejected=((drawn[-k],),))
            for k in range(1, targets + 1)
        ]
        x = prompts.nested(examples)
        y = [title for e in examples for title in (prompts.chosen(e), *prompts.rejected(e))]
        if (length := prompts.length(x, y)) >= tokens:
            return x, y, length
    raise ValueError(f"{tokens} tokens are too few")


def step_of(policy: Backbone, images: CatalogImages, x, y: list[list[int]], attending: str) -> Step:
    def step() -> None:
        policy.model.zero_grad()
        policy.model.set_attn_implementation({"text_config": attending})
        logps = score(policy, images, [x], [y])
        (logps.view(-1, 2) @ torch.tensor([-1.0, 1.0])).sum().backward()

    return step


if __name__ == "__main__":
    main()
