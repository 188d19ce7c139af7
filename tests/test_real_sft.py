"""The study of SFT on real data: its commands are taken by the scripts, cells run once, and its table is worked by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from hanorec.errors import DataError
from hanorec.evaluation.baselines import baseline_names
from hanorec.recommenders.networks import NETWORKS, SASRec, Settings
from hanorec.training.options import EvaluationOptions, SFTOptions, parse

sys.path.insert(0, str(ROOT / "experiments"))

from real_sft import SETTINGS, SHORTER, evaluation_command, run_cell, run_sasrec, tables
from study_cells import start_command, start_fingerprint
from study_run import Failed, Scripts, make_catalogues, write_cell
from study_worlds import REAL, STARTS


class Pretended(Scripts):
    """Leaves what the two scripts leave, without training."""

    def run(self, command: list[str], log: Path) -> dict[str, float]:
        if command[0] == "evaluate.py":
            run = Path(command[command.index("--runs") + 1])
            ahead = {str(run): [0, 3], f"{run}, blank": [1, 3], "popularity": [2, 19]}
            seen = {"ahead": ahead, "tied": {row: [0, 0] for row in ahead}}
            (run / "evaluation-test-next.json").write_text(
                json.dumps({"options": {"candidates": "20"}, "per_user": seen})
            )
        else:
            run = Path(command[command.index("--output") + 1])
            run.mkdir(parents=True)
            (run / "finished.json").write_text("{}")
            lines = [{"step": 0, "loss": 1.0}, {"step": 9, "validation": 0.5}, {"step": 19, "validation": 0.7}]
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return {"wall": 60.0, "cpu": 120.0}


@pytest.fixture(autouse=True)
def no_weights(monkeypatch):
    monkeypatch.setattr("study_run.model_fingerprint", lambda folder: "0123456789abcdef0123")


@pytest.mark.parametrize("name", SETTINGS)
def test_the_scripts_take_the_commands(name, monkeypatch):
    trained = SHORTER.get(name, (name, None))[0]
    monkeypatch.setattr(sys, "argv", start_command(trained, 3, Path("runs")))
    options = parse(SFTOptions)
    windows = "every" if name == "ml-100k-then-5" else "nested"
    assert (options.windows, options.seed, options.data) == (windows, 3, "runs/data/ml-100k")
    monkeypatch.setattr(sys, "argv", evaluation_command(name, Path("runs/x"), Path("runs")))
    options = parse(EvaluationOptions)
    assert options.history == (5 if name in SHORTER else None)
    assert options.split == "test" and len(baseline_names(options.baselines)) == 2
    assert options.modality == (["full"] if "--item-view" in STARTS[trained][1] else ["full", "blank", "shuffled"])


def test_a_cell_holds_places_and_the_table_is_of_its_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        content = run_cell("ml-100k-20", seed, Path("runs"), Pretended())
        write_cell(tmp_path / "results" / f"ml-100k-20--{seed}.json", content)
    assert content["ahead"] == {"SFT": "03", "SFT, blank": "13", "popularity": "2j"}
    text = tables(tmp_path / "results")
    assert "Seeds: 2, CPU minutes of each: 2." in text
    rows = {line.split("|")[1].strip(): line.split("|")[2:] for line in text.splitlines() if line.startswith("|")}
    assert [cell.strip() for cell in rows["SFT"]][:2] == ["0.500", "–"]  # one of two users' targets is first
    assert rows["popularity"][0].strip() == "0.000" and rows["popularity"][1].strip().startswith("+0.500 [")


def test_a_start_that_trains_on_is_made_after_the_one_before_and_counts_its_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scripts = Pretended()
    content = run_cell("ml-100k-then-5", 2, Path("runs"), scripts)
    before = Path("runs/start-ml-100k-mixed-2")
    assert (before / "finished.json").is_file() and f"--backbone {before} " in content["command"]
    assert content["seconds"] == {"wall": 120.0, "cpu": 240.0}
    made = start_fingerprint("ml-100k-then-5", 2)
    monkeypatch.setitem(STARTS, "ml-100k-mixed", (REAL, ("--epochs", "7")))
    assert start_fingerprint("ml-100k-then-5", 2) != made


def test_the_overview_says_how_far_each_setting_is_from_sasrec(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        write_cell(tmp_path / "results" / f"a--{seed}.json", run_cell("ml-100k-20", seed, Path("runs"), Pretended()))
        sasrec = {"setting": "sasrec-20", "seed": seed, "ahead": {"SASRec": "2j"}, "tied": {}}
        write_cell(tmp_path / "results" / f"b--{seed}.json", sasrec)
    (row,) = [line for line in tables(tmp_path / "results").splitlines() if line.startswith("| `ml-100k-20`")]
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert cells[:3] == ["2", "2", "0.500"]  # seeds, minutes, HR@1: the target of one of two users comes first
    assert cells[3].startswith("+0.500 [")  # of SASRec's none


def test_sasrec_of_the_same_history_and_seed_stands_beside_sft(toy_folder, tmp_path, monkeypatch):
    """One of its cells is of a real training, on a toy catalogue in the place of the real one."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / REAL).symlink_to(toy_folder)
    monkeypatch.setitem(NETWORKS, "SASRec", (SASRec, Settings(width=8, layers=1, epochs=2)))
    trained = run_sasrec("sasrec-20-reordered", 1, tmp_path)
    assert trained["candidates"] == 20 and list(trained["ahead"]) == ["SASRec, reordered"]
    cell = run_cell("ml-100k-20", 1, tmp_path, Pretended())
    users = len(trained["ahead"]["SASRec, reordered"])
    cell["ahead"] = {row: places[:1] * users for row, places in cell["ahead"].items()}
    cell["tied"] = {}
    for seed, content in ((1, cell), (1, trained), (2, trained | {"seed": 2})):
        write_cell(tmp_path / "results" / f"{content['setting']}--{seed}.json", content)
    rows = [line.split("|")[1].strip() for line in tables(tmp_path / "results").splitlines() if line.startswith("|")]
    assert rows[-4:] == ["SFT", "SFT, blank", "popularity", "SASRec, reordered"]


def test_a_script_that_fails_and_no_cells_are_errors_of_one_line(tmp_path):
    class Broken(Scripts):
        def run(self, command, log):
            raise Failed("train_sft.py ended with status 1: error: no such dataset")

    with pytest.raises(DataError, match="ml-100k-tiny, seed 1: SFT start ml-100k-tiny: train_sft.py ended with status"):
        run_cell("ml-100k-tiny", 1, tmp_path, Broken())
    with pytest.raises(DataError, match="no cells"):
        tables(tmp_path)


def test_the_real_dataset_has_to_be_given(tmp_path):
    with pytest.raises(DataError, match="--data: where is the dataset ml-100k"):
        make_catalogues(["ml-100k"], tmp_path)
