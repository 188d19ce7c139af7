"""A catalogue's images as a backbone sees them: each item's placeholder tokens, and the features in their place.

In: a `Backbone` and the catalogue's image files. Out: an `ImageEncoder`. Where vision tower and connector are frozen,
every image is opened, resized and encoded once and its features are kept on disk; where they train, it is opened and
resized once, and each distinct image of a batch is encoded once.
"""

from __future__ import annotations

import inspect
import json
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hanorec.backbone import Backbone
from hanorec.cache import cached, weights_fingerprint
from hanorec.catalog import content_fingerprint, load_image

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")  # the rest is the images'
LANGUAGE = re.compile(r"language_model|text_model|lm_head")  # the weights that images do not pass through
SHARD = 512  # images a cache file holds, and the most that are in memory before they are encoded
TOGETHER = 32  # images a forward of the vision tower takes


class ImageEncoder:
    """Each item's placeholder tokens, and the features that take their place.

    images: a file, an image or None for every item. frozen: the vision tower does not train, so that features can be
    computed once and kept in the folder `cache`.
    """

    def __init__(
        self,
        backbone: Backbone,
        images: Sequence[Path | Image.Image | None],
        *,
        frozen: bool = False,
        cache: Path | None = None,
        progress: bool = True,
    ):
        self.backbone, self.frozen = backbone, frozen
        self.blocks: list[list[int]] = []  # placeholder ids of each item; empty: an item without an image
        self.held: list = []  # of each item its features [tokens, width], or while the tower trains its pixels
        self.source = list(range(len(images)))  # which item's image stands for an item
        self.fingerprint = ""  # of the features, where they are frozen and their images are files
        with tqdm(total=len(images), desc="images", unit="image", disable=not progress, leave=False) as bar:
            if frozen:
                files = all(image is None or isinstance(image, Path) for image in images)
                made_from = self._made_from() if files else ""
                for start in range(0, len(images), SHARD):
                    shard = images[start : start + SHARD]
                    key = content_fingerprint(made_from, *shard) if files else ""
                    self._add(*self._shard(shard, key, cache if files else None, bar))
                    self.fingerprint = content_fingerprint(self.fingerprint, key)
            else:
                self._add(*zip(*(self._process(_opened(image, bar)) for image in images)))
        broken = sum(image is not None and not block for image, block in zip(images, self.blocks))
        if broken:
            warnings.warn(f"{broken} of {len(images)} items are treated as without image: broken file", stacklevel=2)

    def _add(self, blocks: Sequence[list[int]], held: Sequence) -> None:
        self.blocks += blocks
        self.held += held

    def _process(self, image: Image.Image | None) -> tuple[list[int], dict[str, Tensor] | None]:
        """Placeholder ids and pixels of an image, as the processor makes them."""
        if image is None:
            return [], None
        inputs = self.backbone.processor(
            text=[self.backbone.image_text], images=[[image]], add_special_tokens=False, return_tensors="pt"
        )
        wanted = inspect.signature(self.backbone.model.get_image_features).parameters
        pixels = {name: value for name, value in inputs.items() if name not in TEXT_INPUTS and name in wanted}
        return inputs["input_ids"][0].tolist(), pixels

    def _shard(self, images: Sequence, key: str, cache: Path | None, bar: tqdm) -> tuple[list, list]:
        """Blocks and features of some images, from the cache if it has them under this fingerprint."""

        def make() -> dict[str, Tensor]:
            blocks, features = [], []
            for start in range(0, len(images), TOGETHER):
                some, pixels = zip(*(self._process(_opened(i, bar)) for i in images[start : start + TOGETHER]))
                blocks += some
                with torch.no_grad():
                    features += [one.cpu() for one in self._encode([p for p in pixels if p is not None])]
            made = {
                "tokens": torch.tensor([len(one) for one in features], dtype=torch.long),
                "block_lengths": torch.tensor([len(block) for block in blocks]),
                "block_ids": torch.tensor([id for block in blocks for id in block], dtype=torch.long),
            }
            return made | ({"features": torch.cat(features)} if features else {})

        made = cached(cache, "images", key, make)
        blocks = [ids.tolist() for ids in made["block_ids"].split(made["block_lengths"].tolist())]
        features = iter(made["features"].split(made["tokens"].tolist()) if "features" in made else ())
        return blocks, [next(features) if block else None for block in blocks]

    def _made_from(self) -> str:
        """Of all that turns an image file into placeholders and features: the weights outside the language model,
        what the model's and the processor's settings say, and the vocabulary."""
        backbone = self.backbone
        weights = {_plain(name): value for name, value in backbone.model.state_dict().items()}
        settings = backbone.model.config.to_diff_dict()
        for aside in ("text_config", "_name_or_path", "transformers_version"):
            settings.pop(aside, None)
        return content_fingerprint(
            weights_fingerprint({name: value for name, value in weights.items() if not LANGUAGE.search(name)}),
            json.dumps(settings, sort_keys=True, default=str),
            json.dumps(backbone.processor.to_dict(), sort_keys=True, default=str),
            json.dumps(backbone.processor.tokenizer.get_vocab(), sort_keys=True),
        )

    def block(self, item: int) -> list[int]:
        """The placeholder token ids of an item's image; empty where it has none."""
        return self.blocks[self.source[item]]

    def look(self, modality: str, rng=None) -> None:
        """What stands for each item's image from now on: "full", its own; "blank", one grey image, so that what
        remains is what the model knows without looking; "shuffled", another item's, right in kind and wrong in
        content (rng: a numpy Generator)."""
        self.source = list(range(len(self.source)))
        shown = [item for item in self.source if self.blocks[item]]
        if modality == "blank":
            block, pixels = self._process(Image.new("RGB", (256, 256), (128, 128, 128)))
            with torch.no_grad():
                self._add([block], [self._encode([pixels])[0].cpu() if self.frozen else pixels])
            for item in shown:
                self.source[item] = len(self.held) - 1
        elif modality == "shuffled":
            order = rng.permutation(shown).tolist()
            for here, there in zip(order, [*order[1:], *order[:1]]):  # one cycle: no image stays
                self.source[here] = there

    def features(self, items: list[int]) -> Tensor | None:
        """The image features of `items` one after the other, [tokens, width]; None where there are none."""
        return torch.cat(self.each(items)).to(self.backbone.device) if items else None

    def each(self, items: list[int]) -> list[Tensor]:
        """The image features of each of `items`, [tokens, width]; all must have an image."""
        indices = [self.source[item] for item in items]
        if self.frozen:
            return [self.held[index] for index in indices]
        distinct = sorted(set(indices))
        encoded = dict(zip(distinct, self._encode([self.held[index] for index in distinct])))
        return [encoded[index] for index in indices]

    def _encode(self, pixels: Sequence[dict[str, Tensor]]) -> list[Tensor]:
        """One [tokens, width] an image; images whose tensors have one shape go through the tower together."""
        groups: dict[tuple, list[int]] = {}
        for number, one in enumerate(pixels):
            groups.setdefault(tuple(value.shape[1:] for value in one.values()), []).append(number)
        encoded: dict[int, Tensor] = {}
        model, device = self.backbone.model, self.backbone.device
        for group in groups.values():
            inputs = {name: torch.cat([pixels[n][name] for n in group]).to(device) for name in pixels[group[0]]}
            features = model.get_image_features(**inputs, return_dict=True).pooler_output
            encoded.update(zip(group, (one.reshape(-1, one.shape[-1]) for one in features)))
        return [encoded[number] for number in range(len(pixels))]


def vision_trains(model: torch.nn.Module) -> bool:
    """Whether anything besides the language model trains, so that features change from step to step."""
    return any(p.requires_grad and not LANGUAGE.search(name) for name, p in model.named_parameters())


def _plain(name: str) -> str:
    """A weight's name without what PEFT writes around it."""
    return name.replace("base_model.model.", "").replace(".base_layer", "")


def _opened(image: Path | Image.Image | None, bar: tqdm) -> Image.Image | None:
    bar.update()
    return load_image(image) if isinstance(image, Path) else image


def image_outputs(features: Tensor | None) -> dict:
    """Ready features as the keyword arguments of a model's forward."""
    return (
        {}
        if features is None
        else {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=[features])}}
    )
