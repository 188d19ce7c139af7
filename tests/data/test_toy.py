"""The toy catalogue is deterministic, its titles and images say what they should, and its oracles are optimal."""

from __future__ import annotations

import filecmp
import itertools
import json

import numpy as np
import pytest
from conftest import SMALL_WORLD

from hanorec.data.catalog import read_catalog
from hanorec.data.dataset import split_examples
from hanorec.data.examples import Example
from hanorec.data.interactions import read_sequences
from hanorec.data.toy import STYLES, THEMES, choice_probabilities, draw, make_toy
from hanorec.evaluation.oracles import read_oracles


def test_the_same_world_gives_the_same_files(toy_folder, tmp_path):
    again = make_toy(tmp_path / "again", SMALL_WORLD)
    names = sorted(str(p.relative_to(toy_folder)) for p in toy_folder.rglob("*") if p.is_file())
    same, different, missing = filecmp.cmpfiles(toy_folder, again, names, shallow=False)
    assert (sorted(same), different, missing) == (names, [], [])


def test_a_title_tells_the_theme_and_no_title_occurs_twice(toy_folder):
    facts = json.loads((toy_folder / "world.json").read_text())
    catalog = read_catalog(toy_folder)
    assert len(set(catalog.titles)) == len(catalog)
    for item, title in zip(catalog.items, catalog.titles):
        assert title.split()[0] in THEMES[facts["themes"][facts["items"][item][0]]]


def test_cold_items_never_occur_in_training_and_fill_the_cold_histories(data):
    cold = read_sequences(data.folder / "cold.tsv", data.catalog)
    for row in cold:
        assert not data.counts[list(row.items[:-1])].any()
    everything = [
        i
        for name in ("train", "val", "test")
        for r in read_sequences(data.folder / f"{name}.tsv", data.catalog)
        for i in r.items
    ]
    assert not set(everything) & {i for row in cold for i in row.items[:-1]}


def test_no_style_can_be_told_from_brightness_or_colour():
    """A nearest-mean classifier on mean colours stays near chance (1/6), so the shapes have to be looked at."""
    rng = np.random.default_rng(0)
    images = [[np.asarray(draw(style, rng), dtype=float).mean((0, 1)) for _ in range(60)] for style in STYLES]
    colours = np.array(images)
    means = colours[:, :30].mean(1)
    guesses = np.linalg.norm(colours[:, 30:, None] - means, axis=-1).argmin(-1)
    assert (guesses == np.arange(len(STYLES))[:, None]).mean() < 0.35


def test_an_unknown_style_is_refused():
    with pytest.raises(ValueError, match="plaid"):
        draw("plaid", np.random.default_rng(0))


@pytest.mark.parametrize("observer", ["both", "words", "images"])
def test_an_oracle_is_the_bayes_posterior_by_brute_force(data, observer):
    """Sum over all types of prior × Π p(what is seen) × p(candidate), written out with loops over cells."""
    facts = json.loads((data.folder / "world.json").read_text())
    themes, styles = range(len(THEMES)), range(len(STYLES))
    p = choice_probabilities(SMALL_WORLD.affinity).reshape(len(THEMES) * len(STYLES), len(THEMES), len(STYLES))
    of = {data.catalog.index[item]: tuple(cell) for item, cell in facts["items"].items()}
    look = {"both": lambda c: c, "words": lambda c: c[0], "images": lambda c: c[1]}[observer]
    example = split_examples(data, "test", "next", candidates=8, users=1)[0]

    def seen(kind, item):
        return sum(p[kind, t, s] for t, s in itertools.product(themes, styles) if look((t, s)) == look(of[item]))

    expected = []
    for candidate in example.candidates:
        total = 0.0
        for kind, prior in enumerate(facts["prior"]):
            total += prior * np.prod([seen(kind, item) for item in example.history]) * seen(kind, candidate)
        alike = [i for i in data.warm if look(of[int(i)]) == look(of[candidate]) and i not in example.history]
        expected.append(total / len(alike))
    found = read_oracles(data.folder, data.catalog, data.warm, know_candidates=False)[observer](example)
    np.testing.assert_allclose(found / found.sum(), np.array(expected) / sum(expected), rtol=1e-9)


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
