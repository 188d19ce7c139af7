"""What can go wrong through no fault of the code, and how a script says it.

In: an exception that a user can do something about. Out: one line on stderr and exit status 2.
"""

from __future__ import annotations

import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

FORGING = {"Cc", "Cs", "Zl", "Zp"}  # categories of Unicode
TURNING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class DataError(ValueError):
    """Input that cannot be used: a file, an option, a folder. The message names it and says what to do."""

    def __str__(self) -> str:
        return shown(super().__str__())


class Interrupted(Exception):
    """Raised between two optimizer steps, on every rank, after a signal asked the run to stop."""


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turn what a user can mend into one line on stderr and exit status 2, and each warning into one line."""
    warnings.showwarning = _one_line_warning
    warnings.filterwarnings("ignore", category=FutureWarning)  # meant for the developers of the libraries
    try:
        yield
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which scripts that compute nothing do not import
            raise
        print(
            f"error: out of memory: {str(error).splitlines()[0]} What lowers it: fewer forward tokens, a smaller "
            "batch, gradient checkpointing, the dtype bfloat16, fewer image pixels, LoRA",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def shown(text: str) -> str:
    """A text from outside as it may be printed: what could forge a line of output is written as its escape, as \\x1b is
    here. That is control characters, breaks of lines and paragraphs, halves of characters, and marks that turn the
    direction of writing."""
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in FORGING or c in TURNING else c for c in text)


def _one_line_warning(message, *_, **__) -> None:
    if os.environ.get("RANK", "0") == "0":  # the launchers' number of this process
        print(f"warning: {shown(str(message))}", file=sys.stderr)
