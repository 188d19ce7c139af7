#!/usr/bin/env python3
"""What a target costs when a row is read once (nested windows), when each window is packed, and the plain way.

    python experiments/nested.py --data DIR                                  the tiny backbone
    python experiments/nested.py --data DIR --backbone DIR --turns 3 --name nested-138m
    python experiments/nested.py --data DIR --trl-python VENV/bin/python     beside TRL's DPOTrainer

The ways to read as many targets as --history says:

    plain      windows of --history items: every response behind a prompt of its own, images from their files, logits of
               all tokens
    five       windows of 5 items, packed (for SFT)
    windows    windows of --history items, each packed with its responses
    nested     a row of --history items and a target once, and every target behind a branch
    TRL        the windows of `plain` in TRL's DPOTrainer, its head cut (trl_dpo.py), where an interpreter has `trl`

Windows are drawn from all rows at random, as in training.

Works are a step of SFT and a step of HaNoRec (chosen and one rejected title; log π_ref is known, but the plain way has
to compute it), each with forward, loss and backward. Times are processor time of one thread, and ways take turns. A
second table has the cost of a target over nested windows by length of history. Writes experiments/results/<name>.json
and .md.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import numpy as np
import torch
from bench_worker import memory, plain, plain_reference
from benchmark import Worker, trl_pairs

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
RESULTS = Path(__file__).resolve().parent / "results"
Step = Callable[[], None]
Turn = Callable[[], tuple[float, float]]  # takes a step; gives its processor seconds and its peak MiB above rest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--data", type=Path, required=True, help="a dataset folder whose rows are long enough")
    parser.add_argument("--history", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--windows", type=int, help="how many are read one by one (default: as many as --history)")
    parser.add_argument("--no-growth", action="store_true", help="leave the second table out")
    parser.add_argument("--forward-tokens", type=int, default=8192)
    parser.add_argument("--trl-python", help="an interpreter that has trl: adds TRL's DPOTrainer to hanorec")
    parser.add_argument("--name", default="nested", help="of the results files")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = open_dataset(args.data)
    base = load_backbone(args.backbone, dtype="float32", device=torch.device("cpu"))
    full = base.num_parameters < 20_000_000  # as train_sft.py does: the language model trains whole
    if full:
        freeze_vision(base)
    found: dict = {"parameters": base.num_parameters, "history": args.history, "works": {}, "growth": {}}
    for work in ("sft", "hanorec"):
        policy = base if full and work == "sft" else add_lora(base)
        policy.model.train()
        row = chunk(data, args.history)
        steps = ways(policy, data, row, work, args)
        turns = {name: (here(step), targets) for name, (step, targets) in steps.items()}
        if work == "hanorec" and args.trl_python:
            turns["TRL"] = in_trl(data, args)
        found["works"][work] = measure(turns, args.turns)
    if not args.no_growth:
        found["growth"] = growth(add_lora(base), data, args.turns, args.forward_tokens)
    (RESULTS / f"{args.name}.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / f"{args.name}.md").write_text(report(found))
    print(report(found))


def chunk(data: Dataset, history: int) -> list[Example]:
    """The last `history` targets of the first row that has so many, as nested examples with one negative each."""
    examples = split_examples(data, "train", "next", windows="nested", history=history, candidates=2)
    return next(row for row in groups(examples, nested=True) if len(row) == history)


def drawn_windows(data: Dataset, history: int, number: int) -> list[Example]:
    """Windows with whole histories, each of a random row."""
    examples = split_examples(data, "train", "next", windows="every", history=history, candidates=2)
    whole = [example for example in examples if len(example.history) == history]
    return [whole[i] for i in np.random.default_rng(0).choice(len(whole), number, replace=False)]


def ways(
    policy: Backbone, data: Dataset, row: list[Example], work: str, args: argparse.Namespace
) -> dict[str, tuple[Step, int]]:
    """A step of each way, and how many targets it has."""
    windows = drawn_windows(data, args.history, args.windows or args.history)
    targets = {"plain": windows, "five": drawn_windows(data, 5, args.history), "windows": windows, "nested": row}
    used = {item for examples in targets.values() for example in examples for item in example.history}
    files = [path if item in used else None for item, path in enumerate(data.catalog.images)]
    once = CatalogImages(policy, files, frozen=True, progress=False)
    live = CatalogImages(policy, files, frozen=False, progress=False)
    made, plain_prompts = (
        Prompts(policy, images, data.catalog.titles, "next", list_candidates=False) for images in (once, live)
    )

    def responses(example: Example) -> list[list[int]]:
        return [made.chosen(example), *(made.rejected(example) if work == "hanorec" else ())]

    def step_of(name: str) -> Step:
        examples = targets[name]
        x = [made.prompt(e) for e in examples]
        y = [responses(e) for e in examples]
        if name == "nested":
            x, y = [made.nested(examples)], [[title for titles in y for title in titles]]
        forwards = batches([made.length(prompt, answers) for prompt, answers in zip(x, y)], args.forward_tokens)
        spent = {"data": 0.0, "model": 0.0}  # what `plain` adds to
        state = SimpleNamespace(
            policy=policy, prompts=plain_prompts, examples=examples, responses=y, data=data, spent=spent
        )

        def step() -> None:
            policy.model.zero_grad()
            for batch in forwards if name != "plain" else [[i] for i in range(len(examples))]:
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

    return {name: (step_of(name), len(targets[name])) for name in targets if work == "sft" or name != "five"}


def here(step: Step) -> Turn:
    """A step in this process."""

    def turn() -> tuple[float, float]:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # gives back what earlier steps freed
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        begun = time.process_time()
        step()
        return time.process_time() - begun, memory("VmHWM") - before

    return turn


def in_trl(data: Dataset, args: argparse.Namespace) -> tuple[Turn, int]:
    """TRL's DPOTrainer in a process of its own, on the windows of `plain`, four to a step; and how many they are."""
    windows = drawn_windows(data, args.history, args.windows or args.history)
    batch = min(4, len(windows))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.json"
        trl_pairs(data.catalog, windows, path, list_candidates=False)
        checkpoint = tiny.PRETRAINED if args.backbone == "tiny" else args.backbone
        options = ("--checkpoint", checkpoint, "--pairs", path, "--batch-size", batch, "--head-cut")
        worker = Worker(Path(__file__).parent / "trl_dpo.py", *options, python=args.trl_python)

    def turn() -> tuple[float, float]:
        line = worker.run(len(windows) // batch)
        return line["cpu_seconds"], line["peak_mib"] - line["base_mib"]

    return turn, len(windows) // batch * batch


def measure(ways: dict[str, tuple[Turn, int]], turns: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds a target and peak MiB of every turn, by way, each with its number of targets."""
    found: dict[str, dict[str, list[float]]] = {name: {"milliseconds": [], "mib": []} for name in ways}
    for number in range(turns + 1):  # the first touches memory
        for name, (turn, targets) in ways.items():
            seconds, mib = turn()
            if number:
                found[name]["milliseconds"].append(1000 * seconds / targets)
                found[name]["mib"].append(mib)
    return found


def growth(policy: Backbone, data: Dataset, turns: int, forward_tokens: int) -> dict[int, dict[str, list[float]]]:
    """As `measure`, of HaNoRec over nested windows, by length of history; a step has 50 targets of as many chunks as
    that takes."""
    policy.model.train()
    steps = {}
    for history in GROWTH:
        examples = split_examples(data, "train", "next", windows="nested", history=history, candidates=2)
        rows = [row for row in groups(examples, nested=True) if len(row) == history][: max(GROWTH) // history]
        used = {item for row in rows for item in row[-1].history}
        files = [path if item in used else None for item, path in enumerate(data.catalog.images)]
        images = CatalogImages(policy, files, frozen=True, progress=False)
        made = Prompts(policy, images, data.catalog.titles, "next", list_candidates=False)
        x = [made.nested(row) for row in rows]
        y = [[title for e in row for title in (made.chosen(e), *made.rejected(e))] for row in rows]
        forwards = batches([made.length(prompt, answers) for prompt, answers in zip(x, y)], forward_tokens)

        def step(x=x, y=y, forwards=forwards, images=images) -> None:
            policy.model.zero_grad()
            for batch in forwards:
                logps = score(policy, images, [x[i] for i in batch], [y[i] for i in batch])
                (logps.view(-1, 2) @ torch.tensor([-1.0, 1.0])).sum().backward()

        steps[str(history)] = (here(step), sum(map(len, rows)))
    return measure(steps, turns)


def report(found: dict) -> str:
    millions = f"{found['parameters'] / 1e6:.1f} M parameters"
    text = [f"Nested windows, histories of up to {found['history']} items; {millions}, one thread, processor time."]
    for work, table in found["works"].items():
        rows = []
        nested = table["nested"]["milliseconds"]
        for name, own in table.items():
            ratios = sorted(a / b for a, b in zip(own["milliseconds"], nested))
            spread = f"{median(ratios):.1f}× [{ratios[0]:.1f}, {ratios[-1]:.1f}]"
            rows.append([name, f"{median(own['milliseconds']):.1f}", spread, f"{median(own['mib']):.0f}"])
        header = [f"{work}: way", "ms a target", "against nested, median [least, most]", "MiB above rest"]
        text.append(markdown(header, rows))
    if not found["growth"]:
        return "\n\n".join(text) + "\n"
    first = found["growth"][str(GROWTH[0])]["milliseconds"]
    rows = []
    for history, own in found["growth"].items():
        ratio = median(a / b for a, b in zip(own["milliseconds"], first))
        rows.append([history, f"{median(own['milliseconds']):.1f}", f"{ratio:.2f}×", f"{median(own['mib']):.0f}"])
    text.append(markdown(["hanorec, nested: history", "ms a pair", f"against {GROWTH[0]}", "MiB above rest"], rows))
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    main()
