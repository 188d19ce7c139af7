"""What a model answers is the ranking by log π(title | prompt), for every task."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hanorec.data.dataset import split_examples
from hanorec.evaluation.measures import point_measures
from hanorec.evaluation.ranking import answer_with_model, answer_with_scorer, validate
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score

pytestmark = pytest.mark.filterwarnings("ignore:.*rows are too short")


@pytest.fixture
def prompts_for(backbone, images, data):
    return lambda task: Prompts(backbone, images, data.catalog.titles, task, list_candidates=False)


@torch.no_grad()
def logps_of(backbone, prompts, prompt, responses) -> np.ndarray:
    return score(backbone, prompts.images, [prompt], [responses]).double().numpy()


def test_next_item_scores_are_the_titles_log_probabilities_in_the_order_of_the_examples(backbone, prompts_for, data):
    prompts, examples = prompts_for("next"), split_examples(data, "test", "next", candidates=6, users=7)
    answers = answer_with_model(backbone, prompts, examples, forward_tokens=300)  # several batches, sorted by length
    for example, scores in zip(examples, answers.scores, strict=True):
        responses = [prompts.name([item]) for item in example.candidates]
        expected = logps_of(backbone, prompts, prompts.prompt(example), responses)
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_yes_no_scores_are_the_share_of_yes_among_both_answers(backbone, prompts_for, data):
    prompts, examples = prompts_for("yesno"), split_examples(data, "test", "yesno", users=3)
    answers = answer_with_model(backbone, prompts, examples)
    for example, (share,), hard in zip(examples, answers.scores, answers.hard, strict=True):
        both = [prompts.answers["Yes"], prompts.answers["No"]]
        yes, no = np.exp(logps_of(backbone, prompts, prompts.prompt(example), both))
        assert share == pytest.approx(yes / (yes + no), abs=1e-4)
        assert hard == (yes > no)


def test_a_top3_list_is_the_likeliest_title_then_the_likeliest_after_it(backbone, prompts_for, data):
    prompts, examples = prompts_for("top3"), split_examples(data, "test", "top3", candidates=6, users=3)
    answers = answer_with_model(backbone, prompts, examples)
    for example, ranked in zip(examples, answers.lists.tolist(), strict=True):
        for place in range(3):
            left = [item for item in example.candidates if item not in ranked[:place]]
            responses = [prompts.name([*ranked[:place], item], last=place == 2) for item in left]
            logps = logps_of(backbone, prompts, prompts.prompt(example), responses)
            assert logps[left.index(ranked[place])] == pytest.approx(logps.max(), abs=1e-4)


def test_noise_and_dropout_are_off_and_the_models_mode_is_kept(backbone, prompts_for, data):
    prompts, examples = prompts_for("next"), split_examples(data, "test", "next", candidates=4, users=2)
    for training in (True, False):
        backbone.model.train(training)
        first, second = (answer_with_model(backbone, prompts, examples).scores for _ in range(2))
        assert (first == second).all() and backbone.model.training is training


@pytest.mark.parametrize(("task", "measure"), [("next", "NDCG@10"), ("top3", "NDCG@3"), ("yesno", "AUC")])
def test_validation_is_the_point_measure_of_the_answers(backbone, prompts_for, data, task, measure):
    prompts, examples = prompts_for(task), split_examples(data, "val", task, candidates=6, users=6)
    name, value = validate(backbone, prompts, examples, forward_tokens=8192)
    answers = answer_with_model(backbone, prompts, examples)
    assert name == measure and value == pytest.approx(point_measures(task, answers, examples)[measure])


def test_ties_in_a_baselines_list_fall_at_random(data):
    examples = split_examples(data, "test", "top3", candidates=6)
    answers = answer_with_scorer(lambda example: np.zeros(6), examples, "top3")
    columns = [example.candidates.index(first) for example, first in zip(examples, answers.lists[:, 0])]
    assert set(columns) == set(range(6))
    best = answer_with_scorer(lambda e: -np.arange(6.0), examples, "top3")
    assert best.lists.tolist() == [list(example.candidates[:3]) for example in examples]
