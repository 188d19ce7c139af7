"""Running the study's cells: scripts as processes, and what a cell leaves as one JSON file.

In: a cell, and the folder where catalogues, SFT starts and runs are kept. Out: the cell's content: its figures, with
every user's place, or why it failed. What is made on the way (catalogues, starts) is kept under the fingerprint of what
it was made from, and made again where it is missing or stale.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import string
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from study_cells import (
    ROOT,
    Cell,
    bare_code,
    fingerprint,
    fitted_folder,
    same,
    start_before,
    start_command,
    start_fingerprint,
    start_folder,
    train_command,
    view_commands,
)
from study_worlds import CATALOGUES, SMALL_BACKBONES, VOCABULARIES, WORLDS

from hanorec.cache import content_fingerprint
from hanorec.data.toy import make_toy
from hanorec.errors import DataError
from hanorec.training.checkpoints import replace_text
from hanorec.training.runs import model_fingerprint

DIGITS = string.digits + string.ascii_letters  # a number from 0 to 61 as one letter
COURSE = ("loss", "margin", "accuracy", "chosen_logp", "rejected_logp", "beta_mean", "responsiveness")


class Failed(Exception):
    """A script ended with an error; the message says which and why."""


class Stopped(Exception):
    """The study was stopped while a script ran."""


class Scripts:
    """Runs the three scripts, each on one thread, until `stop` is called: then those that run are ended, too."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen] = set()
        self.stopped = threading.Event()

    def run(self, command: list[str], log: Path) -> dict[str, float]:
        """Run a script to its end, its output in a file; returns seconds on the clock and of CPU time."""
        begun = time.perf_counter()
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, ROOT / command[0], *command[1:]], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        self.running.add(process)
        if self.stopped.is_set():  # stopped in between
            self.stop()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        self.running.discard(process)
        if self.stopped.is_set():
            raise Stopped
        if process.returncode:
            lines = re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace").strip())
            raise Failed(f"{command[0]} ended with status {process.returncode}: {lines[-1].strip()}")
        return {"wall": time.perf_counter() - begun, "cpu": usage.ru_utime + usage.ru_stime}

    def stop(self) -> None:
        """End what runs: the scripts in the middle of their step, the cells without a file."""
        self.stopped.set()
        for process in list(self.running):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)  # Popen.terminate may wait for it, and `run` does


def make_catalogues(names: Iterable[str], folder: Path, real: Path | None = None) -> None:
    """Make the toy catalogues among `names`. real: the folder of the one that is real; it is linked, and backbones with
    its vocabulary are made. Errors: DataError where it is needed and not given."""
    for name in sorted(set(names)):
        place, mark = folder / "data" / name, folder / "data" / f"{name}.json"
        made = CATALOGUES[name]
        if made is None:
            use_real(place, real, folder)
            continue
        code = Path(sys.modules[make_toy.__module__].__file__ or "")
        made_from = content_fingerprint(repr(made), bare_code(code))
        if not place.is_dir() or read_json(mark) != made_from:
            print(f"making the catalogue {name} in {place}", flush=True)
            make_toy(place, made)
            replace_text(mark, json.dumps(made_from) + "\n")


def use_real(place: Path, real: Path | None, folder: Path) -> None:
    """Link a real dataset's folder to its place, and make the `BACKBONES` with its vocabulary."""
    if real is None and not place.is_dir():
        raise DataError(f"--data: where is the dataset {place.name}? It is not part of this repository")
    if real is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(real.resolve(), target_is_directory=True)
    for vocabulary, options in VOCABULARIES.items():
        fitted = fitted_folder(vocabulary, folder)
        if not fitted.is_dir():
            script = [
                sys.executable,
                ROOT / "tools" / "fit_vocabulary.py",
                "--data",
                place,
                "--output",
                fitted,
                *options,
            ]
            subprocess.run(script, check=True)
    for name, options in SMALL_BACKBONES.items():
        small, like = fitted_folder(name, folder), fitted_folder("whole-titles", folder)
        if not small.is_dir():
            script = [sys.executable, ROOT / "tools" / "small_backbone.py", "--like", like, "--output", small]
            subprocess.run([*script, *options], check=True)


def make_start(name: str, seed: int, folder: Path, scripts: Scripts, any_code: bool) -> dict:
    """An SFT start, trained unless it is there: the fingerprint of its weights, and the seconds it took, those of the
    start that it trains on from among them. Where the script fails, the reason (`failed`). Errors: Stopped."""
    start, mark = start_folder(name, seed, folder), start_fingerprint(name, seed)
    known = read_json(start / "study.json")
    if (start / "finished.json").is_file() and known is not None and same(known["fingerprint"], mark, any_code):
        return known
    spent = {"wall": 0.0, "cpu": 0.0}
    if before := start_before(name):
        made = make_start(before, seed, folder, scripts, any_code)
        if "failed" in made:
            return made
        spent = made["seconds"]
    try:
        seconds = scripts.run(start_command(name, seed, folder), folder / f"{start.name}.log")
        seconds = {clock: spent[clock] + more for clock, more in seconds.items()}
    except Failed as error:
        return {"failed": f"SFT start {name}: {error}"}
    made = {"fingerprint": mark, "weights": model_fingerprint(start)[:16], "seconds": rounded(seconds)}
    replace_text(start / "study.json", json.dumps(made, indent=1) + "\n")
    return made


