"""From an image to what stands for it in a prompt: placeholder token ids, and the features that take their place.

In: a `Backbone` and an image. Out: what its processor makes of the image (`process_image`), the features that vision
tower and connector make of that (`encode_images`), and a fingerprint of all that these depend on.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from hanorec.cache import content_fingerprint, weights_fingerprint
from hanorec.data.untrusted import load_image
from hanorec.models.backbone import Backbone

DECODING = (
    2  # counts the ways in which `load_image` has read files: 2 puts transparency on white and scales 16 bits to 8
)
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")  # the other inputs are the images'
LANGUAGE = re.compile(r"language_model|text_model|lm_head")  # the weights that images do not pass through


class Processed(NamedTuple):
    """What the processor makes of one image; all empty for an item without one."""

    placeholders: list[int] = []
    pixels: dict[str, Tensor] = {}
    grid: Tensor | None = None  # [1, 3]: patches in time, height and width, in families that count them


def process_image(backbone: Backbone, image: Image.Image | None) -> Processed:
    """Placeholder ids, pixels and grid of an image, as the processor makes them."""
    if image is None:
        return Processed()
    inputs = call_processor(backbone, image)
    placeholders = inputs["input_ids"][0].tolist()
    if "batch_num_images" in inputs:  # LLaVA-OneVision sees one image among others otherwise than one alone
        inputs = call_processor(backbone, image, image)
        placeholders = inputs["input_ids"][0].tolist()
        placeholders = placeholders[: len(placeholders) // 2]
        inputs = {name: value[:1] for name, value in inputs.items()}
    if backbone.processor.chat_template is None:  # then what surrounds the placeholders belongs to a whole text
        placeholders = [id for id in placeholders if id == backbone.layout.image_token]
    accepted = inspect.signature(backbone.model.get_image_features).parameters
    pixels = {name: value for name, value in inputs.items() if name not in TEXT_INPUTS and name in accepted}
    return Processed(placeholders, pixels, pixels.get("image_grid_thw"))


def open_image(
    backbone: Backbone, image: Path | Image.Image | None, pixels: int | None = None
) -> tuple[Image.Image | None, Processed]:
    """An image, or that of a file, with at most so many pixels, and what the processor makes of it.

    A file that cannot be decoded, or that the processor refuses, for being too thin for instance, is a warning that
    names file and reason; then there is no image.
    """
    opened = load_image(image) if isinstance(image, Path) else image
    if opened is not None and pixels:
        opened = scaled_down(opened, pixels)
    try:
        return opened, process_image(backbone, opened)
    except (ValueError, ZeroDivisionError) as error:
        if not isinstance(image, Path):
            raise
        warnings.warn(f"{image}: not used as an image ({type(error).__name__}: {error})", stacklevel=2)
        return None, Processed()


def call_processor(backbone: Backbone, *images: Image.Image) -> dict[str, Tensor]:
    """What the processor makes of a text that consists of these images."""
    text = backbone.image_text * len(images)
    return dict(backbone.processor(text=[text], images=[list(images)], add_special_tokens=False, return_tensors="pt"))


def encode_images(
    backbone: Backbone, pixels: Sequence[dict[str, Tensor]], placeholders: Sequence[list[int]]
) -> tuple[list[Tensor], bool]:
    """The features of each image, [tokens, width], and whether the model takes them as a list of tensors.

    pixels, placeholders: of each image, as `process_image` gives them. Images whose tensors have one shape share a
    forward of the vision tower.
    """
    same_shape: dict[tuple, list[int]] = {}
    for number, inputs in enumerate(pixels):
        same_shape.setdefault(tuple(value.shape[1:] for value in inputs.values()), []).append(number)
    features: dict[int, Tensor] = {}
    as_list = True
    for numbers in same_shape.values():
        together = {
            name: torch.cat([pixels[n][name] for n in numbers]).to(backbone.device) for name in pixels[numbers[0]]
        }
        outputs = backbone.model.get_image_features(**together, return_dict=True)
        as_list = not isinstance(outputs.pooler_output, Tensor)
        levels = [outputs.pooler_output, *(getattr(outputs, "deepstack_features", None) or ())]
        joined = torch.cat([_joined(level) for level in levels], dim=1)
        lengths = [placeholders[n].count(backbone.layout.image_token) for n in numbers]
        features.update(zip(numbers, joined.split(lengths)))
    return [features[number] for number in range(len(pixels))], as_list


def _joined(features: Tensor | Sequence[Tensor]) -> Tensor:
    """All images' features one after the other, [tokens, width]."""
    parts = [features] if isinstance(features, Tensor) else features
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def scaled_down(image: Image.Image, pixels: int) -> Image.Image:
    """The image with at most so many pixels."""
    if image.width * image.height <= pixels:
        return image
    factor = math.sqrt(pixels / (image.width * image.height))
    return image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))


def features_made_from(backbone: Backbone, pixels: int | None) -> str:
    """The fingerprint of all that turns an image file into placeholders and features: the weights outside the language
    model, the model's and the processor's settings, and the vocabulary."""
    weights = {_without_peft(name): value for name, value in backbone.model.state_dict().items()}
    settings = backbone.model.config.to_diff_dict()
    for irrelevant in ("text_config", "_name_or_path", "transformers_version"):
        settings.pop(irrelevant, None)
    return content_fingerprint(
        weights_fingerprint({name: value for name, value in weights.items() if not LANGUAGE.search(name)}),
        json.dumps(settings, sort_keys=True, default=str),
        json.dumps(backbone.processor.to_dict(), sort_keys=True, default=str),
        json.dumps(backbone.processor.tokenizer.get_vocab(), sort_keys=True),
        f"{backbone.image_text!r}, {backbone.processor.chat_template is None}",
        f"{pixels} pixels, {backbone.compute}, decoding {DECODING}",
    )


def vision_trains(model: torch.nn.Module) -> bool:
    """Whether anything besides the language model trains, so that features change from step to step."""
    return any(p.requires_grad and not LANGUAGE.search(name) for name, p in model.named_parameters())


def _without_peft(name: str) -> str:
    """A weight's name without what PEFT writes around it."""
    return name.replace("base_model.model.", "").replace(".base_layer", "")
