"""Training and ranking, this project's way against the plain way, on backbones of four sizes; and how costs grow.

    python -m experiments.speed.benchmark                                  all of it, on the toy catalogue
    python -m experiments.speed.benchmark --backbones tiny --works hanorec rank
    python -m experiments.speed.benchmark --backbones 135M --pretrained DIR --data DIR --trl-python VENV/bin/python

The plain way is described in worker.py; TRL's DPOTrainer is a third side where an interpreter that has `trl` is given.
Every side is a process of its own; repetitions take turns, and a ratio is the median over repetitions of neighbouring
runs. Appends rows to results.jsonl and writes <name>.md; what has a row already is not measured again, so a benchmark
that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from experiments.common import append_row, read_rows, version
from experiments.speed.turns import RESULTS, ROOT, Worker
from experiments.speed.worker import write_pairs
from hanorec.data.catalog import read_catalog
from hanorec.data.dataset import open_dataset, split_examples
from hanorec.evaluation.report import markdown
from tools.backbones import SIZES, catalogue, checkpoint

ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_MMAP_MAX_": "0"}  # for all sides: keep freed memory
BATCH = {"tiny": 16, "11.6M": 4, "135M": 4, "SmolVLM-256M": 2}  # prompts a step
STEPS = {"tiny": 4, "11.6M": 8, "135M": 1, "SmolVLM-256M": 1}  # a repetition
REPEATS = {"tiny": 7, "11.6M": 5, "135M": 3, "SmolVLM-256M": 2}
USERS = {"tiny": 8, "11.6M": 4, "135M": 1, "SmolVLM-256M": 1}  # a repetition of the plain ranking
PROMPTS = {"tiny": 16, "11.6M": 16, "135M": 8, "SmolVLM-256M": 3}  # different prompts, in batches
WARM = {"tiny": 2, "11.6M": 2, "135M": 2, "SmolVLM-256M": 1}  # repetitions that do not count
EPOCHS = 5  # the paper's; what is done once a run is spread over so many
WORKS = ("sft", "dpo", "hanorec", "rank")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["tiny", *SIZES], choices=["tiny", *SIZES])
    parser.add_argument("--works", nargs="+", default=WORKS, choices=WORKS)
    parser.add_argument("--data", type=Path, help="a dataset folder; a small toy catalogue, if not given")
    parser.add_argument(
        "--pretrained", help="a checkpoint folder that is the 135M backbone, and whose tokenizer the larger ones take"
    )
    parser.add_argument("--trl-python", help="an interpreter that has trl: adds TRL's DPOTrainer to hanorec")
    parser.add_argument("--no-growth", action="store_true", help="leave out how costs grow")
    parser.add_argument("--name", default="benchmark", help="of the rows and of the table's file (default benchmark)")
    parser.add_argument("--glibc-default", action="store_true", help="let the C library return freed memory")
    args = parser.parse_args()
    if not args.glibc_default:
        os.environ.update(ALLOCATOR)
    cases, growths = found(args.name)
    with tempfile.TemporaryDirectory() as scratch:
        for backbone in args.backbones:
            for work in args.works:
                if any((case["backbone"], case["work"]) == (backbone, work) for case in cases):
                    continue
                case = compare(backbone, work, args, Path(scratch))
                append_row(RESULTS, {"study": args.name, "version": version(), **case})
                print(table([case]), flush=True)
    if not args.no_growth and not growths:
        command = [sys.executable, "-m", "experiments.speed.growth"]
        lines = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout
        for growth in json.loads(lines):
            append_row(RESULTS, {"study": args.name, "version": version(), **growth})
    page = RESULTS.with_name(f"{args.name}.md")
    page.write_text(report(args.name), encoding="utf-8")
    print(page.read_text(encoding="utf-8"))


def found(name: str) -> tuple[list[dict], list[dict]]:
    """The rows of a benchmark: cases, and how costs grow."""
    rows = [row for row in read_rows(RESULTS) if row["study"] == name]
    return [row for row in rows if "work" in row], [row for row in rows if "title" in row]


def compare(backbone: str, work: str, args: argparse.Namespace, scratch: Path) -> dict:
    """One row: both sides (and TRL) on one backbone and work."""
    start = checkpoint(backbone, scratch / backbone, args.pretrained)
    data = args.data or catalogue(scratch / f"toy-{backbone}", backbone)
    batch, steps, warm, pairs = BATCH[backbone], STEPS[backbone], WARM[backbone], BATCH[backbone] * PROMPTS[backbone]
    common = ["--work", work, "--backbone", start, "--data", data, "--batch-size", batch, "--pairs", pairs]
    others: dict[str, tuple] = {"plain": ("experiments.speed.worker", "--side", "plain", *common)}
    if work == "hanorec" and args.trl_python:
        opened, path = open_dataset(data), scratch / "pairs.json"
        examples = split_examples(opened, "train", "next", users=pairs)
        write_pairs(opened.catalog, examples, path, list_candidates=True)
        trl = ("experiments.speed.trl_dpo", "--checkpoint", start, "--pairs", path, "--batch-size", batch)
        others |= {"TRL": trl, "TRL, head cut": (*trl, "--head-cut")}
    threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
    case: dict = {"backbone": backbone, "work": work, "batch": batch, "repeats": REPEATS[backbone], "threads": threads}
    for other, command in others.items():  # two at a time: more do not fit in memory
        own = Worker("experiments.speed.worker", "--side", "ours", *common)
        theirs = Worker(*command, python=args.trl_python if other.startswith("TRL") else sys.executable)
        turns = []
        for _ in range(warm + REPEATS[backbone]):  # the first ones warm up: memory is touched, weights are paged in
            # ours takes three steps at least: one alone is short, and slow after a minute of the other side's
            ours = own.run(1 if work == "rank" else max(3, steps))
            turns.append((ours, theirs.run(USERS[backbone] if work == "rank" else steps)))
        own.end()
        theirs.end()
        ours, their = zip(*turns[warm:])
        case.setdefault("ours", summarize(ours, own.facts))
        ratios = [(b["seconds"] / b["done"]) / (a["seconds"] / a["done"]) for a, b in zip(ours, their)]
        case[other] = summarize(their, theirs.facts)
        case[other] |= {"times_as_long": statistics.median(ratios), "least_and_most": [min(ratios), max(ratios)]}
    if work != "rank":
        case["largest_difference_of_logps"] = difference_of_logps(common, 1 if backbone == "SmolVLM-256M" else 2)
    if work in ("dpo", "hanorec"):
        case |= counted_once(case, data)
    return case


def counted_once(case: dict, data: Path) -> dict[str, float]:
    """The ratio with this project's work done once (every image of the catalogue, every pair's reference) counted."""
    items, pairs = len(read_catalog(data)), len(open_dataset(data).train)
    facts, step = case["ours"]["facts"], 1 / case["ours"]["rate"]
    once = facts["seconds_a_reference"] + facts["seconds_an_image"] * items / pairs
    return {
        f"times_as_long_over_{epochs}_epochs": case["plain"]["times_as_long"] * step / (step + once / epochs)
        for epochs in (1, EPOCHS)
    }


def difference_of_logps(common: list, steps: int) -> float:
    """The largest difference, in nats, of the two sides' log-probabilities of a response, without noise and dropout.
    After the first step the weights have been updated with each side's own gradient."""
    sides = []
    for side in ("ours", "plain"):
        worker = Worker("experiments.speed.worker", "--side", side, *common, "--exact")
        sides.append([logp for step in worker.run(steps)["logps"] for logp in step])
        worker.end()
    return max(abs(a - b) for a, b in zip(*sides))


