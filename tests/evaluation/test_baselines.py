"""Baselines answer the same examples as a model does, among listed candidates and among the whole catalogue."""

from __future__ import annotations

import numpy as np
import pytest

from hanorec.data.dataset import split_examples
from hanorec.data.full_catalog import FullCatalog
from hanorec.errors import DataError
from hanorec.evaluation.baselines import BASELINES, baseline_answers, baseline_names
from hanorec.evaluation.measures import user_measures
from hanorec.recommenders import training
from hanorec.recommenders.networks import NETWORKS, Settings
from hanorec.related.release import release_split

pytestmark = pytest.mark.filterwarnings("ignore:.*rows are too short")


def test_baselines_answer_with_chance_popularity_and_what_is_possible(data):
    examples = split_examples(data, "test", "next", candidates=4, users=5)
    answers = baseline_answers(data, examples, "next")
    oracles = {"oracle: words alone", "oracle: images alone", "oracle: words and images"}
    assert set(answers) == {"random", "popularity"} | oracles
    assert (answers["popularity"].scores[0] == data.counts[list(examples[0].candidates)]).all()


def test_baselines_rank_the_whole_catalogue_too(data):
    examples, full_catalog = split_examples(data, "test", "next", users=5), FullCatalog(data.warm)
    answers = baseline_answers(data, examples, "next", full_catalog)["random"]
    sizes = [len(full_catalog.candidates(e)) for e in examples]
    assert answers.ranks.tolist() == [[0, size - 1] for size in sizes]
    np.testing.assert_allclose(user_measures("next", answers, examples)["HR@10"], 10 / np.array(sizes))


def test_the_oracles_do_not_answer_where_negatives_need_not_occur_in_training(data):
    examples = release_split(data, "test", "top3", users=5)
    answers = baseline_answers(data, examples, "top3", protocol="release")
    assert set(answers) == {"random", "popularity"} and answers["popularity"].lists.shape == (5, 3)


def test_baselines_are_named_in_the_order_of_the_table():
    assert baseline_names(["sasrec", "random"]) == ["random", "sasrec"]
    assert baseline_names(["all"]) == ["random", "popularity", "co-occurrence", "sasrec", "gru4rec"]
    message = "^baselines bert4rec: .* random, popularity, co-occurrence, sasrec, gru4rec, and all$"
    with pytest.raises(DataError, match=message):
        baseline_names(["random", "bert4rec"])


def test_all_baselines_rank_listed_candidates_the_whole_catalogue_and_the_other_tasks(data, tmp_path, monkeypatch):
    small = Settings(width=8, layers=1, length=4, epochs=3)
    monkeypatch.setattr(training, "NETWORKS", {name: (kind, small) for name, (kind, _) in NETWORKS.items()})
    how = dict(history=3, candidates=6, seed=5)
    validation = split_examples(data, "val", "next", **how)
    every = dict(names=[*BASELINES], validation=validation)
    for task in ("next", "top3", "yesno"):
        examples = split_examples(data, "test", task, users=5, **how)
        answers = baseline_answers(data, examples, task, cache=tmp_path, **every)
        assert list(answers)[:5] == ["random", "popularity", "item co-occurrence", "SASRec", "GRU4Rec"]
    assert len(list(tmp_path.iterdir())) == 2  # one training for all tasks
    examples, full_catalog = split_examples(data, "test", "next", users=5, **how), FullCatalog(data.warm)
    answers = baseline_answers(data, examples, "next", full_catalog, **every)
    assert all(answers[name].ranks.shape == (5, 2) for name in BASELINES.values())
