"""What SFT of the tiny backbone learns on MovieLens-100K, in the time that a user has, beside SASRec on the same rows.

    python -m experiments.real_data.real_sft --list                              every cell and its state
    python -m experiments.real_data.real_sft --data DIR --seeds 1 2 3            makes those that are not there yet
    python -m experiments.real_data.real_sft --data DIR --settings sasrec-20     one setting alone
    python -m experiments.real_data.real_sft --table                             writes real-sft.md

In: a dataset folder (docs/data.md). Out: a row in real-sft.jsonl for each cell (setting, seed). A cell of SFT is a run
of train_sft.py on one thread. Where its setting is `TESTED`, evaluate.py measures it on test users: the model with
true, grey and exchanged images, popularity and item co-occurrence. A cell of SASRec is one training. A row has options,
figures and ranks of users, and nothing of the dataset's titles, images or histories. The file holds rows of settings
that can no longer be run, too; README.md says which.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from experiments.cells import Cell, Scripts, latest, make_cells, missing, state
from experiments.common import ROOT, course, letters, read_rows, shown, user_values
from experiments.real_data.recommenders import CANDIDATES, answers_of
from hanorec.data.dataset import open_dataset
from hanorec.errors import DataError, exit_on_user_error
from hanorec.evaluation.measures import point_measures, target_positions
from hanorec.evaluation.paired import paired_difference
from hanorec.evaluation.report import markdown

NAMES = ("setting", "seed")  # a cell's key
VOCABULARIES = {"words": (), "whole-titles": ("--whole-titles",)}  # a --backbone: options of tools/fit_vocabulary.py
COMMON = ("--windows", "nested", "--batch-size", "20", "--validate-users", "934", "--validate-every", "3000",
          "--log-every", "100")  # fmt: skip
VISION = ("--layers", "all")  # the vision tower and the connector train, too
_TITLES = (*COMMON, *VISION, "--backbone", "whole-titles", "--history", "20")
SETTINGS = {  # options of train_sft.py
    "ml-100k-words": (*COMMON, *VISION, "--backbone", "words", "--history", "20", "--epochs", "1"),
    "ml-100k-titles": (*_TITLES, "--epochs", "1"),
    "ml-100k-titles-named": (*_TITLES, "--epochs", "1", "--name-history"),
    "ml-100k-titles-b80": (*_TITLES, "--epochs", "1", "--batch-size", "80"),
    "ml-100k-titles-8": (*_TITLES, "--epochs", "8"),
}
TESTED = ("ml-100k-titles-8",)  # measured on test users, too
SASREC = {"sasrec-20": 20, "sasrec-5": 5}  # most items in a history
MEANS = "Means over seeds; what SFT has more, paired, with 95 % intervals over users and seeds."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, metavar="DIR", help="dataset folder, see docs/data.md")
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS, *SASREC], default=[*SETTINGS, *SASREC])
    add_options(parser, "real-sft")
    args = parser.parse_args()
    if args.data is None and not (args.list or args.table):
        parser.error("--data: where is the dataset? It is not part of this repository")
    cells = [Cell((name, seed), settings_of(name)) for seed in args.seeds for name in args.settings]

    def make(cell: Cell, scripts: Scripts) -> dict:
        name, seed = cell.key
        if name in SASREC:
            return run_sasrec(SASREC[name], seed, args.data)
        return run_sft(cell, args.data.resolve(), args.runs, scripts)

    list_make_or_write(args, cells, NAMES, make, tables)


def add_options(parser: argparse.ArgumentParser, study: str) -> None:
    """The options that this study and item_views.py share."""
    parser.add_argument("--list", action="store_true", help="show the cells and their states, and run nothing")
    parser.add_argument("--table", action="store_true", help="write the tables from the rows there, and run nothing")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / f"{study}.jsonl", metavar="FILE")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "real_data", metavar="DIR", help="weights and logs"
    )


def list_make_or_write(args: argparse.Namespace, cells: Sequence[Cell], names: Sequence[str], make, tables) -> None:
    """Do what the options of `add_options` ask for: list the cells, write their tables, or make those that are missing.
    make: gives a cell's content, as `make_cells` takes it. tables: gives the Markdown of rows."""
    rows = read_rows(args.results)
    by_key = latest(rows, names)
    if args.table:
        if not rows:
            raise DataError(f"{args.results}: no rows; the script makes them")
        path = args.results.with_suffix(".md")
        text = tables([row for row in by_key.values() if "failed" not in row])
        path.write_text(text, encoding="utf-8")
        print(text)
    elif args.list:
        for cell in cells:
            print(f"{cell.name:30} {state(cell, by_key)}")
    else:
        make_cells(missing(cells, by_key, retry_failed=True), names, args.results, make)


