"""A folder opens as one dataset, whose split gives the same examples to whoever reads it."""

from __future__ import annotations

import re
import shutil
import warnings
from pathlib import Path

import pytest

from hanorec.data import dataset
from hanorec.data.dataset import check_test_rows, open_dataset, split_examples
from hanorec.data.interactions import read_sequences
from hanorec.errors import DataError


def test_warm_items_are_those_of_the_training_rows(data):
    trained_on = {item for row in read_sequences(data.folder / "train.tsv", data.catalog) for item in row.items}
    assert data.warm.tolist() == sorted(trained_on)
    assert 0 < len(trained_on) < len(data.catalog)  # the toy catalogue has cold items


def test_without_a_folder_the_toy_catalogue_is_made_once(tmp_path, toy_folder, monkeypatch, capsys):
    monkeypatch.setattr(dataset, "TOY_FOLDER", tmp_path / "toy")
    monkeypatch.setattr(dataset, "make_toy", lambda folder: shutil.copytree(toy_folder, folder))
    assert open_dataset(None).folder == open_dataset(None).folder == tmp_path / "toy"
    assert capsys.readouterr().out.count("making the toy catalogue") == 1


def test_an_item_that_the_catalogue_lacks_leads_to_the_titles_file(toy_folder, tmp_path):
    """A foreign titles file is the usual cause, so the error says which one was read and how much it gave."""
    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    (folder / "titles.csv").unlink()
    (folder / "Foreign_titles.csv").write_text("item,title\nx1,One\nx2,Two\n")
    shutil.rmtree(folder / "images")
    source = re.escape(str(folder / "Foreign_titles.csv"))
    with pytest.raises(DataError, match=rf"train\.tsv:1: item '\d+' is not in the catalogue: {source} gave 2 items"):
        open_dataset(folder)


def test_more_candidates_than_items_is_an_error(data):
    with pytest.raises(DataError, match="9999 candidates asked for, but the catalogue has"):
        split_examples(data, "test", "next", candidates=9999)


def test_rows_too_short_are_skipped_and_counted(data):
    with pytest.warns(UserWarning, match="rows are too short for the task top3"):
        split_examples(data, "train", "top3", candidates=9)


def test_a_split_without_a_row_that_is_long_enough_is_an_error(toy_folder, tmp_path):
    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    (folder / "val.tsv").write_text("u0\t1\n")
    with pytest.warns(UserWarning, match="1 of 1 rows"), pytest.raises(DataError, match="no row is long enough"):
        split_examples(open_dataset(folder), "val", "next", candidates=9)


@pytest.fixture
def folder(tmp_path):
    """A function that writes a dataset of 9 items without images, of such rows."""

    def write(**splits: list[str]) -> Path:
        (tmp_path / "titles.csv").write_text("".join(f"{item},T{item}\n" for item in range(9)))
        for split, rows in splits.items():
            (tmp_path / f"{split}.tsv").write_text("".join(f"u{user}\t{row}\n" for user, row in enumerate(rows)))
        return tmp_path

    return write


def messages(caught) -> list[str]:
    return [str(each.message) for each in caught]


def test_items_without_an_image_are_counted_when_a_dataset_is_opened(folder):
    with pytest.warns(UserWarning, match="9 of 9 items have no image: there is no folder"):
        open_dataset(folder(train=["0 1 2"]))


