"""What a training step costs when one thing about it changes, in turns on the same prompts.

    python -m experiments.speed.steps rejected      1, 3, 7 and 15 rejected responses a prompt
    python -m experiments.speed.steps dropout       the LoRA dropout of models/lora.py, torch's own, and none
    python -m experiments.speed.steps long_rows     attention in blocks or with the whole mask, over a long nested row
    python -m experiments.speed.steps images        files that are opened and processed one by one, or many at a time

    python -m experiments.speed.steps rejected --backbone DIR --data DIR --batch-size 4 --name rejected-135m

A step is a forward over policy and responses, S-DPO's loss (with one rejected response: DPO's), backward and optimizer
step; log π_ref is known, as in a run. The long rows have a chosen and a rejected title behind each position. Times are
processor time. Appends rows to results.jsonl and writes <name>.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import numpy as np
import torch

from experiments.common import append_row, read_rows, version
from experiments.speed.turns import RESULTS, Measured, against, here, measure
from experiments.speed.worker import set_dropout
from hanorec.data.dataset import open_dataset, split_examples
from hanorec.data.examples import Example
from hanorec.evaluation.report import markdown
from hanorec.models import attention
from hanorec.models.backbone import load_backbone
from hanorec.models.encoding import open_images
from hanorec.models.images import CatalogImages
from hanorec.models.lora import Dropout, add_lora
from hanorec.models.packing import Prompt
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score
from hanorec.related.group_objectives import sdpo_loss
from hanorec.training.optimization import adamw, clip_gradients

REJECTED = (1, 3, 7, 15)
DROPOUTS = {"ours": Dropout, "torch's": torch.nn.Dropout, "none": torch.nn.Identity}
IMAGES = 256
TOKENS = (1000, 2000, 4000)
ATTENTIONS = {"blocks": attention.NAME, "whole mask": "sdpa"}  # as transformers knows them
Step = Callable[[list, list], None]  # on prompts and their responses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("rejected", "dropout", "long_rows", "images"))
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--data", type=Path, help="dataset folder (default: the toy catalogue)")
    parser.add_argument("--batch-size", type=int, default=16, help="prompts a step (default 16)")
    parser.add_argument("--turns", type=int, default=12, help="steps of each way (default 12)")
    parser.add_argument("--name", help="of the rows and of the table's file (default: the question)")
    args = parser.parse_args()
    name = args.name or args.question
    torch.manual_seed(0)
    data = open_dataset(args.data)
    backbone = load_backbone(args.backbone, dtype="float32", device=torch.device("cpu"))
    row: dict = {"study": name, "version": version(), "threads": torch.get_num_threads()}
    row["parameters"] = backbone.num_parameters
    if args.question == "images":
        files = [path for path in data.catalog.images if path is not None][:IMAGES]
        ways = {
            "one by one": lambda: [open_images(backbone, [path]) for path in files],
            "many at a time": lambda: [open_images(backbone, files[k : k + 32]) for k in range(0, len(files), 32)],
        }
        turns = {way: (here(step, peak=False), len(files)) for way, step in ways.items()}
        append_row(RESULTS, {**row, "data": data.folder.name, "ways": measure(turns, args.turns)})
        write_report(args.question, name)
        return
    policy = add_lora(backbone)
    policy.model.train()
    images = CatalogImages(policy, data.catalog.images, frozen=True)
    prompts = Prompts(policy, images, data.catalog.titles, "next", list_candidates=False)
    optimizer = adamw(policy.model, weight_decay=0.01)

    def step(x: list[Prompt], y: list[list[list[int]]], rejected: int = 1) -> None:
        logps = score(policy, images, x, y).view(-1, 1 + rejected)
        sdpo_loss(logps, logps.detach()).loss.backward()
        clip_gradients(policy.model, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    if args.question == "long_rows":
        for tokens in TOKENS:
            trunk, titles = long_row(prompts, tokens, len(data.catalog.titles))

            def attend(way: str, x=trunk, y=titles) -> None:
                policy.model.set_attn_implementation({"text_config": ATTENTIONS[way]})
                step([x], [y])

            turns = {way: (here(partial(attend, way)), len(titles) // 2) for way in ATTENTIONS}
            facts = {"tokens": prompts.length(trunk, titles), "pairs": len(titles) // 2}
            append_row(RESULTS, {**row, **facts, "ways": measure(turns, args.turns)})
    else:
        most = max(REJECTED) if args.question == "rejected" else 1
        examples = split_examples(data, "train", "next", users=args.batch_size, rejected=most)
        x = [prompts.prompt(example) for example in examples]
        y = [[prompts.chosen(example), *prompts.rejected(example)] for example in examples]

        def drop(kind: str) -> None:
            set_dropout(policy.model, DROPOUTS[kind])
            step(x, y)

        if args.question == "rejected":
            steps = {str(n): partial(step, x, [titles[: 1 + n] for titles in y], n) for n in REJECTED}
        else:
            steps = {kind: partial(drop, kind) for kind in DROPOUTS}
        turns = {way: (here(one, peak=False), len(x)) for way, one in steps.items()}
        append_row(RESULTS, {**row, "prompts": len(x), "ways": measure(turns, args.turns)})
    write_report(args.question, name)


def write_report(question: str, name: str) -> None:
    text = REPORTS[question]([row for row in read_rows(RESULTS) if row["study"] == name])
    RESULTS.with_name(f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def long_row(prompts: Prompts, tokens: int, items: int) -> tuple[Prompt, list[list[int]]]:
    """A nested prompt with its responses, at least so many tokens long."""
    drawn = np.random.default_rng(0).integers(0, items, tokens).tolist()
    examples: list[Example] = []
    for k in range(1, tokens):
        examples.append(Example("1", tuple(drawn[:k]), (drawn[k],), candidates=(), rejected=((drawn[-k],),)))
        x = prompts.nested(examples)
        y = [title for e in examples for title in (prompts.chosen(e), *prompts.rejected(e))]
        if prompts.length(x, y) >= tokens:
            return x, y
    raise ValueError(f"{tokens} tokens are too few")


def report_rejected(rows: list[dict]) -> str:
    """The table of the last row."""
    row, lines = rows[-1], []
    for rejected, own in row["ways"].items():
        ratios = against(row["ways"], rejected, "1")
        quartiles = f"[{ratios[len(ratios) // 4]:.2f}, {ratios[-1 - len(ratios) // 4]:.2f}]"
        lines.append([rejected, f"{median(own['milliseconds']):.1f}", f"{median(ratios):.2f}× {quartiles}"])
    table = markdown(["rejected responses", "ms a prompt", "against 1, median [quartiles]"], lines)
    of, turns = f"{row['parameters'] / 1e6:.1f} M parameters", len(row["ways"]["1"]["milliseconds"])
    what = "A step on {} prompts by the number of rejected responses of each; {}, {} turns."
    return f"{what.format(row['prompts'], of, turns)}\n\n{table}\n"


def report_dropout(rows: list[dict]) -> str:
    """The table of every backbone's last row."""

    def takes(ways: Measured, kind: str) -> str:
        low, middle, high = quantiles(against(ways, kind, "ours"), n=4)
        return f"{middle:.2f}× [{low:.2f}, {high:.2f}]"

    lines = []
    for row in {row["parameters"]: row for row in rows}.values():
        seconds = median(row["ways"]["ours"]["milliseconds"]) * row["prompts"] / 1000
        sizes = [f"{row['parameters'] / 1e6:.1f} M", str(row["prompts"]), str(row["threads"]), f"{seconds:.2f}"]
        lines.append([*sizes, takes(row["ways"], "torch's"), takes(row["ways"], "none")])
    header = ["parameters", "pairs a step", "threads", "CPU seconds a step, ours", "torch's takes", "no dropout takes"]
    note = "LoRA dropout of 0.05 in a preference step on a CPU; ratios of CPU time, median [quartiles] over rounds."
    return f"{note}\n\n{markdown(header, lines)}\n"


