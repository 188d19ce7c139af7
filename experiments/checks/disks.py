"""What a disk can do to a run: it fills, it cannot be written, its power is cut, and two want one folder.

    python -m experiments.checks.disks              some ten minutes; tiny backbone, toy catalogue
    python -m experiments.checks.disks --times 2    fewer full disks and power cuts

A case has survived if the script says in one line what is the matter, with the exit status that the pages promise, and
if then, resumed with a disk that works, the run leaves every byte that an undisturbed run leaves. Full and read-only
disks are small file systems of their own; that takes the right to mount, and is skipped without it. A power cut is the
layer of `power_cut.py`. Writes disks.md.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.checks.kills import left
from experiments.common import ROOT
from hanorec.evaluation.report import markdown

SHORT = [
    "--max-steps", "8", "--train-users", "100", "--batch-size", "8", "--validate-every", "3", "--validate-users", "10",
    "--checkpoint-every", "2", "--log-every", "1",
]  # fmt: skip
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="cases of a full disk and of a power cut (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default 0)")
    args = parser.parse_args()
    draw, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        done(train(folder / "whole"), 0)
        expected, whole = left(folder / "whole"), folder / "whole"
        kinds = {
            "full": lambda: full(folder, expected, size_of(whole), args.times, draw),
            "read-only": lambda: read_only(folder, expected),
            "power cut": lambda: power(folder, expected, args.times, draw),
            "two at once": lambda: two(folder, expected),
        }
        for kind, cases in kinds.items():
            for what, problem in cases():
                rows.append([kind, what, problem or "survived"])
                print(": ".join(rows[-1]), flush=True)
    counts = []
    for kind in kinds:
        own = [row[2] for row in rows if row[0] == kind]
        survived, skipped = own.count("survived"), own.count("skipped")
        counts.append([kind, str(len(own) - skipped), str(survived), str(len(own) - skipped - survived)])
    tables = (markdown(["disk", "tried", "survived", "lost"], counts), markdown(["disk", "case", "outcome"], rows))
    Path(__file__).with_suffix(".md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
    sys.exit(any(row[3] != "0" for row in counts))


# the kinds: each case is what was done, and what went wrong, "" for nothing


def full(folder: Path, expected: dict, size: int, times: int, draw: random.Random) -> Iterator[tuple[str, str]]:
    """A disk on which the run ends at some moment: from nothing on it to all but its last file."""
    for share in sorted(draw.uniform(0.02, 2.6) for _ in range(times)):  # two checkpoints and the model at the most
        what = f"a disk of {share * size / MIB:.0f} MiB"
        with mounted(folder / "disk", share * size) as disk:
            if disk is None:
                yield what, "skipped"
                continue
            first = train(disk / "run")
            problem = "" if first.returncode == 0 else told(first, 3)
            mount("-o", "remount,size=1g", str(disk))
            yield what, problem or resumed(disk / "run", expected)
    with mounted(folder / "disk", 1.2 * size) as disk:
        if disk is not None:
            shutil.copytree(folder / "whole", disk / "run")
            with open(disk / "filling", "wb") as file:
                try:
                    while file.write(bytes(MIB)):
                        file.flush()
                except OSError:
                    pass
        yield "evaluate.py, no room for its results", "skipped" if disk is None else evaluated(disk / "run", folder)


def read_only(folder: Path, expected: dict) -> Iterator[tuple[str, str]]:
    """A folder that cannot be written: that of the run, before it, while it is resumed and evaluated, and the cache."""
    with mounted(folder / "disk", 1024 * MIB) as disk:
        cases = ("the output", "a run that is resumed", "a run that is evaluated", "the cache")
        if disk is None:
            yield from ((what, "skipped") for what in cases)
            return
        mount("-o", "remount,ro", str(disk))
        problem = told(train(disk / "run"), 3)
        mount("-o", "remount,rw", str(disk))
        yield cases[0], problem or resumed(disk / "run", expected)

        shutil.rmtree(disk / "run")
        train(disk / "run", "-m", "experiments.checks.power_cut", "40", str(disk / "nothing"))
        mount("-o", "remount,ro", str(disk))
        problem = told(train(disk / "run", more=("--resume",)), 3)
        mount("-o", "remount,rw", str(disk))
        yield cases[1], problem or resumed(disk / "run", expected)

        mount("-o", "remount,ro", str(disk))
        yield cases[2], evaluated(disk / "run", folder)
        run = folder / "beside-a-cache"
        problem = done(train(run, cache=disk / "cache"), 0)
        yield cases[3], problem or compared(run, expected)


def power(folder: Path, expected: dict, times: int, draw: random.Random) -> Iterator[tuple[str, str]]:
    """The power goes at an operation on files, from a run's first to after its last; its cache is new, too."""
    for moment in sorted(draw.randrange(0, 100) for _ in range(times)):
        here = folder / f"cut-{moment}"
        first = train(here / "run", "-m", "experiments.checks.power_cut", str(moment), str(here), cache=here / "cache")
        problem = "" if first.returncode in (0, 137) else f"status {first.returncode}"
        ended = ", after the run's end" if first.returncode == 0 else ""
        yield f"at operation {moment}{ended}", problem or resumed(here / "run", expected, cache=here / "cache")


