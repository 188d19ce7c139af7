"""How networks over items are trained: what they learn from, and how their best epoch is chosen."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from hanorec.data.dataset import open_dataset, split_examples
from hanorec.data.examples import Example
from hanorec.data.full_catalog import FullCatalog
from hanorec.evaluation.measures import point_measures
from hanorec.evaluation.ranking import answer_with_scorer
from hanorec.recommenders import training
from hanorec.recommenders.counts import popularity_scorer
from hanorec.recommenders.networks import NETWORKS, Settings, network_scorer
from hanorec.recommenders.training import chunks, fit, ndcg_at_10, train_network

SHORT = Settings(width=8, layers=1, length=4, batch_size=64, epochs=3)

each_network = pytest.mark.parametrize("name", NETWORKS)


@pytest.fixture(scope="module")
def validation(data) -> list[Example]:
    return split_examples(data, "val", "next", history=3, candidates=6, seed=5)


def make(name: str, items: int, settings: Settings = SHORT):
    torch.manual_seed(0)
    return NETWORKS[name][0](items, settings)


def example(*history: int, candidates: tuple[int, ...], target: int = 0) -> Example:
    return Example("u", history, (target,), candidates, ())


def same(one, other) -> bool:
    weights = other.state_dict()
    return all(torch.equal(tensor, weights[name]) for name, tensor in one.state_dict().items())


@each_network
def test_a_cycle_of_items_is_learned(name):
    """Items 0 → 1 → … → 11 → 0. Chance names 1 of 12 right; one epoch sees each pair of neighbours 20 times."""
    histories = [tuple((start + step) % 12 for step in range(5)) for start in range(12)] * 5
    asked = [
        example(start, (start + 1) % 12, candidates=tuple(range(12)), target=(start + 2) % 12) for start in range(12)
    ]
    network = make(name, 12, settings := Settings(width=16, layers=1, learning_rate=0.01, batch_size=128, epochs=30))

    def hit_rate() -> float:
        score = network_scorer(network, asked)
        return np.mean([score(each).argmax() == each.targets[0] for each in asked])

    network.load_state_dict(fit(network, histories, hit_rate, settings, np.random.default_rng(0)))
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


def test_a_training_that_ends_in_scores_that_are_no_numbers_is_an_error():
    network, asked = make("GRU4Rec", 6), [example(0, candidates=(1, 2), target=1)]
    with torch.no_grad():
        network.items.weight.fill_(math.nan)

    def validate() -> float:
        return ndcg_at_10(network_scorer(network, asked), asked)

    with pytest.raises(ValueError, match="no numbers after epoch 1"), np.errstate(invalid="ignore"):
        fit(network, [(0, 1, 2)], validate, SHORT, np.random.default_rng(0))


@pytest.mark.parametrize("most, epochs, parts", [(12, 12, 2), (5, 10, 1)])
def test_a_large_dataset_gets_fewer_epochs_of_fewer_histories_and_says_so(monkeypatch, most, epochs, parts):
    """Two histories of 2 targets, 6 items: 24 logits an epoch. 12 times that: 12 epochs; 5 times: 10 of one history."""
    monkeypatch.setattr(training, "MOST_LOGITS", most * 24)
    sizes, batches = [], training.batches
    monkeypatch.setattr(training, "batches", lambda lengths, size: sizes.append(len(lengths)) or batches(lengths, size))
    values, settings = iter(range(99)), Settings(width=8, layers=1, epochs=50)
    with pytest.warns(UserWarning, match=f"GRU: still improving after {epochs} epochs"):
        fit(make("GRU4Rec", 6), [(0, 1, 2), (3, 4, 5)], lambda: next(values), settings, np.random.default_rng(0), "GRU")
    assert sizes == [parts] * epochs


@pytest.mark.parametrize("length", [1, 3, 50])
def test_every_item_but_a_historys_first_is_a_target_once(length):
    histories, generator = [tuple(range(10)), (20, 21), (30,), tuple(range(40, 45))], np.random.default_rng(0)
    cut = [chunks(histories, length, generator) for _ in range(8)]
    for parts in cut:
        assert all(2 <= len(part) <= length + 1 for part in parts)
        pairs = [pair for part in parts for pair in zip(part[:-1].tolist(), part[1:].tolist())]
        assert sorted(pairs) == sorted(pair for each in histories for pair in zip(each[:-1], each[1:]))
    assert (len({tuple(map(len, parts)) for parts in cut}) > 1) == (length == 3)  # cut elsewhere each time


@each_network
def test_what_is_read_from_the_cache_equals_what_was_trained(name, data, validation, tmp_path, monkeypatch):
    fresh = train_network(name, data, validation, settings=SHORT, cache=tmp_path)
    assert same(fresh, train_network(name, data, validation, settings=SHORT))
    assert not same(fresh, train_network(name, data, validation, settings=SHORT, seed=1, cache=tmp_path))
    monkeypatch.setattr(training, "fit", None)  # what is cached is not trained
    assert same(fresh, train_network(name, data, validation, settings=SHORT, cache=tmp_path))
    shorter = [replace(each, history=each.history[-2:]) for each in validation]
    for other in ((shorter,), (validation, FullCatalog(data.warm))):  # other ranks, another best epoch
        with pytest.raises(TypeError):
            train_network(name, data, *other, settings=SHORT, cache=tmp_path)


def test_training_learns_from_the_training_histories_alone(toy_folder, validation, tmp_path):
    """One epoch, so that there is nothing to choose: other validation users and no test users give the same weights."""
    settings = Settings(width=8, layers=1, epochs=1)
    for split in ("val", "test"):
        (shutil.copytree(toy_folder, tmp_path / split) / f"{split}.tsv").unlink()
    lines = (toy_folder / "train.tsv").read_text().splitlines()
    fewer = shutil.copytree(toy_folder, tmp_path / "train") / "train.tsv"
    fewer.write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    half = validation[: len(validation) // 2]
    everything = train_network("SASRec", open_dataset(toy_folder), validation, settings=settings)
    for folder, examples in (("val", half), ("test", validation)):
        assert same(everything, train_network("SASRec", open_dataset(tmp_path / folder), examples, settings=settings))
    assert not same(everything, train_network("SASRec", open_dataset(fewer.parent), validation, settings=settings))


def test_training_leaves_the_random_state_as_it_was(data, validation):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    train_network("SASRec", data, validation, settings=SHORT)
    assert torch.equal(torch.rand(2), expected)


def test_the_measure_that_chooses_an_epoch_is_that_of_the_evaluation(data, validation):
    """Ties included: among so few users many items are as popular as the target, and a constant ranks at random."""
    for scorer in (popularity_scorer(data.counts), lambda each: np.zeros(len(each.candidates))):
        for full_catalog in (None, FullCatalog(data.warm)):
            answers = answer_with_scorer(scorer, validation, "next", full_catalog)
            expected = point_measures("next", answers, validation)["NDCG@10"]
            assert 0 < ndcg_at_10(scorer, validation, full_catalog) == expected < 1
