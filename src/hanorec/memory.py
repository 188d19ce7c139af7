"""When Python looks for objects that hold each other in a circle.

It looks again and again while objects become more, and at all of them. A large dataset is millions of small objects,
and none of them is in a circle.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collection() -> Iterator[None]:
    """Look for no circles meanwhile; as a decorator, while a function runs."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