def settings_of(name: str) -> dict:
    """All that a cell's figures depend on beside its seed and the version, as its row keeps it. options: of
    train_sft.py. trial: it is in the table of trials. evaluation: further options of evaluate.py, on test users."""
    if name in SASREC:
        return {"history": SASREC[name]}
    tested = {"evaluation": []} if name in TESTED else {}
    return {"options": list(SETTINGS[name]), "trial": True} | tested


def train(options: Sequence[str], seed: int, run: Path, data: Path, scripts: Scripts) -> dict[str, float]:
    """Run train_sft.py; returns its seconds. A backbone with the dataset's vocabulary is made first."""
    folder, options = run.parent, list(options)
    for name, more in VOCABULARIES.items():
        if name in options:
            fitted = folder / f"tiny-{name}"
            options[options.index(name)] = str(fitted)
            if not fitted.is_dir():
                fit = ["tools/fit_vocabulary.py", "--data", str(data), "--output", str(fitted), *more]
                scripts.run(fit, fitted.with_suffix(".log"))
    places = ["--data", str(data), "--output", str(run), "--cache", str(folder / "cache"), "--seed", str(seed)]
    return scripts.run(["train_sft.py", *places, "--overwrite", *options], run.with_suffix(".log"))


def run_sft(cell: Cell, data: Path, runs: Path, scripts: Scripts) -> dict:
    """Train a setting and measure it; returns the content of its row. Errors: Failed where a script fails."""
    run = runs / cell.name
    content: dict = {"seconds": train(cell.settings["options"], cell.key[1], run, data, scripts)}
    if "evaluation" in cell.settings:
        evaluation = ["evaluate.py", "--runs", str(run), "--data", str(data), "--cache", str(runs / "cache")]
        evaluation += ["--split", "test", "--modality", "full", "blank", "shuffled", *cell.settings["evaluation"]]
        evaluation += ["--baselines", "popularity", "co-occurrence"]
        content["evaluation_seconds"] = scripts.run(evaluation, run.with_suffix(".test.log"))
        content |= ranks_of_users(run)
    return content | course(run)


def ranks_of_users(run: Path) -> dict:
    """By row of the evaluation's table: how many candidates are ahead of each user's target, a letter each."""
    content = json.loads((run / "evaluation-test-next.json").read_text(encoding="utf-8"))
    seen = content["per_user"]
    rows = {row: row.replace(str(run), "SFT") for row in seen["ahead"]}
    return {
        "candidates": int(content["options"]["candidates"]),
        "ahead": {short: letters(seen["ahead"][row]) for row, short in rows.items()},
        "tied": {short: letters(seen["tied"][row]) for row, short in rows.items() if any(seen["tied"][row])},
    }


def run_sasrec(history: int, seed: int, folder: Path) -> dict:
    """Train SASRec on one thread and measure it; returns the content of its row."""
    torch.set_num_threads(1)
    answers, examples, seconds = answers_of(open_dataset(folder), "sasrec", history, seed)
    best = round(point_measures("next", answers["val"], examples["val"])["NDCG@10"], 6)
    ahead, tied = target_positions(answers["test"], examples["test"])
    return {
        "seconds": {"cpu": seconds},
        "candidates": CANDIDATES,
        "ahead": {"SASRec": letters(ahead.tolist())},
        "tied": {"SASRec": letters(tied.tolist())} if tied.any() else {},
        "validation": {"validation": [best]},
    }


