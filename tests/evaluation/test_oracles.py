"""The toy catalogue's oracles are finite for whatever a split may hold."""

from __future__ import annotations

import numpy as np

from hanorec.data.dataset import split_examples
from hanorec.evaluation.baselines import baseline_answers
from hanorec.evaluation.oracles import read_oracles


def test_an_oracle_scores_a_target_that_no_training_row_has(data):
    """Its cell may then have no other item to choose: the score is that of one item, not a division by zero."""
    example = split_examples(data, "test", "next", candidates=4, users=1)[0]
    pool = np.setdiff1d(data.warm, list(example.candidates))[:3]
    for scorer in read_oracles(data.folder, data.catalog, pool, know_candidates=False).values():
        with np.errstate(all="raise"):
            assert np.isfinite(scorer(example)).all()


def test_baselines_answer_with_chance_popularity_and_what_is_possible(data):
    examples = split_examples(data, "test", "next", candidates=4, users=5)
    answers = baseline_answers(data, examples, "next")
    oracles = {"oracle: words alone", "oracle: images alone", "oracle: words and images"}
    assert set(answers) == {"random", "popularity"} | oracles
    assert (answers["popularity"].scores[0] == data.counts[list(examples[0].candidates)]).all()
