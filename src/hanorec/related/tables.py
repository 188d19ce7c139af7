"""What the objectives of related work have in common: tables of log-probabilities in, a `LossOutput` out.

In: summed log-probabilities of B prompts' responses, [B, 1+R] in nats: the chosen response in the first column, R
rejected ones behind it. A chosen response and one of its rejected ones are a pair. Out: `losses`, `beta` and the
rewards, [B·R], one a pair, prompt by prompt. Objectives over a prompt's whole group have `losses` [B]. A reward is β
times what an objective compares.

As in `losses`, half precision is computed in float32. Shapes that do not match, empty tables and arguments out of range
raise `ValueError`, tables that are not finite `NotFiniteError`, with the argument's name in front.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hanorec.losses import LossOutput, at_least_float32, require, require_batch, require_positive, scalar_like


def log_ratios(policy: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log π_θ/π_ref of the chosen [B, 1] and of the rejected responses [B, R]."""
    require_table(policy, beta, reference=reference)
    ratios = at_least_float32(policy) - at_least_float32(reference)
    return ratios[:, :1], ratios[:, 1:]


def token_means(policy: Tensor, lengths: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log π_θ a token, of the chosen [B, 1] and of the rejected responses [B, R]."""
    require_table(policy, beta, lengths=lengths)
    require((lengths > 0).all(), "lengths", "must be positive")
    means = at_least_float32(policy) / lengths
    return means[:, :1], means[:, 1:]


def require_table(policy: Tensor, beta: float, **others: Tensor) -> None:
    """Raises: ValueError where there is no prompt, or none with a chosen and a rejected response, or no positive β."""
    require_positive(beta=beta)
    require_batch(2, policy=policy, **others)
    require(policy.shape[1] >= 2, "policy", f"must have a chosen and a rejected column, got {tuple(policy.shape)}")


def output_of(
    losses: Tensor, chosen: Tensor, rejected: Tensor, beta, responsiveness: float | Tensor = 1.0
) -> LossOutput:
    """A `LossOutput` from losses, what β multiplies in the rewards (chosen [B, 1], rejected [B, R]), and β."""
    losses = losses.flatten()
    chosen, rejected = (side.expand_as(rejected).flatten().detach() for side in (chosen, rejected))
    beta = torch.as_tensor(beta, dtype=rejected.dtype, device=rejected.device).expand_as(rejected)
    responsiveness = scalar_like("responsiveness", responsiveness, rejected)
    return LossOutput(losses.mean(), losses, beta, responsiveness, beta * chosen, beta * rejected)
