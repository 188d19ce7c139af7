"""The objectives of related work by name, as `train_dpo.py` takes them: each is one line.

In: a step's tables of log-probabilities, lengths and hardness. Out: the objective's `LossOutput`. HaNoRec itself is no
part of this: its equations stand in `train_dpo.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hanorec.losses import LossOutput, chosen_and_rejected, reward_gaps
from hanorec.related.batch_objectives import RunningGaps, beta_dpo_loss, dama_loss
from hanorec.related.group_objectives import cross_entropy_loss, dmpo_loss, grpo_loss, hanorec_softmax_loss, sdpo_loss
from hanorec.related.pair_objectives import cdpo_loss, dpo_loss, ipo_loss, orpo_loss, simpo_loss

PAPER_BETA = {  # every objective that a run can minimise, and the β of its paper
    "hanorec": 0.1,
    "dpo": 0.1,
    "cdpo": 0.1,
    "ipo": 0.1,
    "simpo": 2.0,
    "orpo": 0.1,
    "s-dpo": 1.0,
    "hanorec-softmax": 0.1,
    "dmpo": 0.1,
    "cross-entropy": 1.0,
    "grpo": 0.04,
    "beta-dpo": 0.1,
    "dama": 0.1,
}
WITH_HARDNESS = ("hanorec", "hanorec-softmax", "dama")
WITH_RESPONSIVENESS = ("hanorec", "hanorec-softmax")
WITH_RUNNING_GAPS = ("beta-dpo", "dama")


def related_objective(
    name: str,
    policy: Tensor,
    reference: Tensor,
    lengths: Tensor,
    hardness: Tensor,
    *,
    beta: float,
    responsiveness: Callable[[Tensor], float | Tensor] = lambda gaps: 1.0,
    running: RunningGaps | None = None,
    generator: torch.Generator | None = None,
) -> LossOutput:
    """The objective of a name of `PAPER_BETA` but "hanorec", with its published settings.

    Args:
        policy, reference: [B, 1+R] log-probabilities in nats, the chosen response first.
        lengths: [B, 1+R] tokens of each response.
        hardness: [B, R] λ of Eq. 6.
        beta: β, whatever its paper calls it.
        responsiveness: η of reward gaps [B·R], for "hanorec-softmax".
        running, generator: margins so far and the source of the draw, for "beta-dpo" and "dama".
    Raises: KeyError for another name; ValueError as the objective raises it.
    """
    match name:
        case "dpo":
            return dpo_loss(policy, reference, beta=beta)
        case "cdpo":
            return cdpo_loss(policy, reference, beta=beta)
        case "ipo":
            return ipo_loss(policy, reference, beta=beta)
        case "simpo":
            return simpo_loss(policy, lengths, beta=beta)
        case "orpo":
            return orpo_loss(policy, lengths, beta=beta)
        case "s-dpo":
            return sdpo_loss(policy, reference, beta=beta)
        case "hanorec-softmax":
            gaps = reward_gaps(*chosen_and_rejected(policy), *chosen_and_rejected(reference), beta=beta)
            eta = responsiveness(gaps)
            return hanorec_softmax_loss(policy, reference, hardness, beta=beta, responsiveness=eta)
        case "dmpo":
            return dmpo_loss(policy, reference, beta=beta)
        case "cross-entropy":
            return cross_entropy_loss(policy, beta=beta)
        case "grpo":
            return grpo_loss(policy, reference, lengths, beta=beta)
        case "beta-dpo":
            return beta_dpo_loss(policy, reference, beta=beta, running=running, generator=generator)
        case "dama":
            return dama_loss(policy, reference, hardness, beta=beta, running=running, generator=generator)
    raise KeyError(name)
