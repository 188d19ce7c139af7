"""The study: its cells are commands that the scripts take, it goes on after any stop, and its tables are worked by hand."""

from __future__ import annotations

import importlib
import json
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from hanorec.errors import DataError, exit_on_user_error
from hanorec.training.options import DPOOptions, EvaluationOptions, SFTOptions, fill_defaults, parse

sys.path.insert(0, str(ROOT / "experiments"))

import study
import study_cells
import study_worlds
from study_cells import Cell, check_method, fingerprint, grid
from study_run import Failed, Scripts, Stopped, letters, numbers, read_cell, write_cell
from study_table import tables

OPTIONS = {"train_sft.py": SFTOptions, "train_dpo.py": DPOOptions, "evaluate.py": EvaluationOptions}
INHERITED = dict(data=None, task="next", history=5, candidates=20, list_candidates=False, image_pixels=1,
                 image_views="one", remote_code=False, protocol="standard", item_view="image")  # fmt: skip


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
def run(tmp_path, runs, monkeypatch):
    """Run cells of the small world as `study.py` does, with results in `tmp_path`; returns the commands that ran."""

    def run(
        methods: list[str], *, fails: tuple[str, ...] = (), retry: bool = False, runs: Path = runs
    ) -> list[list[str]]:
        scripts = InProcess(fails)
        monkeypatch.setattr(study, "Scripts", lambda: scripts)
        states = {cell: study.state(cell, tmp_path / "cells", False) for cell in grid(["small"], methods, [1])}
        study.run_study(study.pending(states, retry), tmp_path / "cells", runs, 2, False)
        return scripts.commands

    return run


# the grid


def test_every_method_runs_once_before_a_second_seed():
    cells = grid(study_worlds.GRID, None, [1, 2, 3])
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    first = {(cell.world, cell.method) for cell in cells if cell.seed == 1}
    second = {(cell.world, cell.method) for cell in cells if cell.seed == 2}
    assert len({cell.name for cell in cells}) == len(cells)
    assert {method for world, method in first if world == "long-biased"} == set(study_worlds.METHODS)
    assert first - second == {("long-biased", method) for method in study_worlds.SENSITIVITY}
    assert {method for world, method in first if world == "long-unbiased"} == set(
        study_worlds.WORLDS["long-unbiased"].methods
    )


@pytest.mark.parametrize("world", study_worlds.WORLDS)
def test_the_scripts_take_every_command_of_the_grid(world, monkeypatch):
    """Also that no part is switched off which an objective does not have."""
    for method in [*study_worlds.METHODS, "dpo@1e-3"]:
        cell, runs = Cell(world, method, 1), Path("runs")
        start = study_cells.start_command(study_worlds.WORLDS[world].start, 1, runs)
        commands = [start, study_cells.train_command(cell, runs), *study_cells.view_commands(cell, runs).values()]
        for command in filter(None, commands):
            monkeypatch.setattr(sys, "argv", command)
            options = parse(OPTIONS[command[0]])
            if command[0] == "train_dpo.py":
                fill_defaults(options, INHERITED)


def test_the_control_sees_the_same_windows_for_the_same_steps(monkeypatch):
    def options(method):
        command = study_cells.train_command(Cell("early", method, 1), Path("runs"))
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


# what makes a cell stale


def test_comments_docstrings_and_white_space_do_not_make_a_cell_stale(tmp_path):
    one, other, third = (tmp_path / f"{name}.py" for name in ("one", "other", "third"))
    one.write_text(
        '"""A module."""\nx = "# no comment"  # a comment\n\n\ndef f(a):\n    """A\n    docstring."""\n    return a\n'
    )
    other.write_text('"""Another."""\nx = "# no comment"\ndef f(a):\n\n    return a  # as it came\n')
    third.write_text('x = "# no comment"\ndef f(a):\n    return -a\n')
    assert study_cells.bare_code(one) == study_cells.bare_code(other) == 'x="#nocomment"deff(a):returna'
    assert study_cells.bare_code(one) != study_cells.bare_code(third)


def test_a_setting_makes_the_cells_that_it_is_for_stale_and_no_others(monkeypatch):
    cells = [Cell("early", "dpo", 1), Cell("toy", "dpo", 1), Cell("early", "simpo", 1), Cell("early", "dpo@1e-4", 1)]
    before = [fingerprint(cell) for cell in cells]
    monkeypatch.setitem(study_worlds.CHOSEN, "early/dpo", ("--learning-rate", "3e-4"))
    changed = [fingerprint(cell) != old for cell, old in zip(cells, before)]
    assert changed == [True, False, False, False]  # a trial is of what it tries, whatever was chosen by it
    assert study_cells.train_command(cells[3], Path("runs"))[-2:] == ["--learning-rate", "1e-4"]


