"""A process that dies at an operation on files, and a disk that has nothing but what was forced to it.

In: the number of an operation, or a script's command line. Out: a folder as a machine leaves it whose power is cut. The
disk is a layer over the real one: `os.fsync` notes what a file holds then, and `cut` empties what it never saw.

    python -m experiments.checks.power_cut MOMENT FOLDER SCRIPT [--option value ...]

runs a script that dies at an operation and cuts the power of a folder. It ends with status 137, or as the script ends.
"""

from __future__ import annotations

import os
import runpy
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from hanorec import files
from hanorec.training import checkpoints

OPERATIONS = [
    (checkpoints, "save_file"), (Path, "mkdir"), (Path, "write_text"), (Path, "rename"), (Path, "replace"),
    (files.os, "fsync"), (shutil, "rmtree"),
]  # fmt: skip


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the run's own may run after it but what Python unwinds."""


@contextmanager
def dies_at(moment: int) -> Iterator[dict[int, bytes]]:
    """Raise `Killed` at an operation on files, counted from 0: after an even one, and before an odd one.

    Yields what is forced to the disk, by the number of the file.
    """
    done, on_disk, fsync = 0, {}, os.fsync

    def forced(number: int) -> None:
        fsync(number)
        path = Path(f"/proc/self/fd/{number}").resolve()
        if path.is_file():
            on_disk[path.stat().st_ino] = path.read_bytes()

    def dying(operation):
        def call(*arguments, **named):
            nonlocal done
            done += 1
            if done == moment + 1 and moment % 2:
                raise Killed
            result = operation(*arguments, **named)
            if done == moment + 1:
                raise Killed
            return result

        return call

    with mock.patch.object(os, "fsync", forced):
        patches = [mock.patch.object(owner, name, dying(getattr(owner, name))) for owner, name in OPERATIONS]
        for patch in patches:
            patch.start()
        try:
            yield on_disk
        finally:
            for patch in reversed(patches):
                patch.stop()


def cut(folder: Path, on_disk: dict[int, bytes]) -> None:
    """Leave in every file of a folder what was forced to the disk, or nothing."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.write_bytes(on_disk.get(path.stat().st_ino, b""))


def main() -> None:
    moment, folder, *sys.argv = sys.argv[1:]
    with dies_at(int(moment)) as on_disk:
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except Killed:
            cut(Path(folder), on_disk)
            os._exit(137)


if __name__ == "__main__":
    main()
