"""The study of SFT on real data: the scripts take its commands, a cell runs once, and its tables are worked by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.cells import Cell, Failed, Scripts, latest
from experiments.common import read_rows
from experiments.real_data import real_sft, recommenders
from experiments.real_data.real_sft import NAMES, SETTINGS, TESTED, run_sasrec, run_sft, settings_of, tables
from hanorec.errors import DataError
from hanorec.evaluation.baselines import baseline_names
from hanorec.recommenders.networks import NETWORKS, SASRec, Settings
from hanorec.training.command_line import parse
from hanorec.training.evaluation_options import EvaluationOptions
from hanorec.training.options import SFTOptions

FOLDER = Path(real_sft.__file__).parent


class Pretended(Scripts):
    """Takes every command as its script does, and leaves what the scripts leave, without training."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.monkeypatch, self.taken = monkeypatch, {}

    def run(self, command: list[str], log: Path) -> dict[str, float]:
        self.monkeypatch.setattr(sys, "argv", command)
        if command[0] == "evaluate.py":
            options = parse(EvaluationOptions)
            run = Path(options.runs[0])
            ahead = {str(run): [0, 3], f"{run}, blank": [1, 3], "popularity": [2, 19]}
            seen = {"ahead": ahead, "tied": {row: [0, 0] for row in ahead}}
            (run / "evaluation-test-next.json").write_text(
                json.dumps({"options": {"candidates": "20"}, "per_user": seen})
            )
        elif command[0] == "train_sft.py":
            options = parse(SFTOptions)
            run = Path(options.output)
            run.mkdir(parents=True)
            lines = [{"step": 0, "loss": 1.0}, {"step": 9, "validation": 0.5}, {"step": 19, "validation": 0.7}]
            (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        else:
            options = command
        self.taken[command[0]] = options
        return {"wall": 60.0, "cpu": 120.0}


def row_of(name: str, seed: int, runs: Path, scripts: Scripts) -> dict:
    cell = Cell((name, seed), settings_of(name))
    return {"setting": name, "seed": seed, "settings": cell.settings, **run_sft(cell, Path("data"), runs, scripts)}


def cells_of(table: str) -> dict[str, list[str]]:
    """The cells of a table's lines, by their first."""
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    return {first: rest for first, *rest in lines}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_scripts_take_the_commands(name, tmp_path, monkeypatch):
    scripts = Pretended(monkeypatch)
    row_of(name, 3, tmp_path, scripts)
    backbone = "words" if name == "ml-100k-words" else "whole-titles"
    options = scripts.taken["train_sft.py"]
    assert (options.windows, options.seed, options.data) == ("nested", 3, "data")
    assert options.layers == "all" and options.backbone == str(tmp_path / f"tiny-{backbone}")
    assert (
        scripts.taken["tools/fit_vocabulary.py"][4:6] == [options.backbone] + ["--whole-titles"][: backbone != "words"]
    )
    if name in TESTED:
        options = scripts.taken["evaluate.py"]
        assert (options.split, options.history, options.modality) == ("test", None, ["full", "blank", "shuffled"])
        assert len(baseline_names(options.baselines)) == 2
    else:
        assert "evaluate.py" not in scripts.taken


def test_a_row_holds_ranks_and_the_table_is_of_its_ranks(tmp_path, monkeypatch):
    rows = [row_of("ml-100k-titles-8", seed, tmp_path, Pretended(monkeypatch)) for seed in (1, 2)]
    assert rows[1]["ahead"] == {"SFT": "03", "SFT, blank": "13", "popularity": "2j"}
    assert rows[1]["validation"] == {"step": [9, 19], "validation": [0.5, 0.7]}
    text = tables(rows)
    assert "Seeds: 2, CPU minutes of each: 2." in text
    trials, tested = text.split("on test users")
    assert cells_of(trials)["`--backbone whole-titles --history 20 --epochs 8`"] == ["2", "0.700 [0.700, 0.700]", "2.0"]
    of = cells_of(tested)
    assert of["SFT"][:2] == ["0.500", "–"]  # the target of one of two users is first
    assert of["popularity"][0] == "0.000" and of["popularity"][1].startswith("+0.500 [")


def test_the_overview_says_how_far_each_setting_is_from_sasrec_of_the_same_history_and_seed(tmp_path, monkeypatch):
    rows = []
    for seed in (1, 2):
        rows.append(row_of("ml-100k-titles-8", seed, tmp_path, Pretended(monkeypatch)))
        for history, ahead in ((20, "2j"), (5, "00")):
            rows.append({"setting": f"sasrec-{history}", "seed": seed, "settings": {"history": history}})
            rows[-1] |= {"ahead": {"SASRec": ahead}, "tied": {}}
    of = cells_of(tables(rows).split("The chosen settings")[1].split("\n\n`")[0])
    seeds, minutes, own, popularity, sasrec, _ = of["`ml-100k-titles-8`"]
    assert (seeds, minutes, own) == ("2", "2", "0.500")
    assert sasrec.startswith("+0.500 [")  # of none; with histories of 5 all of its targets come first
    for row in rows:
        row["settings"] |= {"evaluation": ["--history", "5"]} if "options" in row["settings"] else {}
    text = tables(rows)
    assert "evaluated with `--history 5`, on test users" in text
    assert cells_of(text.split("The chosen settings")[1].split("\n\n`")[0])["`ml-100k-titles-8`"][4].startswith("-0.5")


def test_sasrec_is_trained_and_its_ranks_are_of_every_test_user(toy_folder, data, monkeypatch):
    monkeypatch.setitem(NETWORKS, "SASRec", (SASRec, Settings(width=8, layers=1, epochs=2)))
    content = run_sasrec(20, 1, toy_folder)
    answers, examples, _ = recommenders.answers_of(data, "sasrec", 20, 1)
    assert content["candidates"] == 20 and len(content["ahead"]["SASRec"]) == len(examples["test"])
    assert content == run_sasrec(20, 1, toy_folder) | {"seconds": content["seconds"]}
    assert content["ahead"] != run_sasrec(20, 2, toy_folder)["ahead"]


def test_recommenders_are_measured_once_and_their_table_is_of_their_rows(toy_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recommenders, "__file__", str(tmp_path / "recommenders.py"))
    command = ["", "--data", str(toy_folder), "--history", "5", "--methods", "popularity", "co-occurrence"]
    monkeypatch.setattr(sys, "argv", command)
    recommenders.main()
    rows, table = read_rows(tmp_path / "recommenders.jsonl"), (tmp_path / "recommenders.md").read_text()
    value, low, high = rows[0]["test"]["HR@1"]
    assert cells_of(table)["popularity"][3] == f"{value:.3f} [{low:.3f}, {high:.3f}]"
    recommenders.main()
    assert read_rows(tmp_path / "recommenders.jsonl") == rows and (tmp_path / "recommenders.md").read_text() == table


def test_a_script_that_fails_leaves_its_reason_and_is_run_again(tmp_path, monkeypatch, capsys):
    class Broken(Scripts):
        def run(self, command, log):
            raise Failed("train_sft.py ended with status 1: error: no such dataset")

    monkeypatch.setattr("experiments.cells.Scripts", Broken)
    results = tmp_path / "real-sft.jsonl"
    given = [
        "",
        "--data",
        "nowhere",
        "--settings",
        "ml-100k-titles",
        "--results",
        str(results),
        "--runs",
        str(tmp_path),
    ]
    monkeypatch.setattr(sys, "argv", given)
    for number in (1, 2):
        real_sft.main()
        rows = read_rows(results)
        assert len(rows) == number and rows[-1]["failed"].endswith("no such dataset")
    monkeypatch.setattr(sys, "argv", [*given, "--list"])
    real_sft.main()
    assert "failed: train_sft.py ended with status 1" in capsys.readouterr().out


def test_no_rows_and_no_dataset_are_errors(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["", "--table", "--results", str(tmp_path / "none.jsonl")])
    with pytest.raises(DataError, match="no rows"):
        real_sft.main()
    monkeypatch.setattr(sys, "argv", [""])
    with pytest.raises(SystemExit):
        real_sft.main()
    assert "--data: where is the dataset?" in capsys.readouterr().err


def test_the_committed_tables_are_of_the_committed_rows():
    rows = latest(read_rows(FOLDER / "real-sft.jsonl"), NAMES)
    assert tables(list(rows.values())) == (FOLDER / "real-sft.md").read_text(encoding="utf-8")
    rows = read_rows(FOLDER / "recommenders-ml-100k.jsonl")
    text = (FOLDER / "recommenders-ml-100k.md").read_text(encoding="utf-8")
    assert recommenders.table(rows, [1, 2, 3], int(text.split()[0])) == text


@pytest.mark.parametrize("study", ["prompt_tokens", "sasrec_size"])
def test_the_tables_of_scripts_that_are_gone_are_of_their_rows(study):
    of: dict[str, list[dict]] = {}
    for row in read_rows(FOLDER / f"{study}.jsonl"):
        of.setdefault(row["network"], []).append(row)
    table = cells_of((FOLDER / f"{study}.md").read_text(encoding="utf-8"))
    assert set(of) == set(table) - {"network"} - {name for name in table if name.startswith("---")}
    for network, rows in of.items():
        ndcg = [row["NDCG@10"] for row in rows]
        mean = f"{np.mean(ndcg):.3f} [{min(ndcg):.3f}, {max(ndcg):.3f}]"
        epochs = ", ".join(str(row["epoch"]) for row in rows)
        assert table[network] == [str(len(rows)), mean, epochs, f"{np.mean([row['seconds'] for row in rows]):.0f}"]


def test_the_table_of_batches_of_similar_lengths_is_of_its_rows():
    table = cells_of((FOLDER / "grouping.md").read_text(encoding="utf-8"))
    for name, order in (("grouped", "batches of similar lengths"), ("mixed", "batches drawn from all")):
        rows = [row for row in read_rows(FOLDER / "grouping.jsonl") if row["order"] == name]
        figures = [[row["HR@1"], row["grey: HR@1"], row["HR@1"] - row["grey: HR@1"]] for row in rows]
        shown = [f"{np.mean(seen):.3f} [{min(seen):.3f}, {max(seen):.3f}]" for seen in zip(*figures)]
        assert table[order] == [str(len(rows)), *shown]