def run_cell(cell: Cell, start: dict, folder: Path, scripts: Scripts) -> dict:
    """Train and measure a cell; returns the content of its file. Where a script fails, that is the reason (`failed`) in
    place of figures. start: what `make_start` returned for it. Errors: Stopped."""
    run, train = folder / cell.name, train_command(cell, folder)
    content: dict = {"world": cell.world, "method": cell.method, "seed": cell.seed, "fingerprint": fingerprint(cell)}
    try:
        if "failed" in start:
            raise Failed(start["failed"])
        content |= {"start": start["weights"], "command": " ".join(train)}
        if train:
            seconds = {"train": scripts.run(train, folder / f"{cell.name}.log")}
        else:  # the start itself, in a folder of its own
            shutil.rmtree(run, ignore_errors=True)
            shutil.copytree(start_folder(WORLDS[cell.world].start, cell.seed, folder), run)
            seconds = {"train": start["seconds"]}
        content["views"] = {}
        for view, command in view_commands(cell, folder).items():
            seconds[view] = scripts.run(command, folder / f"{cell.name}.log")
            content["views"] |= measured(view, run, command)
        content["seconds"] = {name: rounded(each) for name, each in seconds.items()}
        content["finished"] = read_json(run / "finished.json")
        content |= course(run)
    except Failed as error:
        content["failed"] = str(error)
    except (OSError, LookupError, ValueError) as error:  # of what a script left
        content["failed"] = f"{type(error).__name__}: {error}"
    return content


def measured(view: str, run: Path, command: list[str]) -> dict[str, dict]:
    """What evaluate.py wrote of a run: by view (and modality, where it is not full) measures and every user's place.

    users: a fingerprint of the users and of their histories, alike where two cells can be paired. history, ahead, tied:
    length of history, candidates ahead of the target, and candidates tied with it, a letter a user (`DIGITS`).
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


def course(run: Path) -> dict[str, dict]:
    """A run's log in short: summaries over all logged steps, and the course of training and of validation."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    validations = [line for line in lines if "validation" in line]
    result: dict = {"course": {name: [round(line[name], 4) for line in steps] for name in COURSE if name in steps[0]}}
    result["course"]["step"] = [line["step"] for line in steps]
    result["validation"] = {name: [line[name] for line in validations] for name in ("step", "validation")}
    if "beta_mean" in steps[0]:
        eta = np.quantile([line["responsiveness"] for line in steps], [0.05, 0.5, 0.95])
        result["summary"] = {
            "beta": [min(line["beta_min"] for line in steps), float(np.mean([line["beta_mean"] for line in steps])),
                     max(line["beta_max"] for line in steps)],  # smallest, mean, largest
            "hardness": [float(np.mean([line[f"hardness_{name}"] for line in steps])) for name in ("mean", "std")],
            "responsiveness": eta.tolist(),  # quantiles at 5, 50 and 95 %
            "adapted": float(np.mean([line["adapted"] for line in steps])),
        }  # fmt: skip
    return result


def letters(numbers: list[int]) -> str:
    return "".join(DIGITS[number] for number in numbers)


def numbers(letters: str) -> np.ndarray:
    """Back from `letters`, [U]."""
    return np.array([DIGITS.index(letter) for letter in letters])


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 1) for name, value in seconds.items()}


def read_json(path: Path):
    """The content of a JSON file; None where there is none or it was cut short."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_cell(path: Path, content: dict) -> None:
    """Write a cell's file, whole or not at all; a list of numbers is one line."""
    text = re.sub(r"\[[^\[\]{}\"]*\]", lambda found: " ".join(found[0].split()), json.dumps(content, indent=1))
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text + "\n")


def read_cell(path: Path) -> dict | None:
    """A cell's content; None where there is none. Errors: DataError for a file that is no cell of the study."""
    if not path.exists():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or not {"world", "method", "seed", "fingerprint"} <= content.keys():
        raise DataError(f"{path}: not a cell of the study; give --results a folder that holds nothing else")
    if path.name != f"{Cell(content['world'], content['method'], content['seed']).name}.json":
        raise DataError(f"{path}: holds another cell, {content['world']} {content['method']} {content['seed']}")
    return content


def read_cells(results: Path) -> dict[Cell, dict]:
    """Every cell in a folder of results, failed ones too. Errors: DataError where the folder is missing or holds
    something other than cells."""
    if not results.is_dir():
        raise DataError(f"{results}: no such folder; experiments/study.py makes it")
    contents = {}
    for path in sorted(results.glob("*.json")):
        content = read_cell(path)
        assert content is not None
        contents[Cell(content["world"], content["method"], content["seed"])] = content
    return contents
