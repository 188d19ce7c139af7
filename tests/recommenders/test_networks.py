"""SASRec and GRU4Rec: what they see of a history, and what their scores are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hanorec.data.examples import Example
from hanorec.recommenders.networks import NETWORKS, Settings, network_scorer

SHORT = Settings(width=8, layers=1, length=4)

each_network = pytest.mark.parametrize("name", NETWORKS)


def make(name: str, items: int, settings: Settings = SHORT):
    torch.manual_seed(0)
    return NETWORKS[name][0](items, settings)


def example(*history: int, candidates: tuple[int, ...]) -> Example:
    return Example("u", history, (0,), candidates, ())


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
