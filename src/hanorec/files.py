"""How files and folders get on the disk: whole or not at all, and in the order in which they rely on each other.

In: a path and what is to stand there. Out: it stands there and is on the disk, whatever happens to the machine next. A
link in its place is replaced, and what it points to is left alone.
"""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext, suppress
from pathlib import Path
from uuid import uuid4

PARTIAL = ".partial"  # the end of a file's name until it is whole


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Errors: OSError, where what was there before is still there."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}{PARTIAL}")
    try:
        with open(partial, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    to_disk(path.parent)


def replace_folder(fresh: Path, path: Path) -> None:
    """Put a folder that lies beside `path` in its place, once all that it holds is on the disk."""
    for file in (*fresh.rglob("*"), fresh):
        to_disk(file)
    remove(path)
    fresh.rename(path)
    to_disk(path.parent)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def to_disk(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk. Errors: OSError where a file is not."""
    with suppress(OSError) if path.is_dir() else nullcontext():  # some systems have no folders to force
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
