"""The toy catalogue's oracles are the Bayes-optimal observers, and finite for whatever a split may hold."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from conftest import SMALL_WORLD

from hanorec.data.dataset import split_examples
from hanorec.data.examples import Example
from hanorec.data.toy import STYLES, THEMES, choice_probabilities
from hanorec.evaluation.oracles import read_oracles


def test_an_oracle_scores_a_target_that_no_training_row_has(data):
    """Its cell may then have no other item to choose: the score is that of one item, not a division by zero."""
    example = split_examples(data, "test", "next", candidates=4, users=1)[0]
    pool = np.setdiff1d(data.warm, list(example.candidates))[:3]
    for scorer in read_oracles(data.folder, data.catalog, pool, know_candidates=False).values():
        with np.errstate(all="raise"):
            assert np.isfinite(scorer(example)).all()


@pytest.mark.parametrize("observer", ["both", "words", "images"])
def test_an_oracle_is_the_bayes_posterior_by_brute_force(data, observer):
    """Sum over all types of prior × Π p(what is seen) × p(candidate), written out with loops over cells."""
    facts = json.loads((data.folder / "world.json").read_text())
    themes, styles = range(len(THEMES)), range(len(STYLES))
    p = choice_probabilities(SMALL_WORLD.affinity).reshape(len(THEMES) * len(STYLES), len(THEMES), len(STYLES))
    of = {data.catalog.index[item]: tuple(cell) for item, cell in facts["items"].items()}
    visible = {"both": lambda c: c, "words": lambda c: c[0], "images": lambda c: c[1]}[observer]
    example = split_examples(data, "test", "next", candidates=8, users=1)[0]

    def seen(kind, item):
        return sum(p[kind, t, s] for t, s in itertools.product(themes, styles) if visible((t, s)) == visible(of[item]))

    expected = []
    for candidate in example.candidates:
        total = 0.0
        for kind, prior in enumerate(facts["prior"]):
            total += prior * np.prod([seen(kind, item) for item in example.history]) * seen(kind, candidate)
        alike = [i for i in data.warm if visible(of[int(i)]) == visible(of[candidate]) and i not in example.history]
        expected.append(total / len(alike))
    scores = read_oracles(data.folder, data.catalog, data.warm, know_candidates=False)[observer](example)
    np.testing.assert_allclose(scores / scores.sum(), np.array(expected) / sum(expected), rtol=1e-9)


def test_words_alone_rank_cold_histories_by_theme_and_the_taste_for_styles(data):
    """With candidates known, two candidates of one theme differ only by how popular their styles are."""
    oracles = read_oracles(data.folder, data.catalog, data.warm, know_candidates=True)
    facts = json.loads((data.folder / "world.json").read_text())
    cell = {data.catalog.index[item]: tuple(c) for item, c in facts["items"].items()}
    history = tuple(int(i) for i in np.flatnonzero(data.counts == 0)[:3])
    one, other = next(
        (int(a), int(b)) for a, b in itertools.permutations(data.warm, 2) if cell[int(a)][0] == cell[int(b)][0] and cell[int(a)][1] != cell[int(b)][1]
    )  # fmt: skip
    scores = oracles["words"](Example("u", history, (one,), (one, other), ()))
    prior = np.array(facts["prior"]).reshape(len(THEMES), len(STYLES)).sum(0)
    assert (scores[0] > scores[1]) == (prior[cell[one][1]] > prior[cell[other][1]])