def summarize(lines: tuple[dict, ...], facts: dict) -> dict:
    """What a side's repetitions come to: rate, memory and, where the side says it, where its time went."""
    seconds = sum(line["seconds"] for line in lines)
    summary = {
        "rate": statistics.median(line["done"] / line["seconds"] for line in lines),
        "peak_mib": max(line["peak_mib"] for line in lines),
        "step_mib": max(line["peak_mib"] - line["base_mib"] for line in lines),
        "facts": facts,
    }
    if "spent" in lines[0]:
        model, data = (sum(line["spent"][part] for line in lines) / seconds for part in ("model", "data"))
        summary |= {"model_share": model, "data_share": data, "rest_share": 1 - model - data}
        if lines[0]["spent"]["flops"]:
            shares = [line["spent"]["flops"] / line["seconds"] / line["gemm"] for line in lines]
            summary["share_of_matrix_product"] = statistics.median(shares)
    return summary


def report(name: str) -> str:
    """The tables of a benchmark's rows."""
    cases, growths = found(name)
    text = [table(cases)] if cases else []
    text += [f"{growth['title']}\n\n{markdown(growth['header'], growth['rows'])}" for growth in growths]
    return "\n\n".join(text) + "\n"


def table(cases: list[dict]) -> str:
    header = [
        "backbone", "work", "ours, a second", "plain, a second", "plain takes", "over 1 / 5 epochs",
        "step memory, ours", "plain", "model / data / rest", "of matrix product", "log-probs differ by",
    ]  # fmt: skip
    rows, trl = [], []
    for c in cases:
        own, plain = c["ours"], c["plain"]
        low, high = plain["least_and_most"]
        rows.append([
            c["backbone"], c["work"], f"{own['rate']:.3g}", f"{plain['rate']:.3g}",
            f"{plain['times_as_long']:.1f}× [{low:.1f}, {high:.1f}]",
            f"{c['times_as_long_over_1_epochs']:.1f}× / {c['times_as_long_over_5_epochs']:.1f}×"
            if "times_as_long_over_1_epochs" in c else "–",
            f"{own['step_mib']:.0f} MiB", f"{plain['step_mib']:.0f} MiB",
            f"{own['model_share']:.1%} / {own['data_share']:.1%} / {own['rest_share']:.1%}",
            f"{own.get('share_of_matrix_product', float('nan')):.0%}" if c["work"] != "rank" else "–",
            f"{c['largest_difference_of_logps']:.0e}" if "largest_difference_of_logps" in c else "–",
        ])  # fmt: skip
        trl += [
            [c["backbone"], side, f"{c[side]['rate']:.3g}", f"{c[side]['times_as_long']:.1f}×",
             f"{c[side]['peak_mib']:.0f} MiB", f"{own['peak_mib']:.0f} MiB"]
            for side in c if side.startswith("TRL")
        ]  # fmt: skip
    head = ["backbone", "side", "pairs a second", "takes, against ours", "peak memory", "ours"]
    return markdown(header, rows) + (f"\n\n{markdown(head, trl)}" if trl else "")


if __name__ == "__main__":
    main()
