"""Other objectives on the inputs of `losses.hanorec_loss`, and HaNoRec itself for several rejected responses.

In: a table of summed log-probabilities of each prompt's responses by the policy and by the frozen reference, the
chosen response in the first column. Out: the same `LossOutput`. `OBJECTIVES` has them by name; all take

    policy, reference  [B, 1+R] in nats: B prompts, each with a chosen and R rejected responses
    lengths            [B, 1+R] tokens of each response (SimPO, ORPO, GRPO)
    hardness           [B, R] λ of `losses.hardness_weight` (HaNoRec, DAMA)
    beta               β; where a paper calls it otherwise, the docstring says so

and leave alone (unread and unchecked) what their paper does not use. A chosen response and one of its rejected ones
are a pair. `losses`, `beta` and the rewards of the output are [B·R], one a pair, prompt by prompt; `loss` is the mean
over pairs. Objectives over a prompt's whole group of responses (S-DPO, HaNoRec's softmax, DMPO, cross-entropy, GRPO)
have `losses` [B]. A reward is β times what the objective compares, a log-ratio where the docstring says no other.
`responsiveness` is by how much a batch scales β; 1 where a paper has no such thing.

As in `losses`, half precision is computed in float32, and shapes that do not match, empty tables and options out of
range raise `ValueError`, tables that are not finite `NotFiniteError`, with the argument's name in front.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hanorec.losses import (
    NEAR_ZERO,
    LossOutput,
    _check,
    _check_batch,
    _check_positive,
    _scalar,
    _wide,
    adaptive_beta,
    hanorec_loss,
    policy_responsiveness,
)

LARGEST_EXPONENT = 60.0  # e^60 and its products are finite in float32


def hanorec_pairs_loss(
    policy: Tensor,
    reference: Tensor,
    *,
    lengths=None,
    hardness: Tensor,
    beta: float = 0.1,
    beta_floor: float = 1e-6,
    responsiveness: float | Tensor | None = None,
) -> LossOutput:
    """HaNoRec (arXiv 2511.18740, Eq. 12) with every rejected response a pair of its own: `losses.hanorec_loss`.

    Args:
        beta_floor, responsiveness: as in `hanorec_loss`; Eq. 8 is over all B·R pairs.
    """
    _check_table(policy, beta, reference=reference)
    _check_batch(2, policy=policy[:, 1:], hardness=hardness)
    policy_chosen, reference_chosen = (t[:, :1].expand_as(t[:, 1:]).flatten() for t in (policy, reference))
    return hanorec_loss(
        policy_chosen,
        policy[:, 1:].flatten(),
        reference_chosen,
        reference[:, 1:].flatten(),
        hardness.flatten(),
        beta=beta,
        beta_floor=beta_floor,
        responsiveness=responsiveness,
    )


def hanorec_softmax_loss(
    policy: Tensor,
    reference: Tensor,
    *,
    lengths=None,
    hardness: Tensor,
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
    chosen, rejected = _log_ratios(policy, reference, beta)
    _check_batch(2, policy=policy[:, 1:], hardness=hardness)
    _check_positive(beta_floor=beta_floor)
    margins = chosen - rejected  # [B, R] Δ of Eq. 7
    if responsiveness is None:
        responsiveness = policy_responsiveness(beta * margins.flatten())  # Eq. 8
    used = adaptive_beta(hardness.flatten(), responsiveness, beta=beta, floor=beta_floor)  # Eq. 11
    logits = F.pad(-used.view_as(margins) * margins, (1, 0))  # the chosen response against itself: 0
    return _output(-logits.log_softmax(1)[:, 0], chosen, rejected, used, responsiveness)


def dpo_loss(policy: Tensor, reference: Tensor, *, lengths=None, hardness=None, beta: float = 0.1) -> LossOutput:
    """DPO (arXiv 2305.18290, Eq. 7): −log σ(β Δ), Δ = log π_θ/π_ref (y_w|x) − log π_θ/π_ref (y_l|x)."""
    chosen, rejected = _log_ratios(policy, reference, beta)
    return _output(-F.logsigmoid(beta * (chosen - rejected)), chosen, rejected, beta)


def cdpo_loss(
    policy: Tensor, reference: Tensor, *, lengths=None, hardness=None, beta: float = 0.1, label_smoothing: float = 0.1
) -> LossOutput:
    """Conservative DPO (Mitchell, "A note on DPO with noisy preferences & relationship to IPO", 2023):
    −(1 − ε) log σ(β Δ) − ε log σ(−β Δ), for preferences that are wrong with probability ε.

    Args:
        label_smoothing: ε, at least 0 and below 0.5; with 0 this is DPO.
    """
    _check(0 <= label_smoothing < 0.5, "label_smoothing", f"must be at least 0 and below 0.5, got {label_smoothing}")
    chosen, rejected = _log_ratios(policy, reference, beta)
    logits = beta * (chosen - rejected)
    losses = -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
    return _output(losses, chosen, rejected, beta)


def ipo_loss(policy: Tensor, reference: Tensor, *, lengths=None, hardness=None, beta: float = 0.1) -> LossOutput:
    """IPO (arXiv 2310.12036, Eq. 17): (Δ − 1/(2τ))², Δ of sums, not of means over tokens. τ is `beta`; the loss is
    in nats²."""
    chosen, rejected = _log_ratios(policy, reference, beta)
    return _output((chosen - rejected - 1 / (2 * beta)) ** 2, chosen, rejected, beta)


def simpo_loss(
    policy: Tensor, reference=None, *, lengths: Tensor, hardness=None, beta: float = 2.0, gamma: float = 1.0
) -> LossOutput:
    """SimPO (arXiv 2405.14734, Eq. 6): −log σ(β log π_θ(y_w|x)/|y_w| − β log π_θ(y_l|x)/|y_l| − γ), no reference.
    Rewards are β log π_θ(y|x)/|y|.

    Args:
        beta: the paper's are 2 to 2.5: a mean over tokens is smaller than the sum that DPO's 0.1 is for.
        gamma: γ, the reward margin to reach; the paper's are 0.5 to 1.5. (Its code asks for γ/β instead.)
    """
    _check(0 <= gamma < math.inf, "gamma", f"must be finite and at least 0, got {gamma}")
    chosen, rejected = _token_means(policy, lengths, beta)
    return _output(-F.logsigmoid(beta * (chosen - rejected) - gamma), chosen, rejected, beta)


def orpo_loss(policy: Tensor, reference=None, *, lengths: Tensor, hardness=None, beta: float = 0.1) -> LossOutput:
    """ORPO (arXiv 2403.07691, Eq. 6): −log P(y_w|x) − λ log σ(log odds(y_w|x)/odds(y_l|x)), no reference, with
    log P = log π_θ(y|x)/|y|, a mean over tokens, and odds = P/(1 − P). λ is `beta`. Rewards are λ log odds."""
    chosen, rejected = _token_means(policy, lengths, beta)
    odds_chosen, odds_rejected = _log_odds(chosen), _log_odds(rejected)
    return _output(-chosen - beta * F.logsigmoid(odds_chosen - odds_rejected), odds_chosen, odds_rejected, beta)


def sdpo_loss(policy: Tensor, reference: Tensor, *, lengths=None, hardness=None, beta: float = 1.0) -> LossOutput:
    """S-DPO (arXiv 2406.09215): −log σ(−log Σ_l exp(β log π_θ/π_ref (y_l|x) − β log π_θ/π_ref (y_w|x))).

    That is a softmax loss: the cross-entropy of the chosen response among all of a prompt's, with the rewards as
    logits. With one rejected response it is DPO.
    """
    chosen, rejected = _log_ratios(policy, reference, beta)
    losses = -(beta * torch.cat([chosen, rejected], 1)).log_softmax(1)[:, 0]  # log(1 + Σ exp) of the formula
    return _output(losses, chosen, rejected, beta)


def dmpo_loss(policy: Tensor, reference: Tensor, *, lengths=None, hardness=None, beta: float = 0.1) -> LossOutput:
    """DMPO (arXiv 2405.16127, CIKM 2024): −log σ(β log π_θ/π_ref (y_w|x) − 1/R Σ_l β log π_θ/π_ref (y_l|x)).

    The chosen response against the mean of its rejected ones. With one rejected response it is DPO, and that case
    alone is in the authors' release.
    """
    chosen, rejected = _log_ratios(policy, reference, beta)
    return _output(-F.logsigmoid(beta * (chosen[:, 0] - rejected.mean(1))), chosen, rejected, beta)


def cross_entropy_loss(policy: Tensor, reference=None, *, lengths=None, hardness=None, beta: float = 1.0) -> LossOutput:
    """Cross-entropy of the chosen response among its prompt's: −log softmax_j(β log π_θ(y_j|x))[w], no reference.

    S-DPO with a reference that finds all responses equally likely. Rewards are β log π_θ(y|x).
    """
    _check_table(policy, beta)
    chosen, rejected = _wide(policy)[:, :1], _wide(policy)[:, 1:]
    return _output(-(beta * _wide(policy)).log_softmax(1)[:, 0], chosen, rejected, beta)


def grpo_loss(policy: Tensor, reference: Tensor, *, lengths: Tensor, hardness=None, beta: float = 0.04) -> LossOutput:
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
    chosen, rejected = _log_ratios(policy, reference, beta)
    means = torch.cat(_token_means(policy, lengths, beta), 1)  # [B, 1+R]
    with torch.no_grad():
        places = policy.argsort(1, descending=True).argsort(1)[:, 1:] + 1  # ρ of the rejected
        confidence = 1 / torch.log(places.to(means.dtype) + 1)
        reward = F.pad(-confidence / confidence.sum(1, keepdim=True), (1, 0), value=1.0)
        advantage = (reward - reward.mean(1, keepdim=True)) / reward.std(1, keepdim=True, correction=0)
    u = (-torch.cat([chosen, rejected], 1) / lengths).clamp(max=LARGEST_EXPONENT)
    losses = (beta * (u.exp() - u - 1) - advantage * means).mean(1)
    return _output(losses, chosen, rejected, beta)


def beta_dpo_loss(
    policy: Tensor,
    reference: Tensor,
    *,
    lengths=None,
    hardness=None,
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
    _check(0 <= alpha < math.inf, "alpha", f"must be finite and at least 0, got {alpha}")
    _check_draw(keep, beta_floor)
    chosen, rejected = _log_ratios(policy, reference, beta)
    margins = (chosen - rejected).flatten()
    running = RunningGaps(momentum=0.0) if running is None else running
    mean, deviation = running.update(margins)
    drawn = _draw(margins, mean, deviation, keep, generator)
    factor = 1 + alpha * (margins.detach()[drawn].mean() - mean)
    used = (beta * factor).clamp(min=beta_floor)
    losses = -F.logsigmoid(used * margins)
    return _output(losses, chosen, rejected, used, factor)._replace(loss=losses[drawn].mean())


def dama_loss(
    policy: Tensor,
    reference: Tensor,
    *,
    lengths=None,
    hardness: Tensor,
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
    chosen, rejected = _log_ratios(policy, reference, beta)
    _check_batch(2, policy=policy[:, 1:], hardness=hardness)
    margins = (chosen - rejected).flatten()
    mean = margins.detach().mean() if running is None else margins.new_tensor(running.mean)
    drawn = _draw(margins, mean, 1.0, keep, generator)
    usual = mean.sigmoid().clamp(min=NEAR_ZERO)  # not a division by 0 where M₀ < −100
    responsiveness = margins.detach()[drawn].sigmoid().mean() / usual
    used = (beta * responsiveness * _wide(hardness).detach().flatten()).clamp(min=beta_floor)
    losses = -F.logsigmoid(used * margins)
    if running is not None:
        running.update(margins)
    return _output(losses, chosen, rejected, used, responsiveness)._replace(loss=losses[drawn].mean())


OBJECTIVES: dict[str, Callable[..., LossOutput]] = {
    "hanorec": hanorec_pairs_loss,
    "hanorec-softmax": hanorec_softmax_loss,
    "dpo": dpo_loss,
    "cdpo": cdpo_loss,
    "ipo": ipo_loss,
    "simpo": simpo_loss,
    "orpo": orpo_loss,
    "s-dpo": sdpo_loss,
    "dmpo": dmpo_loss,
    "cross-entropy": cross_entropy_loss,
    "grpo": grpo_loss,
    "beta-dpo": beta_dpo_loss,
    "dama": dama_loss,
}


class RunningGaps:
    """Running mean and deviation of the margins Δ, for β-DPO and DAMA: s ← momentum · s + (1 − momentum) · batch's.

    Both start at 0, as in the authors' code.

    Args:
        momentum: the share of the state that a batch leaves, at least 0 and below 1.
    Raises: ValueError for a `momentum` out of range.
    """

    def __init__(self, momentum: float = 0.9):
        _check(0 <= momentum < 1, "momentum", f"must be at least 0 and below 1, got {momentum}")
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


def _log_ratios(policy: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log π_θ/π_ref of the chosen [B, 1] and of the rejected responses [B, R]."""
    _check_table(policy, beta, reference=reference)
    ratios = _wide(policy) - _wide(reference)
    return ratios[:, :1], ratios[:, 1:]


