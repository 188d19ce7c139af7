"""Objectives over a prompt's whole group of responses: S-DPO, HaNoRec in its form, DMPO, cross-entropy and GRPO.

In: tables of `tables.py`, policy and reference [B, 1+R] in nats. Out: a `LossOutput` with a loss for each of the B
prompts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hanorec.losses import (
    LossOutput,
    adaptive_beta,
    at_least_float32,
    chosen_and_rejected,
    policy_responsiveness,
    require_batch,
    require_positive,
    reward_gaps,
)
from hanorec.related.tables import log_ratios, output_of, require_table, token_means

LARGEST_EXPONENT = 60.0  # e^60 and its products are finite in float32


def sdpo_loss(policy: Tensor, reference: Tensor, *, beta: float = 1.0) -> LossOutput:
    """S-DPO (arXiv 2406.09215): −log σ(−log Σ_l exp(β log π_θ/π_ref (y_l|x) − β log π_θ/π_ref (y_w|x))).

    That is a softmax loss: the cross-entropy of the chosen response among all of a prompt's, with the rewards as
    logits. With one rejected response it is DPO.
    """
    chosen, rejected = log_ratios(policy, reference, beta)
    losses = -(beta * torch.cat([chosen, rejected], 1)).log_softmax(1)[:, 0]  # log(1 + Σ exp) of the formula
    return output_of(losses, chosen, rejected, beta)


def hanorec_softmax_loss(
    policy: Tensor,
    reference: Tensor,
    hardness: Tensor,
    *,
    beta: float = 0.1,
    beta_floor: float = 1e-6,
    responsiveness: float | Tensor | None = None,
) -> LossOutput:
    """HaNoRec in the form of S-DPO: −log σ(−log Σ_l exp(−β_l Δ_l)), β_l = max(β₀ η λ_l, floor) of Eq. 11.

    The chosen response against all its rejected ones at once, each with an adaptive β. With λ = η = 1 it is S-DPO,
    with one rejected response HaNoRec. It is not in the paper, which has one rejected response.

    Args:
        beta_floor, responsiveness: as in `hanorec_loss`; Eq. 8 is over all B·R pairs.
    """
    chosen, rejected = log_ratios(policy, reference, beta)
    require_batch(2, policy=policy[:, 1:], hardness=hardness)
    require_positive(beta_floor=beta_floor)
    margins = chosen - rejected  # [B, R] Δ of Eq. 7
    if responsiveness is None:
        gaps = reward_gaps(*chosen_and_rejected(policy), *chosen_and_rejected(reference), beta=beta)
        responsiveness = policy_responsiveness(gaps)  # Eq. 8
    used = adaptive_beta(hardness.flatten(), responsiveness, beta=beta, floor=beta_floor)  # Eq. 11
    logits = F.pad(-used.view_as(margins) * margins, (1, 0))  # the chosen response against itself: 0
    return output_of(-logits.log_softmax(1)[:, 0], chosen, rejected, used, responsiveness)


def dmpo_loss(policy: Tensor, reference: Tensor, *, beta: float = 0.1) -> LossOutput:
    """DMPO (arXiv 2405.16127, CIKM 2024): −log σ(β log π_θ/π_ref (y_w|x) − 1/R Σ_l β log π_θ/π_ref (y_l|x)).

    The chosen response against the mean of its rejected ones. With one rejected response it is DPO, and that case
    alone is in the authors' release.
    """
    chosen, rejected = log_ratios(policy, reference, beta)
    return output_of(-F.logsigmoid(beta * (chosen[:, 0] - rejected.mean(1))), chosen, rejected, beta)


def cross_entropy_loss(policy: Tensor, *, beta: float = 1.0) -> LossOutput:
    """Cross-entropy of the chosen response among its prompt's: −log softmax_j(β log π_θ(y_j|x))[w], no reference.

    S-DPO with a reference that finds all responses equally likely. Rewards are β log π_θ(y|x).
    """
    require_table(policy, beta)
    chosen, rejected = at_least_float32(policy)[:, :1], at_least_float32(policy)[:, 1:]
    return output_of(-(beta * at_least_float32(policy)).log_softmax(1)[:, 0], chosen, rejected, beta)


def grpo_loss(policy: Tensor, reference: Tensor, lengths: Tensor, *, beta: float = 0.04) -> LossOutput:
    """A policy gradient over the group, in the manner of GRPO (arXiv 2402.03300, Eqs. 3 and 4):

        mean over j of −Â_j log π_θ(y_j|x)/|y_j| + β D_j,    Â = (r − mean r) / deviation r over the prompt's group

    r_j is that of ReRe (arXiv 2510.12211) and MiniOneRec (arXiv 2510.24431), rule and ranking reward together: 1 for
    the chosen response, and for a rejected one −(1/log(ρ_j + 1)) / Σ_l 1/log(ρ_l + 1), ρ its place in the whole group
    by log π_θ, from 1: the more confidently the policy holds a wrong item, the less. D = e^u − u − 1 with
    u = log π_ref/π_θ a token is GRPO's estimate of the KL divergence.

    The sum is over the rejected l, since the ranking reward of the chosen one is 0. In the published code of both
    (`ndcg_rule_reward` in rere.py and rl.py) it is over all places, that of the chosen one, too; places are by whole
    log-probabilities there, as here. The deviation is that over the group; theirs divides by n − 1.

    Here the group is given where theirs is sampled from the policy, and whole responses stand for tokens; the gradient
    is theirs at the first update after sampling, where the ratio of policies is 1 and nothing is clipped. Rewards of
    the output are β times log-ratios as elsewhere, not r. Beyond u = 60 D stays constant.
    """
    chosen, rejected = log_ratios(policy, reference, beta)
    means = torch.cat(token_means(policy, lengths, beta), 1)  # [B, 1+R]
    with torch.no_grad():
        places = policy.argsort(1, descending=True).argsort(1)[:, 1:] + 1  # ρ of the rejected
        confidence = 1 / torch.log(places.to(means.dtype) + 1)
        reward = F.pad(-confidence / confidence.sum(1, keepdim=True), (1, 0), value=1.0)
        advantage = (reward - reward.mean(1, keepdim=True)) / reward.std(1, keepdim=True, correction=0)
    u = (-torch.cat([chosen, rejected], 1) / lengths).clamp(max=LARGEST_EXPONENT)
    losses = (beta * (u.exp() - u - 1) - advantage * means).mean(1)
    return output_of(losses, chosen, rejected, beta)
