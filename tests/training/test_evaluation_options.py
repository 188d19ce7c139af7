"""evaluate.py puts runs side by side only where their models read the same: like with like."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hanorec.errors import DataError
from hanorec.training.evaluation_options import EvaluationOptions, complete_evaluation
from hanorec.training.options import SFTOptions, complete_sft


def completed(*changes: dict, **given) -> tuple[EvaluationOptions, SFTOptions]:
    """The options of an evaluation of runs a, b, ..., which differ from the defaults by `changes`, and what it ranks."""
    runs = {name: SFTOptions(**change) for name, change in zip("abc", changes)}
    for sft in runs.values():
        complete_sft(sft)
    options = replace(EvaluationOptions(runs=list(runs)), **given)
    return options, complete_evaluation(options, runs)


@pytest.mark.parametrize(
    ("change", "option", "values"),
    [
        ({"data": "movies"}, "data", (r"'.*data/toy'", r"'.*movies'")),
        ({"task": "top3"}, "task", ("'next'", "'top3'")),
        ({"history": 2}, "history", ("5", "2")),
        ({"protocol": "release", "task": "top3"}, "protocol", ("'standard'", "'release'")),
        ({"list_candidates": True}, "list-candidates", ("False", "True")),
        ({"image_pixels": 4096}, "image-pixels", ("262144", "4096")),
        ({"image_views": "many"}, "image-views", ("'one'", "'many'")),
    ],
)
def test_runs_that_differ_are_named_with_the_setting_and_both_values(change, option, values):
    first, other = values
    message = f"^a and c cannot be compared: --{option} was {first} in a and {other} in c; .*evaluate them apart"
    with pytest.raises(DataError, match=message):
        completed({}, {}, change)


def test_data_task_and_history_that_are_given_hold_for_all_runs():
    given = dict(data="books", task="next", history=4)
    options, ranked = completed({}, {"task": "top3", "history": 2, "data": "movies"}, **given)
    assert (
        (options.data, options.task, options.history) == ("books", ranked.task, ranked.history) == ("books", "next", 4)
    )
    with pytest.raises(DataError, match="--list-candidates"):
        completed({}, {"list_candidates": True}, **given)


def test_one_setting_written_in_two_ways_is_no_difference():
    options, _ = completed({}, {"data": "data/toy", "history": 5})
    assert (options.data, options.task, options.history) == (None, "next", 5)
    with pytest.raises(DataError, match="--history was 5 in a and 3 in b"):
        completed({}, {"task": "top3", "history": 3}, task="next")


def test_the_whole_catalogue_is_ranked_for_the_next_item_and_cannot_be_listed():
    with pytest.raises(DataError, match="--candidates all: ranks the next item; the task is yesno"):
        completed({"task": "yesno"}, candidates="all")
    with pytest.raises(DataError, match="the prompts of a list the candidates"):
        completed({"list_candidates": True}, candidates="all")


RELEASE = {"protocol": "release", "task": "top3"}


def test_runs_of_the_releases_protocol_are_ranked_as_it_ranks_them():
    options, ranked = completed(RELEASE, RELEASE)
    assert (options.task, options.history, options.candidates, ranked.candidates) == ("top3", 3, "7", 7)
    options, ranked = completed(RELEASE, RELEASE, task="yesno")
    assert (options.task, options.history, ranked.task, ranked.history) == ("yesno", 5, "yesno", 5)
    options, ranked = completed({})
    assert (options.candidates, ranked.candidates) == ("20", 20)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"candidates": "20"}, "--candidates 20: the protocol release has 7 for this task"),
        ({"candidates": "all"}, "--candidates all: the protocol release has 7 for this task"),
        ({"history": 7}, "--history 7: the protocol release has 3 for this task"),
        ({"task": "next"}, "the protocol release has the tasks top3 and yesno; the task is next"),
    ],
)
def test_what_contradicts_the_releases_protocol_is_an_error(given, message):
    with pytest.raises(DataError, match=message):
        completed(RELEASE, **given)
