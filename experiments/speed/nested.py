"""What a target costs when a row is read once (nested windows), when each window is packed, and the plain way.

    python -m experiments.speed.nested --data DIR                                  the tiny backbone
    python -m experiments.speed.nested --data DIR --backbone DIR --turns 3 --name nested-138m
    python -m experiments.speed.nested --data DIR --trl-python VENV/bin/python     beside TRL's DPOTrainer

The ways to read as many targets as --history says:

    plain      windows of --history items: every response behind a prompt of its own, images from their files, logits of
               all tokens
    five       windows of 5 items, packed (for SFT)
    windows    windows of --history items, each packed with its responses
    nested     a row of --history items and a target once, and every target behind a branch
    TRL        the windows of `plain` in TRL's DPOTrainer, its head cut (trl_dpo.py), where an interpreter has `trl`

Windows are drawn from all rows at random, as in training. Works are a step of SFT and a step of HaNoRec (chosen and one
rejected title; log π_ref is known, but the plain way has to compute it), each with forward, loss and backward. Times
are processor time of one thread. A third table has the cost of a target over nested windows by length of history.
Appends rows to results.jsonl and writes <name>.md.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch

from experiments.common import append_row, read_rows, version
from experiments.speed.turns import RESULTS, Turn, Worker, against, here, measure
from experiments.speed.worker import plain, plain_reference, shown_images, write_pairs
from hanorec.data.batching import batches
from hanorec.data.dataset import Dataset, open_dataset, split_examples
from hanorec.data.examples import Example, groups
from hanorec.evaluation.report import markdown
from hanorec.losses import hanorec_loss
from hanorec.models import tiny
from hanorec.models.backbone import Backbone, load_backbone
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora, freeze_vision
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score

GROWTH = (5, 10, 20, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--data", type=Path, required=True, help="a dataset folder whose rows are long enough")
    parser.add_argument("--history", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--windows", type=int, help="how many are read one by one (default: as many as --history)")
    parser.add_argument("--no-growth", action="store_true", help="leave the third table out")
    parser.add_argument("--forward-tokens", type=int, default=8192)
    parser.add_argument("--trl-python", help="an interpreter that has trl: adds TRL's DPOTrainer to hanorec")
    parser.add_argument("--name", default="nested", help="of the rows and of the table's file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = open_dataset(args.data)
    base = load_backbone(args.backbone, dtype="float32", device=torch.device("cpu"))
    full = base.num_parameters < 20_000_000  # as train_sft.py does: the language model trains whole
    if full:
        freeze_vision(base)
    row = {"study": args.name, "version": version(), "parameters": base.num_parameters, "history": args.history}
    for work in ("sft", "hanorec"):
        policy = base if full and work == "sft" else add_lora(base)
        policy.model.train()
        turns = ways(policy, data, work, args)
        if work == "hanorec" and args.trl_python:
            turns["TRL"] = in_trl(data, args)
        append_row(RESULTS, {**row, "work": work, "ways": measure(turns, args.turns)})
    if not args.no_growth:
        append_row(RESULTS, {**row, "work": "growth", "ways": growth(add_lora(base), data, args)})
    RESULTS.with_name(f"{args.name}.md").write_text(report(args.name), encoding="utf-8")
    print(report(args.name))


def chunks(data: Dataset, history: int) -> list[list[Example]]:
    """Nested examples, row by row, with one negative each: the last `history` targets of all rows that have so many."""
    examples = split_examples(data, "train", "next", windows="nested", history=history, candidates=2)
    return [row for row in groups(examples, nested=True) if len(row) == history]


def drawn_windows(data: Dataset, history: int, number: int) -> list[Example]:
    """Windows with whole histories, each of a random row."""
    examples = split_examples(data, "train", "next", windows="every", history=history, candidates=2)
    whole = [example for example in examples if len(example.history) == history]
    return [whole[i] for i in np.random.default_rng(0).choice(len(whole), number, replace=False)]


def ways(policy: Backbone, data: Dataset, work: str, args: argparse.Namespace) -> dict[str, tuple[Turn, int]]:
    """A turn of each way, and how many targets it has."""
    windows = drawn_windows(data, args.history, args.windows or args.history)
    targets = {"plain": windows, "windows": windows, "nested": chunks(data, args.history)[0]}
    if work == "sft":
        targets = {"plain": windows, "five": drawn_windows(data, 5, args.history), **targets}
    files = shown_images(data.catalog, [example for examples in targets.values() for example in examples])
    once, live = (CatalogImages(policy, files, frozen=frozen, progress=False) for frozen in (True, False))

    def step_of(name: str) -> Callable[[], None]:
        images = live if name == "plain" else once
        prompts = Prompts(policy, images, data.catalog.titles, "next", list_candidates=False)
        x = [prompts.prompt(e) for e in targets[name]]
        y = [[prompts.chosen(e), *(prompts.rejected(e) if work == "hanorec" else ())] for e in targets[name]]
        if name == "nested":
            x, y = [prompts.nested(targets[name])], [[title for titles in y for title in titles]]
        forwards = batches([prompts.length(prompt, titles) for prompt, titles in zip(x, y)], args.forward_tokens)
        state = SimpleNamespace(policy=policy, prompts=x, responses=y, data=data, spent={"data": 0.0, "model": 0.0})

        def step() -> None:
            policy.model.zero_grad()
            for batch in forwards if name != "plain" else [[i] for i in range(len(x))]:
                if name == "plain":
                    logps = plain(state, batch, 0.0)
                    reference = plain_reference(state, batch).flatten() if work == "hanorec" else logps.detach()
                else:
                    logps = score(policy, once, [x[i] for i in batch], [y[i] for i in batch])
                    reference = logps.detach()
                if work == "sft":
                    (-logps.sum() / 100).backward()
                else:
                    pairs = (*logps.view(-1, 2).T, *reference.view(-1, 2).T)
                    hanorec_loss(*pairs, torch.ones(len(logps) // 2), responsiveness=1.0).loss.backward()

        return step

    return {name: (here(step_of(name)), len(examples)) for name, examples in targets.items()}


def in_trl(data: Dataset, args: argparse.Namespace) -> tuple[Turn, int]:
    """TRL's DPOTrainer in a process of its own, on the windows of `plain`, four to a step; and how many they are."""
    windows = drawn_windows(data, args.history, args.windows or args.history)
    batch = min(4, len(windows))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.json"
        write_pairs(data.catalog, windows, path, list_candidates=False)
        checkpoint = tiny.PRETRAINED if args.backbone == "tiny" else args.backbone
        options = ("--checkpoint", checkpoint, "--pairs", path, "--batch-size", batch, "--head-cut")
        worker = Worker("experiments.speed.trl_dpo", *options, python=args.trl_python)

    def turn() -> tuple[float, float]:
        line = worker.run(len(windows) // batch)
        return line["cpu_seconds"], line["peak_mib"] - line["base_mib"]

    return turn, len(windows) // batch * batch


def growth(policy: Backbone, data: Dataset, args: argparse.Namespace) -> dict:
    """As `measure`, of HaNoRec over nested windows, by length of history; a step has 50 targets of as many rows as
    that takes."""
    policy.model.train()
    steps = {}
    for history in GROWTH:
        rows = chunks(data, history)[: max(GROWTH) // history]
        files = shown_images(data.catalog, [row[-1] for row in rows])
        images = CatalogImages(policy, files, frozen=True, progress=False)
        prompts = Prompts(policy, images, data.catalog.titles, "next", list_candidates=False)
        x = [prompts.nested(row) for row in rows]
        y = [[title for e in row for title in (prompts.chosen(e), *prompts.rejected(e))] for row in rows]
        forwards = batches([prompts.length(prompt, titles) for prompt, titles in zip(x, y)], args.forward_tokens)

        def step(x=x, y=y, forwards=forwards, images=images) -> None:
            policy.model.zero_grad()
            for batch in forwards:
                logps = score(policy, images, [x[i] for i in batch], [y[i] for i in batch])
                (logps.view(-1, 2) @ torch.tensor([-1.0, 1.0])).sum().backward()

        steps[str(history)] = (here(step), sum(map(len, rows)))
    return measure(steps, args.turns)


def report(name: str) -> str:
    """The tables of a study's last rows."""
    last = {row["work"]: row for row in read_rows(RESULTS) if row["study"] == name}
    millions = f"{last['sft']['parameters'] / 1e6:.1f} M parameters"
    history = last["sft"]["history"]
    text = [f"Nested windows, histories of up to {history} items; {millions}, one thread, processor time."]
    for work in last:
        ways, rows = last[work]["ways"], []
        other = str(GROWTH[0]) if work == "growth" else "nested"
        for way, own in ways.items():
            ratios = against(ways, way, other)
            spread = f"{median(ratios):.1f}× [{ratios[0]:.1f}, {ratios[-1]:.1f}]"
            ratio = f"{median(ratios):.2f}×" if work == "growth" else spread
            rows.append([way, f"{median(own['milliseconds']):.1f}", ratio, f"{median(own['mib']):.0f}"])
        header = [f"{work}: way", "ms a target", "against nested, median [least, most]", "MiB above rest"]
        if work == "growth":
            header = ["hanorec, nested: history", "ms a pair", f"against {other}", "MiB above rest"]
        text.append(markdown(header, rows))
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    main()
