"""Objectives over pairs, each a function of log-probabilities: DPO, its conservative form, IPO, SimPO and ORPO.

In: tables of `tables.py`, policy and reference [B, 1+R] in nats, lengths [B, 1+R] in tokens where an objective takes
means. Out: a `LossOutput` with a loss for each of the B·R pairs.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from hanorec.losses import NEAR_ZERO, LossOutput, require
from hanorec.related.tables import log_ratios, output_of, token_means


def dpo_loss(policy: Tensor, reference: Tensor, *, beta: float = 0.1) -> LossOutput:
    """DPO (arXiv 2305.18290, Eq. 7): −log σ(β Δ), Δ = log π_θ/π_ref (y_w|x) − log π_θ/π_ref (y_l|x)."""
    chosen, rejected = log_ratios(policy, reference, beta)
    return output_of(-F.logsigmoid(beta * (chosen - rejected)), chosen, rejected, beta)


def cdpo_loss(policy: Tensor, reference: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.1) -> LossOutput:
    """Conservative DPO (Mitchell, "A note on DPO with noisy preferences & relationship to IPO", 2023):
    −(1 − ε) log σ(β Δ) − ε log σ(−β Δ), for preferences that are wrong with probability ε.

    Args:
        label_smoothing: ε, at least 0 and below 0.5; with 0 this is DPO.
    """
    require(0 <= label_smoothing < 0.5, "label_smoothing", f"must be at least 0 and below 0.5, got {label_smoothing}")
    chosen, rejected = log_ratios(policy, reference, beta)
    logits = beta * (chosen - rejected)
    losses = -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
    return output_of(losses, chosen, rejected, beta)


def ipo_loss(policy: Tensor, reference: Tensor, *, beta: float = 0.1) -> LossOutput:
    """IPO (arXiv 2310.12036, Eq. 17): (Δ − 1/(2τ))², Δ of sums, not of means over tokens. τ is `beta`; the loss is
    in nats²."""
    chosen, rejected = log_ratios(policy, reference, beta)
    return output_of((chosen - rejected - 1 / (2 * beta)) ** 2, chosen, rejected, beta)


def simpo_loss(policy: Tensor, lengths: Tensor, *, beta: float = 2.0, gamma: float = 1.0) -> LossOutput:
    """SimPO (arXiv 2405.14734, Eq. 6): −log σ(β log π_θ(y_w|x)/|y_w| − β log π_θ(y_l|x)/|y_l| − γ), no reference.
    Rewards are β log π_θ(y|x)/|y|.

    Args:
        beta: the paper's are 2 to 2.5: a mean over tokens is smaller than the sum that DPO's 0.1 is for.
        gamma: γ, the reward margin to reach; the paper's are 0.5 to 1.5. (Its code asks for γ/β instead.)
    """
    require(0 <= gamma < math.inf, "gamma", f"must be finite and at least 0, got {gamma}")
    chosen, rejected = token_means(policy, lengths, beta)
    return output_of(-F.logsigmoid(beta * (chosen - rejected) - gamma), chosen, rejected, beta)


def orpo_loss(policy: Tensor, lengths: Tensor, *, beta: float = 0.1) -> LossOutput:
    """ORPO (arXiv 2403.07691, Eq. 6): −log P(y_w|x) − λ log σ(log odds(y_w|x)/odds(y_l|x)), no reference, with
    log P = log π_θ(y|x)/|y|, a mean over tokens, and odds = P/(1 − P). λ is `beta`. Rewards are λ log odds."""
    chosen, rejected = token_means(policy, lengths, beta)
    odds_chosen, odds_rejected = _log_odds(chosen), _log_odds(rejected)
    return output_of(-chosen - beta * F.logsigmoid(odds_chosen - odds_rejected), odds_chosen, odds_rejected, beta)


def _log_odds(logp: Tensor) -> Tensor:
    """log P/(1 − P) from log P, which rounding may have made 0, where the odds are infinite."""
    logp = logp.clamp(max=-NEAR_ZERO)
    return logp - torch.log(-torch.expm1(logp))
