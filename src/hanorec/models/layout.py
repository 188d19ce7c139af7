"""How a model family places its tokens, and what they see.

In: token ids and patch grids. Out: positions and masks. `discovery` finds a family's `Layout`; `packing` lays
sequences out by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as the models' configs name them
VISIBILITIES = ("causal", "image", "prefix")  # see `Layout`


@dataclass(frozen=True)
class Layout:
    """How a model family places tokens and what they see. The default is the common way: causal, positions 0, 1, 2, …

    image_token: id of the placeholder for a token of an image.
    visibility: what a prompt's token sees besides the tokens before it: nothing ("causal"), the rest of its image
        ("image"), or the whole prompt ("prefix").
    kinds: the kinds of attention that the layers have.
    window: how many tokens back a layer with sliding attention sees, the token itself included.
    first: position of a sequence's first token.
    axes: computes the positions of a prompt in three axes, [3, tokens], from its ids and its images' patch grids
        [images, 3]; None where positions have one axis.
    types: names of the token types that a forward takes.
    why_unpacked: why responses cannot be packed, so that each is read with a prompt of its own; empty where they can.
    """

    image_token: int = -1
    visibility: str = "causal"
    kinds: frozenset[str] = frozenset({FULL})
    window: int | None = None
    first: int = 0
    axes: Callable[[Sequence[int], Tensor | None], np.ndarray] | None = None
    types: tuple[str, ...] = ()
    why_unpacked: str = ""

    def positions(self, ids: Sequence[int], grids: Tensor | None) -> np.ndarray:
        """Positions of a prompt's tokens, [1 or 3, tokens]."""
        return self.axes(ids, grids) if self.axes else np.arange(self.first, self.first + len(ids))[None]

    def prompt_mask(self, ids: Sequence[int]) -> np.ndarray:
        """Which tokens of a prompt (columns) each of its tokens (rows) sees, [tokens, tokens] bool."""
        if self.visibility == "prefix":
            return np.ones((len(ids), len(ids)), dtype=bool)
        visible = np.tri(len(ids), dtype=bool)
        if self.visibility == "image":
            image = np.array(ids) == self.image_token
            begins = image & ~np.concatenate([[False], image[:-1]])
            run = np.where(image, np.cumsum(begins), 0)  # the number of the run of placeholders, 0 for text
            visible |= image & (run[:, None] == run)
        return visible

    def masks(self, visible: Tensor, offsets: Tensor, first: int = 0) -> dict[str, Tensor]:
        """Which columns each column from `first` sees, [B, 1, L - first, L] bool, for each kind of layer.

        visible: [B, 1, L, L] which columns each sees in layers of full attention. offsets: [B, L] how many tokens of
            its own prompt and response stand before each.
        """
        visible = visible[:, :, first:]
        if SLIDING not in self.kinds or self.window is None:
            return dict.fromkeys(self.kinds, visible)
        back = offsets[:, None, first:, None] - offsets[:, None, None, :]  # tokens between the two
        return {kind: visible & (back < self.window) if kind == SLIDING else visible for kind in self.kinds}
