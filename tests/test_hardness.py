"""The hardness pipeline: embeddings, neighbours in blocks, a cache that knows what it was made from, λ."""

from __future__ import annotations

import math

import pytest
import torch

from hanorec.cache import weights_fingerprint
from hanorec.data.examples import Example
from hanorec.errors import DataError
from hanorec.hardness import embed_items, embed_modalities, item_neighbours, nearest, pair_hardness
from hanorec.models.images import CatalogImages


def test_neighbours_in_blocks_equal_the_whole_similarity_matrix():
    points = torch.nn.functional.normalize(torch.randn(37, 5, generator=torch.Generator().manual_seed(0)), dim=1)
    whole = points @ points.T
    whole.fill_diagonal_(-2)
    expected = whole.sort(dim=1, descending=True)
    similarities, neighbours = nearest(points, 6, block=8)
    torch.testing.assert_close(similarities, expected.values[:, :6])
    assert neighbours.equal(expected.indices[:, :6])


def test_more_neighbours_than_other_items_is_an_error():
    with pytest.raises(DataError, match="10 neighbours asked for, but an item has 3 others"):
        nearest(torch.eye(4), 10)


def test_an_embedding_fuses_title_and_image_in_equal_parts(backbone, images, data):
    embeddings = embed_items(backbone, images, data.catalog.titles, batch_size=7)
    assert embeddings.norm(dim=1).allclose(torch.ones(len(data.catalog)), atol=1e-5)
    with torch.no_grad():
        table = backbone.model.get_input_embeddings().weight
        text = table[backbone.tokens(data.catalog.titles[9])].mean(0)
        image = images.features(backbone, [9])[0].mean(0)
    fused = text / text.norm() + image / image.norm()
    torch.testing.assert_close(embeddings[9], fused / fused.norm(), atol=1e-5, rtol=1e-4)


def test_an_item_without_image_is_its_title_alone(backbone, data):
    images = CatalogImages(backbone, [None, *data.catalog.images[1:4]])
    text, image = embed_modalities(backbone, images, data.catalog.titles[:4])
    torch.testing.assert_close(image.norm(dim=1), torch.tensor([0.0, 1.0, 1.0, 1.0]))
    torch.testing.assert_close(embed_items(backbone, images, data.catalog.titles[:4])[0], text[0])


def test_hardness_of_pairs_worked_by_hand():
    """Two neighbours an item. S_0 = (1, 0) gives P = (e, 1)/(e + 1) = (0.731, 0.269); S_1 = (0, 0) gives (½, ½).

    The pair (0, 1): δ = √2 · 0.2311 = 0.3268. The pair (1, 1): δ = 0. Mean δ = 0.1634.
    λ = σ(δ)/σ(0.1634): σ(0.3268) = 0.58098, σ(0) = 0.5, σ(0.1634) = 0.54076.
    """
    similarities = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    examples = [Example("u", (), (0,), (), ((1,),)), Example("v", (), (1,), (), ((1,),))]
    hardness = pair_hardness(similarities, examples)
    torch.testing.assert_close(hardness, torch.tensor([[1.07438], [0.92463]]), atol=1e-4, rtol=0)
    assert hardness[1] < 1  # items with one neighbourhood are hard to tell apart


def test_the_distance_of_a_list_is_the_mean_over_its_item_pairs():
    similarities = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    both = [Example("u", (), (0, 1), (), ((1, 1),)), Example("v", (), (1, 1), (), ((1, 1),))]
    delta = math.sqrt(2) * (1 / (1 + math.exp(-1)) - 0.5)  # of the pair (0, 1); the pair (1, 1) has 0
    sigma = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    expected = [[sigma(delta / 2) / sigma(delta / 4)], [sigma(0) / sigma(delta / 4)]]
    torch.testing.assert_close(pair_hardness(similarities, both), torch.tensor(expected))


def test_neighbours_are_kept_until_a_title_the_model_the_images_size_or_k_changes(
    backbone, images, data, tmp_path, monkeypatch
):
    made = []
    monkeypatch.setattr("hanorec.hardness.nearest", lambda e, k: made.append(k) or nearest(e, k))

    def ask(k=3, catalog=data.catalog, images=images):
        weights = weights_fingerprint(backbone.model.state_dict())
        return item_neighbours(backbone, images, catalog, k, weights=weights, cache=tmp_path)

    first = ask()
    assert all(a.equal(b) for a, b in zip(first, ask())) and len(made) == 1
    ask(k=4)
    titles = ("New title", *data.catalog.titles[1:])
    ask(catalog=type(data.catalog)(data.catalog.items, titles, data.catalog.images, data.catalog.index))
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[7].mul_(2)
    ask()
    assert made == [3, 4, 3, 3]
    with torch.no_grad():
        backbone.model.get_input_embeddings().weight[7].div_(2)
    ask()
    assert len(made) == 4  # the first ones are still there
    ask(images=CatalogImages(backbone, data.catalog.images, frozen=True, pixels=256))
    assert len(made) == 5
