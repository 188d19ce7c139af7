"""What several folders of experiments share: rows of results, the version that made a row, measures of users.

An experiment runs as a module from the repository's root: `python -m experiments.claims.study`. It imports `hanorec`,
modules of its own folder (`from experiments.claims import worlds`), this module and `cells`, and nothing of another
folder. The scripts of the repository are called as processes (`cells.Scripts`).

A study keeps its results in one file `results.jsonl`: a JSON object a line, appended when it is there. Each row says in
`version` which code made it, e.g. "1.0.0+08e3646": the package's version and, in a checkout, the commit. Rows that were
files of their own before have the commit that added the file.
"""

from __future__ import annotations

import json
import os
import string
import subprocess
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import hanorec
from hanorec.errors import DataError
from hanorec.evaluation import metrics
from hanorec.evaluation.paired import Difference

ROOT = Path(__file__).resolve().parent.parent
DIGITS = string.digits + string.ascii_letters  # a number from 0 to 61 as one letter
COURSE = ("loss", "margin", "accuracy", "chosen_logp", "rejected_logp", "beta_mean", "responsiveness")
MEASURES: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {  # ahead, tied, candidates -> [U]
    "HR@1": lambda ahead, tied, _: metrics.hit_rate(ahead, tied, 1),
    "NDCG@10": lambda ahead, tied, _: metrics.ndcg(ahead, tied, 10),
    "pairs": lambda ahead, tied, candidates: 1 - (ahead + tied / 2) / (candidates - 1),
}


def version() -> str:
    """The package's version, in a checkout with the commit, and with `.changed` where the code differs from it."""
    code = ("src", "train_sft.py", "train_dpo.py", "evaluate.py")
    commit, changes = _git("rev-parse", "--short", "HEAD"), _git("status", "--porcelain", "-uno", "--", *code)
    return hanorec.__version__ + (f"+{commit}" if commit else "") + (".changed" if changes else "")


def _git(*arguments: str) -> str:
    """What git prints about this repository; nothing where there is no git or no checkout."""
    try:
        found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


# rows of results


def read_rows(path: Path) -> list[dict]:
    """The rows of a `results.jsonl`, in their order; none where the file is missing. A last line that was cut short is
    left out with a warning. Errors: DataError for any other line that is no JSON object."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    if lines and lines.pop():
        warnings.warn(f"{path}: the last line was cut short; it is left out", stacklevel=2)
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{path}:{number}: not a row of results (a JSON object)")
        rows.append(row)
    return rows


def append_row(path: Path, row: dict) -> None:
    """Append a row in one write, which a stop cannot tear from its line's end; a last line that was cut short goes."""
    line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
    with open(path, "ab", buffering=0) as file:
        file.write(line)
        os.fsync(file.fileno())


def letters(numbers: Sequence[int]) -> str:
    """Numbers from 0 to 61, one a user, as a letter each: ranks, or lengths of histories."""
    return "".join(DIGITS[number] for number in numbers)


def numbers(letters: str) -> np.ndarray:
    """Back from `letters`, [U]."""
    return np.array([DIGITS.index(letter) for letter in letters])


# what a finished run left


def course(run: Path) -> dict[str, dict]:
    """A run's log in short: training and validation by step and, for HaNoRec, what λ, η and β were over all steps."""
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


def user_values(ahead: str, tied: str, candidates: int, measure: str) -> np.ndarray:
    """A measure (`MEASURES`) of every user, [U], from the candidates ahead of the target and tied with it, as
    `letters`. tied: empty where no user has ties."""
    before = numbers(ahead)
    return MEASURES[measure](before, numbers(tied) if tied else np.zeros_like(before), candidates)


def shown(difference: Difference | None, survives: bool = False) -> str:
    """A difference with its interval as a table shows it; an asterisk marks what survives a correction."""
    if difference is None:
        return "–"
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]{'*' * survives}"