def report_long_rows(rows: list[dict]) -> str:
    """The table of the last row of each length."""
    lines = [
        [
            f"{row['tokens']:,}",
            str(row["pairs"]),
            way,
            f"{median(own['milliseconds']):.1f}",
            f"{median(own['mib']):.0f}",
        ]
        for row in {row["tokens"]: row for row in rows}.values()
        for way, own in row["ways"].items()
    ]
    table = markdown(["tokens", "pairs", "attention", "ms a pair", "MiB above rest"], lines)
    return f"Made by `python -m experiments.speed.steps long_rows`.\n\n{table}\n"


def report_images(rows: list[dict]) -> str:
    """The table of every dataset's last row."""
    lines = []
    for row in {row["data"]: row for row in rows}.values():
        for way, own in row["ways"].items():
            low, middle, high = quantiles(against(row["ways"], way, "one by one"), n=4)
            each = f"{median(own['milliseconds']):.2f}"
            lines.append([row["data"], way, each, f"{middle:.2f}× [{low:.2f}, {high:.2f}]"])
    table = markdown(
        ["dataset", "images are opened", "CPU ms an image", "against one by one, median [quartiles]"], lines
    )
    return f"From a file to what the tiny backbone's processor makes of it, on one thread.\n\n{table}\n"


REPORTS = {
    "images": report_images,
    "rejected": report_rejected,
    "dropout": report_dropout,
    "long_rows": report_long_rows,
}


if __name__ == "__main__":
    main()
