"""Rows become sequences of indices, sequences become windows that never show their own answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hanorec.data.catalog import Catalog
from hanorec.data.interactions import UserHistory, Window, popularity, read_sequences, windows
from hanorec.errors import DataError

ITEMS = ("a", "b", "c", "d", "e")
CATALOG = Catalog(ITEMS, ITEMS, (None,) * 5, {item: row for row, item in enumerate(ITEMS)}, Path("my_titles.csv"))


def write(tmp_path, content):
    path = tmp_path / "train.tsv"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- rows


@pytest.mark.parametrize("content", ["u2\tc a c\n\nu1\tb\n", "\ufeffu2\tc a c\r\n \r\nu1\tb", "u2 \t c  a c \nu1\tb\n"])
def test_reads_rows_in_file_order(tmp_path, content):
    assert read_sequences(write(tmp_path, content), CATALOG) == [
        UserHistory("u2", (2, 0, 2)),
        UserHistory("u1", (1,)),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("u1\ta\nu2 b c\n", r"train\.tsv:2: expected user<TAB>item item item .*'u2 b c'"),
        ("u1\ta\n\nu2\t \n", r"train\.tsv:3: expected user<TAB>.*'u2\\t '"),
        ("u1\ta\n\u200b\ta b\n", r"train\.tsv:2: expected user<TAB>"),  # a user whom nobody can see
        ("\ta b\n", r"train\.tsv:1: expected user<TAB>.*'\\ta b'"),
        ("a\tb\tc\td\n", r"train\.tsv:1: expected user<TAB>"),  # a raw log, whose items would all exist
        (
            "u1\ta\nu2\tb f a\n",
            r"train\.tsv:2: item 'f' is not in the catalogue: my_titles\.csv gave 5 items, e\.g\. 'a'",
        ),
        ("u1\ta\nu2\tb\nu1\tc\n", r"train\.tsv:3: user 'u1' appears twice, first in line 1"),
        (b"u1\ta\nu\xe92\tb\n", r"train\.tsv:2: not UTF-8, byte 0xe9"),
        ("\n \n", r"train\.tsv: no rows"),
    ],
)
def test_errors_name_file_line_and_value(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read_sequences(str(write(tmp_path, content)), CATALOG)


def test_a_long_row_is_quoted_in_part(tmp_path):
    with pytest.raises(DataError, match=rf"'{'a' * 80}\.\.\.'$"):
        read_sequences(write(tmp_path, "a" * 81), CATALOG)
    with pytest.raises(DataError, match=rf"'{'a' * 80}'$"):
        read_sequences(write(tmp_path, "a" * 80), CATALOG)


def test_a_missing_file_lists_the_folder(tmp_path):
    write(tmp_path, "u1\ta\n")
    with pytest.raises(DataError, match=r"val\.tsv: no such file; .* holds train\.tsv$"):
        read_sequences(tmp_path / "val.tsv", CATALOG)
    with pytest.raises(DataError, match=r"val\.tsv: no such file; there is no folder .*nowhere$"):
        read_sequences(tmp_path / "nowhere" / "val.tsv", CATALOG)
    with pytest.raises(DataError, match="cannot be read"):
        read_sequences(tmp_path, CATALOG)


# --- windows

ROW = UserHistory("u", (0, 1, 2, 3, 4))
SEEN = frozenset(range(5))


def test_the_last_window_of_a_row():
    assert windows([ROW], history=2) == ([Window("u", (2, 3), (4,), SEEN, 4)], 0)
    assert windows([ROW], history=9, targets=3) == ([Window("u", (0, 1), (2, 3, 4), SEEN, 2)], 0)


def test_the_papers_window_is_the_default():
    # five items, then one
    assert windows([UserHistory("u", tuple(range(8)))])[0] == [
        Window("u", (2, 3, 4, 5, 6), (7,), frozenset(range(8)), 7)
    ]


def test_every_window_of_a_row_oldest_first():
    found, skipped = windows([ROW, UserHistory("v", (3, 4))], history=2, which="every")
    assert [(window.user, window.history, window.targets, window.position) for window in found] == [
        ("u", (0,), (1,), 1),
        ("u", (0, 1), (2,), 2),
        ("u", (1, 2), (3,), 3),
        ("u", (2, 3), (4,), 4),
        ("v", (3,), (4,), 1),
    ]
    assert [window.seen for window in found] == [SEEN] * 4 + [frozenset({3, 4})]
    assert skipped == 0


def test_nested_windows_grow_within_chunks_that_are_cut_from_the_end_of_a_row():
    """A row of 6 items and histories of at most 2: the chunks are 0 1, then 1 2 3, then 3 4 5, since the last window has
    the whole history. Every item but the first is a target once."""
    found, skipped = windows([UserHistory("u", tuple(range(6)))], history=2, which="nested")
    assert [(window.history, window.targets) for window in found] == [
        ((0,), (1,)),
        ((1,), (2,)),
        ((1, 2), (3,)),
        ((3,), (4,)),
        ((3, 4), (5,)),
    ]
    assert skipped == 0


def test_nested_windows_pass_over_a_target_that_their_chunk_has_shown():
    found, _ = windows([UserHistory("u", (0, 1, 0, 2))], history=3, which="nested")
    assert [(window.history, window.targets) for window in found] == [((0,), (1,)), ((0, 1, 0), (2,))]


def test_every_ends_with_the_last_window():
    for targets in (1, 3):
        assert windows([ROW], targets=targets, which="every")[0][-1:] == windows([ROW], targets=targets)[0]


@pytest.mark.parametrize("which", ["last", "every", "nested"])
def test_short_rows_are_skipped_and_counted(which):
    rows = [UserHistory("w", (0,)), UserHistory("x", (0, 1, 2)), UserHistory("y", (0, 1, 2, 3)), UserHistory("z", ())]
    found, skipped = windows(rows, history=3, targets=2, minimum_history=2, which=which)
    assert found == [Window("y", (0, 1), (2, 3), frozenset(range(4)), 2)]
    assert skipped == 3


def test_without_a_minimum_a_history_can_be_empty():
    found, skipped = windows([UserHistory("u", (7, 8)), UserHistory("v", ())], minimum_history=0, which="every")
    assert [(window.history, window.targets) for window in found] == [((), (7,)), ((7,), (8,))]
    assert skipped == 1
    assert windows([UserHistory("v", (7,))], targets=2, minimum_history=0) == ([], 1)


def test_a_target_chosen_before_is_left_out_of_the_history():
    # 1 is the target and stands twice in the history; it stays in `seen`
    assert windows([UserHistory("u", (1, 2, 1, 3, 1))])[0] == [Window("u", (2, 3), (1,), frozenset({1, 2, 3}), 4)]
    # what lies before the window is not pulled in to fill the gap
    assert windows([UserHistory("u", (0, 4, 1, 3, 1))], history=2)[0][0].history == (3,)
    # nothing else is left of the history, so there is no window
    assert windows([UserHistory("u", (1, 1))]) == ([], 1)
    assert windows([UserHistory("u", (2, 1, 1))], history=2, minimum_history=2) == ([], 1)


def test_targets_are_different_items():
    assert windows([UserHistory("u", (0, 1, 2, 1))], targets=3) == ([], 1)
    found, skipped = windows([UserHistory("u", (0, 1, 2, 1, 3))], targets=3, which="every")
    assert [window.targets for window in found] == [(2, 1, 3)]
    assert (found[0].history, skipped) == ((0,), 0)


def test_lengths_that_make_no_sense():
    for wrong in ({"targets": 0}, {"history": 1, "minimum_history": 2}, {"minimum_history": -1}):
        with pytest.raises(ValueError, match=f"{[*wrong][-1]}={[*wrong.values()][-1]}"):
            windows([ROW], **wrong)


# --- counts and draws


def test_popularity_counts_every_occurrence():
    counts = popularity([UserHistory("u", (0, 2, 2)), UserHistory("v", (2,)), UserHistory("w", ())], 4)
    assert counts.tolist() == [1, 0, 3, 0]
    assert counts.dtype == np.int64
    assert popularity([], 2).tolist() == [0, 0]


@pytest.mark.parametrize("item", [-1, 4])
def test_popularity_refuses_an_unknown_item(item):
    with pytest.raises(ValueError, match=f"{item}.* 4 items"):
        popularity([UserHistory("u", (1, item))], 4)
