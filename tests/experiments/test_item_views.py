"""The study of item views: the scripts take its commands, and its table is worked by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from experiments.cells import Cell, Scripts
from experiments.common import read_rows
from experiments.real_data import item_views
from experiments.real_data.item_views import OPTIONS, run_cell, tables
from hanorec.training.command_line import parse
from hanorec.training.evaluation_options import EvaluationOptions
from hanorec.training.options import SFTOptions


class Pretended(Scripts):
    """Takes every command as its script does, and leaves what of its results is read."""

    def __init__(self, monkeypatch, ahead: list[int]):
        super().__init__()
        self.monkeypatch, self.ahead, self.taken = monkeypatch, ahead, []

    def run(self, command: list[str], log: Path) -> dict[str, float]:
        self.monkeypatch.setattr(sys, "argv", command)
        if command[0] not in ("train_sft.py", "evaluate.py"):
            self.taken.append(command)
            return {"wall": 1.0, "cpu": 1.0}
        options = parse(SFTOptions if command[0] == "train_sft.py" else EvaluationOptions)
        self.taken.append(options)
        if command[0] == "evaluate.py":
            run = Path(options.runs[0])
            run.mkdir(parents=True, exist_ok=True)
            rows = {"popularity": [9, 9], str(run): self.ahead}
            seen = {"ahead": rows, "tied": {row: [0, 0] for row in rows}}
            content = {"options": {"candidates": "20"}, "per_user": seen}
            (run / f"evaluation-{options.split}-next.json").write_text(json.dumps(content))
        return {"wall": 60.0, "cpu": 120.0}


@pytest.mark.parametrize("catalogue, splits", [("toy", ["test", "cold"]), ("ml-100k-titles-8", ["test"])])
def test_a_cell_trains_in_its_view_and_the_table_pairs_it_with_images(catalogue, splits, tmp_path, monkeypatch):
    rows = []
    for view, ahead in (("image", [0, 3]), ("title", [0, 0])):
        scripts, cell = Pretended(monkeypatch, ahead), Cell((catalogue, view, 1), {"options": OPTIONS[catalogue]})
        content = run_cell(cell, Path("data"), tmp_path, scripts)
        rows.append({"catalogue": catalogue, "view": view, "seed": 1, **content})
        train, *evaluations = [options for options in scripts.taken if not isinstance(options, list)]
        assert train.item_view == view and train.output == str(tmp_path / f"view-{catalogue}--{view}--1")
        assert [options.split for options in evaluations] == splits
    lines = tables(rows).splitlines()
    of = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert of[2][:4] == ["image", "1", "0.500", "–"]  # one of two users' targets is first
    assert of[3][:3] == ["nothing", "1", "1.000"] and of[3][3].startswith("-0.500 [")
    assert [line for line in lines if line.endswith("`")] == [f"{catalogue}, `{split}`" for split in splits]


def test_the_toy_catalogue_is_made_and_described_where_a_view_needs_it(tmp_path, monkeypatch, capsys):
    scripts = Pretended(monkeypatch, [0, 3])
    monkeypatch.setattr("experiments.cells.Scripts", lambda: scripts)
    results = tmp_path / "item-views.jsonl"
    given = ["", "--views", "title", "both", "--results", str(results), "--runs", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", given)
    item_views.main()
    made = [words[0] for words in scripts.taken if isinstance(words, list)]
    assert made == ["data/make_toy.py", "data/make_toy.py", "data/describe_items.py"]  # nothing is there in truth
    assert [(row["view"], row.get("failed")) for row in read_rows(results)] == [("title", None), ("both", None)]


def test_the_committed_table_is_of_the_committed_rows():
    folder = Path(item_views.__file__).parent
    assert tables(read_rows(folder / "item-views.jsonl")) == (folder / "item-views.md").read_text(encoding="utf-8")