def tables(rows: Sequence[dict]) -> str:
    """The trials and, for each setting measured on test users, the models and baselines."""
    sft = [row for row in rows if "options" in row["settings"]]
    sasrec = [row for row in rows if "history" in row["settings"]]
    parts = [
        "Written by `python -m experiments.real_data.real_sft --table`. CPU minutes are of one thread, training alone. "
        f"All with `{' '.join((*COMMON, *VISION))}`; `words` and `whole-titles` are vocabularies of "
        "`tools/fit_vocabulary.py`; `small` and `bare` are made by `tools/small_backbone.py`."
    ]
    trials = by_setting(row for row in sft if "trial" in row["settings"])
    if trials:
        header = ["options", "seeds", "NDCG@10", "CPU minutes"]
        lines = [trial_line(cells) for cells in trials.values()]
        parts.append("Trials on validation users: mean [least, most] over seeds.\n\n" + markdown(header, lines))
    tested = by_setting(with_sasrec(row, sasrec) for row in sft if "evaluation" in row["settings"])
    with_it = {name: cells for name, cells in tested.items() if all("SASRec" in cell["ahead"] for cell in cells)}
    if with_it:
        parts.append(f"The chosen settings on test users. {MEANS}\n\n{overview(with_it)}")
    for name, cells in tested.items():
        evaluation = " ".join(cells[0]["settings"]["evaluation"])
        how = options_of(cells[0]) + (f", evaluated with `{evaluation}`," if evaluation else "")
        parts.append(
            f"`{name}`: {how} on test users. Seeds: {len(cells)}, CPU minutes of each: {minutes(cells):.0f}. "
            f"{MEANS}\n\n{test_table(cells)}"
        )
    return "\n\n".join(parts) + "\n"


def by_setting(rows) -> dict[str, list[dict]]:
    """Rows by their setting, those of each in the order of their seeds."""
    of: dict[str, list[dict]] = {}
    for row in rows:
        of.setdefault(row["setting"], []).append(row)
    return {name: sorted(cells, key=lambda row: row["seed"]) for name, cells in of.items()}


def with_sasrec(cell: dict, sasrec: Sequence[dict]) -> dict:
    """A cell of SFT with the ranks of SASRec of the same history and seed, where they are there."""
    given = cell["settings"]["evaluation"] or cell["settings"]["options"]
    history = int(given[given.index("--history") + 1])
    for other in sasrec:
        if (other["seed"], other["settings"]["history"]) == (cell["seed"], history):
            cell = cell | {part: cell[part] | other[part] for part in ("ahead", "tied")}
    return cell


def options_of(cell: dict) -> str:
    """Options of train_sft.py that tell a setting from the others."""
    own = cell["settings"]["options"][len(COMMON) :]
    vision, given = " ".join(VISION), " ".join(own)
    return f"`{given.replace(f'{vision} ', '')}`" + ("" if vision in given else f" without `{vision}`")


def trial_line(cells: list[dict]) -> list[str]:
    best = [max(cell["validation"]["validation"]) for cell in cells]
    figure = f"{np.mean(best):.3f}" + (f" [{min(best):.3f}, {max(best):.3f}]" if len(best) > 1 else "")
    return [options_of(cells[0]), str(len(cells)), figure, f"{minutes(cells):.1f}"]


def minutes(cells: list[dict]) -> float:
    """CPU minutes of a training, the mean over the cells."""
    return float(np.mean([cell["seconds"]["cpu"] for cell in cells])) / 60


def overview(of: dict[str, list[dict]]) -> str:
    """A line for each setting: what it takes, and how far it is from popularity and from SASRec."""
    others = (("popularity", "HR@1"), ("SASRec", "HR@1"), ("SASRec", "NDCG@10"))
    lines = []
    for name, cells in of.items():
        own, _ = mean_and_more(cells, "SFT", "HR@1")
        more = [mean_and_more(cells, *other)[1] for other in others]
        lines.append([f"`{name}`", str(len(cells)), f"{minutes(cells):.0f}", own, *more])
    header = ["setting", "seeds", "CPU minutes", "HR@1", *(f"against {row}: {measure}" for row, measure in others)]
    return markdown(header, lines)


def test_table(cells: list[dict]) -> str:
    lines = [
        [row, *mean_and_more(cells, row, "HR@1"), *mean_and_more(cells, row, "NDCG@10")] for row in cells[0]["ahead"]
    ]
    return markdown(["method", "HR@1", "SFT: more HR@1", "NDCG@10", "SFT: more NDCG@10"], lines)


def mean_and_more(cells: list[dict], row: str, measure: str) -> tuple[str, str]:
    """The mean of a method's measure over users and seeds, and what SFT has more of it."""
    own, sft = (
        np.stack([user_values(c["ahead"][name], c["tied"].get(name, ""), c["candidates"], measure) for c in cells])
        for name in (row, "SFT")
    )
    return f"{own.mean():.3f}", shown(None if row == "SFT" else paired_difference(sft - own))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
