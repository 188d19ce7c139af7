"""What can go wrong through no fault of the code, and how a script says it.

In: an exception that a user can do something about. Out: one line on stderr and exit status 2.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hanorec import distributed


class DataError(ValueError):
    """Input that cannot be used: a file, an option, a folder. The message names it and says what to do."""


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
    except torch.OutOfMemoryError as error:
        print(
            f"error: out of memory: {str(error).splitlines()[0]} What lowers it: --forward-tokens, --batch-size, "
            "--gradient-checkpointing, --dtype bfloat16, --image-pixels, --lora on",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _one_line_warning(message, *_, **__) -> None:
    if distributed.is_main_process():
        print(f"warning: {message}", file=sys.stderr)
