"""HaNoRec's mathematics (arXiv 2511.18740): tensors in, tensors out, nothing but PyTorch.

In: the logits that a policy and a frozen reference give to a chosen and a rejected response, and the similarities of
the two items to their nearest neighbours in the catalogue. `response_logps` turns logits into one log-probability a
response (`token_logps` into one a token); `neighbourhood_distance` and `hardness_weight` turn similarities into one
hardness λ a pair, once before training. Out: `hanorec_loss` joins the two in DPO with a β of its own for every pair,
and returns the loss with what is worth logging. The noise that regularises the policy enters at its logits
(`perturbed_logits`) or at its LoRA weights (`perturbed_lora`), in training alone.

On hardness: λ falls as a pair gets harder, and with it the pair's β, the pull to the reference. The same β scales the
gradient of the pair's loss, −β σ(−βΔ) with respect to its margin Δ. So where training starts, at Δ ≈ 0, it is −β/2,
and a hard pair teaches less than an easy one; only at a large margin, βΔ above about 1.3, does a smaller β teach more.

Shapes: B pairs, K neighbours, T positions, N tokens, V vocabulary; `[]` is a scalar. Log-probabilities are in nats.
Half precision is computed in float32; float64 stays float64. Everywhere, shapes that do not match and empty batches
raise `ValueError`, and tensors that are not finite `NotFiniteError`, with the argument's name in front; a docstring
lists what else does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE = -100  # the label of a position that is no part of a response
NEAR_ZERO = 1e-8  # Eq. 8 does not divide by a mean gap this small
ROUNDING = 16  # by so many times a float's precision, relative to itself, a log-probability may depend on its batch


class NotFiniteError(ValueError):
    """A tensor that must be finite has an infinite value or a nan: in training, the sign of a loss that diverged."""


class LossOutput(NamedTuple):
    """What `hanorec_loss` returns; only `loss` and `losses` carry a gradient."""

    loss: Tensor  # []  mean of `losses`, in nats
    losses: Tensor  # [B] one a pair
    beta: Tensor  # [B] adaptive β of each pair, Eq. 11
    responsiveness: Tensor  # []  η, Eq. 8
    chosen_rewards: Tensor  # [B] β · log π_θ/π_ref of the chosen response
    rejected_rewards: Tensor  # [B] the same of the rejected one


def response_logps(
    logits: Tensor, labels: Tensor, *, noise_std: float = 0.0, generator: torch.Generator | None = None
) -> Tensor:
    """log π(y|x), summed over each response; with `noise_std` > 0, NoDO as the paper's abstract states it.

    Args:
        logits: [B, T, V], aligned: `logits[:, t]` predicts `labels[:, t]`, nothing is shifted here. A token may be
            masked with -inf, unless it is a label.
        labels: [B, T] token ids; -100 is left out of the sum, so a row of -100 alone (padding) gives 0.
        noise_std, generator: as in `perturbed_logits`.
    Returns: [B] in nats, float32 or float64.
    Raises: ValueError for a label that is neither -100 nor in [0, V), or a negative `noise_std`.
    """
    require(logits.ndim == 3 and logits.numel() > 0, "logits", f"must be [B, T, V], got {tuple(logits.shape)}")
    _require_labels(logits, labels)
    keep = labels != IGNORE
    targets = labels[keep]  # [N]
    require(((targets >= 0) & (targets < logits.shape[-1])).all(), "labels", "must be -100 or in [0, V)")
    # Response positions first: a prompt's logits are then neither copied to float32 nor given noise, and whatever
    # stands there (even nan) reaches neither the value nor the gradient.
    z = logits.flatten(0, 1) if keep.all() else logits[keep]  # [N, V]
    response = keep.nonzero()[:, 0]  # [N] whose each position is
    logps = packed_response_logps(perturbed_logits(z, noise_std, generator), targets, response, len(labels))
    require_finite(logps, "logits", "give a log-probability that is not finite")
    return logps


def packed_response_logps(logits: Tensor, labels: Tensor, response: Tensor, responses: int) -> Tensor:
    """log π(y|x) of responses whose tokens stand one after the other, however they were read: what training computes.

    Args:
        logits: [N, V] at the positions that predict a token of a response.
        labels: [N] these tokens.
        response: [N] the number of the response that each belongs to.
        responses: how many there are, B. One without a token has 0.
    Returns: [B] in nats, float32 or float64. Looks at shapes alone, as `token_logps`.
    """
    logps = token_logps(logits, labels)
    return logps.new_zeros(responses).index_add(0, response, logps)


def token_logps(logits: Tensor, labels: Tensor) -> Tensor:
    """log softmax(z) at one label a row, as `packed_response_logps` sums it.

    Looks at shapes alone, never at values, which would make the CPU wait for the device: that labels are in [0, V),
    and that what comes out is finite, is for the caller to check.

    Args:
        logits: [N, V]; a token may be masked with -inf. N may be 0.
        labels: [N] token ids.
    Returns: [N] in nats, float32 or float64.
    """
    require(logits.ndim == 2 and logits.shape[-1] > 0, "logits", f"must be [N, V], got {tuple(logits.shape)}")
    _require_labels(logits, labels)
    return _LabelLogps.apply(at_least_float32(logits), labels.long())


class _LabelLogps(torch.autograd.Function):
    """log softmax(z) at one label a row, z [N, V], labels [N] -> [N], in little memory.

    It keeps z, which exists anyway, and one number a row, and its gradient is the only other [N, V] that it makes.
    Measured forward and backward at N = 512, V = 49,152 in float32 on one CPU core, the logits included (96 MiB): a
    peak of 0.22 GiB and 0.27 s, against 0.29 GiB and 0.34 s of `z.log_softmax(-1).gather(…)` or `F.cross_entropy`
    and 0.38 GiB and 0.50 s of `z.gather(…) - z.logsumexp(-1)`.
    """

    @staticmethod
    def forward(ctx, z: Tensor, labels: Tensor) -> Tensor:
        rows = max(1, 2**22 // z.shape[-1])  # at a time: logsumexp copies its argument, and a cache is faster
        totals = torch.cat([part.logsumexp(-1) for part in z.split(rows)])
        ctx.save_for_backward(z, labels, totals)
        return z.gather(-1, labels[:, None])[:, 0] - totals

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        z, labels, totals = ctx.saved_tensors
        softmax = (z - totals[:, None]).exp_()
        result = softmax.mul_(-gradient[:, None])
        result.scatter_add_(-1, labels[:, None], gradient[:, None])
        return result, None


def perturbed_logits(logits: Tensor, noise_std: float, generator: torch.Generator | None = None) -> Tensor:
    """NoDO on the logits, as the paper's abstract states it: z̃ = z + σ_n ε, ε ~ N(0, I).

    Args:
        logits: [..., V] of the policy at response positions.
        noise_std: σ_n, in units of a logit; 0 draws nothing.
        generator: source of ε, by default the logits' device's own. Noise is drawn on the generator's device and
            moved to the logits': where that matters (a core draws a vocabulary of 152,000 in 1 ms), give one that
            lives with the logits.
    Returns: [..., V], float32 or float64.
    Raises: ValueError for a negative `noise_std`.
    """
    _require_std(noise_std)
    z = at_least_float32(logits)
    return z if noise_std == 0 else _gaussian(z, generator).mul_(noise_std).add_(z)


def neighbourhood_distance(
    chosen_similarities: Tensor, rejected_similarities: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Paper's Eq. 5: δ = ‖softmax(S_w/τ) − softmax(S_l/τ)‖₂, the distance of two items' neighbourhoods.

    Args:
        chosen_similarities, rejected_similarities: [B, K] cosine similarities of y_w's and of y_l's item to
            its K nearest items, in descending order.
        temperature: τ, in units of a similarity; 1 in the paper.
    Returns: [B] from 0 to √2. Where a response lists several items, the caller averages over its item pairs.
    Raises: ValueError for a `temperature` that is not positive.
    """
    require_batch(2, chosen_similarities=chosen_similarities, rejected_similarities=rejected_similarities)
    require_positive(temperature=temperature)
    chosen = torch.softmax(at_least_float32(chosen_similarities) / temperature, dim=-1)  # P_w
    rejected = torch.softmax(at_least_float32(rejected_similarities) / temperature, dim=-1)  # P_l
    return torch.linalg.vector_norm(chosen - rejected, dim=-1)  # Eq. 5