def test_places_are_kept_a_letter_a_user():
    assert letters([0, 9, 10, 19, 61]) == "09ajZ"
    assert numbers("09ajZ").tolist() == [0, 9, 10, 19, 61]


# a minuscule study


def test_a_minuscule_study_goes_on_where_it_stopped(run, tmp_path):
    """The start, then a cell's training and its two views; cells that are there are skipped. A failed cell is a file,
    too: the rest stands, and it runs again when asked for."""
    ran = run(["sft", "sft-continued", "dpo"], fails=("dpo",))
    assert [command[0] for command in ran].count("train_sft.py") == 2 and len(ran) == 1 + 2 + 3 + 1
    cells = {path.name: json.loads(path.read_text()) for path in (tmp_path / "cells").iterdir()}
    assert set(cells) == {f"small--{method}--1.json" for method in ("sft", "sft-continued", "dpo")}
    assert "as it was told" in cells["small--dpo--1.json"]["failed"] and "views" not in cells["small--dpo--1.json"]
    start, control = cells["small--sft--1.json"], cells["small--sft-continued--1.json"]
    assert start["start"] == control["start"] and control["course"]["step"] == [0, 1, 2, 3]
    assert set(control["views"]) == {"test", "cold", "cold, blank"}
    test = control["views"]["test"]
    assert test["users"] == start["views"]["test"]["users"] and len(test["ahead"]) == 12
    assert np.mean(numbers(test["ahead"]) == 0) == pytest.approx(test["measures"]["HR@1"], abs=1e-5)

    asked = grid(["small"], ["sft", "sft-continued", "dpo", "hanorec-paper"], [1])
    text = tables(tmp_path / "cells", asked)
    assert "2 of 4 cells" in text and "- `small--dpo--1`: train_dpo.py ended with status 1" in text

    assert run(["sft", "sft-continued", "dpo"]) == []  # nothing is to do
    assert [command[0] for command in run(["dpo"], retry=True)] == ["train_dpo.py", "evaluate.py", "evaluate.py"]
    summary = json.loads((tmp_path / "cells" / "small--dpo--1.json").read_text())["summary"]
    assert summary["beta"] == pytest.approx([0.1] * 3) and summary["adapted"] == 0
    assert "Failed" not in tables(tmp_path / "cells", asked)


def test_a_start_that_fails_fails_its_cells(run, tmp_path):
    run(["sft", "dpo"], fails=("train_sft.py",), runs=tmp_path / "runs")
    for method in ("sft", "dpo"):
        assert (
            "SFT start small: train_sft.py ended"
            in read_cell(tmp_path / "cells" / f"small--{method}--1.json")["failed"]
        )


def test_a_trial_is_measured_on_validation_users_alone(run, tmp_path):
    run(["dpo@1e-3"])
    content = read_cell(tmp_path / "cells" / "small--dpo@1e-3--1.json")
    assert set(content["views"]) == {"val"} and "--learning-rate 1e-3" in content["command"]
    table = tables(tmp_path / "cells", grid(["small"], ["dpo@1e-3"], [1])).split("## Trials on validation users")[1]
    assert "| small | " in table and " dpo |" in table and " 1e-3 |" in table


# scripts as processes


def test_a_script_that_fails_says_why_and_one_that_is_stopped_leaves_nothing(tmp_path):
    wrong, long = tmp_path / "wrong.py", tmp_path / "long.py"
    wrong.write_text("import sys\nprint('10%\\r20%')\nprint('error: no such thing', file=sys.stderr)\nsys.exit(2)\n")
    long.write_text("import time\ntime.sleep(60)\n")
    scripts = Scripts()
    with pytest.raises(Failed, match=r"wrong.py ended with status 2: error: no such thing"):
        scripts.run([str(wrong)], tmp_path / "log")
    threading.Timer(0.5, scripts.stop).start()
    begun = time.perf_counter()
    with pytest.raises(Stopped):
        scripts.run([str(long)], tmp_path / "log")
    assert time.perf_counter() - begun < 30


# tables


def cell_file(folder: Path, method: str, seed: int, ahead: list[int], users: str = "u", world: str = "hard") -> None:
    """A cell's file with these places of the target in both views, among 20 candidates."""
    view = {
        "measures": {},
        "candidates": 20,
        "users": users,
        "history": letters([5] * len(ahead)),
        "ahead": letters(ahead),
        "tied": "",
    }
    cell = Cell(world, method, seed)
    content = {"world": world, "method": method, "seed": seed, "fingerprint": fingerprint(cell), "start": "s"}
    write_cell(folder / f"{cell.name}.json", content | {"views": {"test": view, "near": view}})


