"""Examples: deterministic, fair, and without leaks, for every task."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from hanorec.data.dataset import split_examples
from hanorec.data.examples import Negatives, groups, listed_negatives, make_examples
from hanorec.data.interactions import UserHistory, Window, read_sequences, windows
from hanorec.errors import DataError
from hanorec.randomness import rng

pytestmark = pytest.mark.filterwarnings("ignore:.*rows are too short")
TASKS = ["next", "top3", "yesno"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("strategy", ["random", "popularity", "neighbours"])
def test_no_negative_was_ever_chosen_and_no_target_leaks(data, task, strategy):
    neighbours = np.random.default_rng(0).permuted(
        np.tile(np.arange(len(data.catalog)), (len(data.catalog), 1)), axis=1
    )[:, :30]
    rows = {row.user: set(row.items) for row in read_sequences(data.folder / "train.tsv", data.catalog)}
    examples = split_examples(data, "train", task, windows="every", candidates=9, rejected=1 if task == "yesno" else 2,
                              negatives=strategy, neighbours=neighbours)  # fmt: skip
    for example in examples:
        assert not set(example.targets) & set(example.history)
        others = set(example.candidates) - set(example.targets) | {i for items in example.rejected for i in items}
        assert not others & rows[example.user]
        if task != "yesno":
            assert len(set(example.candidates)) == 9
            assert set(example.targets) <= set(example.candidates)
            assert all(set(items) <= set(example.candidates) for items in example.rejected)


@pytest.mark.parametrize("task", TASKS)
def test_examples_depend_on_the_seed_alone(data, task):
    first = split_examples(data, "val", task, candidates=9)
    assert first == split_examples(data, "val", task, candidates=9)
    assert first != split_examples(data, "val", task, candidates=9, seed=1)
    five_users = split_examples(data, "val", task, candidates=9, users=5)
    assert set(five_users) <= set(first)  # fewer users, the same candidates


def test_the_target_stands_anywhere_in_the_list(data):
    places = Counter(
        e.candidates.index(e.targets[0]) for e in split_examples(data, "train", "next", windows="every", candidates=5)
    )
    assert set(places) == set(range(5)) and max(places.values()) < 0.4 * sum(places.values())


def test_listed_negatives_are_drawn_where_there_are_enough(data):
    """The lists of the small world have 95 far and 5 near items. No user has chosen more than 6, so that 7 are left."""
    lists = listed_negatives(data.folder, data.catalog)
    examples = split_examples(
        data, "test", "next", candidates=8, rejected=7, negatives="listed", neighbours=lists, users=20
    )
    for example in examples:
        drawn = {items[0] for items in example.rejected}
        assert len(drawn) == 7 and drawn <= set(lists[example.targets[0]].tolist())
        assert set(example.candidates) == drawn | set(example.targets)


def test_an_item_without_a_list_gets_random_negatives():
    window = Window("u", (0,), (1,), frozenset({0, 1}), 1)
    lists = np.full((6, 2), -1)
    sampler = Negatives(np.arange(6), np.ones(6, int), "listed", lists)
    assert set(sampler.draw(window, 4, rng(0), hard=4)) == {2, 3, 4, 5}


@pytest.mark.parametrize("row, said", [("no-such-item\t1 2", "item 'no-such-item'"), ("1\tnone", "item 'none'")])
def test_a_list_of_unknown_items_is_refused(data, tmp_path, row, said):
    (tmp_path / "negatives.tsv").write_text(row + "\n")
    with pytest.raises(DataError, match=said):
        listed_negatives(tmp_path, data.catalog)


def test_a_dataset_without_lists_says_so(data, tmp_path):
    with pytest.raises(DataError, match=r"negatives\.tsv: no such file"):
        listed_negatives(tmp_path, data.catalog)


def test_a_yes_no_window_gives_one_example_of_the_target_and_one_of_another_item(data):
    yes, no = split_examples(data, "test", "yesno", users=1)
    assert yes.candidates == yes.targets
    assert no.candidates == no.rejected[0] and no.candidates != no.targets
    assert yes.item_pairs == no.item_pairs == [[(yes.targets[0], no.candidates[0])]]


def test_top3_pairs_three_targets_with_three_others(data):
    example = split_examples(data, "test", "top3", users=1, candidates=9)[0]
    assert len(example.history) <= 3 and len(example.targets) == 3
    assert example.item_pairs == [list(zip(example.targets, example.rejected[0]))]


@pytest.fixture
def window():
    return Window("u", history=(0,), targets=(1,), seen=frozenset({0, 1}), position=1)


def test_neighbour_negatives_are_sampled_from_the_k_nearest(window):
    """Of the neighbours 2, 3, 4, 0 of item 1, item 0 was chosen; each other one is drawn about a third of the time."""
    neighbours = np.array([[9, 9, 9, 9], [2, 3, 4, 0]])
    negatives = Negatives(np.arange(50), np.ones(50, int), "neighbours", neighbours)
    drawn = Counter(negatives.draw(window, 1, rng(0, draw))[0] for draw in range(600))
    assert set(drawn) == {2, 3, 4} and min(drawn.values()) > 140


def test_too_few_neighbours_are_filled_up_at_random(window):
    negatives = Negatives(np.arange(50), np.ones(50, int), "neighbours", np.array([[9], [2]]))
    drawn = negatives.draw(window, 5, rng(0))
    assert drawn[0] == 2 and len(set(drawn)) == 5


def test_popular_negatives_follow_the_counts(window):
    counts = np.array([5, 5, 30, 10, 0])
    negatives = Negatives(np.flatnonzero(counts), counts, "popularity")
    drawn = Counter(negatives.draw(window, 1, rng(0, draw))[0] for draw in range(800))
    assert set(drawn) == {2, 3} and 2.2 < drawn[2] / drawn[3] < 4.2


def test_a_catalogue_too_small_is_an_error_that_says_so(window):
    with pytest.raises(DataError, match="user u: 19 negatives asked for, but only 8 items are left"):
        make_examples([window], Negatives(np.arange(10), np.ones(10, int)), "next", candidates=20)


def test_neighbour_negatives_need_neighbours(window):
    with pytest.raises(ValueError, match="needs each item's neighbours"):
        Negatives(np.arange(50), np.ones(50, int), "neighbours").draw(window, 1, rng(0))


def test_nested_examples_are_grouped_while_their_histories_go_on_from_one_another():
    rows = [UserHistory("u", tuple(range(5))), UserHistory("v", (0, 1))]
    found, _ = windows(rows, history=2, which="nested")
    assert [[w.targets[0] for w in group] for group in groups(found, nested=True)] == [[1, 2], [3, 4], [1]]
    assert [[w.targets[0] for w in group] for group in groups(found, nested=False)] == [[1], [2], [3], [4], [1]]


def test_without_rejected_responses_there_are_as_many_candidates_as_asked_for(data):
    for number in (3, 4, 5, 9):
        drawn = split_examples(data, "val", "top3", candidates=number, rejected=0, users=5)
        assert {len(example.candidates) for example in drawn} == {number}
    with_one = split_examples(data, "val", "next", candidates=9)
    assert [replace(e, rejected=()) for e in with_one] == split_examples(data, "val", "next", candidates=9, rejected=0)


def test_examples_can_be_made_without_candidates(data):
    """For a model that is only to name the target, nothing is drawn; all else stays."""
    drawn = dict(windows="every", candidates=1, rejected=0)
    usual, bare = (split_examples(data, "train", "next", **more) for more in (dict(windows="every"), drawn))
    assert all(e.candidates == e.targets and not e.rejected for e in bare)
    assert bare == [replace(e, candidates=e.targets, rejected=()) for e in usual]


def test_of_nested_windows_whole_groups_are_drawn(data):
    every = split_examples(data, "train", "next", windows="nested")
    some = split_examples(data, "train", "next", windows="nested", users=len(every) // 4)
    whole = {tuple(e.targets for e in group) for group in groups(every, nested=True)}
    assert all(tuple(e.targets for e in group) in whole for group in groups(some, nested=True))
    assert len(some) == pytest.approx(len(every) / 4, rel=0.15)
