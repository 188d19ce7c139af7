"""A signal that asks a run to stop is kept until the step is done.

In: SIGINT (Ctrl-C), SIGTERM or SIGHUP (the terminal is gone). Out: its number, at which the loop looks between two
steps.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopSignal:
    """While open, the first signal of `STOPPING` is kept as `received`; the second one stops at once, by
    KeyboardInterrupt. A signal that is ignored (under nohup, in a shell's background) stays ignored."""

    def __init__(self) -> None:
        self.received = 0  # none
        self.handlers: dict = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
            self.handlers = {number: signal.signal(number, self._receive) for number in heard}
        return self

    def __exit__(self, *_) -> None:
        for number, before in self.handlers.items():
            signal.signal(number, before)

    def _receive(self, number: int, _) -> None:
        again, self.received = bool(self.received), int(number)
        if again:
            raise KeyboardInterrupt
        try:
            print("stopping after this step; again, to stop at once", file=sys.stderr, flush=True)
        except OSError:  # the terminal is gone, and nothing that is printed from here on may stop the checkpoint
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for output in (1, 2):
                os.dup2(nowhere, output)
