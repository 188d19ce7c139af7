"""The study: its cells are commands that the scripts take, it goes on after any stop, and its tables are worked by hand."""

from __future__ import annotations

import importlib
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from experiments.cells import Cell, Failed, Scripts, latest, missing
from experiments.claims import commands, study, worlds
from experiments.claims.commands import Key, check_method, grid, settings
from experiments.claims.table import tables
from experiments.common import append_row, letters, numbers, read_rows
from hanorec.errors import DataError, exit_on_user_error
from hanorec.training.command_line import parse
from hanorec.training.dpo_options import DPOOptions, complete_dpo
from hanorec.training.evaluation_options import EvaluationOptions
from hanorec.training.options import SFTOptions, complete_sft

OPTIONS = {"train_sft.py": SFTOptions, "train_dpo.py": DPOOptions, "evaluate.py": EvaluationOptions}


class InProcess(Scripts):
    """Calls the scripts' main functions in this process, which spares them the start of Python; `fails` are left out."""

    def __init__(self, fails: tuple[str, ...] = ()):
        super().__init__()
        self.commands: list[list[str]] = []
        self.fails, self.lock = fails, threading.Lock()

    def run(self, command: list[str], log: Path) -> dict[str, float]:
        with self.lock:
            self.commands.append(command)
            if any(word in command for word in self.fails):
                raise Failed(f"{command[0]} ended with status 1: error: as it was told")
            before, sys.argv = sys.argv, command
            try:
                with exit_on_user_error():
                    importlib.import_module(command[0].removesuffix(".py")).main()
            finally:
                sys.argv = before
        return {"wall": 1.0, "cpu": 1.0}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def results(tmp_path) -> Path:
    return tmp_path / "results.jsonl"


@pytest.fixture
def run(results, runs):
    """Make cells of the small world as `study.py` does, with rows in `results`; returns the commands that ran."""

    def run(
        methods: list[str], *, fails: tuple[str, ...] = (), retry: bool = False, runs: Path = runs
    ) -> list[list[str]]:
        scripts = InProcess(fails)
        cells = [Cell(("study", *key), settings(key)) for key in grid(["small"], methods, [1])]
        study.make_study(missing(cells, rows_of(results), retry), results, runs, 2, scripts=scripts)
        return scripts.commands

    return run


def rows_of(results: Path) -> dict[tuple, dict]:
    return latest(read_rows(results), study.NAMES)


# the grid


def test_every_method_runs_once_before_a_second_seed():
    cells = grid(worlds.GRID, None, [1, 2, 3])
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    first = {(cell.world, cell.method) for cell in cells if cell.seed == 1}
    second = {(cell.world, cell.method) for cell in cells if cell.seed == 2}
    assert len({cell.name for cell in cells}) == len(cells)
    assert {method for world, method in first if world == "long-biased"} == set(worlds.METHODS)
    assert first - second == {("long-biased", method) for method in worlds.SENSITIVITY}
    assert {method for world, method in first if world == "long-unbiased"} == set(
        worlds.WORLDS["long-unbiased"].methods
    )


@pytest.mark.parametrize("script", OPTIONS)
def test_the_scripts_take_every_command_of_the_grid(script, monkeypatch):
    """Every method in one world, and the kinds of methods in every world. Also that no part is switched off which an
    objective does not have."""
    sft, runs = SFTOptions(), Path("runs")
    complete_sft(sft)
    keys = [Key("early", method, 1) for method in worlds.METHODS]
    keys += [Key(world, method, 1) for world in worlds.WORLDS for method in ("sft-continued", "dpo", "dpo@1e-3")]
    found = [commands.start_command(name, 1, runs) for name in worlds.STARTS]
    found += [commands.train_command(key, runs) for key in keys]
    found += [command for key in keys for command in commands.view_commands(key, runs).values()]
    found = [command for command in found if command and command[0] == script]
    assert len(found) > 20
    for command in map(list, dict.fromkeys(map(tuple, found))):
        monkeypatch.setattr(sys, "argv", command)
        options = parse(OPTIONS[script])
        if script == "train_dpo.py":
            complete_dpo(options, sft)


def test_the_control_sees_the_same_windows_for_the_same_steps(monkeypatch):
    def options(method):
        command = commands.train_command(Key("early", method, 1), Path("runs"))
        monkeypatch.setattr(sys, "argv", command)
        return vars(parse(OPTIONS[command[0]]))

    control, dpo = options("sft-continued"), options("dpo")
    assert control["backbone"] == dpo["sft"] and control["lora"] == "on"
    for name in ("data", "windows", "train_users", "epochs", "max_steps", "batch_size", "seed", "lora_rank",
                 "validate_every", "validate_users"):  # fmt: skip
        assert control[name] == dpo[name], name


