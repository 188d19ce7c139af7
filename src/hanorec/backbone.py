"""Load any Hugging Face image-text-to-text model, and encode a catalogue's images with it.

In: the name of a checkpoint (a hub id, a folder or "tiny") and the catalogue's images. Out: a `Backbone`
(model, processor and the few facts about its chat format that prompts need) and an `ImageEncoder`, which knows
each item's block of placeholder tokens and the image features that take their place. What differs between
model families is discovered here, from the processor and the chat template, and nowhere else.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import logging

from hanorec import tiny
from hanorec.catalog import DataError

logging.disable_progress_bar()

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")  # the rest is the images'


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
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets))


class ImageEncoder:
    """Each item's placeholder tokens, and the features that take their place.

    Opening, resizing and tokenizing an image happens once, here. Where the vision tower is frozen its features
    are computed once too (`freeze`); while it trains, each distinct image of a batch is encoded once.
    """

    def __init__(self, backbone: Backbone, images: list[Image.Image | None], *, progress: bool = True):
        self.backbone = backbone
        self.blocks: list[list[int]] = []  # placeholder ids of each item; empty: an item without an image
        self.pixels: list[dict[str, Tensor] | None] = []
        self.frozen: list[Tensor | None] | None = None
        self.source = list(range(len(images)))  # which item's image stands for an item
        for image in tqdm(images, desc="read images", unit="image", disable=not progress):
            block, pixels = self._process(image) if image is not None else ([], None)
            self.blocks.append(block)
            self.pixels.append(pixels)

    def _process(self, image: Image.Image) -> tuple[list[int], dict[str, Tensor]]:
        inputs = self.backbone.processor(
            text=[self.backbone.image_text], images=[[image]], add_special_tokens=False, return_tensors="pt"
        )
        wanted = inspect.signature(self.backbone.model.get_image_features).parameters
        pixels = {name: value for name, value in inputs.items() if name not in TEXT_INPUTS and name in wanted}
        return inputs["input_ids"][0].tolist(), pixels

    @property
    def trains(self) -> bool:
        """Whether anything besides the language model trains, so that features change from step to step."""
        parts = [(name, p) for name, p in self.backbone.model.named_parameters() if p.requires_grad]
        return any(not re.search(r"language_model|text_model|lm_head", name) for name, _ in parts)

    def block(self, item: int) -> list[int]:
        """The placeholder token ids of an item's image; empty where it has none."""
        return self.blocks[self.source[item]]

    def look(self, modality: str, rng=None) -> None:
        """What stands for each item's image from now on: "full", its own; "blank", one grey image, so that what
        remains is what the model knows without looking; "shuffled", another item's, right in kind and wrong in
        content (rng: a numpy Generator)."""
        self.source = list(range(len(self.source)))
        shown = [item for item in self.source if self.pixels[item] is not None]
        if modality == "blank":
            block, pixels = self._process(Image.new("RGB", (256, 256), (128, 128, 128)))
            self.blocks.append(block)
            self.pixels.append(pixels)
            grey = len(self.pixels) - 1
            if self.frozen is not None:
                with torch.no_grad():
                    self.frozen += self._encode([grey])
            for item in shown:
                self.source[item] = grey
        elif modality == "shuffled":
            order = rng.permutation(shown).tolist()
            for here, there in zip(order, [*order[1:], *order[:1]]):  # one cycle: no image stays
                self.source[here] = there

    @torch.no_grad()
    def freeze(self, batch_size: int = 64) -> None:
        """Compute the features of every image once. For a vision tower that does not train."""
        shown = [index for index, pixels in enumerate(self.pixels) if pixels is not None]
        self.frozen = [None] * len(self.pixels)
        for start in tqdm(range(0, len(shown), batch_size), desc="encode images", unit="batch", leave=False):
            batch = shown[start : start + batch_size]
            for index, features in zip(batch, self._encode(batch)):
                self.frozen[index] = features

    def features(self, items: list[int]) -> Tensor | None:
        """The image features of `items` one after the other, [tokens, width]; None where there are none."""
        return torch.cat(self.each(items)) if items else None

    def each(self, items: list[int]) -> list[Tensor]:
        """The image features of each of `items`, [tokens, width]; all must have an image."""
        indices = [self.source[item] for item in items]
        if self.frozen is not None:
            return [self.frozen[index] for index in indices]
        distinct = sorted(set(indices))
        encoded = dict(zip(distinct, self._encode(distinct)))
        return [encoded[index] for index in indices]

    def _encode(self, indices: list[int]) -> list[Tensor]:
        """One [tokens, width] an image; images whose tensors have one shape go through the tower together."""
        groups: dict[tuple, list[int]] = {}
        for index in indices:
            shapes = tuple(tuple(value.shape[1:]) for value in self.pixels[index].values())
            groups.setdefault(shapes, []).append(index)
        encoded: dict[int, Tensor] = {}
        model = self.backbone.model
        for group in groups.values():
            inputs = {
                name: torch.cat([self.pixels[index][name] for index in group]).to(self.backbone.device)
                for name in self.pixels[group[0]]
            }
            features = model.get_image_features(**inputs, return_dict=True).pooler_output
            encoded.update(zip(group, (one.reshape(-1, one.shape[-1]) for one in features)))
        return [encoded[index] for index in indices]


def image_outputs(features: Tensor | None) -> dict:
    """Ready features as the keyword arguments of a model's forward."""
    return (
        {}
        if features is None
        else {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=[features])}}
    )
