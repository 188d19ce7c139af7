"""Results as text."""

from __future__ import annotations

import numpy as np
import pytest

from hanorec.data.examples import Example
from hanorec.evaluation.report import by_length_table, markdown, results_table, share_of_possible, user_lists


def results(popularity: float, oracle: float, model: float) -> dict:
    values = {"popularity": popularity, "oracle: words and images": oracle, "model": model}
    return {name: {"HR@1": (value, value - 0.1, value + 0.1)} for name, value in values.items()}


def test_the_share_of_the_way_from_popularity_to_the_oracle():
    assert share_of_possible(results(0.2, 0.6, 0.5), "model", "HR@1") == pytest.approx(0.75)


@pytest.mark.parametrize(
    "popularity, oracle, model", [(0.2, 0.6, 0.1), (0.2, 0.6, 0.2), (0.2, 0.2, 0.3), (0.4, 0.3, 0.5)]
)
def test_there_is_no_share_where_there_is_no_way(popularity, oracle, model):
    assert share_of_possible(results(popularity, oracle, model), "model", "HR@1") is None


def test_there_is_no_share_without_an_oracle():
    without = {name: row for name, row in results(0.1, 0.5, 0.3).items() if "oracle" not in name}
    assert share_of_possible(without, "model", "HR@1") is None


def test_tables_are_aligned_and_the_first_measure_has_its_interval():
    table = results_table({"a": {"HR@1": (0.5, 0.4, 0.6), "MRR": (0.25, 0, 1)}, "bcd": {"MRR": (0.125, 0, 1)}}, "HR@1")
    assert table.splitlines() == [
        "| method |          HR@1 [95 %] |   MRR |",
        "| ------ | -------------------: | ----: |",
        "| a      | 0.500 [0.400, 0.600] | 0.250 |",
        "| bcd    |                    – | 0.125 |",
    ]
    assert markdown(["x", "y"], [["1", "22"]]).splitlines()[0] == "| x |  y |"


def test_the_table_by_length_counts_its_examples():
    b = {"HR@1": 0.5, "MRR": 1.0}
    by_length = {"1": {"a": {"HR@1": 0.125, "MRR": 1.0}, "b": b}, "2 to 5": {"a": {"HR@1": 0.25, "MRR": 1.0}, "b": b}}
    assert by_length_table(by_length, {"1": 30, "2 to 5": 4}, "HR@1").splitlines() == [
        "| HR@1 | 1 item (n=30) | 2 to 5 items (n=4) |",
        "| ---- | ------------: | -----------------: |",
        "| a    |         0.125 |              0.250 |",
        "| b    |         0.500 |              0.500 |",
    ]


def test_a_users_lists_stand_side_by_side_and_the_truth_is_marked():
    titles = ["Alien", "Brazil", "映画", "D" * 50, "Eraserhead", "Fargo", "Gandhi"]
    example = Example("u7", (6, 0), (4,), (1, 2, 3, 4, 5), ())
    scores = {"runs/sft": np.array([-1.0, -5, -2, -3, -4]), "runs/dpo": np.array([-1.0, -2, -2, -2, -9])}
    assert user_lists(example, titles, scores, top=3).splitlines() == [
        "user u7",
        "   chose    Gandhi",
        "            Alien",
        "    then  * Eraserhead",
        "",
        "            runs/sft                                runs/dpo",
        "       1    Brazil                                  Brazil",
        f"       2    {'D' * 35}…    映画",
        f"       3  * Eraserhead                              {'D' * 35}…",
        "   truth    rank 3 of 5                             rank 2–4 of 5",
    ]
