"""A catalogue's images as a backbone sees them: each item's placeholder tokens, and the features in their place.

In: a `Backbone` and the catalogue's image files. Out: an `ImageEncoder`. Where vision tower and connector are frozen,
every image is opened, resized and encoded once and its features are kept on disk; where they train, it is opened and
resized once, and each distinct image of a batch is encoded once.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hanorec import distributed
from hanorec.cache import cached, weights_fingerprint
from hanorec.data.catalog import content_fingerprint, load_image
from hanorec.models.backbone import Backbone

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")  # the rest is the images'
LANGUAGE = re.compile(r"language_model|text_model|lm_head")  # the weights that images do not pass through
SHARD = 512  # images a cache file holds, and the most that are in memory before they are encoded
TOGETHER = 32  # images a forward of the vision tower takes


class ImageEncoder:
    """Each item's placeholder tokens, and the features that take their place.

    images: a file, an image or None for every item. frozen: the vision tower does not train, so that features can be
    computed once and kept in the folder `cache`. pixels: larger images are scaled down to so many.
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
        self.backbone, self.frozen, self.pixels = backbone, frozen, pixels
        self.blocks: list[list[int]] = []  # placeholder ids of each item; empty: an item without an image
        self.held: list = []  # of each item its features [tokens, width], or while the tower trains its pixels
        self.grid: list[
            Tensor | None
        ] = []  # of each item [1, 3], its patches in time, height and width, if it has them
        self.listed = True  # whether the model takes features as a list of tensors, or as one tensor
        self.source = list(range(len(images)))  # which item's image stands for an item
        self.fingerprint = ""  # of the features, where they are frozen and their images are files
        with tqdm(total=len(images), desc="images", unit="image", disable=not progress, leave=False) as bar:
            if frozen:
                files = all(image is None or isinstance(image, Path) for image in images)
                made_from = self._made_from() if files else ""
                shards = [images[start : start + SHARD] for start in range(0, len(images), SHARD)]
                keys = [content_fingerprint(made_from, *shard) if files else "" for shard in shards]
                cache = cache if files else None
                if cache and distributed.world_size() > 1:  # each makes its share, then all read everything
                    distributed.map_over_ranks(
                        lambda one: self._shard(*one, cache, bar) and None, list(zip(shards, keys))
                    )
                for shard, key in zip(shards, keys):
                    self._add(*self._shard(shard, key, cache, bar))
                    self.fingerprint = content_fingerprint(self.fingerprint, key)
            else:
                self._add(*zip(*(self._process(self._opened(image, bar)) for image in images)))
        broken = sum(image is not None and not block for image, block in zip(images, self.blocks))
        if broken:
            warnings.warn(f"{broken} of {len(images)} items are treated as without image: broken file", stacklevel=2)

    def _add(self, blocks: Sequence[list[int]], held: Sequence, grid: Sequence) -> None:
        self.blocks += blocks
        self.held += held
        self.grid += grid

    def _process(self, image: Image.Image | None) -> tuple[list[int], dict[str, Tensor] | None, Tensor | None]:
        """Placeholder ids, pixels and grid of an image, as the processor makes them."""
        if image is None:
            return [], None, None
        backbone = self.backbone
        inputs = self._ask(image)
        block = inputs["input_ids"][0].tolist()
        if "batch_num_images" in inputs:  # LLaVA-OneVision sees an image among others otherwise than one alone
            inputs = self._ask(image, image)
            block = inputs["input_ids"][0].tolist()
            block = block[: len(block) // 2]
            inputs = {name: value[:1] for name, value in inputs.items()}
        if backbone.processor.chat_template is None:  # then what is written around placeholders is a whole text's
            block = [id for id in block if id == backbone.layout.image_token]
        wanted = inspect.signature(backbone.model.get_image_features).parameters
        pixels = {name: value for name, value in inputs.items() if name not in TEXT_INPUTS and name in wanted}
        return block, pixels, pixels.get("image_grid_thw")

    def _ask(self, *images: Image.Image) -> dict[str, Tensor]:
        """What the processor makes of a text that is these images."""
        text = self.backbone.image_text * len(images)
        return dict(
            self.backbone.processor(text=[text], images=[list(images)], add_special_tokens=False, return_tensors="pt")
        )

    def _shard(self, images: Sequence, key: str, cache: Path | None, bar: tqdm) -> tuple[list, list, list]:
        """Blocks, features and grids of some images, from the cache if it has them under this fingerprint."""

        def make() -> dict[str, Tensor]:
            blocks, features, grids = [], [], []
            for start in range(0, len(images), TOGETHER):
                some, pixels, grid = zip(
                    *(self._process(self._opened(i, bar)) for i in images[start : start + TOGETHER])
                )
                blocks += some
                grids += [one for one in grid if one is not None]
                with torch.no_grad():
                    features += self._encode([p for p in pixels if p is not None], [b for b in some if b])
            made = {
                "block_lengths": torch.tensor([len(block) for block in blocks]),
                "block_ids": torch.tensor([id for block in blocks for id in block], dtype=torch.long),
                "listed": torch.tensor(self.listed),
            }
            made |= {"features": torch.cat(features).cpu()} if features else {}
            return made | ({"grids": torch.cat(grids)} if grids else {})

        made = cached(cache, "images", key, make)
        self.listed = bool(made["listed"])
        blocks = [ids.tolist() for ids in made["block_ids"].split(made["block_lengths"].tolist())]
        features = iter(made["features"].split([self._tokens(b) for b in blocks if b]) if "features" in made else ())
        grids = iter(made["grids"].split(1) if "grids" in made else ())
        held = [next(features) if block else None for block in blocks]
        return blocks, held, [next(grids, None) if block else None for block in blocks]

    def _tokens(self, block: list[int]) -> int:
        """How many features a block has room for."""
        return block.count(self.backbone.layout.image_token)

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
            f"{self.pixels} pixels, {backbone.compute}",
        )

    def _opened(self, image: Path | Image.Image | None, bar: tqdm) -> Image.Image | None:
        """The image itself, no larger than `pixels`."""
        bar.update()
        image = load_image(image) if isinstance(image, Path) else image
        if image is not None and self.pixels and image.width * image.height > self.pixels:
            factor = math.sqrt(self.pixels / (image.width * image.height))
            image = image.resize((max(1, int(image.width * factor)), max(1, int(image.height * factor))))
        return image

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
            block, pixels, grid = self._process(Image.new("RGB", (256, 256), (128, 128, 128)))
            with torch.no_grad():
                self._add([block], [self._encode([pixels], [block])[0].cpu() if self.frozen else pixels], [grid])
            for item in shown:
                self.source[item] = len(self.held) - 1
        elif modality == "shuffled":
            order = rng.permutation(shown).tolist()
            for here, there in zip(order, [*order[1:], *order[:1]]):  # one cycle: no image stays
                self.source[here] = there

    def outputs(self, items: list[int]) -> dict:
        """The features of `items`, one after the other, as a keyword argument of the model's forward."""
        if not items:
            return {}
        features = torch.cat(self.each(items)).to(self.backbone.device)
        main, *deeper = features.split(self.backbone.width, dim=1)  # deeper: what Qwen3-VL adds in later layers
        ready = BaseModelOutputWithPooling(pooler_output=[main] if self.listed else main)
        if deeper:
            ready.deepstack_features = [[level] for level in deeper]
        return {"mm_encoder_outputs": {"image": ready}}

    def grids(self, items: list[int]) -> Tensor | None:
        """The grids of `items`' images, [images, 3]; None where there are none."""
        found = [self.grid[self.source[item]] for item in items]
        return torch.cat(found) if found and found[0] is not None else None

    def grid_inputs(self, items: list[int]) -> dict[str, Tensor]:
        """The same as a keyword argument of a forward that computes positions itself."""
        grids = self.grids(items)
        return {} if grids is None else {"image_grid_thw": grids.to(self.backbone.device)}

    def each(self, items: list[int]) -> list[Tensor]:
        """The image features of each of `items`, [tokens, width]; all must have an image. Where a model adds features
        in later layers too, these stand beside the first ones: a multiple of `width`."""
        indices = [self.source[item] for item in items]
        if self.frozen:
            return [self.held[index] for index in indices]
        distinct = sorted(set(indices))
        pixels, blocks = [self.held[index] for index in distinct], [self.blocks[index] for index in distinct]
        encoded = dict(zip(distinct, self._encode(pixels, blocks)))
        return [encoded[index] for index in indices]

    def _encode(self, pixels: Sequence[dict[str, Tensor]], blocks: Sequence[list[int]]) -> list[Tensor]:
        """One [tokens, width] an image; images whose tensors have one shape go through the tower together."""
        groups: dict[tuple, list[int]] = {}
        for number, one in enumerate(pixels):
            groups.setdefault(tuple(value.shape[1:] for value in one.values()), []).append(number)
        encoded: dict[int, Tensor] = {}
        model, device = self.backbone.model, self.backbone.device
        for group in groups.values():
            inputs = {name: torch.cat([pixels[n][name] for n in group]).to(device) for name in pixels[group[0]]}
            outputs = model.get_image_features(**inputs, return_dict=True)
            self.listed = not isinstance(outputs.pooler_output, Tensor)
            levels = [outputs.pooler_output, *(getattr(outputs, "deepstack_features", None) or ())]
            features = torch.cat([_rows(level) for level in levels], dim=1)
            encoded.update(zip(group, features.split([self._tokens(blocks[n]) for n in group])))
        return [encoded[number] for number in range(len(pixels))]


def _rows(features: Tensor | Sequence[Tensor]) -> Tensor:
    """All images' features one after the other, [tokens, width]."""
    parts = [features] if isinstance(features, Tensor) else features
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def vision_trains(model: torch.nn.Module) -> bool:
    """Whether anything besides the language model trains, so that features change from step to step."""
    return any(p.requires_grad and not LANGUAGE.search(name) for name, p in model.named_parameters())


def _plain(name: str) -> str:
    """A weight's name without what PEFT writes around it."""
    return name.replace("base_model.model.", "").replace(".base_layer", "")