def two(folder: Path, expected: dict) -> Iterator[tuple[str, str]]:
    """A second process that wants the folder of the first."""
    for more in ((), ("--resume",), ("--overwrite", "--seed", "3")):
        run = folder / f"two{''.join(more)}"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        first = subprocess.Popen(command(run, folder / "cache"), cwd=ROOT, **quiet)
        if more:  # the first is in the middle of its work, however long the second takes to start
            while not (run / "metrics.jsonl").exists() and first.poll() is None:
                time.sleep(0.1)
            first.send_signal(signal.SIGSTOP)
        second = train(run, more=more)
        first.send_signal(signal.SIGCONT)
        status = first.wait()
        if not more and status:  # of two that begin at once, either may be the one
            second, status = subprocess.CompletedProcess((), status, "", "error: of the first"), second.returncode
        problem = told(second, 2) or (f"the first ends with {status}" if status else "")
        yield f"a second process {' '.join(more) or 'at the same time'}", problem or compared(run, expected)


# how a case is tried and judged


def command(run: Path, cache: Path, *before: str, more: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *before, "train_sft.py", "--output", str(run), "--cache", str(cache), *SHORT, *more]


def train(
    run: Path, *before: str, cache: Path | None = None, more: tuple[str, ...] = ()
) -> subprocess.CompletedProcess:
    cache = cache or run.parent.parent / "cache" if run.parent.name == "disk" else cache or run.parent / "cache"
    return subprocess.run(command(run, cache, *before, more=more), cwd=ROOT, capture_output=True, text=True)


def done(result: subprocess.CompletedProcess, status: int) -> str:
    """What is wrong with the way in which a script ended."""
    last = (result.stderr.strip().splitlines() or [""])[-1]
    if result.returncode != status or "Traceback" in result.stderr:
        return f"status {result.returncode}: {last}"
    return ""


def told(result: subprocess.CompletedProcess, status: int) -> str:
    """What is wrong with the way in which a script ended that had to fail."""
    return done(result, status) or ("" if result.stderr.strip().splitlines()[-1].startswith("error: ") else "no error")


def resumed(run: Path, expected: dict, cache: Path | None = None) -> str:
    """Go on until the end, if it is not there yet, and compare."""
    if not (run / "finished.json").exists():
        more = ("--resume",) if (run / "config.json").exists() else ()
        if problem := done(train(run, cache=cache, more=more), 0):
            return problem
    return compared(run, expected)


def compared(run: Path, expected: dict) -> str:
    different = [name for name, digest in expected.items() if left(run).get(name) != digest]
    return f"different: {', '.join(different)}" if different else ""


def evaluated(run: Path, folder: Path) -> str:
    """Rank with a run whose folder takes no results: the table is printed all the same."""
    own = [
        "evaluate.py",
        "--runs",
        str(run),
        "--users",
        "20",
        "--baselines",
        "random",
        "--cache",
        str(folder / "cache"),
    ]
    result = subprocess.run([sys.executable, *own], cwd=ROOT, capture_output=True, text=True)
    problem = "" if result.returncode in (0, 3) and "Traceback" not in result.stderr else done(result, 3)
    return problem or ("" if str(run) in result.stdout else "no table")


def size_of(run: Path) -> int:
    return sum(path.stat().st_size for path in run.rglob("*") if path.is_file())


def mount(*arguments: str) -> bool:
    return (
        shutil.which("mount") is not None and subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    )


@contextmanager
def mounted(place: Path, size: float) -> Iterator[Path | None]:
    """A file system of its own of so many bytes; None where it cannot be mounted."""
    place.mkdir(exist_ok=True)
    if not mount("-t", "tmpfs", "-o", f"size={round(size)}", "tmpfs", str(place)):
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


if __name__ == "__main__":
    main()