def hardness_weight(distance: Tensor, *, mean_distance: float | Tensor | None = None) -> Tensor:
    """Paper's Eq. 6: λ = σ(δ) / σ(mean δ). A hard pair (small δ) gets λ < 1: a weaker pull to the reference.

    Args:
        distance: [B] δ of Eq. 5.
        mean_distance: [] mean of δ over all training pairs; None takes the mean of `distance`.
    Returns: [B], positive.
    """
    require_batch(1, distance=distance)
    distance = at_least_float32(distance)
    mean = distance.mean() if mean_distance is None else scalar_like("mean_distance", mean_distance, distance)
    return torch.sigmoid(distance) / torch.sigmoid(mean)  # Eq. 6


def chosen_and_rejected(logps: Tensor) -> tuple[Tensor, Tensor]:
    """The two sides of every pair, where a prompt has R rejected responses and so R pairs.

    Args:
        logps: [B, 1+R] a number for each response, the chosen one first.
    Returns: [B·R] those of the chosen and [B·R] those of the rejected responses, prompt by prompt.
    """
    require(logps.ndim == 2, "logps", f"must be [B, 1+R], got {tuple(logps.shape)}")
    rejected = logps[:, 1:]
    return logps[:, :1].expand_as(rejected).flatten(), rejected.flatten()


