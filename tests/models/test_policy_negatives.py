"""Rejected items drawn from the reference's own probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from hanorec.data.dataset import split_examples
from hanorec.errors import DataError
from hanorec.models.policy_negatives import policy_negatives
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score_all


@pytest.fixture
def drawn(backbone, images, data):
    """A function that draws from pools of 12 items; it returns examples, and the log-probabilities of their pools."""
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    examples = split_examples(data, "train", "next", users=40, candidates=8, rejected=12)

    def draw(rejected, **options):
        return policy_negatives(backbone, prompts, examples, rejected, weights="", candidates=8, **options)

    pools = [[items[0] for items in example.rejected] for example in examples]
    titles = [[prompts.name([item]) for item in pool] for pool in pools]
    logps = score_all(backbone, images, [prompts.prompt(e) for e in examples], titles, weights="")
    return draw, pools, logps.view(40, 12).numpy()


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


def test_a_high_temperature_draws_any_item_of_the_pool(drawn):
    """The place of the drawn item in the pool's order by probability is then uniform on 0 … 11: mean 5.5, and the mean
    over 40 examples and 5 seeds has a standard deviation of 3.45 / √200 = 0.24."""
    draw, pools, logps = drawn
    places = []
    for seed in range(5):
        for example, pool, row in zip(draw(1, temperature=1e6, seed=seed), pools, logps, strict=True):
            places.append(np.argsort(np.argsort(-row))[pool.index(example.rejected[0][0])])
    assert abs(np.mean(places) - 5.5) < 4 * 0.24


def test_a_draw_is_a_function_of_the_seed(drawn):
    draw, *_ = drawn
    assert draw(2, seed=1) == draw(2, seed=1) != draw(2, seed=2)


def test_a_pool_that_is_too_small_is_an_error(drawn):
    draw, *_ = drawn
    with pytest.raises(DataError, match="--negative-pool 12: 13 rejected items are to be drawn"):
        draw(13)
