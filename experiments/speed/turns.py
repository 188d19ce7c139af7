"""How speed is measured here: ways of doing the same thing take turns, so that what else a machine does falls on all.

A turn is a function that does a step and gives its seconds and its peak memory above rest. A way can live in a process
of its own: `Worker` starts it and asks it for steps, and `serve` answers there. The interpreter that has TRL imports
this module, too, so it needs Python alone.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results.jsonl"
Turn = Callable[[], tuple[float, float]]  # does a step; gives its seconds of processor time and its peak MiB above rest
Measured = dict[str, dict[str, list[float]]]  # of every way: milliseconds a target and peak MiB, turn by turn


def memory(name: str) -> float:
    """MiB of this process, from Linux's own books: VmRSS now, VmHWM at most since `forget_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def forget_peak() -> None:
    """The high-water mark begins anew."""
    Path("/proc/self/clear_refs").write_text("5")


def here(step: Callable[[], Any], *, peak: bool = True) -> Turn:
    """A step in this process. peak: measure its memory, before which what earlier steps freed is given back; a step
    then takes that memory anew. Without, its MiB are 0."""

    def turn() -> tuple[float, float]:
        if peak:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            forget_peak()
        before, begun = memory("VmRSS"), time.process_time()
        step()
        seconds = time.process_time() - begun
        return seconds, memory("VmHWM") - before if peak else 0.0

    return turn


def measure(ways: dict[str, tuple[Turn, int]], turns: int) -> Measured:
    """Every way's turns, after one that touches memory. With each way stands the number of targets of its turn."""
    found: Measured = {name: {"milliseconds": [], "mib": []} for name in ways}
    for number in range(turns + 1):
        order = list(ways)
        for name in order[number % len(ways) :] + order[: number % len(ways)]:  # none always follows the same other
            turn, targets = ways[name]
            seconds, mib = turn()
            if number:
                found[name]["milliseconds"].append(1000 * seconds / targets)
                found[name]["mib"].append(mib)
    return found


def against(ways: Measured, name: str, other: str) -> list[float]:
    """How many times as long a way takes as another one, in ascending order: a ratio a turn."""
    return sorted(a / b for a, b in zip(ways[name]["milliseconds"], ways[other]["milliseconds"]))


class Worker:
    """A module that serves, in a process of its own."""

    def __init__(self, module: str, *arguments: Any, python: str = sys.executable):
        self.process = subprocess.Popen(
            [python, "-m", module, *map(str, arguments)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self.facts = self._answer()

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker stopped: {self.process.args}")
        return json.loads(line)

    def run(self, steps: int) -> dict:
        """Do so many steps; what `serve` says of them."""
        print(f"run {steps}", file=self.process.stdin, flush=True)
        return self._answer()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def serve(
    run: Callable[[int], dict], facts: dict, answers: TextIO = sys.stdout, after: Callable[[], dict] = dict
) -> None:
    """Answer a `Worker` until it ends: a line of facts, then for every `run K` what `run(K)` gives, seconds and memory.

    after: what else to say, made when the time is taken.
    """
    print(json.dumps(facts), file=answers, flush=True)
    base = memory("VmRSS")
    for line in sys.stdin:
        forget_peak()
        begun, cpu = time.perf_counter(), time.process_time()
        found = run(int(line.split()[1]))
        found |= {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
        found |= {"base_mib": base, "peak_mib": memory("VmHWM"), **after()}
        print(json.dumps(found), file=answers, flush=True)
