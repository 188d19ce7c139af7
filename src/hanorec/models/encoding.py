"""From an image to what stands for it in a prompt: placeholder token ids, and the features that take their place.

In: a `Backbone` and an image. Out: what its processor makes of the image (`process_image`), the features that vision
tower and connector make of that (`encode_images`), and a fingerprint of all that these depend on.
"""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from hanorec.cache import content_fingerprint, weights_fingerprint
from hanorec.data.untrusted import load_images, scaled_down
from hanorec.models.backbone import Backbone

DECODING = (
    2  # counts the ways in which `load_images` has read files: 2 puts transparency on white and scales 16 bits to 8
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
    if "batch_num_images" in inputs:  # LLaVA-OneVision sees one image among others otherwise than one alone
        inputs = call_processor(backbone, image, image)
        placeholders = inputs["input_ids"][0].tolist()
        placeholders = placeholders[: len(placeholders) // 2]
        inputs = {name: value[:1] for name, value in inputs.items()} | {"input_ids": torch.tensor([placeholders])}
    return _processed(backbone, inputs)


def _processed(backbone: Backbone, inputs: dict[str, Tensor]) -> Processed:
    placeholders = inputs["input_ids"][0].tolist()
    if backbone.processor.chat_template is None:  # then what surrounds the placeholders belongs to a whole text
        placeholders = [id for id in placeholders if id == backbone.layout.image_token]
    accepted = inspect.signature(backbone.model.get_image_features).parameters
    pixels = {name: value for name, value in inputs.items() if name not in TEXT_INPUTS and name in accepted}
    return Processed(placeholders, pixels, pixels.get("image_grid_thw"))


def open_images(
    backbone: Backbone, images: Sequence[Path | Image.Image | None], pixels: int | None = None
) -> list[tuple[Image.Image | None, Processed]]:
    """Images, or those of files, with at most so many pixels, and what the processor makes of each.

    A file that cannot be decoded, or that the processor refuses, for being too thin for instance, is a warning that
    names file and reason; then there is no image. Images of one size go through the processor together, as long as
    it makes the same of the first of them alone.
    """
    loaded = iter(load_images([image for image in images if isinstance(image, Path)], pixels))
    opened = [next(loaded) if isinstance(image, Path) else image for image in images]
    opened = [scaled_down(image, pixels) if image and pixels else image for image in opened]
    of_size: dict[tuple[int, int], dict[int, Image.Image]] = {}
    for number, image in enumerate(opened):
        if image is not None:
            of_size.setdefault(image.size, {})[number] = image
    processed = [Processed()] * len(images)
    for same in of_size.values():
        if together := process_together(backbone, list(same.values())):
            for number, each in zip(same, together):
                processed[number] = each
            continue
        for number, image in same.items():
            try:
                processed[number] = process_image(backbone, image)
            except (ValueError, ZeroDivisionError) as error:
                if not isinstance(images[number], Path):
                    raise
                reason = f"{type(error).__name__}: {error}"
                warnings.warn(f"{images[number]}: not used as an image ({reason})", stacklevel=2)
                opened[number] = None
    return list(zip(opened, processed))


def process_together(backbone: Backbone, images: Sequence[Image.Image]) -> list[Processed] | None:
    """What the processor makes of images of one size in one call, which is faster; None where it makes something else
    of the first of them alone, or refuses them."""
    if len(images) < 2:
        return None
    try:
        first = process_image(backbone, images[0])
        text = [backbone.image_text] * len(images)
        each = [[image] for image in images]
        inputs = dict(backbone.processor(text=text, images=each, add_special_tokens=False, return_tensors="pt"))
    except (ValueError, ZeroDivisionError):
        return None
    if any(len(value) % len(images) for value in inputs.values()):
        return None
    parts = [dict(zip(inputs, values)) for values in zip(*(value.chunk(len(images)) for value in inputs.values()))]
    together = [_processed(backbone, part) for part in parts]
    same = first.placeholders == together[0].placeholders and first.pixels.keys() == together[0].pixels.keys()
    return together if same and all(v.equal(together[0].pixels[name]) for name, v in first.pixels.items()) else None


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
