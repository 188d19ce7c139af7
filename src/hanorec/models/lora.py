"""What trains: LoRA adapters through PEFT on chosen layers, or the language model's weights, or all; and its dropout.

In: a `Backbone`. Out: another one that shares its weights and has a fresh adapter on top; what trains in float32.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from hanorec import distributed
from hanorec.errors import DataError
from hanorec.models.backbone import Backbone, language_model
from hanorec.models.encoding import LANGUAGE, vision_trains


def add_lora(
    backbone: Backbone, *, rank: int = 8, alpha: int = 32, dropout: float = 0.05, layers: str = "language"
) -> Backbone:
    """The same weights, frozen, with a fresh LoRA adapter on linear layers (the paper: rank 8, alpha 32, dropout 0.05,
    all linear layers). The backbone given stays as it is: policy and reference share their weights and nothing else.
    The output head gets no adapter.

    Args:
        layers: "language" (the language model's layers), "all" (those of vision tower and connector too), or the ends
            of names of the language model's layers, separated by commas.
    Errors: DataError where a name is that of no linear layer.
    """
    model = with_shared_weights(backbone.model)
    adapted = model.base_model if layers == "all" else language_model(model)
    inside = {id(layer) for layer in adapted.modules()}  # type: ignore[union-attr,operator]
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and id(m) in inside]
    if layers not in ("language", "all"):
        ends = [end.strip() for end in layers.split(",")]
        unknown = [end for end in ends if not any(_ends_in(name, end) for name in linear)]
        if unknown:
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
            raise DataError(f"layers {', '.join(unknown)}: no linear layer has this name; there are {known}")
        linear = [name for name in linear if any(_ends_in(name, end) for end in ends)]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=linear)
    policy = get_peft_model(model, config)
    for layer in policy.modules():
        for name in getattr(layer, "lora_dropout", {}):
            layer.lora_dropout[name] = Dropout(dropout)  # type: ignore[operator,assignment,index]
    return replace(backbone, model=policy)


def freeze_vision(backbone: Backbone) -> None:
    """Let the language model train alone: the vision tower, and what leads from it to the language model, stay as they
    are, as in the authors' release. They are kept in float32, too: families expect image features of one type with
    their embeddings."""
    for name, parameter in backbone.model.named_parameters():
        if not LANGUAGE.search(name):
            parameter.requires_grad_(False)
            parameter.data = parameter.data.float()


def with_shared_weights(model: torch.nn.Module) -> torch.nn.Module:
    """Another model of the same layers over the same tensors. Layers added to it (LoRA's) are no part of the first."""
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def prepare_for_training(backbone: Backbone, *, gradient_checkpointing: bool = False) -> None:
    """Keep what trains in float32, turn training mode on, and shard weights if the launcher says so.

    gradient_checkpointing: compute activations again in the backward. Errors: DataError for a model that trains without
    LoRA, or with its vision tower, where weights are sharded.
    """
    model = backbone.model
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # a step of 1e-4 is lost in half precision
    if gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if distributed.is_sharded():
        if not isinstance(model, PeftModel):  # the rank that saves has whole only what trains
            raise DataError("training without LoRA does not go with sharded weights (FSDP)")
        if vision_trains(model):
            raise DataError("a vision tower that trains does not go with sharded weights (FSDP)")
        distributed.shard_weights(model, language_model(model).layers)  # type: ignore[arg-type]
    model.train()


class Dropout(torch.nn.Dropout):
    """Dropout that draws on a CPU which elements fall, not one number for every element; elsewhere this is torch's own.

    Poisson(−n log(1 − p)) draws with replacement from n elements hit each of them at least once with chance p,
    independently of the others. With torch's own dropout a HaNoRec step takes 1.18 times as long on the tiny backbone
    and 1.15 times at 138 M parameters (`experiments/speed/dropout.md`).
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
        kept = (x * scale).contiguous()
        kept.view(-1).index_fill_(0, fallen, 0)
        return kept

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (fallen,) = ctx.saved_tensors
        return _Dropped.apply(gradient, fallen, ctx.scale), None, None


def _ends_in(name: str, end: str) -> bool:
    return f".{name}".endswith(f".{end}")
