"""The optimizer's side of a loop: seeds, how many steps there are, the learning rate of each, AdamW, clipping.

In: the options and the model. Out: plain values; the loops in `train_sft.py` and `train_dpo.py` put them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hanorec import distributed
from hanorec.losses import NotFiniteError


def rows_per_step(rows: Sequence[Sequence], options) -> int:
    """How many rows of examples make an optimizer step, so that it has about `batch_size` examples; at least 1."""
    return max(1, round(options.batch_size * len(rows) / sum(map(len, rows))))


def total_steps(rows: int, size: int, options) -> int:
    """How many optimizer steps of `size` rows a run has: `epochs` passes over them, at most `max_steps`."""
    steps = max(1, math.ceil(options.epochs * math.ceil(rows / size)))
    return min(steps, options.max_steps or steps)


def cosine_learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """The learning rate of a step (from 0): up to `peak` in a line over a share `warmup` of the `total` steps, then
    half a cosine down to zero."""
    rising = max(1, round(warmup * total))
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))


def adamw(model: torch.nn.Module, weight_decay: float) -> torch.optim.AdamW:
    """AdamW over what trains; matrices decay, vectors do not. The loop sets the learning rate of every step."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(
        p.device.type in ("cpu", "cuda") for p in trainable
    )  # one pass over each tensor: 5 times faster on CPUs
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=fused or None)


def clip_gradients(model: torch.nn.Module, max_norm: float, *, must_be_finite: bool = True) -> Tensor:
    """Scale all gradients down to a norm of `max_norm` at most; returns their norm before, [].

    Errors: NotFiniteError where that norm is not finite, on every rank alike; not where `must_be_finite` is off, as for
    a float16 loss scaler, which passes over such a step.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = distributed.full_tensor(torch.nn.utils.clip_grad_norm_(trained, max_norm))
    if must_be_finite and not norm.isfinite():
        raise NotFiniteError("the norm of the gradients is not finite")
    return norm
