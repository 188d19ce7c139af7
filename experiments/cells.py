"""Makes the cells of a table that are not there yet: each a few runs of the repository's scripts, and one row.

In: the cells, a file of rows (`common`), and a function that makes a cell's content with `Scripts`. Out: rows in the
file: key, settings, version and content of each cell, appended when the cell is done. A stop loses the cells that run
and nothing else, and the same command goes on.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from experiments.common import ROOT, append_row, version
from hanorec.errors import DataError


class Cell(NamedTuple):
    """key: what tells a cell from the others of its table. settings: all else that its figures depend on, as JSON."""

    key: tuple
    settings: dict

    @property
    def name(self) -> str:
        return "--".join(map(str, self.key))


class Failed(Exception):
    """A script ended with an error; the message says which and why."""


class Stopped(Exception):
    """The study was stopped while a script ran."""


class Scripts:
    """Runs scripts of the repository, each on one thread, until `stop` is called: then those that run are ended."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen] = set()
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._made: dict[str, Future] = {}

    def run(self, command: Sequence[str], log: Path) -> dict[str, float]:
        """Run a script to its end from the repository's root, its output in a file; returns seconds on the clock and of
        CPU time. Errors: Failed, Stopped."""
        begun = time.perf_counter()
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "w", encoding="utf-8") as output:
            process = subprocess.Popen(
                [sys.executable, "-u", ROOT / command[0], *command[1:]],  # unbuffered: the log has what came when
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )
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
        return {"wall": round(time.perf_counter() - begun, 1), "cpu": round(usage.ru_utime + usage.ru_stime, 1)}

    def once(self, name: str, make: Callable[[], dict]) -> dict:
        """What `make` returns or raises, made by the first cell that asks for the name; cells that ask later wait."""
        with self._lock:
            first = name not in self._made
            made = self._made.setdefault(name, Future())
        if first:
            try:
                made.set_result(make())
            except BaseException as error:
                made.set_exception(error)
        return made.result()

    def stop(self) -> None:
        """End what runs: the scripts in the middle of their step, the cells without a row."""
        self.stopped.set()
        for process in list(self.running):
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)  # Popen.terminate may wait for it, and `run` does


def latest(rows: Iterable[dict], names: Sequence[str]) -> dict[tuple, dict]:
    """The last row of each key. names: of the key's parts in a row. Errors: DataError for a row without them."""
    found = {}
    for row in rows:
        if not {*names, "settings"} <= row.keys():
            raise DataError(f"a row of the results is not of this study: it has no {', '.join(names)} and settings")
        found[tuple(row[name] for name in names)] = row
    return found


def state(cell: Cell, rows: dict[tuple, dict]) -> str:
    """What the rows have of a cell: done, failed (and why), other settings, or nothing (to do)."""
    row = rows.get(cell.key)
    if row is None:
        return "to do"
    if row["settings"] != cell.settings:
        return "other settings"
    return f"failed: {row['failed']}" if "failed" in row else "done"


def missing(cells: Iterable[Cell], rows: dict[tuple, dict], retry_failed: bool = False) -> list[Cell]:
    """The cells to make: those without a row of their settings and, if asked for, those that failed."""
    states = {cell.key: (cell, state(cell, rows)) for cell in cells}
    return [cell for cell, now in states.values() if now != "done" and (retry_failed or not now.startswith("failed"))]


def make_cells(
    cells: Sequence[Cell],
    names: Sequence[str],
    path: Path,
    make: Callable[[Cell, Scripts], dict],
    *,
    workers: int = 1,
    scripts: Scripts | None = None,
) -> None:
    """Make cells, so many at a time, and append a row of each to `path`. names: of the key's parts in a row.

    make: gives a cell's content. Where it raises Failed, or an error of what a script left (OSError, LookupError,
    ValueError), the row has the reason (`failed`) in place of content.
    Errors: DataError where it is stopped (SIGINT or SIGTERM), which says how far it came.
    """
    scripts, done, made_by = scripts or Scripts(), 0, version()

    def row(cell: Cell) -> dict:
        try:
            content = make(cell, scripts)
        except Failed as error:
            content = {"failed": str(error)}
        except (OSError, LookupError, ValueError) as error:
            content = {"failed": f"{type(error).__name__}: {error}"}
        return {**dict(zip(names, cell.key)), "settings": cell.settings, "version": made_by, **content}

    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # raises KeyboardInterrupt, as SIGINT does
    pool = ThreadPoolExecutor(workers)
    try:
        futures = {pool.submit(row, cell): cell for cell in cells}
        for future in as_completed(futures):
            append_row(path, future.result())
            done += 1
            failed = future.result().get("failed")
            print(
                f"[{done}/{len(cells)}] {futures[future].name}: {f'failed: {failed}' if failed else 'done'}", flush=True
            )
    except KeyboardInterrupt:
        raise DataError(f"stopped after {done} of {len(cells)} cells; the same command goes on") from None
    finally:
        scripts.stop()
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)
