"""experiments/speed: both sides of the benchmark compute the same, and the tables on its pages are those of its rows."""

from __future__ import annotations

import pytest
import torch

from experiments.common import read_rows
from experiments.speed import benchmark, large, nested, steps, turns, worker

PAGES = {
    "benchmark": benchmark.report,
    "benchmark-ml-100k": benchmark.report,
    "benchmark-glibc-default": benchmark.report,
    "nested": nested.report,
    "nested-138m": nested.report,
    **dict.fromkeys(("rejected", "rejected-135m"), steps.report_rejected),
    "dropout": steps.report_dropout,
    "long_rows": steps.report_long_rows,
    "large": large.report,
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_tables_of_its_rows(name):
    rows = [row for row in read_rows(turns.RESULTS) if row["study"] == name]
    assert rows and all(row["version"] for row in rows)
    text = PAGES[name](name if PAGES[name] in (benchmark.report, nested.report) else rows)
    assert text == turns.RESULTS.with_name(f"{name}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("work", ["sft", "hanorec"])
def test_both_sides_of_the_benchmark_compute_the_same_before_and_after_a_step(work, random_backbone, toy_folder):
    start = dict(work=work, backbone=str(random_backbone), data=toy_folder, batch_size=4, pairs=8, exact=True)
    ours, plain = (worker.run(worker.set_up(side, **start), 2) for side in ("ours", "plain"))
    assert ours["done"] == plain["done"] == 8
    for one, other in zip(ours["logps"], plain["logps"], strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-4, atol=1e-4)


def test_ratios_are_of_neighbouring_turns():
    ways = {"a": {"milliseconds": [1.0, 4.0], "mib": []}, "b": {"milliseconds": [2.0, 2.0], "mib": []}}
    assert turns.against(ways, "a", "b") == [0.5, 2.0]


def test_ways_take_turns_and_the_first_one_does_not_count():
    asked = []

    def way(name):
        return lambda: (asked.append(name), (len(asked), 7.0))[1], 2

    found = turns.measure({"a": way("a"), "b": way("b")}, 2)
    assert asked == ["a", "b", "b", "a", "a", "b"]
    assert found == {
        "a": {"milliseconds": [2000.0, 2500.0], "mib": [7.0, 7.0]},
        "b": {"milliseconds": [1500.0, 3000.0], "mib": [7.0, 7.0]},
    }