def _token_means(policy: Tensor, lengths: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log π_θ a token, of the chosen [B, 1] and of the rejected responses [B, R]."""
    _check_table(policy, beta, lengths=lengths)
    _check((lengths > 0).all(), "lengths", "must be positive")
    means = _wide(policy) / lengths
    return means[:, :1], means[:, 1:]


def _log_odds(logp: Tensor) -> Tensor:
    """log P/(1 − P) from log P, which rounding may have made 0, where the odds are infinite."""
    logp = logp.clamp(max=-NEAR_ZERO)
    return logp - torch.log(-torch.expm1(logp))


def _draw(
    margins: Tensor, mean: float | Tensor, deviation: float, keep: float, generator: torch.Generator | None
) -> Tensor:
    """Indices of a share of the margins, drawn without replacement, with weights of a normal density."""
    log_weights = -0.5 * ((margins.detach() - mean) / max(deviation, NEAR_ZERO)) ** 2
    # The largest of log-weight + Gumbel noise are such a draw. `multinomial` fails where weights underflow to 0.
    device = margins.device if generator is None else generator.device
    noise = torch.empty(margins.shape, dtype=margins.dtype, device=device).exponential_(generator=generator)
    return (log_weights - noise.log().to(margins.device)).topk(max(1, int(len(margins) * keep))).indices.sort().values


def _check_table(policy: Tensor, beta: float, **others: Tensor) -> None:
    _check_positive(beta=beta)
    _check_batch(2, policy=policy, **others)
    _check(policy.shape[1] >= 2, "policy", f"must have a chosen and a rejected column, got {tuple(policy.shape)}")


def _check_draw(keep: float, beta_floor: float) -> None:
    _check(0 < keep <= 1, "keep", f"must be above 0 and at most 1, got {keep}")
    _check_positive(beta_floor=beta_floor)


def _output(losses: Tensor, chosen: Tensor, rejected: Tensor, beta, responsiveness: float | Tensor = 1.0) -> LossOutput:
    """A `LossOutput` from losses, what β multiplies in the rewards (chosen [B, 1], rejected [B, R]), and β."""
    losses = losses.flatten()
    chosen, rejected = (side.expand_as(rejected).flatten().detach() for side in (chosen, rejected))
    beta = torch.as_tensor(beta, dtype=rejected.dtype, device=rejected.device).expand_as(rejected)
    responsiveness = _scalar("responsiveness", responsiveness, rejected)
    return LossOutput(losses.mean(), losses, beta, responsiveness, beta * chosen, beta * rejected)
