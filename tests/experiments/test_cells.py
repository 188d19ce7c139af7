"""What experiments share: rows are whole or not there, and the runner makes what is missing and goes on after any stop."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from experiments.cells import Cell, Failed, Scripts, Stopped, latest, make_cells, missing, state
from experiments.common import append_row, letters, numbers, read_rows, version
from hanorec import __version__
from hanorec.errors import DataError

NAMES = ("method", "seed")


def cell(method: str, seed: int = 1, **settings) -> Cell:
    return Cell((method, seed), settings)


# rows


def test_a_row_that_was_cut_short_is_left_out_and_the_next_one_is_whole(tmp_path):
    path = tmp_path / "a" / "results.jsonl"
    assert read_rows(path) == []
    append_row(path, {"τ": 1})
    with open(path, "a", encoding="utf-8") as file:
        file.write('{"τ": 2')
    with pytest.warns(UserWarning, match="cut short"):
        assert read_rows(path) == [{"τ": 1}]
    append_row(path, {"τ": 3})
    assert read_rows(path) == [{"τ": 1}, {"τ": 3}]


def test_a_line_that_is_no_row_is_refused_with_its_number(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(DataError, match="results.jsonl:2: not a row"):
        read_rows(path)


def test_ranks_are_kept_a_letter_a_user():
    assert letters([0, 9, 10, 19, 61]) == "09ajZ"
    assert numbers("09ajZ").tolist() == [0, 9, 10, 19, 61]


def test_a_version_is_that_of_the_package_and_its_commit():
    assert version().split("+")[0] == __version__


# cells


def test_what_is_missing_has_no_row_of_its_settings_and_failed_cells_wait_until_they_are_asked_for():
    rows = latest(
        [
            {"method": "a", "seed": 1, "settings": {"x": 1}},
            {"method": "b", "seed": 1, "settings": {"x": 1}},
            {"method": "b", "seed": 1, "settings": {"x": 2}},  # the last row of a key counts
            {"method": "c", "seed": 1, "settings": {"x": 1}, "failed": "no"},
        ],
        NAMES,
    )
    cells = [cell(name, x=1) for name in "abcd"]
    assert [state(each, rows) for each in cells] == ["done", "other settings", "failed: no", "to do"]
    assert [each.key[0] for each in missing(cells, rows)] == ["b", "d"]
    assert [each.key[0] for each in missing(cells, rows, retry_failed=True)] == ["b", "c", "d"]
    with pytest.raises(DataError, match="it has no method, seed and settings"):
        latest([{"method": "a"}], NAMES)


def test_a_cell_that_fails_leaves_its_reason_and_the_rest_stands(tmp_path):
    def make(cell: Cell, _: Scripts) -> dict:
        if cell.key[0] == "b":
            raise Failed("train_dpo.py ended with status 1")
        return {"value": {"a": 1}[cell.key[0]]}  # a KeyError for c

    make_cells([cell("a", x=1), cell("b"), cell("c")], NAMES, tmp_path / "rows", make, workers=2)
    rows = latest(read_rows(tmp_path / "rows"), NAMES)
    made = {"method": "a", "seed": 1, "settings": {"x": 1}, "version": version(), "value": 1}
    assert rows["a", 1] == made
    assert rows["b", 1]["failed"] == "train_dpo.py ended with status 1" and rows["c", 1]["failed"] == "KeyError: 'c'"


def test_a_stopped_study_keeps_the_rows_that_are_done(tmp_path):
    """The second cell's script is running when the signal comes."""
    (tmp_path / "long.py").write_text("import time\ntime.sleep(60)\n")

    def make(cell: Cell, scripts: Scripts) -> dict:
        if cell.key[0] == "slow":
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
            scripts.run([str(tmp_path / "long.py")], tmp_path / "log")
        return {}

    begun = time.perf_counter()
    with pytest.raises(DataError, match="stopped after 1 of 3 cells; the same command goes on"):
        make_cells([cell("fast"), cell("slow"), cell("never")], NAMES, tmp_path / "rows", make)
    assert time.perf_counter() - begun < 30
    assert [row["method"] for row in read_rows(tmp_path / "rows")] == ["fast"]


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


def test_what_cells_share_is_made_once_and_its_failure_is_that_of_each():
    scripts, made = Scripts(), []
    assert [scripts.once("a", lambda: made.append(1) or {"n": len(made)}) for _ in range(2)] == [{"n": 1}] * 2

    def fails() -> dict:
        raise Failed("SFT start b")

    for _ in range(2):
        with pytest.raises(Failed, match="SFT start b"):
            scripts.once("b", fails)
