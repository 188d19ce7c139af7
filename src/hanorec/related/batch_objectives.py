"""Objectives whose β follows the batch, over pairs that are drawn from it: β-DPO and DAMA.

In: tables of `tables.py`, policy and reference [B, 1+R] in nats, and `RunningGaps`, what a run has seen of margins so
far. Out: a `LossOutput` with a loss for each of the B·R pairs; `loss` is the mean over those that were drawn.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hanorec.losses import (
    NEAR_ZERO,
    LossOutput,
    at_least_float32,
    chosen_and_rejected,
    require,
    require_batch,
    require_positive,
    reward_gaps,
)
from hanorec.related.tables import log_ratios, output_of


def beta_dpo_loss(
    policy: Tensor,
    reference: Tensor,
    *,
    beta: float = 0.1,
    alpha: float = 0.6,
    keep: float = 0.8,
    beta_floor: float = 1e-3,
    running: RunningGaps | None = None,
    generator: torch.Generator | None = None,
) -> LossOutput:
    """β-DPO (arXiv 2407.08639): DPO with β = β₀ (1 + α (mean Δ − M₀)), over pairs drawn without replacement with
    probability ∝ exp(−(Δ − M₀)²/(2σ²)); M₀ and σ are the running mean and deviation of Δ, this batch's included.

    As in the authors' code, Δ is a margin in nats, without β₀. Pairs not drawn count neither in the mean Δ nor in
    `loss`, but have their place in `losses`.

    Args:
        alpha: α, at least 0; with 0, and all pairs kept, this is DPO.
        keep: ρ, the share of pairs drawn, in (0, 1]; at least one is.
        beta_floor: the smallest β, 1e-3 in the authors' code.
        running: M₀ and σ, updated here; None takes this batch's own.
        generator: source of the draw; it may live on another device than the tables.
    """
    require(0 <= alpha < math.inf, "alpha", f"must be finite and at least 0, got {alpha}")
    _check_draw(keep, beta_floor)
    chosen, rejected = log_ratios(policy, reference, beta)
    margins = (chosen - rejected).flatten()
    gaps = reward_gaps(*chosen_and_rejected(policy), *chosen_and_rejected(reference), beta=1.0)  # Δ, less rounding
    running = RunningGaps(momentum=0.0) if running is None else running
    mean, deviation = running.update(gaps)
    drawn = _draw(gaps, mean, deviation, keep, generator)
    factor = 1 + alpha * (gaps[drawn].mean() - mean)
    used = (beta * factor).clamp(min=beta_floor)
    losses = -F.logsigmoid(used * margins)
    return output_of(losses, chosen, rejected, used, factor)._replace(loss=losses[drawn].mean())


def dama_loss(
    policy: Tensor,
    reference: Tensor,
    hardness: Tensor,
    *,
    beta: float = 0.1,
    keep: float = 0.8,
    beta_floor: float = 1e-3,
    running: RunningGaps | None = None,
    generator: torch.Generator | None = None,
) -> LossOutput:
    """DAMA (arXiv 2502.01943), as in the authors' code: DPO with β = β₀ λ η, over pairs drawn without replacement
    with probability ∝ exp(−(Δ − M₀)²/2); η = mean σ(Δ) over the drawn / σ(M₀), M₀ the running mean of Δ before
    this batch.

    λ is its data hardness σ(δ)/σ(mean δ). There δ is by how much CLIP finds the chosen response closer to the
    image than the rejected one; `hardness` has the same form with the distance of two items' neighbourhoods as δ
    (`losses.hardness_weight`), for which no text has to be compared with an image. Δ is a margin in nats, without β₀.

    Args: as in `beta_dpo_loss`. With `running` None, M₀ is this batch's mean.
    """
    _check_draw(keep, beta_floor)
    chosen, rejected = log_ratios(policy, reference, beta)
    require_batch(2, policy=policy[:, 1:], hardness=hardness)
    margins = (chosen - rejected).flatten()
    mean = margins.detach().mean() if running is None else margins.new_tensor(running.mean)
    drawn = _draw(margins, mean, 1.0, keep, generator)
    usual = mean.sigmoid().clamp(min=NEAR_ZERO)  # not a division by 0 where M₀ < −100
    responsiveness = margins.detach()[drawn].sigmoid().mean() / usual
    used = (beta * responsiveness * at_least_float32(hardness).detach().flatten()).clamp(min=beta_floor)
    losses = -F.logsigmoid(used * margins)
    if running is not None:
        running.update(margins)
    return output_of(losses, chosen, rejected, used, responsiveness)._replace(loss=losses[drawn].mean())


class RunningGaps:
    """Running mean and deviation of the margins Δ, for β-DPO and DAMA: s ← momentum · s + (1 − momentum) · batch's.

    Both start at 0, as in the authors' code.

    Args:
        momentum: the share of the state that a batch leaves, at least 0 and below 1.
    Raises: ValueError for a `momentum` out of range.
    """

    def __init__(self, momentum: float = 0.9):
        require(0 <= momentum < 1, "momentum", f"must be at least 0 and below 1, got {momentum}")
        self.momentum = momentum
        self.mean, self.deviation = 0.0, 0.0

    def update(self, margins: Tensor) -> tuple[float, float]:
        """margins [N] of a batch → mean and deviation, which now count them. One margin has deviation 0."""
        margins, share = margins.detach(), 1 - self.momentum
        deviation = margins.std().item() if len(margins) > 1 else 0.0
        self.mean = self.momentum * self.mean + share * margins.mean().item()
        self.deviation = self.momentum * self.deviation + share * deviation
        return self.mean, self.deviation

    def state_dict(self) -> dict[str, float]:
        return {"mean": self.mean, "deviation": self.deviation}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.mean, self.deviation = state["mean"], state["deviation"]


def _draw(
    margins: Tensor, mean: float | Tensor, deviation: float, keep: float, generator: torch.Generator | None
) -> Tensor:
    """Indices of a share of the margins, drawn without replacement, with weights of a normal density."""
    log_weights = -0.5 * ((margins.detach() - mean) / max(deviation, NEAR_ZERO)) ** 2
    # The largest of log-weight + Gumbel noise are such a draw. `multinomial` fails where weights underflow to 0.
    device = margins.device if generator is None else generator.device
    noise = torch.empty(margins.shape, dtype=margins.dtype, device=device).exponential_(generator=generator)
    return (log_weights - noise.log().to(margins.device)).topk(max(1, int(len(margins) * keep))).indices.sort().values


def _check_draw(keep: float, beta_floor: float) -> None:
    require(0 < keep <= 1, "keep", f"must be above 0 and at most 1, got {keep}")
    require_positive(beta_floor=beta_floor)
