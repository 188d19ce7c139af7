#!/usr/bin/env python3
"""Training and ranking, this project's way against the plain way, on backbones of four sizes; and how costs grow.

    python experiments/benchmark.py                                  all of it, on the toy catalogue
    python experiments/benchmark.py --backbones tiny --works hanorec rank
    python experiments/benchmark.py --backbones 135M --pretrained DIR --data DIR --trl-python VENV/bin/python

The plain way is described in bench_worker.py; TRL's DPOTrainer is a third side where an interpreter that has `trl` is
given. Every side is a process of its own; repetitions take turns, and a ratio is the median over repetitions of
neighbouring runs. Writes experiments/results/<name>.json and .md; what the file holds already is kept, so a benchmark
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
from collections.abc import Iterable
from pathlib import Path

from bench_models import GEOMETRIES, build, catalogue, pixels_of

from hanorec.data.catalog import Catalog, read_catalog
from hanorec.data.dataset import open_dataset, split_examples
from hanorec.data.examples import Example
from hanorec.evaluation.report import markdown
from hanorec.models.prompts import HISTORY, QUESTIONS

HERE = Path(__file__).resolve().parent
ALLOCATOR = {"MALLOC_TRIM_THRESHOLD_": "100000000000", "MALLOC_MMAP_MAX_": "0"}  # for all sides: keep freed memory
BATCH = {"tiny": 16, "11.6M": 4, "135M": 4, "SmolVLM-256M": 2}  # prompts a step
STEPS = {"tiny": 4, "11.6M": 8, "135M": 1, "SmolVLM-256M": 1}  # a repetition
REPEATS = {"tiny": 7, "11.6M": 5, "135M": 3, "SmolVLM-256M": 2}
USERS = {"tiny": 8, "11.6M": 4, "135M": 1, "SmolVLM-256M": 1}  # a repetition of the plain ranking
PROMPTS = {"tiny": 16, "11.6M": 16, "135M": 8, "SmolVLM-256M": 3}  # different prompts, in batches
WARM = 2  # repetitions that do not count
EPOCHS = 5  # the paper's; what is done once a run is spread over so many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=["tiny", *GEOMETRIES], choices=["tiny", *GEOMETRIES])
    parser.add_argument("--works", nargs="+", default=["sft", "dpo", "hanorec", "rank"])
    parser.add_argument("--data", type=Path, help="a dataset folder; a small toy catalogue, if not given")
    parser.add_argument(
        "--pretrained", help="a checkpoint folder that is the 135M backbone, and whose tokenizer the larger ones take"
    )
    parser.add_argument("--repeats", type=int, help="repetitions of each side (default: by backbone, 2 to 7)")
    parser.add_argument("--trl-python", help="an interpreter that has trl: adds TRL's DPOTrainer to hanorec")
    parser.add_argument("--no-growth", action="store_true", help="leave out how costs grow")
    parser.add_argument("--name", default="benchmark", help="of the result files (default benchmark)")
    parser.add_argument("--scratch", type=Path, help="folder for checkpoints and data (default: a temporary one)")
    parser.add_argument("--glibc-default", action="store_true", help="let the C library return freed memory")
    args = parser.parse_args()
    if not args.glibc_default:
        os.environ.update(ALLOCATOR)
    with tempfile.TemporaryDirectory() as temporary:
        results = read(args.name)
        for backbone in args.backbones:
            for work in args.works:
                if any((case["backbone"], case["work"]) == (backbone, work) for case in results["cases"]):
                    continue
                case = compare(backbone, work, args, args.scratch or Path(temporary))
                results["cases"].append(case)
                print(table([case], brief=True), flush=True)
                write(results, args.name)
        if not args.no_growth and not results["growth"]:
            growth = subprocess.run(
                [sys.executable, HERE / "bench_growth.py"], stdout=subprocess.PIPE, text=True, check=True
            )
            results["growth"] = json.loads(growth.stdout)
        write(results, args.name)
    print((HERE / "results" / f"{args.name}.md").read_text())


def compare(backbone: str, work: str, args: argparse.Namespace, scratch: Path) -> dict:
    """One row: both sides (and TRL) on one backbone and work."""
    checkpoint = build(backbone, scratch / backbone, args.pretrained)
    data = args.data or catalogue(scratch / f"toy-{pixels_of(backbone)}", pixels_of(backbone))
    batch, steps = BATCH[backbone], STEPS[backbone]
    repeats = args.repeats or REPEATS[backbone]
    pairs = batch * PROMPTS[backbone]
    common = ["--work", work, "--backbone", checkpoint, "--data", data, "--batch-size", batch, "--pairs", pairs]
    others = {"plain": (HERE / "bench_worker.py", "--side", "plain", *common)}
    if work == "hanorec" and args.trl_python:
        opened = open_dataset(data)
        examples = split_examples(opened, "train", "next", users=pairs)
        trl_pairs(opened.catalog, examples, scratch / "pairs.json", list_candidates=True)
        trl = (
            HERE / "trl_dpo.py",
            "--checkpoint",
            checkpoint,
            "--pairs",
            scratch / "pairs.json",
            "--batch-size",
            batch,
        )
        others |= {"TRL": trl, "TRL, head cut": (*trl, "--head-cut")}
    warm = 1 if backbone == "SmolVLM-256M" else WARM  # its plain step takes a minute
    case = {"backbone": backbone, "work": work, "batch": batch, "repeats": repeats, "threads": threads()}
    for other, command in others.items():  # two at a time: more do not fit in memory
        python = args.trl_python if other.startswith("TRL") else sys.executable
        own, theirs = Worker(HERE / "bench_worker.py", "--side", "ours", *common), Worker(*command, python=python)
        turns = []
        for _ in range(warm + repeats):  # the first ones warm up: memory is touched, weights are paged in
            many = USERS[backbone] if work == "rank" else steps
            # ours takes three steps at least: one alone is short, and slow after a minute of the other side's
            turns.append((own.run(1 if work == "rank" else max(3, steps)), theirs.run(many)))
        own.end()
        theirs.end()
        ours, their = zip(*turns[warm:])
        case.setdefault("ours", summarize(ours, own.facts))
        case[other] = summarize(their, theirs.facts)
        ratios = [(b["seconds"] / b["done"]) / (a["seconds"] / a["done"]) for a, b in zip(ours, their)]
        case[other] |= {"times_as_long": statistics.median(ratios), "least_and_most": [min(ratios), max(ratios)]}
    if work != "rank":
        case["largest_difference_of_logps"] = same_logps(common, 1 if backbone == "SmolVLM-256M" else 2)
        if work != "sft":
            once_counted_in(case, data)
    return case


def once_counted_in(case: dict, data: Path) -> None:
    """The ratio with this project's work done once (every image of the catalogue, every pair's reference) counted."""
    items, pairs = len(read_catalog(data)), len(open_dataset(data).train)
    facts = case["ours"]["facts"]
    for epochs in (1, EPOCHS):
        once = (facts["seconds_a_reference"] + facts["seconds_an_image"] * items / pairs) / epochs
        step = 1 / case["ours"]["rate"]
        case[f"times_as_long_over_{epochs}_epochs"] = case["plain"]["times_as_long"] * step / (step + once)


def same_logps(common: list, steps: int) -> float:
    """The largest difference, in nats, of the two sides' log-probabilities of a response, without noise and dropout.
    After the first step the weights have been updated with each side's own gradient."""
    sides = []
    for side in ("ours", "plain"):
        worker = Worker(HERE / "bench_worker.py", "--side", side, *common, "--exact")
        sides.append([logp for step in worker.run(steps)["logps"] for logp in step])
        worker.end()
    return max(abs(a - b) for a, b in zip(*sides))


