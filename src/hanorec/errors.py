"""What can go wrong through no fault of the code, and how a script says it.

In: an exception that a user can do something about. Out: one line on stderr and an exit status: 2 for what a user gave,
3 for what the machine lacks (room on a disk, memory), 128 + a signal's number: 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

FORGING = {"Cc", "Cs", "Zl", "Zp"}  # categories of Unicode
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
OF_THE_MACHINE = {  # no room, not to be written, broken, no more open files
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOMEM,
    errno.EMFILE, errno.ENFILE,
}  # fmt: skip

OF_A_PATH = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ENAMETOOLONG, errno.ELOOP}


class DataError(ValueError):
    """Input that cannot be used: a file, an option, a folder. The message names it and says what to do."""

    def __str__(self) -> str:
        return shown(super().__str__())


class MachineError(Exception):
    """What the machine does not give: room on a disk, a disk that can be written, memory. The message says where."""


class Interrupted(Exception):
    """A signal stopped a run. signal: its number; the message says how to go on.

    Raised on every rank: between two optimizer steps, after which a checkpoint is written, or at once."""

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn what a user can mend into one line on stderr and an exit status, and each warning into one line."""
    warnings.showwarning = _one_line_warning
    warnings.filterwarnings("ignore", category=FutureWarning)  # meant for the developers of the libraries
    try:
        yield
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Interrupted as error:
        print(f"interrupted: {shown(str(error))}", file=sys.stderr)
        raise SystemExit(128 + error.signal) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in OF_A_PATH:
            print(f"error: {shown(f'{error.filename}: {error.strerror}')}", file=sys.stderr)
            raise SystemExit(2) from None
        reason = str(error) if isinstance(error, MachineError) else what_the_machine_lacks(error)
        if not reason:
            raise
        print(f"error: {shown(reason)}", file=sys.stderr)
        raise SystemExit(3) from None


def what_the_machine_lacks(error: BaseException) -> str:
    """In a line, what no change of the input mends: memory, or a disk that is full, read-only or broken; "" for every
    other error. Libraries written in Rust have errors of their own, which end in "(os error 28)"."""
    first_line = (str(error).strip().splitlines() or [""])[0]
    of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in first_line
    if of_torch or isinstance(error, MemoryError):
        return (
            f"out of memory: {first_line} What lowers it: fewer forward tokens, a smaller batch, gradient "
            "checkpointing, the dtype bfloat16, fewer image pixels, LoRA"
        )
    number = error.errno if isinstance(error, OSError) else None
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(found[1])
    return first_line if number in OF_THE_MACHINE else ""


def shown(text: str) -> str:
    """A text from outside as it may be printed: what could forge a line of output is written as its escape, as \\x1b is
    here. That is control characters, breaks of lines and paragraphs, halves of characters, and marks that turn the
    direction of writing."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in FORGING or c in TURNING else c for c in text)


def _one_line_warning(message, *_, **__) -> None:
    if os.environ.get("RANK", "0") == "0":  # the launchers' number of this process
        print(f"warning: {shown(str(message))}", file=sys.stderr)
