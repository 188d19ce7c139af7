"""A signal that asks a run to stop is kept until the step is done.

In: SIGINT or SIGTERM. Out: a flag that the loop looks at between two steps.
"""

from __future__ import annotations

import signal
import sys
import threading


class StopSignal:
    """While open, the first SIGINT or SIGTERM sets `received`; the second one stops at once, by KeyboardInterrupt."""

    def __init__(self) -> None:
        self.received = False
        self.handlers: dict = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self.handlers = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, before in self.handlers.items():
            signal.signal(number, before)

    def _receive(self, number: int, _) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        print("stopping after this step; again, to stop at once", file=sys.stderr)
