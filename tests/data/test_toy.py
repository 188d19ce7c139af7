"""The toy catalogue is deterministic, and its titles and images say what they should."""

from __future__ import annotations

import filecmp
import json

import numpy as np
import pytest
from conftest import SMALL_WORLD

from hanorec.data.catalog import read_catalog
from hanorec.data.interactions import read_sequences
from hanorec.data.toy import STYLES, THEMES, draw, make_toy


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
    warm_rows = [
        i
        for name in ("train", "val", "test")
        for r in read_sequences(data.folder / f"{name}.tsv", data.catalog)
        for i in r.items
    ]
    assert not set(warm_rows) & {i for row in cold for i in row.items[:-1]}


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