def test_differences_in_the_table_are_worked_by_hand(tmp_path):
    """400 users. The control has all targets in the second place: HR@1 0, and each target is ahead of 18 of the 19
    others, 0.947. DPO has them in the first: HR@1 1, pairs 1. HaNoRec's are in the first place for a quarter: HR@1 0.25,
    pairs 0.947 + 0.25 / 19 = 0.961; its interval is 0.25 ± 1.96 √(0.25 · 0.75 / 400) = 0.25 ± 0.042."""
    for seed in (1, 2):
        cell_file(tmp_path, "sft-continued", seed, [1] * 400)
        cell_file(tmp_path, "dpo", seed, [0] * 400)
    cell_file(tmp_path, "hanorec-paper", 1, [0] * 100 + [1] * 300)
    text = tables(tmp_path, grid(["hard"], ["sft-continued", "dpo", "hanorec-paper"], [1, 2]))
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
    assert "5 of 6 cells" in text


def test_what_chance_explains_has_no_asterisk(tmp_path):
    """Of 100 users, HaNoRec gains 3 and loses 2: nowhere near significant."""
    cell_file(tmp_path, "sft-continued", 1, [1] * 3 + [0] * 2 + [1] * 95)
    cell_file(tmp_path, "hanorec-paper", 1, [0] * 3 + [1] * 2 + [1] * 95)
    text = tables(tmp_path, grid(["hard"], ["sft-continued", "hanorec-paper"], [1]))
    assert "+0.010 [-0.0" in text and "]*" not in text


def test_cells_of_different_users_are_not_paired(tmp_path):
    cell_file(tmp_path, "dpo", 1, [0, 1])
    cell_file(tmp_path, "simpo", 1, [0, 1], users="others")
    with pytest.raises(DataError, match="dpo and simpo|simpo and dpo"):
        tables(tmp_path, grid(["hard"], ["dpo", "simpo"], [1]))


def test_cells_of_different_starts_are_not_paired(tmp_path):
    """Another machine's start of the same seed has other weights."""
    cell_file(tmp_path, "dpo", 1, [0, 1])
    cell_file(tmp_path, "simpo", 1, [0, 0])
    asked = grid(["hard"], ["dpo", "simpo"], [1])
    assert "+0.500 [" in tables(tmp_path, asked)
    path = tmp_path / "hard--simpo--1.json"
    write_cell(path, read_cell(path) | {"start": "other weights"})
    text = tables(tmp_path, asked)
    assert "+0.500 [" not in text and "Starts made again with other weights: 1;" in " ".join(text.split())


def test_a_foreign_or_empty_folder_of_results_is_refused(tmp_path):
    asked = grid(["hard"], ["dpo"], [1])
    with pytest.raises(DataError, match="no such folder"):
        tables(tmp_path / "none", asked)
    with pytest.raises(DataError, match="holds none of the 1 cells asked for"):
        tables(tmp_path, asked)
    cell_file(tmp_path, "dpo", 1, [0, 1])
    (tmp_path / "hard--dpo--1.json").rename(tmp_path / "hard--dpo--2.json")
    with pytest.raises(DataError, match="holds another cell, hard dpo 1"):
        tables(tmp_path, asked)
    (tmp_path / "hard--dpo--2.json").write_text('{"kind": "sft"}')
    with pytest.raises(DataError, match="not a cell of the study"):
        study.state(Cell("hard", "dpo", 2), tmp_path, False)


def test_a_cell_of_other_code_is_stale_unless_any_code_will_do(tmp_path):
    cell_file(tmp_path, "dpo", 1, [0, 1])
    cell, path = Cell("hard", "dpo", 1), tmp_path / "hard--dpo--1.json"
    content = read_cell(path)
    assert study.state(cell, tmp_path, False) == "done"
    write_cell(path, content | {"fingerprint": content["fingerprint"] | {"code": "earlier"}})
    assert (study.state(cell, tmp_path, False), study.state(cell, tmp_path, True)) == ("stale", "done")
    write_cell(path, content | {"fingerprint": {"settings": "others", "code": "earlier"}})
    assert study.state(cell, tmp_path, True) == "stale"


def test_the_command_line_lists_cells_and_refuses_unknown_methods(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments) -> int:
        monkeypatch.setattr(sys, "argv", ["study.py", *map(str, arguments), "--results", str(tmp_path / "none")])
        with pytest.raises(SystemExit) as stop, exit_on_user_error():
            study.main()
            raise SystemExit(0)
        return stop.value.code

    assert call("--list", "--worlds", "small", "--methods", "sft", "dpo", "--seeds", 1) == 0
    assert "2 to do" in capsys.readouterr().out
    assert call("--methods", "ppo") == 2 and "known are sft, sft-continued" in capsys.readouterr().err
    assert call("--table") == 2 and "no such folder" in capsys.readouterr().err