@pytest.mark.parametrize("name", ["ppo", "sft@1e-3", "dpo@fast", "dpo@-1", "dpo@"])
def test_a_method_that_does_not_exist_is_refused_with_those_that_do(name):
    with pytest.raises(DataError, match=f"--methods {name}") as error:
        check_method(name)
    assert name != "ppo" or "hanorec-calibrated, s-dpo-15" in str(error.value)


# settings


def test_a_setting_is_that_of_the_cells_that_use_it_and_of_no_others(monkeypatch):
    keys = [Key("early", "dpo", 1), Key("toy", "dpo", 1), Key("early", "simpo", 1), Key("early", "dpo@1e-4", 1)]
    before = [settings(key) for key in keys]
    monkeypatch.setitem(worlds.CHOSEN, "early/dpo", ("--learning-rate", "3e-4"))
    changed = [settings(key) != old for key, old in zip(keys, before)]
    assert changed == [True, False, False, False]  # a trial is of what it tries, whatever was chosen by it
    assert commands.train_command(keys[3], Path("runs"))[-2:] == ["--learning-rate", "1e-4"]


def test_settings_name_the_start_and_what_sets_its_catalogues_apart():
    found = settings(Key("biased", "dpo", 1))
    assert found["start"].startswith("exchanged --max-steps 500") and found["training"].startswith("toy train_dpo.py")
    assert found["catalogues"] == {"exchanged": {"exchanged": 0.75}, "toy": {}}
    assert not any("runs" in words for words in (found["start"], found["training"], *found["views"].values()))


def test_the_rows_of_the_toy_worlds_are_of_the_settings_of_today():
    """So a study goes on from the rows that are kept. Those of MovieLens-100K have starts that cannot be made again."""
    rows = [row for row in read_rows(study.RESULTS) if row.get("world") in worlds.GRID]
    assert len(rows) > 300
    for row in rows:
        assert row["settings"] == settings(Key(row["world"], row["method"], row["seed"])), row["method"]


# a minuscule study


def test_a_minuscule_study_goes_on_where_it_stopped(run, results):
    """The start, then a cell's training and its two views; cells that are there are skipped. A failed cell is a row,
    too: the rest stands, and it runs again when asked for."""
    ran = run(["sft", "sft-continued", "dpo"], fails=("dpo",))
    assert [command[0] for command in ran].count("train_sft.py") == 2 and len(ran) == 1 + 2 + 3 + 1
    rows = {method: row for (_, _, method, _), row in rows_of(results).items()}
    assert set(rows) == {"sft", "sft-continued", "dpo"}
    assert "as it was told" in rows["dpo"]["failed"] and "views" not in rows["dpo"]
    start, control = rows["sft"], rows["sft-continued"]
    assert start["start"] == control["start"] and control["course"]["step"] == [0, 1, 2, 3]
    assert set(control["views"]) == {"test", "cold", "cold, blank"}
    test = control["views"]["test"]
    assert test["users"] == start["views"]["test"]["users"] and len(test["ahead"]) == 12
    assert np.mean(numbers(test["ahead"]) == 0) == pytest.approx(test["measures"]["HR@1"], abs=1e-5)

    text = tables(results, "study")
    assert "2 cells" in text and "- `small--dpo--1`: train_dpo.py ended with status 1" in text

    assert run(["sft", "sft-continued", "dpo"]) == []  # nothing is to do
    assert [command[0] for command in run(["dpo"], retry=True)] == ["train_dpo.py", "evaluate.py", "evaluate.py"]
    summary = rows_of(results)["study", "small", "dpo", 1]["summary"]
    assert summary["beta"] == pytest.approx([0.1] * 3) and summary["adapted"] == 0
    assert "Failed" not in tables(results, "study")


def test_a_start_that_fails_fails_its_cells(run, results, tmp_path):
    run(["sft", "dpo"], fails=("train_sft.py",), runs=tmp_path / "runs")
    reasons = [row["failed"] for row in rows_of(results).values()]
    assert len(reasons) == 2 and all("SFT start small: train_sft.py ended" in reason for reason in reasons)


def test_a_trial_is_measured_on_validation_users_alone(run, results):
    run(["dpo@1e-3"])
    (row,) = rows_of(results).values()
    assert set(row["views"]) == {"val"} and "--learning-rate 1e-3" in row["command"]
    table = tables(results, "study").split("## Trials on validation users")[1]
    assert "| small | " in table and " dpo |" in table and " 1e-3 |" in table


# tables