def summarize(lines: list[dict], facts: dict) -> dict:
    seconds = sum(line["seconds"] for line in lines)
    found = {
        "rate": statistics.median(line["done"] / line["seconds"] for line in lines),
        "peak_mib": max(line["peak_mib"] for line in lines),
        "step_mib": max(line["peak_mib"] - line["base_mib"] for line in lines),
        "facts": facts,
    }
    if "spent" in lines[0]:
        model, data = (sum(line["spent"][part] for line in lines) for part in ("model", "data"))
        found |= {
            "model_share": model / seconds,
            "data_share": data / seconds,
            "rest_share": 1 - (model + data) / seconds,
        }
        if lines[0]["spent"]["flops"]:
            found["share_of_matrix_product"] = statistics.median(
                line["spent"]["flops"] / line["seconds"] / line["gemm"] for line in lines
            )
    return found


class Worker:
    """A side in a process of its own."""

    def __init__(self, script: Path, *arguments, python: str = sys.executable):
        self.process = subprocess.Popen(
            [python, script, *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=None if os.environ.get("BENCHMARK_ERRORS") else subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.facts = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker stopped; to see why: BENCHMARK_ERRORS=1 and again ({self.process.args})")
        return json.loads(line)

    def run(self, steps: int) -> dict:
        self.process.stdin.write(f"run {steps}\n")
        self.process.stdin.flush()
        return self._answer()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def trl_pairs(catalog: Catalog, examples: Iterable[Example], path: Path, *, list_candidates: bool) -> None:
    """Write pairs as TRL's side reads them: the same prompts as `prompts.Prompts` makes."""
    titles, rows = catalog.titles, []
    for example in examples:
        content, text = [], HISTORY
        for item in example.history:
            text += "\n"
            image = catalog.images[item]
            if image is not None:
                content += [{"type": "text", "text": text}, {"type": "image", "path": str(image.resolve())}]
                text = ""
            text += titles[item]
        listed = [titles[item] for item in example.candidates] if list_candidates else []
        text += "\n" + "\n".join([QUESTIONS["next", list_candidates], *listed])
        content.append({"type": "text", "text": text})
        rows.append(
            {"content": content, "chosen": titles[example.targets[0]], "rejected": titles[example.rejected[0][0]]}
        )
    path.write_text(json.dumps(rows))


def threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))


def table(cases: list[dict], brief: bool = False) -> str:
    header = [
        "backbone", "work", "ours, a second", "plain, a second", "plain takes", "over 1 / 5 epochs",
        "step memory, ours", "plain", "model / data / rest", "of matrix product", "log-probs differ by",
    ]  # fmt: skip
    rows = []
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
    text = markdown(header, rows)
    trl = [
        [
            c["backbone"], side, f"{c[side]['rate']:.3g}", f"{c[side]['times_as_long']:.1f}×",
            f"{c[side]['peak_mib']:.0f} MiB", f"{c['ours']['peak_mib']:.0f} MiB",
        ]
        for c in cases for side in c if side.startswith("TRL")
    ]  # fmt: skip
    if trl:
        head = ["backbone", "side", "pairs a second", "takes, against ours", "peak memory", "ours"]
        text += "\n\n" + markdown(head, trl)
    return text


def read(name: str) -> dict:
    path = HERE / "results" / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {"cases": [], "growth": []}


def write(results: dict, name: str) -> None:
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    text = [table(results["cases"])] if results["cases"] else []
    for growth in results["growth"]:
        text.append(growth["title"] + "\n\n" + markdown(growth["header"], growth["rows"]))
    (folder / f"{name}.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
