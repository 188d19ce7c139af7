"""The release's protocol: the last six items of a row, one example a user, negatives from the whole catalogue."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import pytest

from hanorec.data.catalog import Catalog
from hanorec.data.dataset import open_dataset
from hanorec.data.interactions import UserHistory
from hanorec.errors import DataError
from hanorec.related import release
from hanorec.related.release import check_release_rows, release_examples, release_split, release_windows

ROW = UserHistory("u", (9, 0, 1, 2, 3, 4, 5))  # item 9 is too old to be used, and was chosen all the same


def catalog(size: int, without_image: tuple[int, ...] = (), first_id: int = 0) -> Catalog:
    """Items of the ids first_id, first_id + 1, ..."""
    ids = tuple(str(first_id + item) for item in range(size))
    images = tuple(None if item in without_image else Path(f"{id}.jpg") for item, id in enumerate(ids))
    return Catalog(ids, tuple(f"Title {id}" for id in ids), images, {id: item for item, id in enumerate(ids)})


def examples_of(rows: list[UserHistory], task: str, items: Catalog, split: str = "train", **more):
    return release_examples(release_windows(rows, split, task)[0], items, split, task, **more)


def test_three_items_and_the_three_after_them_newest_first():
    (example,) = examples_of([ROW], "top3", catalog(30))
    assert (example.history, example.targets) == ((0, 1, 2), (5, 4, 3))


def test_seven_are_listed_and_three_of_the_four_negatives_are_rejected():
    (example,) = examples_of([ROW], "top3", catalog(30))
    negatives = set(example.candidates) - {3, 4, 5}
    assert len(example.candidates) == 7 and len(negatives) == 4 and not negatives & set(ROW.items)
    ((first, second, third),) = example.rejected
    assert {first, second, third} < negatives and len({first, second, third}) == 3
    assert example.item_pairs == [[(5, first), (4, second), (3, third)]]  # whose distances are δ of the pair


def test_candidates_stand_in_any_order():
    rows = [UserHistory(f"u{k}", (0, 1, 2, 3, 4, 5)) for k in range(400)]
    places = Counter(example.candidates.index(5) for example in examples_of(rows, "top3", catalog(30)))
    assert set(places) == set(range(7)) and max(places.values()) < 90  # 57 are expected


def test_a_coin_decides_whether_the_next_item_is_asked_about():
    """Of 400 users 200 are expected to have the answer Yes, with a standard deviation of 10."""
    rows = [UserHistory(f"u{k}", (0, 1, 2, 3, 4, 5)) for k in range(400)]
    examples = examples_of(rows, "yesno", catalog(30))
    assert [example.user for example in examples] == [row.user for row in rows]  # one a user
    yes = [example for example in examples if example.candidates == (5,)]
    no = [example for example in examples if example.candidates != (5,)]
    assert 160 < len(yes) < 240
    for example in examples:
        assert example.history == (0, 1, 2, 3, 4) and example.targets == (5,)
        assert len(set(example.unchosen)) == 4 and not set(example.unchosen) & {0, 1, 2, 3, 4, 5}
    # The pair's hardness is that of the next item and of a negative: one of those listed, or the one asked about.
    assert all(example.rejected[0][0] in example.unchosen for example in yes)
    assert {example.unchosen.index(example.rejected[0][0]) for example in yes} == {0, 1, 2, 3}
    assert all(example.rejected == (example.candidates,) for example in no)
    assert all(example.candidates[0] not in (*example.unchosen, 0, 1, 2, 3, 4, 5) for example in no)


def test_negatives_are_any_items_that_the_user_has_not_chosen():
    """Also such as no row has: of 8 + 4 items all but the row's are drawn, and these alone."""
    rows = [UserHistory(f"u{k}", (0, 1, 2, 3, 4, 5, 6, 7)) for k in range(60)]
    drawn = {item for example in examples_of(rows, "top3", catalog(12)) for item in example.candidates}
    assert drawn == {5, 6, 7} | {8, 9, 10, 11}
    with pytest.raises(DataError, match="user u0: 4 negatives asked for, but only 3 items are left"):
        examples_of(rows, "top3", catalog(11))


