"""The toy catalogue is deterministic, and its titles and images say what they should."""

from __future__ import annotations

import filecmp
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import SMALL_WORLD

from hanorec.data.catalog import read_catalog
from hanorec.data.dataset import open_dataset
from hanorec.data.interactions import read_sequences
from hanorec.data.toy import NAMES, STYLES, THEMES, World, draw, make_toy
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


def with_other(tmp_path, **changes):
    """SMALL_WORLD made once more, with some fields changed."""
    return make_toy(tmp_path / "other", replace(SMALL_WORLD, **changes))


def test_exchanged_images_are_those_of_other_items_and_nothing_else_changes(toy_folder, tmp_path):
    other = with_other(tmp_path, exchanged=0.75)
    for name in ("train.tsv", "val.tsv", "test.tsv", "cold.tsv", "titles.csv", "negatives.tsv"):
        assert filecmp.cmp(toy_folder / name, other / name, shallow=False), name
    before, after = (
        {path.name: path.read_bytes() for path in (folder / "images").iterdir()} for folder in (toy_folder, other)
    )
    assert sorted(before.values()) == sorted(after.values())
    changed = np.mean([before[name] != after[name] for name in before])
    assert abs(changed - 0.75) < 3 * (0.75 * 0.25 / len(before)) ** 0.5  # 3 standard errors of a share of 288


def test_a_world_of_exchanged_images_has_no_oracles(tmp_path):
    folder = with_other(tmp_path, exchanged=0.75)
    data = open_dataset(folder)
    assert read_oracles(folder, data.catalog, data.warm, know_candidates=False) == {}


@pytest.mark.parametrize("near", [0.05, 1.0])
def test_negatives_are_near_as_often_as_the_world_says(tmp_path, near):
    """Near: of the theme or of the style of the item. 36 cells of 6 items: of an item's negatives, 10 cells are near
    and 25 far, so that there are 60 near ones and 100 of a row's 150 far ones."""
    folder = with_other(tmp_path, near=near)
    cells = json.loads((folder / "world.json").read_text())["items"]
    rows = [line.split("\t") for line in (folder / "negatives.tsv").read_text().splitlines()]
    assert len(rows) == 36 * 6
    for item, others in rows:
        alike = [sum(a == b for a, b in zip(cells[item], cells[other])) for other in others.split()]
        assert alike == ([1] * 5 + [0] * 95 if near == 0.05 else [1] * 60)


def test_cold_histories_have_all_lengths_from_the_shortest_to_the_longest(tmp_path):
    world = World(
        warm_per_cell=4, cold_per_cell=6, users=5, cold_users=60, shortest_row=3, longest_row=4, shortest_cold=2
    )
    folder = make_toy(tmp_path / "long", world)
    lengths = [len(line.split("\t")[1].split()) - 1 for line in (folder / "cold.tsv").read_text().splitlines()]
    assert set(lengths) == {2, 3, 4, 5, 6}


def test_a_larger_world_has_more_names(tmp_path):
    world = World(warm_per_cell=4, cold_per_cell=10, users=5, cold_users=5, shortest_row=3, longest_row=4)
    catalog = read_catalog(make_toy(tmp_path / "large", world))
    assert len(catalog) == 36 * 14 > len(NAMES) and len({title.split()[1] for title in catalog.titles}) == len(catalog)


@pytest.mark.parametrize(
    "wrong, said", [({"near": 1.5}, "near"), ({"exchanged": -0.1}, "exchanged"), ({"warm_per_cell": 60}, "names")]
)
def test_a_world_that_cannot_be_is_refused(tmp_path, wrong, said):
    with pytest.raises(ValueError, match=said):
        with_other(tmp_path, **wrong)
