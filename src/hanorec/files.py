"""How files and folders get on the disk: whole or not at all, and in the order in which they rely on each other.

In: a path and what is to stand there. Out: it stands there and is on the disk, whatever happens to the machine next. A
link in its place is replaced, and what it points to is left alone. A folder can be kept from other processes.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TextIO
from uuid import uuid4

from hanorec.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"  # the end of a file's name until it is whole


def replace_text(path: Path, text: str) -> None:
    """`replace_bytes` with a text in UTF-8."""
    replace_bytes(path, text.encode())


def replace_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Errors: OSError, where what was there before is still there."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}{PARTIAL}")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    to_disk(path.parent)


def check_new_folder(path: Path) -> None:
    """Errors: DataError where no folder can be made or used at a path: a file, or a link to itself, is in the way."""
    there = Path(os.path.realpath(path))
    for place in (there, *there.parents):
        if os.path.lexists(place):
            if not place.is_dir():
                raise DataError(f"{path}: cannot be a folder, {place} is none")
            return


def replace_folder(fresh: Path, path: Path) -> None:
    """Put a folder that lies beside `path` in its place, once all that it holds is on the disk.

    What was there is removed after that. Errors: OSError, where it is still there."""
    for file in (*fresh.rglob("*"), fresh):
        to_disk(file)
    old = path.with_name(f"{path.name}.{uuid4().hex}{PARTIAL}")
    if os.path.lexists(path):
        path.rename(old)
    try:
        fresh.rename(path)
    except OSError:
        if os.path.lexists(old):
            old.rename(path)
        raise
    to_disk(path.parent)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all that it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path, *patterns: str) -> None:
    """Remove what processes that were killed left half written: names that match, and those of partial files.

    What is younger than an hour may still be written, and stays; so does all of a folder that somebody has locked.
    """
    with suppress(OSError, DataError):
        if (folder / LOCK).exists():
            lock(folder)
            unlock(folder)
        for pattern in (f"*{PARTIAL}", ".tmp*", *patterns):
            for path in folder.glob(pattern):
                if time.time() - path.lstat().st_mtime > 3600:
                    remove(path)


def to_disk(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk. Errors: OSError where a file is not."""
    with suppress(OSError) if path.is_dir() else nullcontext():  # some systems have no folders to force
        number = os.open(path, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


# one process at a time in a folder

LOCK = "lock"
_held: list[TextIO] = []  # of this process, which may lock a folder twice


def lock(folder: Path) -> None:
    """Keep other processes from writing to a folder until `unlock`, or until this process ends, however it ends.

    Does nothing where the system or the disk knows no such locks. Errors: DataError, which says who has the lock.
    """
    if fcntl is None:
        return
    while True:
        if (folder / LOCK).is_symlink():
            (folder / LOCK).unlink()
        file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115  open is what holds it
        if any(os.path.samestat(os.fstat(file.fileno()), os.fstat(other.fileno())) for other in _held):
            file.close()
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise DataError(f"{folder}: {holder} is writing here; wait for it, or give another folder") from None
        except OSError:
            file.close()
            return
        if _is_in(file, folder):  # its holder may have removed it in between
            break
        file.close()
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    _held.append(file)


def unlock(folder: Path) -> None:
    """Let others write to a folder again, if this process kept them from it."""
    for file in [file for file in _held if _is_in(file, folder)]:
        (folder / LOCK).unlink()
        _held.remove(file)
        file.close()


def _is_in(file: TextIO, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(folder / LOCK))
    except FileNotFoundError:
        return False
