"""Differences between runs, worked by hand for six users, and which runs differ by their seeds alone."""

from __future__ import annotations

import numpy as np
import pytest

from hanorec.evaluation.differences import differences_table, seed_groups, seeds_table
from hanorec.evaluation.paired import holm, paired_difference

HITS = {  # of six users
    "a-1": [1, 0, 1, 0, 1, 1],  # mean 4/6
    "a-2": [1, 0, 1, 0, 0, 0],  # 2/6
    "b-1": [0, 0, 1, 0, 1, 0],  # 2/6, less a-1: -2/6
    "b-2": [1, 1, 1, 1, 0, 1],  # 5/6, less a-2: +3/6
    "sasrec": [1, 1, 1, 1, 1, 1],
}
OF_USERS = {run: {"HR@1": np.array(hits, dtype=float)} for run, hits in HITS.items()}
GROUPS = {"a-1, 2 seeds": {1: "a-1", 2: "a-2"}, "b-1, 2 seeds": {1: "b-1", 2: "b-2"}}


def cells(table: str) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows if not row[0].startswith("--")}


def test_runs_that_differ_by_their_seed_alone_are_a_group():
    runs = {"a-2": ("a", 2), "a-1": ("a", 1), "b-1": ("b", 1), "a-1 again": ("a", 1)}
    assert seed_groups(runs) == {"a-2, 2 seeds": {1: "a-1", 2: "a-2"}}


def test_means_and_standard_deviations_over_seeds():
    found = cells(seeds_table(GROUPS, OF_USERS, ["HR@1"]))
    assert found["a-1, 2 seeds"] == ["0.500 ± 0.236"]  # of 4/6 and 2/6: half of 2/6, times the root of 2
    assert found["b-1, 2 seeds"] == ["0.583 ± 0.354"]


def test_each_run_less_the_first_and_each_group_less_its_group_seed_by_seed():
    found = cells(differences_table(OF_USERS, [*HITS][:4], "a-1", ["HR@1"], GROUPS))
    assert found["less a-1"] == ["HR@1 [95 %]", "p (Holm)"]
    assert list(found)[1:] == ["a-2", "b-1", "b-2", "b-1, 2 seeds"]
    assert [found[name][0].split()[0] for name in list(found)[1:]] == ["-0.333", "-0.333", "+0.167", "+0.083"]
    a, b = (np.array([HITS[f"{name}-1"], HITS[f"{name}-2"]], dtype=float) for name in "ab")
    by_hand = [a[1] - a[0], b[0] - a[0], b[1] - a[0], b - a]
    differences = [paired_difference(np.atleast_2d(each)) for each in by_hand]
    assert [row[1] for row in list(found.values())[1:]] == [f"{p:.3f}" for p in holm([each.p for each in differences])]
    assert found["b-1, 2 seeds"][0] == f"+0.083 [{differences[3].low:+.3f}, {differences[3].high:+.3f}]"


def test_a_baseline_is_taken_from_every_seed():
    found = cells(differences_table(OF_USERS, ["b-1", "b-2"], "sasrec", ["HR@1"], {"b": GROUPS["b-1, 2 seeds"]}))
    assert [row[0].split()[0] for row in found.values()] == ["HR@1", "-0.667", "-0.167", "-0.417"]


@pytest.mark.parametrize("other", [{3: "b-1"}, {}])
def test_groups_without_a_seed_in_common_are_not_compared(other):
    groups = {"a": GROUPS["a-1, 2 seeds"], "b": other}
    assert list(cells(differences_table(OF_USERS, ["a-2"], "a-1", ["HR@1"], groups))) == ["less a-1", "a-2"]
