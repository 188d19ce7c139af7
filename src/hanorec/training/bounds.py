"""Numbers on a command line, compared with their bounds before anything else is done.

In: what argparse has read. Out: the same, or a usage error that names option, value and bounds. It imports argparse
alone, so that what only makes data starts at once.
"""

from __future__ import annotations

import argparse
import math

MOST = 2**31 - 1  # of whole numbers that no option bounds itself: more is a slip, and not all of torch counts further
LARGEST_SEED = 2**32 - 1  # numpy takes no more, and of more the last 32 bits would count alone


class BoundedOption(argparse.Action):
    """An argparse action that stores a value, if it is a finite number within bounds.

    least, above, most: the smallest value, or one that is itself too small, and the largest; None where there is none.
    or_word: a word that may stand in place of the number. What is no number, and has no bounds, is stored as it is.
    """

    def __init__(
        self,
        *args,
        least: float | None = None,
        above: float | None = None,
        most: float | None = None,
        or_word: str = "",
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.least, self.above, self.most, self.or_word = least, above, most, or_word
        self.bounded = least is not None or above is not None
        if self.bounded and most is None and self.type is int:
            self.most = MOST
        if self.metavar is None:
            self.metavar = "N" if self.type is int else "X" if self.type is float else None

    def __call__(self, parser, namespace, value, option_string=None):
        if self.bounded and value != self.or_word and not self._within(value):
            bounds = f"above {self.above:g}" if self.least is None else f"of at least {self.least}"
            most = "" if self.most is None else f" and at most {self.most}"
            word = f", or {self.or_word}" if self.or_word else ""
            parser.error(f"{self.option_strings[-1]} {value}: must be a number {bounds}{most}{word}")
        setattr(namespace, self.dest, value)

    def _within(self, value: float | str) -> bool:
        """Whether a number, or a whole number as text, is finite and within the bounds."""
        try:
            number = int(value) if isinstance(value, str) else value
        except ValueError:
            return False
        return (
            number < math.inf  # nan is within no bounds
            and (self.least is None or number >= self.least)
            and (self.above is None or number > self.above)
            and (self.most is None or number <= self.most)
        )
