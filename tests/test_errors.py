"""What is said of a file, a name or a title takes one line, and shows what it holds."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from hanorec.data.catalog import read_catalog
from hanorec.data.examples import Example
from hanorec.data.interactions import read_sequences
from hanorec.errors import DataError, exit_on_user_error, shown
from hanorec.evaluation.report import markdown, user_lists

FORGED = {
    "red\x1b[31m": r"red\x1b[31m",
    "a\rerror: b": r"a\rerror: b",
    "a\nwarning: b": r"a\nwarning: b",
    "a\x9b2J": r"a\x9b2J",  # an escape sequence in one character
    "a\x08\x7f\0": r"a\x08\x7f\x00",
    "a\u2028b\u2029\x85": r"a\u2028b\u2029\x85",
    "gpj\u202e.exe\u2066": r"gpj\u202e.exe\u2066",
    "half \udc80": r"half \udc80",  # a file name that is no UTF-8
}


@pytest.mark.parametrize("text", FORGED, ids=ascii)
def test_what_could_forge_a_line_is_shown_as_its_escape(text):
    assert shown(text) == FORGED[text] and shown(FORGED[text]) == FORGED[text]


def test_what_is_written_in_any_script_stays():
    for text in ("Amélie 天空の城 \u05d0\u05d1", "👩\u200d🚀", "e\u0301", "a\u00a0b\\n", "מלך\u200f"):
        assert shown(text) == text


@pytest.mark.parametrize("text", FORGED, ids=ascii)
def test_errors_and_warnings_are_one_line(text, capsys):
    with warnings.catch_warnings(), pytest.raises(SystemExit), exit_on_user_error():
        warnings.warn(f"{text}: not used", stacklevel=1)
        raise DataError(f"{text}: no such file")
    assert capsys.readouterr().err == f"warning: {FORGED[text]}: not used\nerror: {FORGED[text]}: no such file\n"


def test_tables_and_lists_show_escapes():
    title, run, user = "Alien\x1b[2K\r", "runs/\x1b[1mbest", "u\x1b]0;x\x07"
    assert markdown(["method", "HR@1"], [[run, "0.5"]]).splitlines()[2] == r"| runs/\x1b[1mbest |  0.5 |"
    text = user_lists(Example(user, (0,), (1,), (1, 0), ()), [title, title], {run: np.array([2.0, 1.0])})
    assert text.splitlines()[0] == r"user u\x1b]0;x\x07" and r"runs/\x1b[1mbest" in text
    assert text.count(r"Alien\x1b[2K\r") == 4
    assert not set(text) & set("\x1b\r\x07")


@pytest.mark.parametrize(
    "row", ["1\x1b[2J,A\n1\x1b[2J,B\n", "1,A\n2,B\x1b[2J,C\n", "1,A\n2\x1b[2J, \n", "1,A\x1b[2J\n2,A\x1b[2J\n"]
)
def test_ids_and_titles_of_a_catalogue_are_shown_escaped(row, tmp_path, capsys):
    (tmp_path / "titles.csv").write_text(row)
    with warnings.catch_warnings(), pytest.raises(SystemExit), exit_on_user_error():
        read_sequences(tmp_path / "train\x1b[2J.tsv", read_catalog(tmp_path))
    said = capsys.readouterr().err
    assert r"\x1b[2J" in said and "\x1b" not in said


@pytest.mark.parametrize("name", ["file/x", "n" * 300, "loop/x", "."])
def test_a_path_that_cannot_be_written_is_a_users_error_in_a_line(tmp_path, name, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        (tmp_path / name).write_text("")
    assert stop.value.code == 2 and capsys.readouterr().err.startswith(f"error: {tmp_path / name}: ")