@pytest.mark.filterwarnings("ignore:.*have no image")
@pytest.mark.parametrize("windows", ["last", "every"])
@pytest.mark.parametrize(
    "task, again", [("next", "5 5 5 5 5"), ("next", "7 7"), ("yesno", "2 2 2"), ("top3", "1 2 5 5 5"), ("top3", "1 2 1 2 1 2")]
)  # fmt: skip
def test_rows_that_repeat_their_targets_are_not_called_short(folder, task, again, windows):
    data = open_dataset(folder(train=["0 1 2 3", again, "4", again, "4 5 6 7 8 3"]))
    with pytest.warns(UserWarning) as caught:
        split_examples(data, "train", task, windows=windows, candidates=4)
    assert [message.split(": ")[1] for message in messages(caught)] == [
        f"1 of 5 rows are too short for the task {task} and are skipped",
        "2 of 5 rows repeat their targets, so that too few different items are left, and are skipped",
    ]
    data = open_dataset(folder(train=[again, "4"]))
    with (
        pytest.warns(UserWarning, match="1 of 2 rows repeat"),
        pytest.raises(
            DataError, match=f"train.tsv: no row has the different items that are needed for the task {task}"
        ),
    ):
        split_examples(data, "train", task, windows=windows, candidates=4)


@pytest.mark.filterwarnings("ignore:.*have no image")
def test_users_whose_training_row_holds_their_target_are_counted(folder):
    data = open_dataset(folder(train=["0 1 2", "3 4 5", "6 7 8"], test=["0 1 2", "3 4 5 6 7", "6 7 8 0 6", "1 2 3"]))
    with pytest.warns(UserWarning) as caught:
        split_examples(data, "test", "next", candidates=2)
    (message,) = messages(caught)
    assert message.endswith("test.tsv: the last item of 2 of 4 users (50.0%) is in their row of train.tsv as well")


def test_of_users_who_choose_nothing_twice_nothing_is_said(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for split in ("val", "test"):
            split_examples(data, split, "next")
        check_test_rows(data, "next", history=None, candidates=20)


@pytest.mark.filterwarnings("ignore:.*have no image", "ignore:.*the last item")
@pytest.mark.parametrize("users", [1, None])
@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_that_leave_too_few_candidates_are_told_whichever_users_are_drawn(folder, split, users):
    """Of 8 items in train.tsv, u1 leaves two and u2 one: that makes two candidates with the target."""
    rows = ["0 1", "0 1 2 3 4 5", "0 1 2 3 4 5 7", "0 1"]
    data = open_dataset(folder(train=["0 1 2 3 4 5 6 7"] if split == "test" else rows + ["6 0"], test=rows))
    expected = (
        f"{split}.tsv: 2 of {len(rows) + (split == 'train')} rows leave fewer than 3 items to draw negatives from, for 4 "
        "candidates: of 8 items in train.tsv user u2 leaves 1; at most 2 candidates can be drawn for all rows"
    )
    draw = lambda number: split_examples(data, split, "next", candidates=number, users=users, rejected=0)  # noqa: E731
    with pytest.raises(DataError, match=expected):
        draw(4)
    assert draw(2)


@pytest.mark.filterwarnings("ignore:.*have no image")
def test_what_an_evaluation_would_stop_at_is_told_before_training(folder):
    data = open_dataset(folder(train=["0 1 2 3 4 5 6 7"]))
    check_test_rows(data, "next", history=None, candidates=8)  # there is no test.tsv yet
    folder(test=["3 1", "0 1 2 3 4 5 7 8"])
    with pytest.warns(UserWarning) as caught:
        check_test_rows(data, "next", history=None, candidates=8)
    assert "user u1 leaves 1; at most 2 candidates can be drawn for all rows" in messages(caught)[-1]
    with pytest.warns(UserWarning) as caught:
        check_test_rows(data, "next", history=None, candidates=2)
        check_test_rows(data, "yesno", history=None, candidates=8)  # one negative is enough
    assert not any("negatives" in message for message in messages(caught))
    folder(test=["3 99"])
    with pytest.raises(DataError, match="test.tsv:1: item '99' is not in the catalogue"):
        check_test_rows(data, "next", history=None, candidates=2)


def test_users_draws_windows_by_the_seed(data):
    def users(seed):
        return [e.user for e in split_examples(data, "test", "next", candidates=9, users=10, seed=seed)]

    assert len(users(1)) == len(set(users(1))) == 10
    assert users(1) == users(1) != users(2)
