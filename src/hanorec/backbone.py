"""Load any Hugging Face image-text-to-text model, and give it a LoRA adapter.

In: the name of a checkpoint (a hub id, a folder or "tiny"). Out: a `Backbone`: model, processor and the few facts
about its chat format that prompts need. What differs between model families is discovered here and in `images.py`,
from the processor and the chat template, and nowhere else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.utils import logging

from hanorec import tiny
from hanorec.catalog import DataError

logging.disable_progress_bar()


@dataclass
class Backbone:
    """A vision-language model and how to talk to it. `head`, `middle`, `tail` are the token ids of the chat
    format before the user's text, between it and the answer, and after the answer."""

    model: torch.nn.Module
    processor: object
    head: list[int]
    middle: list[int]
    tail: list[int]
    image_text: str

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def pad(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id

    def tokens(self, text: str) -> list[int]:
        """The token ids of a piece of text, without the special tokens a whole text would get."""
        return self.processor.tokenizer(text, add_special_tokens=False).input_ids


def choose_device() -> torch.device:
    """The fastest device there is: CUDA, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """ "auto" is bfloat16 on a CUDA device that has it and float32 elsewhere: on most CPUs the half precisions
    are emulated, and up to a hundred times slower."""
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def load_backbone(name: str, *, device: torch.device | None = None, dtype: str = "auto") -> Backbone:
    """Load model and processor of a checkpoint: "tiny", a folder, or an id of the Hugging Face hub.

    Errors: DataError where the checkpoint cannot be found or is no image-text-to-text model, or where its
    positions cannot be packed (see `scoring.py`).
    """
    device = device or choose_device()
    source = str(tiny.PRETRAINED) if name == "tiny" else name
    if Path(source).is_dir() and not (Path(source) / "config.json").is_file():
        raise DataError(f"{source}: no model checkpoint (no config.json)")
    try:
        processor = AutoProcessor.from_pretrained(source)
        model = AutoModelForImageTextToText.from_pretrained(source, dtype=choose_dtype(dtype, device))
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"--backbone {name}: cannot be loaded as an image-text-to-text model: {first_line}") from error
    if not hasattr(model, "get_image_features") or not hasattr(processor, "image_processor"):
        raise DataError(f"--backbone {name}: {type(model).__name__} takes no images")
    if hasattr(model.base_model, "get_rope_index"):
        raise DataError(
            f"--backbone {name}: multimodal rotary positions ({type(model).__name__}) are not supported yet"
        )
    model.to(device).eval()
    return Backbone(model, processor, *_chat_format(processor), _image_text(processor))


def _render(processor, *messages: tuple[str, list[dict]]) -> str:
    return processor.apply_chat_template([{"role": role, "content": content} for role, content in messages])


def _text(text: str) -> dict:
    return {"type": "text", "text": text}


def _chat_format(processor) -> tuple[list[int], list[int], list[int]]:
    """Head, middle and tail of a chat: what the template writes around a question Q and an answer A."""
    chat = _render(processor, ("user", [_text("⁂Q⁂")]), ("assistant", [_text("⁂A⁂")]))
    head, rest = chat.split("⁂Q⁂")
    middle, tail = rest.split("⁂A⁂")
    tokenizer = processor.tokenizer
    head, middle, tail = (tokenizer(part, add_special_tokens=False).input_ids for part in (head, middle, tail.strip()))
    return head, middle, tail or [tokenizer.eos_token_id]


def _image_text(processor) -> str:
    """What the chat template writes for an image."""
    chat = _render(processor, ("user", [_text("⁂Q⁂"), {"type": "image"}, _text("⁂A⁂")]))
    return chat.split("⁂Q⁂")[1].split("⁂A⁂")[0]


def add_lora(model: torch.nn.Module, *, rank: int = 8, alpha: int = 32, dropout: float = 0.05) -> PeftModel:
    """Freeze the model and give every linear layer of its language model a fresh LoRA pair (the paper: rank 8,
    alpha 32, dropout 0.05). The vision tower, the connector and the output head stay as they are."""
    language = (
        model.base_model.language_model if hasattr(model.base_model, "language_model") else model.base_model.text_model
    )
    layers = {id(layer) for layer in language.modules() if isinstance(layer, torch.nn.Linear)}
    targets = [name for name, layer in model.named_modules() if id(layer) in layers]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets)
    adapted = get_peft_model(model, config)
    for layer in adapted.modules():
        for name in getattr(layer, "lora_dropout", {}):
            layer.lora_dropout[name] = Dropout(dropout)
    return adapted


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
