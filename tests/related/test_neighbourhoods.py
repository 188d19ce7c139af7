"""Neighbourhoods refined by a similarity threshold and by what users choose together (MLLMRec, arXiv 2508.15304)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hanorec.data.examples import Example, Negatives
from hanorec.data.interactions import Window
from hanorec.hardness import nearest, pair_hardness
from hanorec.randomness import rng
from hanorec.related.neighbourhoods import chosen_together, refine

# Four items with two neighbours each, and three users' rows
SIMILARITIES = torch.tensor([[0.9, 0.3], [0.9, 0.5], [0.5, 0.4], [0.4, 0.2]])
NEIGHBOURS = torch.tensor([[1, 2], [0, 2], [1, 3], [2, 1]])
ROWS = [(0, 1), (0, 2, 0), (0, 1)]


def test_the_jaccard_index_of_two_items_is_the_share_of_their_users_who_chose_both():
    """U_0 = {a, b, c}, U_1 = {a, c}, U_2 = {b}, U_3 = {}: J(0, 1) = 2/3, J(0, 2) = 1/3, J(1, 2) = 0. Choosing an item
    twice counts once."""
    assert chosen_together(ROWS, 4, 2) == [{1: pytest.approx(2 / 3), 2: pytest.approx(1 / 3)}, {0: pytest.approx(2 / 3)},
                                           {0: pytest.approx(1 / 3)}, {}]  # fmt: skip
    assert chosen_together(ROWS, 4, 1)[0] == {1: pytest.approx(2 / 3)}


def test_refinement_worked_by_hand():
    """Threshold 0.45. Item 0: of the nearest 1 (0.9) stays, 2 (0.3) is below; together: 1 (2/3), 2 (1/3).
    Weights 0.9 + 2/3 and 1/3: both edges are there again. Item 1: 0.9 + 2/3 for 0, and 0.5 for 2.
    Item 2: 1 (0.5) stays, 3 (0.4) is dropped, 0 (1/3) is added. Item 3: nothing is left, both are dropped.
    """
    similarities, neighbours, changes = refine(SIMILARITIES, NEIGHBOURS, ROWS, threshold=0.45)
    expected = [[0.9 + 2 / 3, 1 / 3], [0.9 + 2 / 3, 0.5], [0.5, 1 / 3], [0.0, 0.0]]
    torch.testing.assert_close(similarities, torch.tensor(expected))
    assert neighbours.tolist() == [[1, 2], [0, 2], [1, 0], [-1, -1]]
    assert changes == (0.45, 8, 3, 1)
    assert str(changes) == "refined neighbourhood, similarities of at least 0.450: 3 of 8 edges dropped, 1 added"


def test_the_default_threshold_drops_half_of_the_edges_whatever_their_scale():
    points = torch.nn.functional.normalize(torch.randn(41, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    cosines, nearest_items = nearest(points, 4)
    for scale in (1.0, 0.1):
        similarities, neighbours, changes = refine(scale * cosines, nearest_items, [])
        assert changes.threshold == (scale * cosines).median() and changes.added == 0
        assert changes.dropped == pytest.approx(41 * 4 / 2, abs=2)  # two that are near each other drop both or none
        assert (similarities.diff(dim=1) <= 0).all()
        assert ((neighbours == -1) == (similarities == 0)).all()


def test_with_no_threshold_and_no_rows_nothing_changes():
    similarities, neighbours, changes = refine(SIMILARITIES, NEIGHBOURS, [], threshold=0.0)
    assert similarities.equal(SIMILARITIES) and neighbours.equal(NEIGHBOURS) and changes == (0, 8, 0, 0)


def test_items_that_are_all_alike_have_a_threshold_that_keeps_them():
    """In float32 a cosine can be a little more than 1."""
    cosines = torch.full((3, 2), 1.0000001)
    assert refine(cosines, torch.tensor([[1, 2], [0, 2], [0, 1]]), [])[2].dropped == 0


@pytest.mark.parametrize("threshold", [-0.1, 1.01, float("nan")])
def test_a_threshold_that_is_no_similarity_is_an_error(threshold):
    with pytest.raises(ValueError, match="^threshold must be a similarity from 0 to 1"):
        refine(SIMILARITIES, NEIGHBOURS, ROWS, threshold=threshold)


def test_a_pair_of_items_without_neighbours_has_the_smallest_distance():
    """Missing neighbours are similarities of 0, so that P is (½, ½) for both of the pair (3, 3): δ = 0."""
    similarities = refine(SIMILARITIES, NEIGHBOURS, ROWS, threshold=0.45)[0]
    pairs = [Example("u", (), (0,), (), ((3,),)), Example("v", (), (3,), (), ((3,),))]
    hardness = pair_hardness(similarities, pairs)
    assert hardness.isfinite().all() and hardness[1] < 1 < hardness[0]


def test_a_missing_neighbour_is_never_drawn():
    """Of item 1's neighbours 2 and none, item 2 comes first; without any, all negatives are drawn at random."""
    window = Window("u", history=(0,), targets=(1,), seen=frozenset({0, 1}), position=1)
    for neighbours, first in (([2, -1], {2}), ([-1, -1], set(range(2, 20)))):
        negatives = Negatives(np.arange(20), np.ones(20, int), "neighbours", np.array([[-1, -1], neighbours]))
        drawn = [negatives.draw(window, 3, rng(0, draw)) for draw in range(200)]
        assert {items[0] for items in drawn} == first and all(len(set(items)) == 3 for items in drawn)
