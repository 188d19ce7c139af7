"""Variations on the paper's objective, on the same inputs as `losses.hanorec_loss`.

In: reward gaps. Out: what takes the place of Eq. 8 in the `calibrated` recipe.
"""

from __future__ import annotations

import torch
from torch import Tensor


class RunningResponsiveness:
    """η of the `calibrated` recipe: bounded, and measured against a running mean instead of the batch's own.

    Eq. 8 divides by the batch's mean gap, which is near zero when training starts, so η, and with it β, can fall
    to nothing for a whole batch. In the manner of DAMA (arXiv 2502.01943), the batch's trimmed mean gap is
    compared with a running mean of |gap|, and the ratio is bounded:

        s ← momentum · s + (1 − momentum) · mean|R|,    η = σ(clip(mean(trim(R)) / s, −1, 3)) / σ(1)

    η = 1 where this batch's gap is the usual one; 0.37 ≤ η ≤ 1.30. `scale` is the state to checkpoint.
    """

    def __init__(self, momentum: float = 0.9, scale: float | None = None):
        self.momentum, self.scale = momentum, scale

    @torch.no_grad()
    def __call__(self, reward_gaps: Tensor) -> Tensor:
        """reward_gaps [B] of the global batch → η, a scalar."""
        gaps = reward_gaps.float()
        size = gaps.abs().mean().item()
        self.scale = size if self.scale is None else self.momentum * self.scale + (1 - self.momentum) * size
        trimmed = gaps.sort().values[1:-1] if len(gaps) >= 3 else gaps
        ratio = (trimmed.mean() / max(self.scale, 1e-8)).clamp(-1, 3)
        return torch.sigmoid(ratio) / torch.sigmoid(torch.ones_like(ratio))