def log_ratio_margin(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor
) -> Tensor:
    """Paper's Eq. 7: Δ = log π_θ/π_ref (y_w|x) − log π_θ/π_ref (y_l|x).

    Args:
        policy_chosen, policy_rejected: [B] log π_θ of y_w and of y_l, in nats.
        reference_chosen, reference_rejected: [B] log π_ref of the same.
    Returns: [B] in nats; positive where the policy prefers y_w more than the reference does.
    """
    policy = {"policy_chosen": policy_chosen, "policy_rejected": policy_rejected}
    require_batch(1, **policy, reference_chosen=reference_chosen, reference_rejected=reference_rejected)
    chosen = at_least_float32(policy_chosen) - at_least_float32(reference_chosen)
    return chosen - (at_least_float32(policy_rejected) - at_least_float32(reference_rejected))  # Eq. 7


def reward_gaps(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float = 0.1,
) -> Tensor:
    """R = β₀Δ of Eq. 7, as Eq. 8 takes it: all 0 where each of a batch is within rounding of 0.

    Where policy and reference are one model, as when training starts without noise, a response that is read in another
    batch has another last digit. Such gaps say nothing about the policy, and Eq. 8 would divide by their mean. They
    count as rounding up to `ROUNDING` times a float's precision times the sum of the sizes of a pair's four
    log-probabilities. Measured on the tiny backbone in float32, they reach 0.2 times that, and 4,000 times after one
    step of training.

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: [B] as in `log_ratio_margin`, of the
            global batch.
        beta: β₀.
    Returns: [B] without gradient.
    Raises: ValueError for a `beta` that is not positive.
    """
    logps = (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    margin = log_ratio_margin(*logps).detach()
    require_positive(beta=beta)
    sizes = (torch.finfo(each.dtype).eps * each.detach().abs() for each in map(at_least_float32, logps))
    rounding = sum(sizes, torch.zeros_like(margin))
    return beta * margin * (margin.abs() > ROUNDING * rounding).any()


def policy_responsiveness(reward_gaps: Tensor) -> Tensor:
    """Paper's Eq. 8: η = σ(mean(trim(R/R̄))) / σ(mean(R/R̄)), how strongly the policy responds right now.

    Args:
        reward_gaps: [B] R = β₀Δ, of the global batch: gather it first where several processes share one. The function
            of this name takes what is rounding alone for 0.
    Returns: [] without gradient, from 0 to 1/σ(−1); 1 for fewer than three gaps, where nothing is trimmed.
    """
    require_batch(1, reward_gaps=reward_gaps)
    gaps = at_least_float32(reward_gaps).detach()
    mean = gaps.mean()
    # R̄ passes through zero (and is zero when training starts); the scale there is the mean size of a gap.
    scale = torch.where(mean.abs() > NEAR_ZERO, mean, gaps.abs().mean().clamp(min=NEAR_ZERO))
    # Eq. 8, with mean(R/scale) taken as mean(R)/scale: R/scale reaches 1e12, and its rounded mean could send the
    # denominator to σ(−∞) = 0, where mean(R)/scale is exactly 1, or within ±1 for the other scale.
    return torch.sigmoid(_trimmed_mean(gaps) / scale) / torch.sigmoid(mean / scale)


class RunningResponsiveness:
    """η of the `calibrated` recipe, in place of Eq. 8: a batch is measured against the usual one, not against itself.

    Eq. 8 divides by the batch's mean gap, which passes through zero: η, and with it β, can fall to nothing for a whole
    batch. In the manner of DAMA (arXiv 2502.01943), the trimmed mean gap is compared through σ with a running mean of
    itself, which holds the batches before this one (at first, this one). R is a reward gap, so that σ(R) is the
    probability that the policy, seen as a Bradley-Terry model, gives to the preference:

        m = mean(trim(R)),    η = σ(M + clip(m − M, −1, 1)) / σ(M),    M ← momentum · M + (1 − momentum) · m

    η is 1 where the batch is the usual one, whatever its gaps are (also 0, and also the first batch), and is always
    between 1/e and e: 0.368 ≤ η ≤ 2.718.

    Args:
        momentum: the share of M that a batch leaves, at least 0 and below 1.
    Raises: ValueError for a `momentum` out of range.
    """

    def __init__(self, momentum: float = 0.9):
        require(0 <= momentum < 1, "momentum", f"must be at least 0 and below 1, got {momentum}")
        self.momentum = momentum
        self.mean: float | None = None  # M; None before the first batch

    def __call__(self, reward_gaps: Tensor) -> Tensor:
        """η of a batch, which from then on counts in M.

        Args:
            reward_gaps: [B] R = β₀Δ, of the global batch.
        Returns: [] without gradient.
        """
        require_batch(1, reward_gaps=reward_gaps)
        mean = _trimmed_mean(at_least_float32(reward_gaps).detach())
        usual = mean if self.mean is None else mean.new_tensor(self.mean)
        self.mean = (self.momentum * usual + (1 - self.momentum) * mean).item()
        change = (mean - usual).clamp(-1, 1)
        return (F.logsigmoid(usual + change) - F.logsigmoid(usual)).exp()  # σ(M) alone could be 0

    def state_dict(self) -> dict[str, float]:
        """M, or nothing before the first batch."""
        return {} if self.mean is None else {"mean": self.mean}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on where `state_dict` was taken."""
        self.mean = state.get("mean")


def adaptive_beta(
    hardness: Tensor, responsiveness: float | Tensor, *, beta: float = 0.1, floor: float = 1e-6
) -> Tensor:
    """Paper's Eq. 11: β = max(β₀ · η · λ, floor).

    Args:
        hardness: [B] λ of Eq. 6.
        responsiveness: [] η of Eq. 8.
        beta, floor: β₀ and the smallest β; with β = 0 a pair would teach nothing.
    Returns: [B] without gradient.
    Raises: ValueError for a `beta` or a `floor` that is not positive.
    """
    require_batch(1, hardness=hardness)
    require_positive(beta=beta, floor=floor)
    hardness = at_least_float32(hardness).detach()
    return (beta * scalar_like("responsiveness", responsiveness, hardness) * hardness).clamp(min=floor)  # Eq. 11


def hanorec_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    hardness: Tensor,
    *,
    beta: float = 0.1,
    beta_floor: float = 1e-6,
    responsiveness: float | Tensor | None = None,
) -> LossOutput:
    """Paper's Eq. 12: L = mean over pairs of −log σ(β Δ). With λ = η = 1 and no noise this is DPO.

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: [B] as in `log_ratio_margin`.
        hardness: [B] λ of Eq. 6.
        beta, beta_floor: β₀ and the smallest β.
        responsiveness: [] η; None computes Eq. 8 from this batch. Give it where this batch is a part of the
            global one, or to use a running value.
    Returns: `LossOutput`. Its rewards use each pair's own β: their difference is the β Δ of the loss.
    Raises: ValueError for a `beta` or a `beta_floor` that is not positive.
    """
    margin = log_ratio_margin(policy_chosen, policy_rejected, reference_chosen, reference_rejected)
    require_batch(1, policy_chosen=policy_chosen, hardness=hardness)
    require_positive(beta=beta, beta_floor=beta_floor)
    if responsiveness is None:
        gaps = reward_gaps(policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta=beta)
        responsiveness = policy_responsiveness(gaps)
    pair_beta = adaptive_beta(hardness, responsiveness, beta=beta, floor=beta_floor)
    losses = -F.logsigmoid(pair_beta * margin)  # Eq. 12; log(sigmoid(-1e4)) would be -inf
    chosen_ratio = at_least_float32(policy_chosen) - at_least_float32(reference_chosen)
    rejected_ratio = at_least_float32(policy_rejected) - at_least_float32(reference_rejected)
    return LossOutput(
        loss=losses.mean(),
        losses=losses,
        beta=pair_beta,
        responsiveness=scalar_like("responsiveness", responsiveness, pair_beta),
        chosen_rewards=(pair_beta * chosen_ratio).detach(),
        rejected_rewards=(pair_beta * rejected_ratio).detach(),
    )


@contextmanager
def perturbed_lora(model: nn.Module, noise_std: float, *, generator: torch.Generator | None = None) -> Iterator[None]:
    """NoDO on LoRA weights, as the authors' release does it: A' = A + σ_n ε_A, B' = B + σ_n ε_B.

    Open it around one policy forward; with activation checkpointing, around its backward too, which computes the
    forward again. (The release's noise ends with the forward: the one that is computed again is then without noise.)
    Noise is drawn once, at entry. Stored weights are not touched: since (W + σε) x = W x + (σε) x, a hook adds the
    second part to the output of each matrix, and gradients reach x through both. One context may be open in another:
    their noise adds up.

    Weights may be sharded over processes (FSDP): noise has the shape of the whole weight, and is the same in every
    process if their generators are seeded alike. Not supported: LoRA on embeddings (`lora_embedding_A`, no noise).

    Args:
        model: has LoRA layers as PEFT makes them: `lora_A` and `lora_B`, each an `nn.ModuleDict` of `nn.Linear` by
            adapter name, `active_adapters` and `disable_adapters`. Only active adapters of enabled layers get noise.
        noise_std: σ_n, in units of a weight; 0 does nothing.
        generator: source of ε; it may live on another device than the weights.
    Raises: ValueError for a negative `noise_std`, or noise for a `model` without LoRA layers or with LoRA layers that
        are not linear.
    """
    _require_std(noise_std)
    layers: list[Any] = [
        m for m in model.modules() if isinstance(getattr(m, "lora_A", None), nn.ModuleDict) and m.lora_A
    ]
    require(layers or noise_std == 0, "model", "has no LoRA layers to perturb")
    linears = [
        matrices[name]
        for layer in layers
        if noise_std > 0 and not layer.disable_adapters
        for name in layer.active_adapters
        if name in layer.lora_A
        for matrices in (layer.lora_A, layer.lora_B)
    ]
    require(all(isinstance(linear, nn.Linear) for linear in linears), "model", "has LoRA layers that are not linear")
    handles = []
    try:
        for linear in linears:
            noise = noise_std * _gaussian(linear.weight, generator)
            handles.append(linear.register_forward_hook(partial(_add_product, noise)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add_product(noise: Tensor, linear: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A forward hook: W x becomes W x + (σε) x. The output tells where, and at what precision, W was used: under
    autocast or FSDP not where and as it is stored."""
    return output + F.linear(inputs[0], noise.to(output))


def require(holds: object, argument: str, problem: str) -> None:
    if not holds:
        raise ValueError(f"{argument} {problem}")


def require_finite(tensor: Tensor, argument: str, problem: str = "must be finite") -> None:
    if not tensor.isfinite().all():
        raise NotFiniteError(f"{argument} {problem}")


def _require_labels(logits: Tensor, labels: Tensor) -> None:
    shape = logits.shape[:-1]
    require(labels.shape == shape, "labels", f"must be {list(shape)} as the logits are, got {list(labels.shape)}")
    require(not labels.is_floating_point() and labels.dtype != torch.bool, "labels", "must be integers")


def _require_std(noise_std: float) -> None:
    require(0 <= noise_std < math.inf, "noise_std", f"must be finite and at least 0, got {noise_std}")


def require_positive(**numbers: float) -> None:
    for name, number in numbers.items():
        require(0 < number < math.inf, name, f"must be positive and finite, got {number}")


def require_batch(ndim: int, **tensors: Tensor) -> None:
    """Every tensor has `ndim` axes and the first one's shape, is not empty, and is finite."""
    shape = next(iter(tensors.values())).shape
    for name, tensor in tensors.items():
        require(tensor.ndim == ndim, name, f"must have {ndim} axes, got shape {tuple(tensor.shape)}")
        require(tensor.shape == shape, name, f"must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
        require(tensor.numel() > 0, name, "must not be empty")
        require_finite(tensor, name)


def scalar_like(name: str, value: float | Tensor, like: Tensor) -> Tensor:
    """`value` as a finite [] tensor without gradient, of the dtype and on the device of `like`."""
    scalar = torch.as_tensor(value, dtype=like.dtype, device=like.device).detach()
    require(scalar.ndim == 0, name, f"must be a scalar, got shape {tuple(scalar.shape)}")
    require_finite(scalar, name)
    return scalar


def _trimmed_mean(gaps: Tensor) -> Tensor:
    """Mean of [B] gaps less one largest and one smallest; fewer than three are not trimmed."""
    return (gaps.sort().values[1:-1] if len(gaps) >= 3 else gaps).mean()


def at_least_float32(tensor: Tensor) -> Tensor:
    """At least float32: half precision would round a difference of log-probabilities away."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _gaussian(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """ε ~ N(0, I) of the shape and dtype of `like`, drawn where the generator lives."""
    device = like.device if generator is None else generator.device
    return torch.randn(like.shape, dtype=like.dtype, device=device, generator=generator).to(like.device)
