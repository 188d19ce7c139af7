"""Recommenders that know items by number: what they see, what they learn from, and how their best epoch is chosen."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from hanorec.data.dataset import open_dataset, split_examples
from hanorec.data.examples import Example
from hanorec.evaluation.baselines import BASELINES, baseline_answers
from hanorec.evaluation.measures import user_measures
from hanorec.evaluation.ranking import FullCatalog, answer_with_scorer
from hanorec.recommenders import networks as recommenders
from hanorec.recommenders.networks import (
    NETWORKS,
    Settings,
    chunks,
    co_occurrence_scorer,
    fit,
    network_scorer,
    train_network,
)

SHORT = Settings(width=8, layers=1, length=4, batch_size=64, epochs=3)
DRAWN = dict(task="next", history=3, candidates=6, seed=5)

each_network = pytest.mark.parametrize("name", NETWORKS)


def make(name: str, items: int, settings: Settings = SHORT):
    torch.manual_seed(0)
    return NETWORKS[name][0](items, settings)


def example(*history: int, candidates: tuple[int, ...], target: int = 0) -> Example:
    return Example("u", history, (target,), candidates, ())


def same(one, other) -> bool:
    weights = other.state_dict()
    return all(torch.equal(tensor, weights[name]) for name, tensor in one.state_dict().items())


@each_network
@pytest.mark.parametrize("training", [True, False])
def test_what_is_expected_after_an_item_depends_on_no_later_item(name, training):
    network = make(name, 10, Settings(dropout=0, length=6)).train(training)
    items = torch.tensor([[1, 2, 3, 4, 5, 6]])
    changed = torch.tensor([[1, 2, 3, 9, 5, 6]])
    with torch.no_grad():
        difference = (network(items) - network(changed)).abs().amax(dim=2)[0]
    assert (difference[:3] < 1e-6).all() and (difference[3:] > 1e-4).all()


@each_network
def test_padding_at_the_end_changes_nothing(name):
    network = make(name, 10).eval()
    scores = network_scorer(network, [example(1, 2, 3, candidates=()), example(4, candidates=())])  # read together
    alone = network_scorer(network, [example(4, candidates=())])
    asked = example(4, candidates=tuple(range(10)))
    np.testing.assert_allclose(scores(asked), alone(asked), rtol=1e-5)


@each_network
def test_scores_are_log_probabilities_over_all_items(name):
    asked = example(1, 2, candidates=tuple(range(10)))
    assert np.exp(network_scorer(make(name, 10).eval(), [asked])(asked)).sum() == pytest.approx(1, abs=1e-5)


@each_network
def test_a_history_that_is_too_long_is_read_from_its_newest_items(name):
    network = make(name, 10).eval()  # of length 4
    long, short = (example(*history, candidates=(5, 6, 7)) for history in ((9, 8, 1, 2, 3, 4), (1, 2, 3, 4)))
    np.testing.assert_allclose(
        network_scorer(network, [long])(long), network_scorer(network, [short])(short), rtol=1e-5
    )


@each_network
def test_a_cycle_of_items_is_learned(name):
    """Items 0 → 1 → … → 11 → 0. Chance names 1 of 12 right; one epoch sees each pair of neighbours 20 times."""
    rows = [tuple((start + step) % 12 for step in range(5)) for start in range(12)] * 5
    asked = [
        example(start, (start + 1) % 12, candidates=tuple(range(12)), target=(start + 2) % 12) for start in range(12)
    ]
    network = make(name, 12, settings := Settings(width=16, layers=1, learning_rate=0.01, batch_size=128, epochs=30))

    def hit_rate() -> float:
        answers = answer_with_scorer(network_scorer(network, asked), asked, "next")
        return user_measures("next", answers, asked)["HR@1"].mean()

    network.load_state_dict(fit(network, rows, hit_rate, settings, np.random.default_rng(0)))
    assert network.eval() and hit_rate() > 0.9


def test_the_weights_are_those_of_the_best_epoch_and_training_ends_after_a_time_without_a_better_one():
    values, states = iter([0.3, 0.5, 0.5, 0.4, 0.9]), []
    network = make("GRU4Rec", 6)

    def validate() -> float:
        states.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return next(values)

    settings = Settings(width=8, layers=1, epochs=9, patience=2)
    weights = fit(network, [(0, 1, 2), (3, 4, 5)], validate, settings, np.random.default_rng(0))
    assert len(states) == 4  # epochs 3 and 4 are no better than epoch 2
    assert all(torch.equal(weights[name], tensor) for name, tensor in states[1].items())
    assert not torch.equal(weights["items.weight"], states[2]["items.weight"])


@pytest.mark.parametrize("most, epochs, parts", [(12, 12, 2), (5, 10, 1)])
def test_a_large_dataset_gets_fewer_epochs_of_fewer_rows_and_says_so(monkeypatch, most, epochs, parts):
    """Two rows of 2 targets, 6 items: 24 logits an epoch. Of 12 times that, 12 epochs; of 5 times, 10 of a row each."""
    monkeypatch.setattr(recommenders, "MOST_LOGITS", most * 24)
    sizes, batches = [], recommenders.batches
    monkeypatch.setattr(
        recommenders, "batches", lambda lengths, size: sizes.append(len(lengths)) or batches(lengths, size)
    )
    values, settings = iter(range(99)), Settings(width=8, layers=1, epochs=50)
    with pytest.warns(UserWarning, match=f"GRU: still improving after {epochs} epochs"):
        fit(make("GRU4Rec", 6), [(0, 1, 2), (3, 4, 5)], lambda: next(values), settings, np.random.default_rng(0), "GRU")
    assert sizes == [parts] * epochs


@pytest.mark.parametrize("length", [1, 3, 50])
def test_every_item_but_a_rows_first_is_a_target_once(length):
    rows, generator = [tuple(range(10)), (20, 21), (30,), tuple(range(40, 45))], np.random.default_rng(0)
    cut = [chunks(rows, length, generator) for _ in range(8)]
    for parts in cut:
        assert all(2 <= len(part) <= length + 1 for part in parts)
        pairs = [pair for part in parts for pair in zip(part[:-1].tolist(), part[1:].tolist())]
        assert sorted(pairs) == sorted(pair for row in rows for pair in zip(row[:-1], row[1:]))
    assert (len({tuple(map(len, parts)) for parts in cut}) > 1) == (length == 3)  # cut elsewhere each time


@each_network
def test_what_is_read_from_the_cache_equals_what_was_trained(name, data, tmp_path, monkeypatch):
    fresh = train_network(name, data, DRAWN, settings=SHORT, cache=tmp_path)
    assert same(fresh, train_network(name, data, DRAWN, settings=SHORT))
    assert not same(fresh, train_network(name, data, DRAWN, settings=SHORT, seed=1, cache=tmp_path))
    monkeypatch.setattr(recommenders, "fit", None)  # what is cached is not trained
    assert same(fresh, train_network(name, data, DRAWN, settings=SHORT, cache=tmp_path))
    with pytest.raises(TypeError):  # another history, another best epoch
        train_network(name, data, {**DRAWN, "history": 2}, settings=SHORT, cache=tmp_path)


def test_training_learns_from_the_training_rows_alone(toy_folder, tmp_path):
    """One epoch, so that there is nothing to choose: other validation rows and no test rows give the same weights."""
    settings = Settings(width=8, layers=1, epochs=1)
    trained = []
    for change in ("none", "val", "train"):
        folder = shutil.copytree(toy_folder, tmp_path / change)
        (folder / "test.tsv").unlink()
        if change != "none":
            lines = (folder / f"{change}.tsv").read_text().splitlines()
            (folder / f"{change}.tsv").write_text("\n".join(lines[: len(lines) // 2]) + "\n")
        trained.append(train_network("SASRec", open_dataset(folder), DRAWN, settings=settings))
    none, val, train = trained
    assert same(none, val) and not same(none, train)


def test_training_leaves_the_random_state_as_it_was(data):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train_network("SASRec", data, DRAWN, settings=SHORT)
    assert torch.equal(torch.rand(2), expected)


def test_co_occurrence_is_the_cosine_of_two_items_rows_weighted_by_age():
    """Rows {0, 1}, {0, 1, 2}, {0, 3}, {1}; item 0 is in 3, item 1 in 3, item 2 in 1, item 3 in 1, item 4 in none.

    History 1 (age 2), 0 (age 1). Candidate 2: with 1 in 1 row, 1 / √(3·1) / 2; with 0 in 1 row, 1 / √(3·1).
    Candidate 3: with 1 in none; with 0 in 1 row, 1 / √(3·1). Candidate 4: nothing. An item twice in a row counts once.
    """
    score = co_occurrence_scorer([(0, 1, 0), (0, 1, 2), (3, 0), (1,)], 5)
    expected = [1.5 / 3**0.5, 1 / 3**0.5, 0]
    np.testing.assert_allclose(score(example(1, 0, candidates=(2, 3, 4))), expected)


def test_all_baselines_rank_listed_candidates_the_whole_catalogue_and_the_other_tasks(data, tmp_path, monkeypatch):
    monkeypatch.setattr(recommenders, "NETWORKS", {name: (kind, SHORT) for name, (kind, _) in NETWORKS.items()})
    for task in ("next", "top3", "yesno"):
        drawn = DRAWN | {"task": task}
        examples = split_examples(data, "test", users=5, **drawn)
        answers = baseline_answers(data, examples, task, names=[*BASELINES], drawn=drawn, cache=tmp_path)
        assert list(answers)[:5] == ["random", "popularity", "item co-occurrence", "SASRec", "GRU4Rec"]
    assert len(list(tmp_path.iterdir())) == 2  # one training for all tasks
    examples, full_catalog = split_examples(data, "test", users=5, **DRAWN), FullCatalog(data.warm)
    answers = baseline_answers(data, examples, "next", full_catalog, names=[*BASELINES], drawn=DRAWN)
    assert all(answers[name].places.shape == (5, 2) for name in BASELINES.values())
