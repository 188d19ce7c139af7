#!/usr/bin/env python3
"""The study of the paper's claims on toy worlds, in cells (world, method, seed) of a few minutes each.

    python experiments/study.py --list                       every cell and its state
    python experiments/study.py                              runs what is missing, every method once, then further seeds
    python experiments/study.py --worlds early --methods dpo hanorec-paper --seeds 1
    python experiments/study.py --worlds early --methods dpo@1e-4 dpo@3e-4 --seeds 1   trials, on validation users alone
    python experiments/study.py --worlds ml-100k --data DIR  on real data
    python experiments/study.py --table                      writes experiments/results/study.md, beside --results
    python experiments/study.py --worlds small --methods sft dpo --seeds 1 --results DIR --runs DIR   seconds

A cell's result is one JSON file in --results, written when the cell is done. Cells whose file is there, of the same
settings and code, are skipped, so that the study goes on after any stop, on another machine, from these files alone.
A cell that fails leaves its reason; --retry-failed runs it again. Weights are kept in --runs, and made again where they
are missing.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

from study_cells import ROOT, Cell, catalogues, check_method, fingerprint, grid, same
from study_run import Scripts, make_catalogues, make_start, read_cell, run_cell, write_cell
from study_table import tables
from study_worlds import GRID, REAL, WORLDS

from hanorec.errors import DataError, exit_on_user_error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show the cells and their states, and run nothing")
    parser.add_argument("--table", action="store_true", help="write the tables from the files there, and run nothing")
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(GRID))
    parser.add_argument(
        "--methods",
        nargs="+",
        metavar="NAME",
        help="known ones, each alone or with @ and a learning rate (default: all)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--data", type=Path, metavar="DIR", help=f"the dataset folder of the worlds of {REAL}")
    parser.add_argument("--workers", type=int, default=2, help="cells at a time, each on one thread (default 2)")
    parser.add_argument("--retry-failed", action="store_true", help="run failed cells again")
    parser.add_argument(
        "--any-code", action="store_true", help="keep cells of another version of the code; the table counts versions"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "experiments" / "results" / "study", metavar="DIR")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs" / "study", help="catalogues and weights", metavar="DIR"
    )
    args = parser.parse_args()
    if args.workers < 1:
        raise DataError(f"--workers {args.workers}: at least one cell runs at a time")
    cells = grid(args.worlds, args.methods and [check_method(name) for name in args.methods], args.seeds)
    real = args.data and args.data.resolve()
    folders = [Path(os.path.relpath(folder, ROOT)) for folder in (args.results, args.runs)]  # so in the cells' files
    os.chdir(ROOT)
    results, runs = folders
    if args.table:
        text = tables(results, cells)
        path = results.parent / f"{results.name}.md"
        path.write_text(text, encoding="utf-8")
        print(text)
        return
    states = {cell: state(cell, results, args.any_code) for cell in cells}
    if args.list:
        for cell, how in states.items():
            print(f"{cell.name:60} {how}")
        print(", ".join(f"{number} {how}" for how, number in Counter(map(kind, states.values())).items()))
        return
    run_study(pending(states, args.retry_failed), results, runs, args.workers, args.any_code, real)


def pending(states: dict[Cell, str], retry_failed: bool = False) -> list[Cell]:
    """The cells to run, in their order."""
    return [
        cell for cell, how in states.items() if how in ("to do", "stale") or (retry_failed and kind(how) == "failed")
    ]


def kind(state: str) -> str:
    return state.partition(":")[0]


def state(cell: Cell, results: Path, any_code: bool) -> str:
    """What the folder of results has of a cell: done, failed (and why), stale (made with other settings or code), or
    nothing (to do). Errors: DataError where the cell's file is something else."""
    content = read_cell(results / f"{cell.name}.json")
    if content is None:
        return "to do"
    if not same(content["fingerprint"], fingerprint(cell), any_code):
        return "stale"
    return f"failed: {content['failed']}" if "failed" in content else "done"


def run_study(
    cells: list[Cell], results: Path, runs: Path, workers: int, any_code: bool, real: Path | None = None
) -> None:
    """Run cells, a seed after the other: first the SFT starts that its cells need, then the cells. real: the folder of
    the real dataset."""
    make_catalogues(set().union(*map(catalogues, cells)), runs, real)
    scripts, done = Scripts(), 0
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt, as SIGINT does
    pool = ThreadPoolExecutor(workers)
    try:
        for seed in dict.fromkeys(cell.seed for cell in cells):
            of_seed = [cell for cell in cells if cell.seed == seed]
            names = dict.fromkeys(WORLDS[cell.world].start for cell in of_seed)
            print(f"seed {seed}: SFT starts {', '.join(names)}; then {len(of_seed)} cells", flush=True)
            made = {name: pool.submit(make_start, name, seed, runs, scripts, any_code) for name in names}
            starts = {name: future.result() for name, future in made.items()}
            futures: dict[Future, Cell] = {
                pool.submit(run_cell, cell, starts[WORLDS[cell.world].start], runs, scripts): cell for cell in of_seed
            }
            for future in as_completed(futures):
                cell, content = futures[future], future.result()
                write_cell(results / f"{cell.name}.json", content)
                done += 1
                print(f"[{done}/{len(cells)}] {cell.name}: {in_short(content)}", flush=True)
    except KeyboardInterrupt:
        raise DataError(f"stopped after {done} of {len(cells)} cells; the same command goes on") from None
    finally:
        scripts.stop()
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)


def in_short(content: dict) -> str:
    """A finished cell in one line."""
    if "failed" in content:
        return f"failed: {content['failed']}"
    view, first = next(iter(content["views"].items()))
    seconds = {name: sum(each[name] for each in content["seconds"].values()) for name in ("wall", "cpu")}
    figure = f"NDCG@10 {first['measures']['NDCG@10']:.3f} on {view}"
    return f"{figure}, {seconds['wall']:.0f} s ({seconds['cpu']:.0f} s of CPU)"


if __name__ == "__main__":
    with exit_on_user_error():
        main()
