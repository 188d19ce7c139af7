"""What trains: LoRA adapters through PEFT on chosen layers, or all weights.

In: a `Backbone`'s model. Out: the same model with a fresh adapter and everything else frozen; what trains in float32.
"""

from __future__ import annotations

import math

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from hanorec import distributed
from hanorec.errors import DataError
from hanorec.models.backbone import language_model
from hanorec.models.images import vision_trains


def add_lora(
    model: torch.nn.Module, *, rank: int = 8, alpha: int = 32, dropout: float = 0.05, targets: str = "language"
) -> PeftModel:
    """Freeze the model and give linear layers a fresh LoRA pair (the paper: rank 8, alpha 32, dropout 0.05, all of
    the language model). The output head stays as it is.

    targets: "language", "all" (vision tower and connector too), or the ends of names, separated by commas.
    Errors: DataError where a name is that of no linear layer.
    """
    inside = {id(layer) for layer in (language_model(model) if targets == "language" else model.base_model).modules()}
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and id(m) in inside]
    if targets not in ("language", "all"):
        ends = [end.strip() for end in targets.split(",")]
        unknown = [end for end in ends if not any(_ends(name, end) for name in linear)]
        if unknown:
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise DataError(f"--lora-targets {', '.join(unknown)}: no linear layer has this name; there are {known}")
        linear = [name for name in linear if any(_ends(name, end) for end in ends)]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=linear)
    adapted = get_peft_model(model, config)
    for layer in adapted.modules():
        for name in getattr(layer, "lora_dropout", {}):
            layer.lora_dropout[name] = Dropout(dropout)
    return adapted


def _ends(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")


def lora_options(options) -> dict:
    """The options that `add_lora` takes, as its arguments."""
    return dict(
        rank=options.lora_rank, alpha=options.lora_alpha, dropout=options.lora_dropout, targets=options.lora_targets
    )


def ready_to_train(model: torch.nn.Module, options) -> torch.nn.Module:
    """What trains in float32, training mode on, activations computed again in the backward if the options say so,
    weights sharded if the launcher says so.

    Errors: DataError for options that do not go with sharded weights.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # a step of 1e-4 is lost in half precision
    if options.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if distributed.is_sharded():
        given = {"--merge": options.merge, "--noise lora": getattr(options, "noise", "") == "lora",
                 "a vision tower that trains": vision_trains(model)}  # fmt: skip
        for what in (name for name, is_given in given.items() if is_given):
            raise DataError(f"{what} does not go with sharded weights (FSDP)")
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        distributed.shard_weights(model, language_model(plain).layers)
    return model.train()


class Dropout(torch.nn.Dropout):
    """Dropout that draws which elements fall, not one number for every element: on a CPU torch's own takes a sixth of
    a LoRA step. Elsewhere this is torch's own.

    Poisson(-n log(1 - p)) draws with replacement from n elements hit each of them at least once with chance p,
    independently of the others.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        draws = int(torch.poisson(torch.tensor(-x.numel() * math.log1p(-self.p), dtype=torch.float64)))
        return _Dropped.apply(x, torch.randint(x.numel(), (draws,)), 1 / (1 - self.p))


class _Dropped(torch.autograd.Function):
    """x · scale with zeros at the places `fallen` [draws]; its gradient is the same of the gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, fallen: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(fallen)
        ctx.scale = scale
        return (x * scale).flatten().index_fill_(0, fallen, 0).view(x.shape)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (fallen,) = ctx.saved_tensors
        return _Dropped.apply(gradient, fallen, ctx.scale), None, None