def test_rows_of_fewer_than_six_items_are_left_out():
    rows = [UserHistory("short", (0, 1, 2, 3, 4)), ROW, UserHistory("again", (0, 1, 2, 3, 4, 3))]
    windows, skipped = release_windows(rows, "test", "top3")
    assert [window.user for window in windows] == ["u"] and skipped == 2  # targets 3, 4, 3 are no three items
    windows, skipped = release_windows(rows, "test", "yesno")
    assert [window.history for window in windows] == [(0, 1, 2, 3, 4), (0, 1, 2, 3, 4)] and skipped == 1


def test_the_first_rows_are_used_where_there_are_many(monkeypatch):
    monkeypatch.setattr(release, "MOST_RANKED", 2)
    rows = [UserHistory(f"u{k}", (0, 1, 2, 3, 4, 5)) for k in range(3)]
    users = {split: [window.user for window in release_windows(rows, split, "top3")[0]] for split in ("train", "test")}
    assert users == {"train": ["u0", "u1", "u2"], "test": ["u0", "u1"]}
    monkeypatch.undo()
    assert (release.MOST_RANKED, release.MOST_TRAINED) == (3_000, 100_000)


def test_item_627_lends_its_image_to_items_without_one():
    """Items of the ids 622 to 651, so 627 is item 5. Item 2, of the history, has no image; nor has item 9."""
    (example,) = examples_of([ROW], "top3", catalog(30, without_image=(2, 9), first_id=622))
    assert example.shown == (0, 1, 5)
    (example,) = examples_of([ROW], "top3", catalog(30, without_image=(2, 5), first_id=622))
    assert example.shown == (0, 1, 2)  # it has none to lend
    (example,) = examples_of([ROW], "top3", catalog(30, without_image=(2,)))
    assert example.shown == (0, 1, 2)  # there is no such item


def test_examples_depend_on_seed_and_user_alone():
    rows = [UserHistory(f"u{k}", (0, 1, 2, 3, 4, 5)) for k in range(20)]
    for task in ("top3", "yesno"):
        both = examples_of(rows, task, catalog(30))
        assert both == examples_of(rows, task, catalog(30)) != examples_of(rows, task, catalog(30), seed=1)
        assert both[7:] == examples_of(rows[7:], task, catalog(30))


def test_answers_that_are_all_alike_cannot_be_ranked():
    rows = [UserHistory("u", (0, 1, 2, 3, 4, 5))]
    with pytest.raises(DataError, match="^the answer to all 1 examples is (Yes|No), and AUC compares the two"):
        examples_of(rows, "yesno", catalog(30), "test")
    assert len(examples_of(rows, "yesno", catalog(30), "train")) == 1


@pytest.mark.filterwarnings("ignore:.*have no image", "ignore:.*the last item")
@pytest.mark.parametrize(
    "task, items, told", [("top3", 9, "4 negatives"), ("yesno", 10, "negatives"), ("top3", 10, "")]
)
def test_what_an_evaluation_would_stop_at_is_told_before_training(tmp_path, task, items, told):
    """A user of 6 items leaves 3 or 4 for the 4 negatives, or for the 5 of a yes/no example about an item not chosen."""
    (tmp_path / "titles.csv").write_text("".join(f"{item},Title {item}\n" for item in range(items)))
    (tmp_path / "train.tsv").write_text("u\t0 1 2 3 4 5\n")
    data = open_dataset(tmp_path)
    check_release_rows(data, task, seed=1)  # there is no test.tsv yet
    (tmp_path / "test.tsv").write_text("".join(f"u{user}\t0 1 2 3 4 5\n" for user in range(8)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check_release_rows(data, task, seed=1)
    said = "\n".join(str(each.message) for each in caught)
    assert ("test.tsv: user u" in said) == bool(told) and told in said
    assert not told or f"left of the {items} that they are drawn from" in said


def test_a_split_gives_them(data):
    with pytest.warns(UserWarning, match="rows are too short for the task yesno"):
        examples = release_split(data, "test", "yesno", users=12)
    assert len(examples) == 12 and all(len(e.history) == 5 and len(e.unchosen) == 4 for e in examples)
    with pytest.raises(DataError, match="the protocol release has the tasks top3 and yesno; the task is next"):
        release_split(data, "test", "next")
