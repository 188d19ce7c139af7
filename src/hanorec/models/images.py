"""A catalogue's images as a backbone sees them: placeholder token ids for a prompt, and the features in their place.

In: a `Backbone` and the catalogue's image files. Out: `CatalogImages`. Where vision tower and connector are frozen,
every image is opened, resized and encoded once and its features are kept on disk; where they train, every image is
opened and resized once, and each distinct image of a micro-batch is encoded once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPooling

from hanorec import distributed
from hanorec.cache import cached, content_fingerprint
from hanorec.data.untrusted import MAX_IMAGE_BYTES, why_not_opened
from hanorec.models.backbone import Backbone
from hanorec.models.encoding import Processed, encode_images, features_made_from, open_images, process_image

SHARD_SIZE = 512  # images in a cache file, and the most that are in memory before they are encoded
VISION_BATCH = 32  # images in a forward of the vision tower


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
        self.patch_grids: list[Tensor | None] = []  # each item's patch grid, see `encoding.Processed`
        self.as_list = True  # whether the model takes features as a list of tensors, or as one tensor
        self.source = list(range(len(images)))  # the item whose image stands for an item, see `set_modality`
        self.fingerprint = ""  # of frozen features whose images are files
        with tqdm(total=len(images), desc="images", unit="image", disable=not progress, leave=False) as bar:
            if frozen:
                self._add_frozen(backbone, images, cache, bar)
            else:
                self._add(*zip(*self._opened(backbone, images, bar)))
        broken = sum(image is not None and not block for image, block in zip(images, self.blocks))
        if broken:
            warnings.warn(f"{broken} of {len(images)} items are treated as without image: unusable file", stacklevel=2)

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
        features, self.as_list = encode_images(backbone, pixels, blocks)
        by_index = dict(zip(distinct, features))
        return [by_index[index] for index in indices]

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
            grey = process_image(backbone, Image.new("RGB", (256, 256), (128, 128, 128)))
            with torch.no_grad():
                (features,), self.as_list = encode_images(backbone, [grey.pixels], [grey.placeholders])
            self._add([grey.placeholders], [features.cpu() if self.frozen else grey.pixels], [grey.grid])
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
        keys = [content_fingerprint(made_from, *map(_hashed, shard)) if files else "" for shard in shards]
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
                processed = self._opened(backbone, images[start : start + VISION_BATCH], bar)
                blocks += [each.placeholders for each in processed]
                grids += [each.grid for each in processed if each.grid is not None]
                shown = [each for each in processed if each.placeholders]
                if shown:
                    placeholders, pixels, _ = zip(*shown)
                    with torch.no_grad():
                        encoded, self.as_list = encode_images(backbone, pixels, placeholders)
                    features += encoded
            tensors = {
                "block_lengths": torch.tensor([len(block) for block in blocks]),
                "block_ids": torch.tensor([id for block in blocks for id in block], dtype=torch.long),
                "listed": torch.tensor(self.as_list),
            }
            tensors |= {"features": torch.cat(features).cpu()} if features else {}
            return tensors | ({"grids": torch.cat(grids)} if grids else {})

        stored = cached(cache, "images", key, make)
        if "features" in stored:  # what has encoded no image does not know
            self.as_list = bool(stored["listed"])
        blocks = [ids.tolist() for ids in stored["block_ids"].split(stored["block_lengths"].tolist())]
        lengths = [block.count(backbone.layout.image_token) for block in blocks if block]
        features = iter(stored["features"].split(lengths) if "features" in stored else ())
        grids = iter(stored["grids"].split(1) if "grids" in stored else ())
        contents = [next(features) if block else None for block in blocks]
        return blocks, contents, [next(grids, None) if block else None for block in blocks]

    def _opened(self, backbone: Backbone, images: Sequence, bar: tqdm) -> list[Processed]:
        processed: list[Processed] = []
        for start in range(0, len(images), VISION_BATCH):
            some = images[start : start + VISION_BATCH]
            processed += [each for _, each in open_images(backbone, some, self.pixels)]
            bar.update(len(some))
        return processed


def _hashed(image: Path | None) -> Path | None:
    """The file whose content counts: none where it is not opened."""
    return None if image is None or why_not_opened(image, MAX_IMAGE_BYTES) else image
