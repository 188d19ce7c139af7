#!/usr/bin/env python3
"""What SFT of the tiny backbone learns on a real dataset, in the time that a user has.

    python experiments/real_sft.py --data DIR --list              every cell and its state
    python experiments/real_sft.py --data DIR --trials            settings, on validation users alone
    python experiments/real_sft.py --data DIR --seeds 1 2 3       the chosen setting, on test users, once
    python experiments/real_sft.py --table                        writes experiments/results/real-sft.md

A cell (setting, seed) is a run of train_sft.py on one thread and, if it is no trial, one of evaluate.py: the model with
true, grey and exchanged images, popularity, item co-occurrence and a SASRec trained on the same rows. Its result is one
JSON file in --results, written when the cell is done; a cell whose file is there is skipped. Nothing of the dataset's
titles, images or users' rows is written into it, only where each user's next item came.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from study_cells import ROOT
from study_run import Failed, Scripts, course, letters, numbers, rounded, write_cell
from study_table import MEASURES, shown

from hanorec.errors import DataError, exit_on_user_error
from hanorec.evaluation.paired import paired_difference
from hanorec.evaluation.report import markdown

BACKBONES = {"tiny": None, "words": (), "titles": ("--whole-titles",)}  # options of data/fit_vocabulary.py


class Setting(NamedTuple):
    """backbone: a key of `BACKBONES`. options: of train_sft.py. trial: measured on validation users alone."""

    backbone: str
    history: int
    epochs: str
    options: tuple[str, ...] = ()
    trial: bool = True


SETTINGS = {
    "tiny": Setting("tiny", 20, "1"),
    "words": Setting("words", 20, "1"),
    "words, named": Setting("words", 20, "1", ("--name-history",)),
    "titles": Setting("titles", 20, "1"),
    "titles, named": Setting("titles", 20, "1", ("--name-history",)),
    "titles, rate 3e-3": Setting("titles", 20, "1", ("--learning-rate", "3e-3")),
    "history-20": Setting("titles", 20, "6", trial=False),
    "history-5": Setting("titles", 5, "6", trial=False),
}
COMMON = ("--windows", "nested", "--batch-size", "20", "--validate-users", "934", "--validate-every", "3000",
          "--checkpoint-every", "1000", "--log-every", "100")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="dataset folder, see data/README.md")
    parser.add_argument("--list", action="store_true", help="show the cells and their states, and run nothing")
    parser.add_argument("--table", action="store_true", help="write the tables from the files there, and run nothing")
    parser.add_argument("--trials", action="store_true", help="run the trials in place of the chosen settings")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), help="these alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results" / "real-sft", metavar="DIR")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "real-sft", metavar="DIR", help="weights and logs")
    args = parser.parse_args()
    if args.table:
        path = args.results.parent / "real-sft.md"
        path.write_text(tables(args.results), encoding="utf-8")
        print(path.read_text(encoding="utf-8"))
        return
    names = args.settings or [name for name, setting in SETTINGS.items() if setting.trial == args.trials]
    for seed in args.seeds:
        for name in names:
            path = args.results / f"{slug(name)}--{seed}.json"
            if args.list or path.is_file():
                print(f"{path.stem:30} {'done' if path.is_file() else 'to do'}", flush=True)
            elif args.data is None:
                raise DataError("--data: which dataset?")
            else:
                content = run_cell(name, seed, args.data.resolve(), args.runs.resolve(), Scripts())
                write_cell(path, content)
                print(f"{path.stem}: NDCG@10 {max(content['validation']['validation']):.4f} on validation", flush=True)


def train_command(name: str, seed: int, backbone: str) -> list[str]:
    """train_sft.py of a setting, without its places."""
    setting = SETTINGS[name]
    of_setting = ["--backbone", backbone, "--history", str(setting.history), "--epochs", setting.epochs]
    return ["train_sft.py", *of_setting, *COMMON, *setting.options, "--seed", str(seed)]


def evaluation_command(run: Path) -> list[str]:
    views = ["--split", "test", "--modality", "full", "blank", "shuffled"]
    return ["evaluate.py", "--runs", str(run), *views, "--baselines", "popularity", "cooccurrence", "sasrec"]


def run_cell(name: str, seed: int, data: Path, runs: Path, scripts: Scripts) -> dict:
    """Train a setting and measure it; returns the content of its file. Errors: DataError where a script fails."""
    run = runs / f"{slug(name)}-{seed}"
    log, places = run.with_suffix(".log"), ["--data", str(data), "--cache", str(runs / "cache")]
    train = train_command(name, seed, make_backbone(SETTINGS[name].backbone, data, runs))
    resume = "--resume" if (run / "checkpoint").exists() else "--overwrite"
    content: dict = {"setting": name, "seed": seed, "command": " ".join(train).replace(str(runs), "runs/real-sft")}
    try:
        seconds = {"train": rounded(scripts.run([*train, *places, "--output", str(run), resume], log))}
        if not SETTINGS[name].trial:
            evaluation = evaluation_command(run)
            seconds["test"] = rounded(scripts.run([*evaluation, *places], log))
            content["evaluation"] = " ".join(evaluation).replace(str(runs), "runs/real-sft")
            content |= places_of_users(run)
    except Failed as error:
        raise DataError(f"{name}, seed {seed}: {error} (see {log})") from None
    return content | {"seconds": seconds} | course(run)


def make_backbone(name: str, data: Path, runs: Path) -> str:
    """The backbone's name or folder, made where it is missing."""
    options, folder = BACKBONES[name], runs / f"backbone-{name}"
    if options is None:
        return "tiny"
    if not folder.is_dir():
        script = [sys.executable, ROOT / "data" / "fit_vocabulary.py", "--data", data, "--output", folder, *options]
        subprocess.run(script, check=True)
    return str(folder)


