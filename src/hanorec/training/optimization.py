"""The optimizer's side of a loop: the learning rate of each step, AdamW, the loss scaler, clipping.

In: the model and plain numbers. Out: the parts that the loops in `train_sft.py` and `train_dpo.py` put together.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hanorec import distributed
from hanorec.losses import NotFiniteError

MAX_NORM = 1.0  # of a step's gradients, as in the paper


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


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """The learning rate of the next step, of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def grad_scaler(device: torch.device, compute: torch.dtype) -> torch.amp.GradScaler:
    """The loss scaler that float16 needs; for other types it does nothing."""
    return torch.amp.GradScaler(device.type, enabled=compute == torch.float16)


def clip_gradients(model: torch.nn.Module, max_norm: float = MAX_NORM, *, must_be_finite: bool = True) -> Tensor:
    """Scale all gradients down to a norm of `max_norm` at most; returns their norm before, [].

    Errors: NotFiniteError where that norm is not finite, on every rank alike; not where `must_be_finite` is off, as for
    a float16 loss scaler, which passes over such a step.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = distributed.full_tensor(torch.nn.utils.clip_grad_norm_(trained, max_norm))
    if must_be_finite and not norm.isfinite():
        raise NotFiniteError("the norm of the gradients is not finite")
    return norm
