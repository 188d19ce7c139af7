"""The study of item views: its commands are taken by the scripts, and its table is worked by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from hanorec.errors import DataError
from hanorec.training.options import EvaluationOptions, SFTOptions, parse

sys.path.insert(0, str(ROOT / "experiments"))

from item_views import run_cell, tables
from study_run import Failed, Scripts, write_cell


class Pretended(Scripts):
    """Takes every command as its script does, and leaves what of its results is read."""

    def __init__(self, monkeypatch, ahead: list[int]):
        super().__init__()
        self.monkeypatch, self.ahead, self.taken = monkeypatch, ahead, []

    def run(self, command: list[str], log: Path) -> dict[str, float]:
        self.monkeypatch.setattr(sys, "argv", command)
        options = parse(SFTOptions if command[0] == "train_sft.py" else EvaluationOptions)
        self.taken.append(options)
        if command[0] == "train_sft.py":
            weights = Path(options.output) / "model" / "model.safetensors"
            weights.parent.mkdir(parents=True)
            weights.touch()
        if command[0] == "evaluate.py":
            run = Path(options.runs[0])
            run.mkdir(parents=True, exist_ok=True)
            rows = {"random": [9, 9], str(run): self.ahead}
            content = {
                "options": {"candidates": "20"},
                "measures": {row: {"NDCG@10": [0.5, 0.4, 0.6]} for row in rows},
                "per_user": {
                    "users": ["1", "2"],
                    "history": [5, 5],
                    "ahead": rows,
                    "tied": {row: [0, 0] for row in rows},
                },
            }
            (run / f"evaluation-{options.split}-next.json").write_text(json.dumps(content))
        return {"wall": 60.0, "cpu": 120.0}


def test_a_cell_trains_in_its_view_and_the_table_pairs_it_with_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for view, ahead in (("image", [0, 3]), ("title", [0, 0])):
        scripts = Pretended(monkeypatch, ahead)
        write_cell(tmp_path / "results" / f"{view}.json", run_cell("toy", view, 1, Path("runs"), scripts))
        # the study's own start, and one in titles
        run = "start-full-every-1" if view == "image" else "view-toy-title-1"
        assert scripts.taken[0].item_view == view and scripts.taken[0].output == f"runs/{run}"
        assert [options.split for options in scripts.taken[1:]] == ["test", "cold"]
    lines = tables(tmp_path / "results").splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    assert rows[2][:4] == ["image", "1", "0.500", "–"]  # one of two users' targets is first
    assert rows[3][:3] == ["nothing", "1", "1.000"] and rows[3][3].startswith("-0.500 [")
    assert "ml-100k" not in "".join(lines)


def test_a_script_that_fails_and_no_cells_are_errors_of_one_line(tmp_path):
    class Broken(Scripts):
        def run(self, command, log):
            raise Failed("train_sft.py ended with status 1: error: no such dataset")

    with pytest.raises(DataError, match="toy, both, seed 2: train_sft.py ended with status 1"):
        run_cell("toy", "both", 2, tmp_path, Broken())
    with pytest.raises(DataError, match="no cells"):
        tables(tmp_path)
