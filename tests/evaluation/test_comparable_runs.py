"""evaluate.py puts runs side by side only where their models read the same: like with like."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from evaluate import fill_from_runs
from hanorec.errors import DataError

CONFIG = {
    "data": None,
    "task": "next",
    "protocol": "standard",
    "history": None,
    "list_candidates": False,
    "image_pixels": 262_144,
    "image_views": "one",
}


def fill(*changes: dict, **given):
    """Options for runs a, b, ... whose configs differ from CONFIG by `changes`, filled from them."""
    configs = {name: CONFIG | change for name, change in zip("abc", changes)}
    nothing = {"data": None, "task": None, "history": None, "candidates": None, "negatives": "random", "show": 0}
    options = SimpleNamespace(runs=list(configs), **(nothing | given))
    fill_from_runs(options, configs)
    return options


@pytest.mark.parametrize(
    ("change", "option", "values"),
    [
        ({"data": "movies"}, "data", (r"'.*data/toy'", r"'.*movies'")),
        ({"task": "top3"}, "task", ("'next'", "'top3'")),
        ({"history": 2}, "history", ("5", "2")),
        ({"protocol": "release"}, "protocol", ("'standard'", "'release'")),
        ({"list_candidates": True}, "list-candidates", ("False", "True")),
        ({"image_pixels": 4096}, "image-pixels", ("262144", "4096")),
        ({"image_views": "many"}, "image-views", ("'one'", "'many'")),
    ],
)
def test_runs_that_differ_are_named_with_the_setting_and_both_values(change, option, values):
    first, other = values
    message = f"^a and c cannot be compared: --{option} was {first} in a and {other} in c; .*evaluate them apart"
    with pytest.raises(DataError, match=message):
        fill({}, {}, change)


def test_data_task_and_history_that_are_given_hold_for_all_runs():
    options = fill({}, {"task": "top3", "history": 2, "data": "movies"}, data="books", task="next", history=4)
    assert (options.data, options.task, options.history) == ("books", "next", 4)
    with pytest.raises(DataError, match="--list-candidates"):
        fill({}, {"list_candidates": True}, data="books", task="next", history=4)


def test_one_setting_written_in_two_ways_is_no_difference():
    options = fill({}, {"data": "data/toy", "history": 5})
    assert (options.data, options.task, options.history) == (None, "next", None)
    with pytest.raises(DataError, match="--history was 5 in a and 3 in b"):
        fill({}, {"task": "top3", "history": 3}, task="next")


def test_the_whole_catalogue_is_ranked_for_the_next_item_and_cannot_be_listed():
    with pytest.raises(DataError, match="--candidates all: ranks the next item; the task is yesno"):
        fill({"task": "yesno"}, candidates="all")
    with pytest.raises(DataError, match="the prompts of a list the candidates"):
        fill({"list_candidates": True}, candidates="all")


RELEASE = {"protocol": "release", "task": "top3", "history": 3, "list_candidates": True}


def test_runs_of_the_releases_protocol_are_ranked_as_it_ranks_them():
    options = fill(RELEASE, RELEASE)
    assert (options.task, options.history, options.candidates) == ("top3", 3, "7")
    options = fill(RELEASE, RELEASE, task="yesno")
    assert (options.task, options.history) == ("yesno", 5)
    assert fill({}).candidates == "20"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"candidates": "20"}, "--candidates 20: --protocol release with task top3 has 7"),
        ({"candidates": "all"}, "--candidates all: --protocol release with task top3 has 7"),
        ({"history": 7}, "--history 7: --protocol release with task top3 has 3"),
        ({"task": "next"}, "--protocol release: has the tasks top3 and yesno; the task is next"),
    ],
)
def test_what_contradicts_the_releases_protocol_is_an_error(given, message):
    with pytest.raises(DataError, match=message):
        fill(RELEASE, **given)
