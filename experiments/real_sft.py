#!/usr/bin/env python3
"""What SFT of the tiny backbone, and of a smaller one, learns on a real dataset, in the time that a user has.

    python experiments/real_sft.py --data DIR --list              every cell and its state
    python experiments/real_sft.py --data DIR --trials            settings, on validation users alone
    python experiments/real_sft.py --data DIR --seeds 1 2 3       the chosen settings, on test users, once
    python experiments/real_sft.py --data DIR --sasrec --seeds 1 2 3   SASRec on the same rows, users and candidates
    python experiments/real_sft.py --table                        writes experiments/results/real-sft.md

Settings are those SFT starts of study_worlds.py that are of the real dataset; study.py trains on from the chosen ones.
A cell (setting, seed) is a run of train_sft.py on one thread and, if it is no trial, one of evaluate.py: the model
(where it sees images, with true, grey and exchanged ones), popularity and item co-occurrence. A cell of SASRec is a
training of it, on rows as they are or, as --reorder of train_sft.py has them, in other orders. The result is one JSON
file in --results, written when the cell is done; a cell whose file is there is skipped. Nothing of the dataset's
titles, images or users' rows is written into it, only where each user's next item came.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from study_cells import ROOT, start_command, start_folder
from study_run import Failed, Scripts, course, letters, make_catalogues, make_start, numbers, rounded, write_cell
from study_table import MEASURES, shown
from study_worlds import REAL, REAL_SFT, SFT_TRIALS, STARTS

from hanorec.data.dataset import open_dataset, split_examples
from hanorec.errors import DataError, exit_on_user_error
from hanorec.evaluation.measures import point_measures, target_positions
from hanorec.evaluation.paired import paired_difference
from hanorec.evaluation.ranking import answer_with_scorer
from hanorec.evaluation.report import markdown
from hanorec.recommenders.networks import NETWORKS, network_scorer
from hanorec.recommenders.training import VALIDATION_USERS, train_network
from hanorec.training.options import EvaluationOptions

SHORTER = {  # what is trained, and the most items in a history of the evaluation
    "ml-100k-bare-5": ("ml-100k-bare", 5),
    "ml-100k-mixed-5": ("ml-100k-mixed", 5),
}
CHOSEN = ["ml-100k-20", "ml-100k-5", "ml-100k-small", "ml-100k-bare", "ml-100k-mixed", *SHORTER, "ml-100k-then-5"]
MEANS = "Means over seeds; what SFT has more, paired, with 95 % intervals over users and seeds."
SETTINGS = [*SFT_TRIALS, *CHOSEN]
SASREC = {  # most items in a history, and --reorder
    "sasrec-20": (20, 0),
    "sasrec-20-reordered": (20, 4),
    "sasrec-5": (5, 0),
    "sasrec-5-reordered": (5, 4),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="dataset folder, see data/README.md")
    parser.add_argument("--list", action="store_true", help="show the cells and their states, and run nothing")
    parser.add_argument("--table", action="store_true", help="write the tables from the files there, and run nothing")
    parser.add_argument("--trials", action="store_true", help="run the trials in place of the chosen settings")
    parser.add_argument("--sasrec", action="store_true", help="train SASRec in place of the chosen settings")
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS, *SASREC], help="these alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results" / "real-sft", metavar="DIR")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "study", metavar="DIR", help="weights and logs")
    args = parser.parse_args()
    if args.table:
        path = args.results.parent / "real-sft.md"
        path.write_text(tables(args.results), encoding="utf-8")
        print(path.read_text(encoding="utf-8"))
        return
    os.chdir(ROOT)
    scripts, runs = Scripts(), Path(os.path.relpath(args.runs, ROOT))
    for seed in args.seeds:
        for name in args.settings or (SFT_TRIALS if args.trials else SASREC if args.sasrec else CHOSEN):
            path = args.results / f"{name}--{seed}.json"
            if args.list or path.is_file():
                print(f"{path.stem:30} {'done' if path.is_file() else 'to do'}", flush=True)
                continue
            make_catalogues([REAL], runs, args.data and args.data.resolve())
            if name in SASREC:
                content = run_sasrec(name, seed, runs)
            else:
                content = run_cell(name, seed, runs, scripts)
            write_cell(path, content)
            print(f"{path.stem}: NDCG@10 {max(content['validation']['validation']):.4f} on validation", flush=True)


def run_cell(name: str, seed: int, runs: Path, scripts: Scripts) -> dict:
    """Train a setting and measure it; returns the content of its file. Errors: DataError where a script fails."""
    trained, _ = SHORTER.get(name, (name, None))
    start = make_start(trained, seed, runs, scripts, any_code=True)
    if "failed" in start:
        raise DataError(f"{name}, seed {seed}: {start['failed']}")
    run, content = start_folder(trained, seed, runs), {"setting": name, "seed": seed, **start}
    if name not in SFT_TRIALS:
        evaluation = evaluation_command(name, run, runs)
        try:
            seconds = scripts.run(evaluation, run.with_suffix(".test.log"))
        except Failed as error:
            raise DataError(f"{name}, seed {seed}: {error}") from None
        content |= {"evaluation": " ".join(evaluation), "evaluation_seconds": rounded(seconds), **places_of_users(run)}
    return content | {"command": " ".join(start_command(trained, seed, runs))} | course(run)


def run_sasrec(name: str, seed: int, runs: Path) -> dict:
    """Train SASRec on one thread and measure it; returns the content of its file."""
    history, reorder = SASREC[name]
    torch.set_num_threads(1)
    data = open_dataset(runs / "data" / REAL)
    drawn = dict(task="next", history=history, candidates=20, rejected=0, seed=EvaluationOptions.seed)
    settings, begun = NETWORKS["SASRec"][1], time.process_time()
    validation = split_examples(data, "val", users=VALIDATION_USERS, **drawn)
    network = train_network("SASRec", data, validation, seed=seed, settings=settings)
    seconds = round(time.process_time() - begun, 1)
    examples = {split: split_examples(data, split, **drawn) for split in ("val", "test")}
    answers = {split: answer_with_scorer(network_scorer(network, e), e, "next") for split, e in examples.items()}
    best = round(point_measures("next", answers["val"], examples["val"])["NDCG@10"], 6)
    ahead, tied = target_positions(answers["test"], examples["test"])
    row = "SASRec, reordered" if reorder else "SASRec"
    return {
        "setting": name,
        "seed": seed,
        "seconds": {"cpu": seconds},
        "candidates": drawn["candidates"],
        "ahead": {row: letters(ahead.tolist())},
        "tied": {row: letters(tied.tolist())} if tied.any() else {},
        "validation": {"validation": [best]},
    }


def evaluation_command(name: str, run: Path, runs: Path) -> list[str]:
    """evaluate.py: the model, with grey and exchanged images too if it sees any, and what knows items by number."""
    places = ["--runs", str(run), "--data", str(runs / "data" / REAL), "--cache", str(runs / "cache")]
    trained, history = SHORTER.get(name, (name, None))
    sees = ["full"] if "title" in STARTS[trained][1] else ["full", "blank", "shuffled"]
    views = ["--split", "test", *(["--history", str(history)] if history else []), "--modality", *sees]
    return ["evaluate.py", *places, *views, "--baselines", "popularity", "co-occurrence"]


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


def tables(results: Path) -> str:
    """The trials and, for each chosen setting, the models and baselines on test users. Errors: DataError where there is
    no cell."""
    cells = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    if not cells:
        raise DataError(f"{results}: no cells; the script makes them with --data")
    common = " ".join((*REAL_SFT, "--train-vision"))
    parts = [
        "Written by `python experiments/real_sft.py --table`. CPU minutes are of one thread, training alone. "
        f"All with `{common}`; `words` and `whole-titles` are vocabularies of `tools/fit_vocabulary.py`; `small` and "
        "`bare` are made by `small_backbone.py`."
    ]
    of = {name: [cell for cell in cells if cell["setting"] == name] for name in (*SETTINGS, *SASREC)}
    of |= {name: [with_sasrec(cell, of) for cell in of[name]] for name in CHOSEN}
    rows = [trial_row(name, of[name]) for name in SFT_TRIALS if of[name]]
    if rows:
        header = ["options", "seeds", "NDCG@10", "CPU minutes"]
        parts.append("Trials on validation users: mean [least, most] over seeds.\n\n" + markdown(header, rows))
    chosen = {name: of[name] for name in CHOSEN if of[name]}
    with_it = {name: cells for name, cells in chosen.items() if all("SASRec" in cell["ahead"] for cell in cells)}
    if with_it:
        parts.append(f"The chosen settings on test users. {MEANS}\n\n{overview(with_it)}")
    for name, cells in chosen.items():
        parts.append(
            f"`{name}`: {options_of(name)} on test users. Seeds: {len(cells)}, CPU minutes of each: "
            f"{minutes(cells):.0f}. {MEANS}\n\n{test_table(cells)}"
        )
    return "\n\n".join(parts) + "\n"


def with_sasrec(cell: dict, of: dict[str, list[dict]]) -> dict:
    """A cell with the rows of SASRec of the same history and seed, where they are there."""
    given = cell["evaluation"] if cell["setting"] in SHORTER else cell["command"]
    for name, (history, _) in SASREC.items():
        for other in of[name]:
            if other["seed"] == cell["seed"] and f"--history {history} " in given:
                cell = cell | {part: cell[part] | other[part] for part in ("ahead", "tied")}
    return cell


def options_of(name: str) -> str:
    """Options of train_sft.py that tell a setting from the others."""
    trained, history = SHORTER.get(name, (name, None))
    own = STARTS[trained][1][len(REAL_SFT) :]
    vision = "--train-vision" in own
    shown = " ".join(option for option in own if option != "--train-vision")
    how = f"`{shown}`" + ("" if vision else " without `--train-vision`")
    return how + (f", evaluated with `--history {history}`," if history else "")


def trial_row(name: str, cells: list[dict]) -> list[str]:
    best = [max(cell["validation"]["validation"]) for cell in cells]
    figure = f"{np.mean(best):.3f}" + (f" [{min(best):.3f}, {max(best):.3f}]" if len(best) > 1 else "")
    return [options_of(name), str(len(cells)), figure, f"{minutes(cells):.1f}"]


def minutes(cells: list[dict]) -> float:
    """CPU minutes of a training, the mean over the cells."""
    return float(np.mean([cell["seconds"]["cpu"] for cell in cells])) / 60


def overview(of: dict[str, list[dict]]) -> str:
    """A row for each setting: what it takes, and how far it is from popularity and from SASRec."""
    others = (("popularity", "HR@1"), ("SASRec", "HR@1"), ("SASRec", "NDCG@10"))
    rows = []
    for name, cells in of.items():
        own, _ = mean_and_more(cells, "SFT", "HR@1")
        more = [mean_and_more(cells, *other)[1] for other in others]
        rows.append([f"`{name}`", str(len(cells)), f"{minutes(cells):.0f}", own, *more])
    header = ["setting", "seeds", "CPU minutes", "HR@1", *(f"against {row}: {measure}" for row, measure in others)]
    return markdown(header, rows)


def test_table(cells: list[dict]) -> str:
    rows = [
        [row, *mean_and_more(cells, row, "HR@1"), *mean_and_more(cells, row, "NDCG@10")] for row in cells[0]["ahead"]
    ]
    return markdown(["method", "HR@1", "SFT: more HR@1", "NDCG@10", "SFT: more NDCG@10"], rows)


def mean_and_more(cells: list[dict], row: str, measure: str) -> tuple[str, str]:
    """The mean of a row's measure over users and seeds, and what SFT has more of it."""
    own, sft = (np.stack([values(cell, name, measure) for cell in cells]) for name in (row, "SFT"))
    return f"{own.mean():.3f}", shown(None if row == "SFT" else paired_difference(sft - own), False)


def values(cell: dict, row: str, measure: str) -> np.ndarray:
    """A measure of every user, [U]."""
    ahead = numbers(cell["ahead"][row])
    tied = numbers(cell["tied"][row]) if row in cell["tied"] else np.zeros_like(ahead)
    return MEASURES[measure](ahead, tied, cell["candidates"])


if __name__ == "__main__":
    with exit_on_user_error():
        main()
