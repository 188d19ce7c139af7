"""A catalogue's images as a backbone sees them: placeholder token ids for a prompt, and the features in their place.

In: a `Backbone` and the catalogue's image files. Out: `CatalogImages`. Where vision tower and connector are frozen,
every image is opened, resized and encoded once and its features are kept on disk; where they train, every image is
opened and resized once, and each distinct image of a micro-batch is encoded once.
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

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hanorec import distributed
from hanorec.cache import cached, content_fingerprint, weights_fingerprint
from hanorec.data.catalog import load_image
from hanorec.models.backbone import Backbone

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")  # the other inputs are the images'
LANGUAGE = re.compile(r"language_model|text_model|lm_head")  # the weights that images do not pass through
SHARD_SIZE = 512  # images in a cache file, and the most that are in memory before they are encoded
VISION_BATCH = 32  # images in a forward of the vision tower


class Processed(NamedTuple):
    """What the processor makes of one image; all empty for an item without one."""

    placeholders: list[int] = []
    pixels: dict[str, Tensor] = {}
    grid: Tensor | None = None  # [1, 3]: patches in time, height and width, in families that count them


class CatalogImages:
    """The images of a catalogue, ready to stand in prompts.

    images: a file, an image or None for every item. frozen: the vision tower does not train, so that features are
    computed once; if all images are files, they are kept in the folder `cache`. pixels: larger images are scaled down
    to that many.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: Sequence[Path | Image.Image | None],
        *,
        frozen: bool = False,
        cache: Path | None = None,
        pixels: int | None = None,
        progress: bool = True,
    ):
        self.frozen, self.pixels = frozen, pixels
        self.blocks: list[list[int]] = []  # each item's placeholder ids; empty for an item without an image
        self.contents: list = []  # each item's features [tokens, width], or its pixels while the vision tower trains
        self.patch_grids: list[Tensor | None] = []  # each item's `Processed.grid`
        self.as_list = True  # whether the model takes features as a list of tensors, or as one tensor
        self.source = list(range(len(images)))  # the item whose image stands for an item, see `set_modality`
        self.fingerprint = ""  # of frozen features whose images are files
        with tqdm(total=len(images), desc="images", unit="image", disable=not progress, leave=False) as bar:
            if frozen:
                self._add_frozen(backbone, images, cache, bar)
            else:
                self._add(*zip(*(self._process(backbone, self._open(image, bar)) for image in images)))
        broken = sum(image is not None and not block for image, block in zip(images, self.blocks))
        if broken:
            warnings.warn(f"{broken} of {len(images)} items are treated as without image: broken file", stacklevel=2)

    # what prompts and forwards ask for

    def placeholders(self, item: int) -> list[int]:
        """The placeholder token ids of an item's image; empty where it has none."""
        return self.blocks[self.source[item]]

    def features(self, backbone: Backbone, items: Sequence[int]) -> list[Tensor]:
        """The image features of each of `items`, [tokens, width]; every item must have an image.

        Where a model adds features in later layers too (Qwen3-VL), these stand beside the first ones: the width is
        then a multiple of the model's. Differentiable while the vision tower trains.
        """
        indices = [self.source[item] for item in items]
        if self.frozen:
            return [self.contents[index] for index in indices]
        distinct = sorted(set(indices))
        pixels, blocks = [self.contents[index] for index in distinct], [self.blocks[index] for index in distinct]
        encoded = dict(zip(distinct, self._encode(backbone, pixels, blocks)))
        return [encoded[index] for index in indices]

    def outputs(self, backbone: Backbone, items: Sequence[int]) -> dict:
        """The features of `items`, one after the other, as a keyword argument of the model's forward."""
        if not items:
            return {}
        features = torch.cat(self.features(backbone, items)).to(backbone.device)
        main, *deeper = features.split(backbone.width, dim=1)
        ready = BaseModelOutputWithPooling(pooler_output=[main] if self.as_list else main)  # type: ignore[arg-type]
        if deeper:
            ready.deepstack_features = [[level] for level in deeper]
        return {"mm_encoder_outputs": {"image": ready}}

    def grids(self, items: Sequence[int]) -> Tensor | None:
        """The patch grids of the images of `items`, [images, 3]; None in families without them."""
        grids = [self.patch_grids[self.source[item]] for item in items]
        known = [grid for grid in grids if grid is not None]
        return torch.cat(known) if known else None

    def set_modality(self, backbone: Backbone, modality: str, rng: np.random.Generator | None = None) -> None:
        """Choose what stands for each item's image from now on: "full", its own; "blank", one grey image, so that what
        remains is what the model knows without looking; "shuffled", another item's, right in kind and wrong in content
        (rng decides whose)."""
        self.source = list(range(len(self.source)))
        shown = [item for item in self.source if self.blocks[item]]
        if modality == "blank":
            grey = self._process(backbone, Image.new("RGB", (256, 256), (128, 128, 128)))
            with torch.no_grad():
                content = self._encode(backbone, [grey.pixels], [grey.placeholders])[0].cpu()
            self._add([grey.placeholders], [content if self.frozen else grey.pixels], [grey.grid])
            for item in shown:
                self.source[item] = len(self.contents) - 1
        elif modality == "shuffled" and rng is not None:
            order = rng.permutation(shown).tolist()
            for here, there in zip(order, [*order[1:], *order[:1]]):  # one cycle: no image stays
                self.source[here] = there

    # how they are made

    def _add(self, blocks: Sequence[list[int]], contents: Sequence, grids: Sequence) -> None:
        self.blocks += blocks
        self.contents += contents
        self.patch_grids += grids

    def _add_frozen(self, backbone: Backbone, images: Sequence, cache: Path | None, bar: tqdm) -> None:
        files = all(image is None or isinstance(image, Path) for image in images)
        made_from = features_made_from(backbone, self.pixels) if files else ""
        shards = [images[start : start + SHARD_SIZE] for start in range(0, len(images), SHARD_SIZE)]
        keys = [content_fingerprint(made_from, *shard) if files else "" for shard in shards]
        cache = cache if files else None
        if cache and distributed.world_size() > 1:  # every rank makes its share, then all read everything

            def make(shard_and_key: tuple[Sequence, str]) -> None:
                shard, key = shard_and_key
                self._shard(backbone, shard, key, cache, bar)

            distributed.map_over_ranks(make, list(zip(shards, keys)))
        for shard, key in zip(shards, keys):
            self._add(*self._shard(backbone, shard, key, cache, bar))
            self.fingerprint = content_fingerprint(self.fingerprint, key)

    def _shard(
        self, backbone: Backbone, images: Sequence, key: str, cache: Path | None, bar: tqdm
    ) -> tuple[list, list, list]:
        """Placeholders, features and grids of some images, from the cache if it has them under this fingerprint."""

        def make() -> dict[str, Tensor]:
            blocks, features, grids = [], [], []
            for start in range(0, len(images), VISION_BATCH):
                opened = [self._open(image, bar) for image in images[start : start + VISION_BATCH]]
                processed = [self._process(backbone, image) for image in opened]
                blocks += [one.placeholders for one in processed]
                grids += [one.grid for one in processed if one.grid is not None]
                with_image = [one for one in processed if one.placeholders]
                with torch.no_grad():
                    pixels, placeholders = [o.pixels for o in with_image], [o.placeholders for o in with_image]
                    features += self._encode(backbone, pixels, placeholders)
            made = {
                "block_lengths": torch.tensor([len(block) for block in blocks]),
                "block_ids": torch.tensor([id for block in blocks for id in block], dtype=torch.long),
                "listed": torch.tensor(self.as_list),
            }
            made |= {"features": torch.cat(features).cpu()} if features else {}
            return made | ({"grids": torch.cat(grids)} if grids else {})

        made = cached(cache, "images", key, make)
        if "features" in made:  # what has encoded no image does not know
            self.as_list = bool(made["listed"])
        blocks = [ids.tolist() for ids in made["block_ids"].split(made["block_lengths"].tolist())]
        sizes = [block.count(backbone.layout.image_token) for block in blocks if block]
        features = iter(made["features"].split(sizes) if "features" in made else ())
        grids = iter(made["grids"].split(1) if "grids" in made else ())
        contents = [next(features) if block else None for block in blocks]
        return blocks, contents, [next(grids, None) if block else None for block in blocks]

    def _open(self, image: Path | Image.Image | None, bar: tqdm) -> Image.Image | None:
        """The image itself, of at most `pixels` pixels."""
        bar.update()
        image = load_image(image) if isinstance(image, Path) else image
        return scaled_down(image, self.pixels) if image is not None and self.pixels else image

    def _process(self, backbone: Backbone, image: Image.Image | None) -> Processed:
        """Placeholder ids, pixels and grid of an image, as the processor makes them."""
        if image is None:
            return Processed()
        inputs = call_processor(backbone, image)
        block = inputs["input_ids"][0].tolist()
        if "batch_num_images" in inputs:  # LLaVA-OneVision sees one image among others otherwise than one alone
            inputs = call_processor(backbone, image, image)
            block = inputs["input_ids"][0].tolist()
            block = block[: len(block) // 2]
            inputs = {name: value[:1] for name, value in inputs.items()}
        if backbone.processor.chat_template is None:  # then what surrounds the placeholders belongs to a whole text
            block = [id for id in block if id == backbone.layout.image_token]
        accepted = inspect.signature(backbone.model.get_image_features).parameters
        pixels = {name: value for name, value in inputs.items() if name not in TEXT_INPUTS and name in accepted}
        return Processed(block, pixels, pixels.get("image_grid_thw"))

    def _encode(
        self, backbone: Backbone, pixels: Sequence[dict[str, Tensor]], blocks: Sequence[list[int]]
    ) -> list[Tensor]:
        """Features [tokens, width] of each image; images whose tensors have one shape share a forward of the tower."""
        same_shape: dict[tuple, list[int]] = {}
        for number, one in enumerate(pixels):
            same_shape.setdefault(tuple(value.shape[1:] for value in one.values()), []).append(number)
        encoded: dict[int, Tensor] = {}
        for group in same_shape.values():
            inputs = {
                name: torch.cat([pixels[n][name] for n in group]).to(backbone.device) for name in pixels[group[0]]
            }
            outputs = backbone.model.get_image_features(**inputs, return_dict=True)
            self.as_list = not isinstance(outputs.pooler_output, Tensor)
            levels = [outputs.pooler_output, *(getattr(outputs, "deepstack_features", None) or ())]
            features = torch.cat([_rows(level) for level in levels], dim=1)
            encoded.update(zip(group, features.split([blocks[n].count(backbone.layout.image_token) for n in group])))
        return [encoded[number] for number in range(len(pixels))]


def scaled_down(image: Image.Image, pixels: int) -> Image.Image:
    """The image with at most so many pixels."""
    if image.width * image.height <= pixels:
        return image
    factor = math.sqrt(pixels / (image.width * image.height))
    return image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))


def call_processor(backbone: Backbone, *images: Image.Image) -> dict[str, Tensor]:
    """What the processor makes of a text that consists of these images."""
    text = backbone.image_text * len(images)
    return dict(backbone.processor(text=[text], images=[list(images)], add_special_tokens=False, return_tensors="pt"))


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
        f"{pixels} pixels, {backbone.compute}",
    )


def vision_trains(model: torch.nn.Module) -> bool:
    """Whether anything besides the language model trains, so that features change from step to step."""
    return any(p.requires_grad and not LANGUAGE.search(name) for name, p in model.named_parameters())


def _rows(features: Tensor | Sequence[Tensor]) -> Tensor:
    """All images' features one after the other, [tokens, width]."""
    parts = [features] if isinstance(features, Tensor) else features
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def _without_peft(name: str) -> str:
    """A weight's name without what PEFT writes around it."""
    return name.replace("base_model.model.", "").replace(".base_layer", "")
