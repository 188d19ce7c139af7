"""The study of the paper's claims on toy worlds, in cells (world, method, seed) of a few minutes each.

    python -m experiments.claims.study --list                every cell and its state
    python -m experiments.claims.study                       makes what is missing, a seed after the other
    python -m experiments.claims.study --worlds early --methods dpo hanorec-paper --seeds 1
    python -m experiments.claims.study --worlds early --methods dpo@1e-4 dpo@3e-4 --seeds 1   trials on validation users
    python -m experiments.claims.study --worlds ml-100k --data DIR      on real data
    python -m experiments.claims.study --table               writes experiments/claims/study.md from the rows
    python -m experiments.claims.study --worlds small --methods sft dpo --seeds 1 --study try    seconds

A cell is a row of experiments/claims/results.jsonl, appended when the cell is done. Cells whose row is there, of the
same settings, are skipped, so that the study goes on after any stop, on another machine, from the rows alone. --study
names a study with rows and a table of its own. Catalogues and weights are kept in --runs, and made again where they are
missing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from experiments.cells import Cell, Failed, Scripts, latest, make_cells, missing, state
from experiments.claims.commands import (
    Key,
    check_method,
    grid,
    settings,
    start_command,
    start_folder,
    titles_folder,
    train_command,
    view_commands,
)
from experiments.claims.table import RESULTS, tables
from experiments.claims.worlds import CATALOGUES, GRID, REAL, WORLDS
from experiments.common import ROOT, course, letters, read_rows
from hanorec.cache import content_fingerprint, files_fingerprint
from hanorec.data.toy import World as Catalogue
from hanorec.data.toy import make_toy
from hanorec.errors import DataError, exit_on_user_error

NAMES = ("study", "world", "method", "seed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show the cells and their states, and make nothing")
    parser.add_argument("--table", action="store_true", help="write the tables of the rows there, and make nothing")
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(GRID))
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="each alone or with @ and a learning rate")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"the dataset folder of the worlds of {REAL}")
    parser.add_argument("--workers", type=int, default=2, help="cells at a time, each on one thread (default 2)")
    parser.add_argument("--retry-failed", action="store_true", help="make failed cells again")
    parser.add_argument("--study", default="study", help="name of the study that the rows are of (default study)")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE", help="rows of all studies")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "study", metavar="DIR", help="kept weights")
    args = parser.parse_args()
    if args.workers < 1:
        raise DataError(f"--workers {args.workers}: at least one cell runs at a time")
    if args.table:
        text = tables(args.results, args.study)
        args.results.with_name(f"{args.study}.md").write_text(text, encoding="utf-8")
        print(text)
        return
    keys = grid(args.worlds, args.methods and [check_method(name) for name in args.methods], args.seeds)
    cells = [Cell((args.study, *key), settings(key)) for key in keys]
    rows = latest((row for row in read_rows(args.results) if row.get("study") == args.study), NAMES)
    if args.list:
        states = {cell.name: state(cell, rows) for cell in cells}
        for name, now in states.items():
            print(f"{name:60} {now}")
        counts = Counter(now.partition(":")[0] for now in states.values())
        print(", ".join(f"{number} {now}" for now, number in counts.items()))
        return
    results, real = args.results.resolve(), args.data and args.data.resolve()
    runs = Path(os.path.relpath(args.runs, ROOT))  # so in the rows
    os.chdir(ROOT)
    make_study(missing(cells, rows, args.retry_failed), results, runs, args.workers, real=real)


def make_study(
    cells: list[Cell],
    results: Path,
    runs: Path,
    workers: int,
    *,
    real: Path | None = None,
    scripts: Scripts | None = None,
) -> None:
    """Make cells and append their rows; catalogues and SFT starts are made where they are missing. real: the folder of
    the real dataset."""
    scripts = scripts or Scripts()
    make_catalogues({name for cell in cells for name in used_catalogues(Key(*cell.key[1:]))}, runs, real, scripts)
    make_cells(
        cells, NAMES, results, lambda cell, s: content(Key(*cell.key[1:]), runs, s), workers=workers, scripts=scripts
    )


def used_catalogues(key: Key) -> set[str]:
    """The catalogues that a cell reads, and its start."""
    asked = settings(key)
    return {words.split()[0] for words in (asked["start"], asked["training"], *asked["views"].values())}


def make_catalogues(names: Iterable[str], runs: Path, real: Path | None, scripts: Scripts) -> None:
    """Make the toy catalogues among `names`; the real one is linked, and a backbone with a token for each of its titles
    is made. Errors: DataError where the real one is needed and not given."""
    for name in sorted(names):
        folder, mark = runs / "data" / name, runs / "data" / f"{name}.json"
        if name == REAL:
            if real is None and not folder.is_dir():
                raise DataError(f"--data: where is the dataset {REAL}? It is not part of this repository")
            if real is not None:
                folder.parent.mkdir(parents=True, exist_ok=True)
                folder.unlink(missing_ok=True)
                folder.symlink_to(real, target_is_directory=True)
            if not titles_folder(runs).is_dir():
                command = ["tools/fit_vocabulary.py", "--data", str(folder), "--output", str(titles_folder(runs))]
                scripts.run([*command, "--whole-titles"], runs / "vocabulary.log")
        elif not folder.is_dir() or not mark.is_file() or json.loads(mark.read_text()) != CATALOGUES[name]:
            print(f"making the catalogue {name} in {folder}", flush=True)
            make_toy(folder, Catalogue(**CATALOGUES[name]))
            mark.write_text(json.dumps(CATALOGUES[name]) + "\n", encoding="utf-8")


def make_start(key: Key, runs: Path, scripts: Scripts) -> dict:
    """A cell's SFT start, trained unless it is there with the same settings: the fingerprint of its weights (`start`),
    and the seconds that it took. Errors: Failed, Stopped."""
    name, wanted = WORLDS[key.world].start, settings(key)["start"]
    folder = start_folder(name, key.seed, runs)
    mark = folder / "study.json"
    if (folder / "finished.json").is_file() and mark.is_file():
        known = json.loads(mark.read_text(encoding="utf-8"))
        if known["settings"] == wanted:
            return known
    try:
        seconds = scripts.run(start_command(name, key.seed, runs), runs / f"{folder.name}.log")
    except Failed as error:
        raise Failed(f"SFT start {name}: {error}") from None
    weights = files_fingerprint(sorted((folder / "model").glob("*.safetensors")))
    made = {"settings": wanted, "start": weights[:16], "seconds": seconds}
    mark.write_text(json.dumps(made) + "\n", encoding="utf-8")
    return made


def content(key: Key, runs: Path, scripts: Scripts) -> dict:
    """Train and measure a cell; returns the content of its row. Errors: Failed, Stopped, and those of what a script
    left."""
    start = scripts.once(f"{WORLDS[key.world].start}-{key.seed}", lambda: make_start(key, runs, scripts))
    run, train = runs / key.name, train_command(key, runs)
    if train:
        seconds = {"train": scripts.run(train, runs / f"{key.name}.log")}
    else:  # the start itself, in a folder of its own
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(start_folder(WORLDS[key.world].start, key.seed, runs), run)
        seconds = {"train": start["seconds"]}
    views: dict[str, dict] = {}
    for view, command in view_commands(key, runs).items():
        seconds[view] = scripts.run(command, runs / f"{key.name}.log")
        views |= measured(view, run, command)
    finished = json.loads((run / "finished.json").read_text(encoding="utf-8"))
    made = {"start": start["start"], "command": " ".join(train), "views": views, "seconds": seconds}
    return made | {"finished": finished} | course(run)


def measured(view: str, run: Path, command: list[str]) -> dict[str, dict]:
    """What evaluate.py wrote of a run: by view (and modality, where it is not full) measures and every user's rank.

    users: a fingerprint of the users and of their histories, alike where two cells can be paired. history, ahead, tied:
    length of history, candidates ahead of the target, and candidates tied with it, as `letters`.
    """
    split = command[len(command) - command[::-1].index("--split")]
    listed = "-listed" if "listed" in command else ""
    content = json.loads((run / f"evaluation-{split}-next{listed}.json").read_text(encoding="utf-8"))
    users, history = content["per_user"]["users"], content["per_user"]["history"]
    views = {}
    for row, ahead in content["per_user"]["ahead"].items():
        if row.split(", ")[0] == str(run):  # not a baseline
            tied = content["per_user"]["tied"][row]
            views[", ".join([view, *row.split(", ")[1:]])] = {
                "measures": {name: round(value, 5) for name, (value, _, _) in content["measures"][row].items()},
                "candidates": int(content["options"]["candidates"]),
                "users": content_fingerprint(json.dumps([users, history]))[:12],
                "history": letters(history),
                "ahead": letters(ahead),
                "tied": letters(tied) if any(tied) else "",  # none for anyone
            }
    return views


if __name__ == "__main__":
    with exit_on_user_error():
        main()
