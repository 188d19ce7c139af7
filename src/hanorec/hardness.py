"""How hard each preference pair is: catalogue embeddings → neighbours → a hardness weight for every pair (HaRS).

In: the model's own view of titles and images, and the examples. Out: λ for every pair (arXiv 2511.18740, Eqs. 5 and
6). An item's embedding fuses the mean of its title's token embeddings and the mean of its image features, which live
in one space: the language model's input. Neighbours are searched in blocks, so memory grows with the catalogue and not
with its square.

λ falls as a pair gets harder, so that a hard pair is tied more weakly to the reference. At the start of training, where
Δ ≈ 0, it also teaches less: the gradient of a pair's loss is proportional to β σ(−βΔ), and β is proportional to λ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from hanorec.cache import cached, content_fingerprint
from hanorec.data.catalog import Catalog
from hanorec.data.examples import Example
from hanorec.errors import DataError
from hanorec.losses import hardness_weight, neighbourhood_distance
from hanorec.models.backbone import Backbone
from hanorec.models.images import CatalogImages


@torch.no_grad()
def embed_modalities(
    backbone: Backbone, images: CatalogImages, titles: Sequence[str], *, batch_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Every item's title and image in the language model's input space: norm(text_i) and norm(image_i), [items, width]
    each, float32 on the CPU. Without an image, the latter is 0."""
    table = backbone.model.get_input_embeddings().weight
    texts, pictures = [], []
    for start in range(0, len(titles), batch_size):
        items = range(start, min(start + batch_size, len(titles)))
        text = torch.stack([table[backbone.title_tokens(titles[item])].float().mean(dim=0) for item in items])
        image = torch.zeros_like(text)
        shown = [item for item in items if images.placeholders(item)]
        for item, features in zip(shown, images.features(backbone, shown)):
            image[item - start] = features[:, : backbone.width].float().mean(dim=0)
        texts.append(normalize(text, dim=1).cpu())
        pictures.append(normalize(image, dim=1).cpu())
    return torch.cat(texts), torch.cat(pictures)


def embed_items(backbone: Backbone, images: CatalogImages, titles: Sequence[str], *, batch_size: int = 256) -> Tensor:
    """e_i = norm(norm(text_i) + norm(image_i)), [items, width] float32 on the CPU; text alone without an image."""
    text, image = embed_modalities(backbone, images, titles, batch_size=batch_size)
    return normalize(text + image, dim=1)


def nearest(embeddings: Tensor, k: int, *, block: int = 1024) -> tuple[Tensor, Tensor]:
    """The k largest cosine similarities of every item to the others, descending, and whose they are.

    embeddings [items, width], of length 1. Returns ([items, k], [items, k]); memory is block × items.
    Errors: DataError where there are not k other items.
    """
    if not 1 <= k < len(embeddings):
        raise DataError(f"{k} neighbours asked for, but an item has {len(embeddings) - 1} others")
    values = embeddings.new_empty(len(embeddings), k)
    indices = torch.empty(len(embeddings), k, dtype=torch.long)
    room = embeddings.new_empty(min(block, len(embeddings)), len(embeddings))  # one for all blocks
    for start in range(0, len(embeddings), block):
        rows = slice(start, min(start + block, len(embeddings)))
        similarities = torch.mm(embeddings[rows], embeddings.T, out=room[: rows.stop - start])
        similarities.diagonal(start).fill_(-torch.inf)  # an item is no neighbour of its own
        torch.topk(similarities, k, dim=1, out=(values[rows], indices[rows]))
    return values, indices


def item_neighbours(
    backbone: Backbone, images: CatalogImages, catalog: Catalog, k: int, *, weights: str, cache: Path | None = None
) -> tuple[Tensor, Tensor]:
    """`nearest` of the whole catalogue as the model sees it, kept in the folder `cache`.

    weights: the fingerprint of the model's weights (`cache.weights_fingerprint`), under which they are kept.
    Returns: similarities and neighbours, [items, k] each. Errors: DataError where there are not k other items.
    """

    def make() -> dict[str, Tensor]:
        similarities, neighbours = nearest(embed_items(backbone, images, catalog.titles), k)
        return {"similarities": similarities, "neighbours": neighbours}

    fingerprint = content_fingerprint(weights, images.fingerprint, str(k), *catalog.titles)
    made = cached(cache, "neighbours", fingerprint, make)
    return made["similarities"], made["neighbours"]


def pair_hardness(similarities: Tensor, examples: Sequence[Example], *, temperature: float = 1.0) -> Tensor:
    """λ of every pair (Eqs. 5, 6).

    Args:
        similarities: [items, K] as `item_neighbours` returns them.
        examples: those of the whole run, since the mean of Eq. 6 is over all pairs given.
        temperature: τ of Eq. 5, in units of a similarity.
    Returns: [examples, pairs an example]. Where a response lists several items, δ is the mean over their pairs.
    """
    pairs = torch.tensor([example.item_pairs for example in examples])  # [examples, pairs, items a response, 2]
    chosen, rejected = pairs.view(-1, 2).T
    distance = neighbourhood_distance(similarities[chosen], similarities[rejected], temperature=temperature)
    distance = distance.view(pairs.shape[:3]).mean(dim=2)
    return hardness_weight(distance.flatten()).view_as(distance)
