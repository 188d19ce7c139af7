"""Rejected items drawn from the reference's own probabilities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hanorec.data.dataset import split_examples
from hanorec.errors import DataError
from hanorec.hardness import embed_modalities
from hanorec.models.backbone import load_backbone
from hanorec.models.images import CatalogImages
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score_all
from hanorec.related.policy_negatives import modality_conflict, policy_negatives, pool_size


@pytest.fixture(scope="module")
def drawn(random_backbone, data):
    """A function that draws from pools of 12 items; it returns examples, and the log-probabilities of their pools."""
    backbone = load_backbone(str(random_backbone), dtype="float32", device=torch.device("cpu"))
    images = CatalogImages(backbone, data.catalog.images, frozen=True)
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    examples = split_examples(data, "train", "next", users=20, candidates=8, rejected=12)

    def draw(rejected, **options):
        return policy_negatives(backbone, prompts, examples, rejected, weights="", candidates=8, **options)

    pools = [[items[0] for items in example.rejected] for example in examples]
    titles = [[prompts.name([item]) for item in pool] for pool in pools]
    logps = score_all(backbone, images, [prompts.prompt(e) for e in examples], titles, weights="")
    return draw, pools, logps.view(20, 12).numpy()


def test_drawn_items_are_of_the_pool_and_among_the_candidates(drawn):
    draw, pools, _ = drawn
    for example, pool in zip(draw(3), pools, strict=True):
        items = [items[0] for items in example.rejected]
        assert len(set(items)) == 3 and set(items) <= set(pool)
        assert {*items, *example.targets} <= set(example.candidates) and len(example.candidates) == 8


def test_a_low_temperature_draws_what_the_reference_finds_likeliest(drawn):
    draw, pools, logps = drawn
    for example, pool, row in zip(draw(2, temperature=1e-6), pools, logps, strict=True):
        likeliest = [pool[place] for place in np.argsort(-row)[:2]]
        assert [items[0] for items in example.rejected] == likeliest


def test_a_high_temperature_draws_any_item_of_the_pool(drawn, tmp_path):
    """The place of the drawn item in the pool's order by probability is then uniform on 0 … 11: mean 5.5, and the mean
    over 20 examples and 10 seeds has a standard deviation of 3.45 / √200 = 0.24."""
    draw, pools, logps = drawn
    places = []
    for seed in range(10):
        examples = draw(1, temperature=1e6, seed=seed, cache=tmp_path)  # the probabilities are computed once
        for example, pool, row in zip(examples, pools, logps, strict=True):
            places.append(np.argsort(np.argsort(-row))[pool.index(example.rejected[0][0])])
    assert abs(np.mean(places) - 5.5) < 4 * 0.24


def test_a_draw_is_a_function_of_the_seed(drawn):
    draw, *_ = drawn
    assert draw(2, seed=1) == draw(2, seed=1) != draw(2, seed=2)


def test_a_pool_that_is_too_small_is_an_error(drawn):
    draw, *_ = drawn
    with pytest.raises(DataError, match="13 rejected items are to be drawn from a pool of 12"):
        draw(13)


def test_a_pool_has_what_every_user_leaves_and_at_most_50_items(data):
    assert pool_size(data, 50) == 50
    longest = max(len(set(history.items)) for history in data.train)
    few = replace(data, counts=np.array([1] * (longest + 8)))  # 8 items are left to the user who has chosen most
    assert pool_size(few, 8) == 8
    with pytest.raises(DataError, match="9 rejected items are to be drawn from 8, which is all that some user leaves"):
        pool_size(few, 9)


def test_policy_negatives_are_of_the_task_next(backbone, images, data):
    prompts = Prompts(backbone, images, data.catalog.titles, "top3")
    with pytest.raises(ValueError, match="the task is top3"):
        policy_negatives(backbone, prompts, [], 1, weights="")


# Image and title in a plane. Of the pool 1 to 4, item 4 has no image; the history is item 0, with image (1, 0).
TEXT = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
IMAGE = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])


def test_the_conflict_of_modalities_worked_by_hand():
    """Cosines of image and title of items 1, 2, 3: 1, 1, 0, with mean 2/3 and deviation √2/3: z = 1/√2, 1/√2, −√2.
    Of image and history: 1, 0, 1, so z = 1/√2, −√2, 1/√2. The mean of both, with the other sign: −1/√2, (√2 − 1/√2)/2 =
    1/(2√2) twice. Item 4 has no image: 0."""
    conflict = modality_conflict(TEXT, IMAGE, [1, 2, 3, 4], [0])
    np.testing.assert_allclose(conflict, [-(0.5**0.5), 0.125**0.5, 0.125**0.5, 0], atol=1e-6)


def test_the_history_is_seen_as_the_mean_of_its_images():
    """(1, 0) and (0, 1): every image of the pool is as near to it, which leaves the title; then an item without image
    alone, which leaves it, too."""
    for history in ([0, 2], [4]):
        conflict = modality_conflict(TEXT, IMAGE, [1, 2, 3], history)
        np.testing.assert_allclose(conflict, [-(0.125**0.5), -(0.125**0.5), 0.5**0.5], atol=1e-6)


def test_a_pool_without_images_or_with_one_has_no_conflict():
    assert not modality_conflict(TEXT, IMAGE, [4, 4], [0]).any()
    assert not modality_conflict(TEXT, IMAGE, [4, 1], [0]).any()


def test_confident_mistakes_with_conflicting_modalities_are_preferred(drawn, backbone, images, data):
    """A large weight draws the items of largest conflict, at weight 0 the draw is that of the probabilities alone; in
    between, both count: with hardly any noise (T and 1/w → 0) the largest sum of both is drawn."""
    draw, pools, logps = drawn
    modalities = embed_modalities(backbone, images, data.catalog.titles)
    assert draw(3, modalities=modalities, modality_weight=0.0) == draw(3)
    for temperature, weight in ((1e6, 1e6), (1e-6, 1e6)):
        examples = draw(2, modalities=modalities, modality_weight=weight, temperature=temperature)
        for example, pool, row in zip(examples, pools, logps, strict=True):
            score = row / temperature + weight * modality_conflict(*modalities, pool, example.history)
            assert [items[0] for items in example.rejected] == [pool[place] for place in np.argsort(-score)[:2]]
