"""A folder opens as one dataset, whose split gives the same examples to whoever reads it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from hanorec.data import dataset
from hanorec.data.catalog import read_catalog
from hanorec.data.dataset import open_dataset, split_examples
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


def test_users_draws_windows_by_the_seed(data):
    def users(seed):
        return [e.user for e in split_examples(data, "test", "next", candidates=9, users=10, seed=seed)]

    assert len(users(1)) == len(set(users(1))) == 10
    assert users(1) == users(1) != users(2)


def test_the_readme_says_how_to_check_a_folder(toy_folder, capsys):
    """The code in docs/data.md runs as it stands, on another folder."""
    readme = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    exec(compile(code.replace("my-dataset", toy_folder.as_posix()), "docs/data.md", "exec"), {})
    rows = len(read_sequences(toy_folder / "train.tsv", read_catalog(toy_folder)))
    assert capsys.readouterr().out.splitlines()[0].startswith(f"train {rows} rows,")
