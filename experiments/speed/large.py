"""A million interactions over a hundred thousand items: how long a converter takes, and train_sft.py to its first step.

    python -m experiments.speed.large

The files are made up: 100,000 users, titles of six words, no images. Both scripts are processes on one core. Clock and
processor differ by what other work takes of that core. Memory is the most that a process held. Training ends when its
first step is logged, before it is validated. Appends a row to results.jsonl and writes large.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from experiments.common import append_row, read_rows, version
from experiments.speed.turns import RESULTS, ROOT
from hanorec.evaluation.report import markdown

INTERACTIONS, USERS, ITEMS = 1_000_000, 100_000, 100_000


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_tables(folder / "raw")
        convert = ["data/prepare_table.py", folder / "raw", folder / "data", "--keep-without-image"]
        train = ["train_sft.py", "--data", folder / "data", "--output", folder / "run", "--max-steps", "1"]
        train += ["--log-every", "1"]
        row = {
            "convert": measure(convert, folder / "none"),
            "train": measure(train, folder / "run" / "metrics.jsonl"),
        }
    append_row(RESULTS, {"study": "large", "version": version(), **row})
    text = report([row for row in read_rows(RESULTS) if row["study"] == "large"])
    RESULTS.with_name("large.md").write_text(text, encoding="utf-8")
    print(text)


def make_tables(folder: Path) -> None:
    """interactions.csv and items.csv. Every item is chosen at least once, and low numbers more often."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    more = (ITEMS * rng.random(INTERACTIONS - ITEMS) ** 3).astype(int)
    items = rng.permutation(np.concatenate([np.arange(ITEMS), more])).tolist()
    users = rng.permutation(np.arange(INTERACTIONS) % USERS).tolist()
    syllables = ["ba", "ko", "mi", "ter", "lan", "su", "vor", "ne", "dri", "pol", "ga", "res"]
    words = [first + second for first in syllables for second in syllables]
    with (folder / "interactions.csv").open("w") as file:
        file.write("user_id,item_id,timestamp\n")
        rows = enumerate(zip(users, items))
        file.writelines(f"U{user:08d},I{item:08d},{1_600_000_000 + second}\n" for second, (user, item) in rows)
    with (folder / "items.csv").open("w") as file:
        file.write("item_id,title\n")
        titles = rng.integers(0, len(words), (ITEMS, 6)).tolist()
        file.writelines(f"I{item:08d},{' '.join(words[k] for k in title)}\n" for item, title in enumerate(titles))


def measure(command: list, until: Path) -> dict[str, float]:
    """Seconds by clock and processor, and MiB, of a script on one core, to its end or until `until` has a line."""
    core = min(os.sched_getaffinity(0))
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )  # fmt: skip
    used = {"cpu_seconds": 0.0, "mib": 0.0}
    while process.poll() is None and not (until.is_file() and until.stat().st_size):
        time.sleep(0.05)
        used = used_so_far(process.pid) or used
    seconds = time.perf_counter() - begun
    process.kill()
    if process.wait() > 0:
        raise SystemExit(f"a script stopped: {process.args}")
    return {"seconds": round(seconds, 1), **{what: round(number, 1) for what, number in used.items()}}


def used_so_far(process: int) -> dict[str, float] | None:
    """Seconds of the processor, and MiB at most; None where the process has ended."""
    folder = Path(f"/proc/{process}")
    try:
        ticks = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]  # user and system time
        lines = (folder / "status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    held = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), None)
    return held and {"cpu_seconds": sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"), "mib": held}


def report(rows: list[dict]) -> str:
    """The table of the last row."""
    names = {"convert": "`prepare_table.py`", "train": "`train_sft.py`, to its first step"}
    lines = [
        [names[what], *(f"{rows[-1][what][key]:.0f}" for key in ("seconds", "cpu_seconds", "mib"))] for what in names
    ]
    table = markdown(["script", "seconds", "of the processor", "MiB at most"], lines)
    size = f"{INTERACTIONS:,} interactions of {USERS:,} users with {ITEMS:,} items"
    return f"Made by `python -m experiments.speed.large`: {size}, text alone, on one core.\n\n{table}\n"


if __name__ == "__main__":
    main()