def add(results: Path, method: str, seed: int, ahead: list[int], users: str = "u", start: str = "s") -> None:
    """A row of the world `hard` with these ranks of the target in both views, among 20 candidates."""
    view = {"candidates": 20, "users": users, "history": letters([5] * len(ahead)), "ahead": letters(ahead), "tied": ""}
    key = {"study": "study", "world": "hard", "method": method, "seed": seed, "settings": {}, "version": "1.0.0"}
    append_row(results, key | {"start": start, "views": {"test": view, "near": view}})


def test_differences_in_the_table_are_worked_by_hand(results):
    """400 users. The control has all targets in the second place: HR@1 0, and each target is ahead of 18 of the 19
    others, 0.947. DPO has them in the first: HR@1 1, pairs 1. HaNoRec's are in the first place for a quarter: HR@1 0.25,
    pairs 0.947 + 0.25 / 19 = 0.961; its interval is 0.25 ± 1.96 √(0.25 · 0.75 / 400) = 0.25 ± 0.042."""
    for seed in (1, 2):
        add(results, "sft-continued", seed, [1] * 400)
        add(results, "dpo", seed, [0] * 400)
    add(results, "hanorec-paper", 1, [0] * 100 + [1] * 300)
    text = tables(results, "study")
    near = text.split("`near`")[1]
    rows = {row.split("|")[1].strip(): [cell.strip() for cell in row.split("|")[2:-1]] for row in near.splitlines()[4:]}
    assert rows["sft-continued"] == [
        "2",
        "0.000",
        "–",
        "-1.000 [-1.000, -1.000]*",
        "0.947",
        "–",
        "-0.053 [-0.053, -0.053]*",
    ]
    seeds, hr, to_control, to_dpo, pairs, *_ = rows["hanorec-paper"]
    assert (seeds, hr, pairs) == ("1", "0.250", "0.961")
    value, low, high = map(float, re.findall(r"[+-][\d.]+", to_control))
    assert (value, low, high) == pytest.approx((0.250, 0.208, 0.292), abs=0.005) and to_control.endswith("*")
    assert to_dpo.startswith("-0.750 [")
    assert "5 cells" in text


def test_what_chance_explains_has_no_asterisk(results):
    """Of 100 users, HaNoRec gains 3 and loses 2: nowhere near significant."""
    add(results, "sft-continued", 1, [1] * 3 + [0] * 2 + [1] * 95)
    add(results, "hanorec-paper", 1, [0] * 3 + [1] * 2 + [1] * 95)
    text = tables(results, "study")
    assert "+0.010 [-0.0" in text and "]*" not in text


def test_cells_of_different_users_are_not_paired(results):
    add(results, "dpo", 1, [0, 1])
    add(results, "simpo", 1, [0, 1], users="others")
    with pytest.raises(DataError, match="dpo and simpo|simpo and dpo"):
        tables(results, "study")


def test_cells_of_different_starts_are_not_paired(results):
    """Another machine's start of the same seed has other weights. The last row of a cell counts."""
    add(results, "dpo", 1, [0, 1])
    add(results, "simpo", 1, [0, 0])
    assert "+0.500 [" in tables(results, "study")
    add(results, "simpo", 1, [0, 0], start="other weights")
    text = tables(results, "study")
    assert "+0.500 [" not in text and "Starts made again with other weights: 1;" in " ".join(text.split())


def test_rows_of_no_study_or_of_another_one_are_refused(results):
    with pytest.raises(DataError, match="holds no row of the study study"):
        tables(results, "study")
    append_row(results, {"study": "study", "world": "mars", "method": "dpo", "seed": 1, "settings": {}})
    with pytest.raises(DataError, match="the study has no cell mars, dpo"):
        tables(results, "study")
    append_row(results, {"study": "other"})
    with pytest.raises(DataError, match="not of this study"):
        tables(results, "other")


def test_the_command_line_lists_cells_and_refuses_unknown_methods(monkeypatch, capsys, results):
    def call(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["study.py", *map(str, arguments), "--results", str(results)])
        with pytest.raises(SystemExit) as stop, exit_on_user_error():
            study.main()
            raise SystemExit(0)
        return stop.value.code

    assert call("--list", "--worlds", "small", "--methods", "sft", "dpo", "--seeds", 1) == 0
    assert "2 to do" in capsys.readouterr().out
    assert call("--methods", "ppo") == 2 and "known are sft, sft-continued" in capsys.readouterr().err
    assert call("--workers", 0) == 2 and "--workers 0" in capsys.readouterr().err
    assert call("--table") == 2 and "holds no row" in capsys.readouterr().err