def places_of_users(run: Path) -> dict:
    """By row of the evaluation's table: how many candidates are ahead of each user's target, a letter each."""
    content = json.loads((run / "evaluation-test-next.json").read_text(encoding="utf-8"))
    seen = content["per_user"]
    rows = {row: row.replace(str(run), "SFT").replace("runs/", "") for row in seen["ahead"]}
    return {
        "candidates": int(content["options"]["candidates"]),
        "ahead": {short: letters(seen["ahead"][row]) for row, short in rows.items()},
        "tied": {short: letters(seen["tied"][row]) for row, short in rows.items() if any(seen["tied"][row])},
    }


def slug(name: str) -> str:
    return name.replace(", ", "-").replace(" ", "-")


def tables(results: Path) -> str:
    """The trials and, for each chosen setting, the models and baselines on test users. Errors: DataError where there is
    no cell."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    if not cells:
        raise DataError(f"{results}: no cells; the script makes them with --data")
    parts = ["Written by `python experiments/real_sft.py --table`. CPU minutes are of one thread, training alone."]
    of = {name: [cell for cell in cells if cell["setting"] == name] for name in SETTINGS}
    rows = [trial_row(name, found) for name, found in of.items() if found and SETTINGS[name].trial]
    if rows:
        parts.append("Trials on validation users, history 20: mean [least, most] over seeds.\n\n" + markdown(
            ["vocabulary", "epochs", "seeds", "NDCG@10", "CPU minutes"], rows))  # fmt: skip
    for name, found in of.items():
        if found and not SETTINGS[name].trial:
            minutes = np.mean([cell["seconds"]["train"]["cpu"] for cell in found]) / 60
            parts.append(
                f"Test users, histories of up to {SETTINGS[name].history} items, {SETTINGS[name].epochs} epochs, "
                f"{len(found)} seeds, {minutes:.0f} CPU minutes a seed. Means over seeds; what SFT has more, paired, "
                f"with 95 % intervals over users and seeds.\n\n{test_table(found)}"
            )
    return "\n\n".join(parts) + "\n"


def trial_row(name: str, cells: list[dict]) -> list[str]:
    best = [max(cell["validation"]["validation"]) for cell in cells]
    minutes = np.mean([cell["seconds"]["train"]["cpu"] for cell in cells]) / 60
    figure = f"{np.mean(best):.3f}" + (f" [{min(best):.3f}, {max(best):.3f}]" if len(best) > 1 else "")
    return [name, SETTINGS[name].epochs, str(len(cells)), figure, f"{minutes:.1f}"]


def test_table(cells: list[dict]) -> str:
    rows = []
    for row in cells[0]["ahead"]:
        line = [row]
        for measure in ("HR@1", "NDCG@10"):
            own = np.stack([values(cell, row, measure) for cell in cells])
            sft = np.stack([values(cell, "SFT", measure) for cell in cells])
            line += [f"{own.mean():.3f}", shown(None if row == "SFT" else paired_difference(sft - own), False)]
        rows.append(line)
    return markdown(["method", "HR@1", "SFT has more", "NDCG@10", "SFT has more"], rows)


def values(cell: dict, row: str, measure: str) -> np.ndarray:
    """A measure of every user, [U]."""
    ahead = numbers(cell["ahead"][row])
    tied = numbers(cell["tied"][row]) if row in cell["tied"] else np.zeros_like(ahead)
    return MEASURES[measure](ahead, tied, cell["candidates"])


if __name__ == "__main__":
    with exit_on_user_error():
        main()
