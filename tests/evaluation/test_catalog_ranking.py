"""The search over the whole catalogue finds the ranks that scoring every title gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hanorec.data.catalog import Catalog
from hanorec.data.dataset import split_examples
from hanorec.data.full_catalog import FullCatalog
from hanorec.evaluation import catalog_ranking, metrics
from hanorec.evaluation.catalog_ranking import Trie
from hanorec.evaluation.ranking import answer_with_model
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score


@pytest.fixture
def full_catalog(data):
    return FullCatalog(data.warm)


@pytest.fixture
def prompts(backbone, images, data):
    with torch.no_grad():  # random weights give all titles nearly one likelihood; these spread them
        backbone.model.get_input_embeddings().weight.mul_(4)
    return Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)


def brute_force(backbone, prompts, example, candidates) -> tuple[int, int]:
    """Items ahead of and tied with the target, every candidate scored."""
    with torch.no_grad():
        logps = score(
            backbone, prompts.images, [prompts.prompt(example)], [[prompts.name([item]) for item in candidates]]
        )
    others = logps[1:].double()  # the target is the first candidate
    return int((others > logps[0] + 1e-4).sum()), int(((others - logps[0]).abs() <= 1e-4).sum())


@pytest.mark.parametrize("prefixes, users", [(1, 2), (256, 12)])
def test_ranks_equal_those_of_scoring_every_title(backbone, prompts, data, full_catalog, monkeypatch, prefixes, users):
    monkeypatch.setattr(catalog_ranking, "PREFIXES_PER_FORWARD", prefixes)
    monkeypatch.setattr(catalog_ranking, "DEPTH", 10**6)  # never stop early: every place is exact
    examples = split_examples(data, "test", "next", users=users)
    answers = answer_with_model(backbone, prompts, examples, full_catalog=full_catalog, forward_tokens=700)
    expected = [brute_force(backbone, prompts, e, full_catalog.candidates(e)) for e in examples]
    assert answers.ranks.tolist() == [list(pair) for pair in expected]
    assert len({ahead for ahead, _ in expected}) > users / 2  # the targets have many ranks


def test_the_search_stops_at_its_depth_and_measures_stay_exact(backbone, prompts, data, full_catalog, monkeypatch):
    examples = split_examples(data, "test", "next", users=12)
    exact = np.array([brute_force(backbone, prompts, e, full_catalog.candidates(e)) for e in examples])
    monkeypatch.setattr(catalog_ranking, "DEPTH", 20)
    ahead, tied = answer_with_model(backbone, prompts, examples, full_catalog=full_catalog).ranks.T
    near = exact[:, 0] < 20
    assert 0 < near.sum() < 12
    assert (ahead[near] == exact[near, 0]).all() and (ahead[~near] >= 20).all()
    for k in (1, 10, 20):
        np.testing.assert_allclose(metrics.ndcg(ahead, tied, k), metrics.ndcg(*exact.T, k))


def test_few_titles_are_read_to_their_end(backbone, prompts, data, full_catalog, monkeypatch):
    """The point of the search: with few ranks asked for, few of the tokens of all titles are read."""
    monkeypatch.setattr(catalog_ranking, "DEPTH", 5)
    monkeypatch.setattr(catalog_ranking, "PREFIXES_PER_FORWARD", 32)
    examples, read = split_examples(data, "test", "next", users=6), []
    choose = catalog_ranking.Search.next
    monkeypatch.setattr(catalog_ranking.Search, "next", lambda self, n: read.append(b := choose(self, n)) or b)
    answer_with_model(backbone, prompts, examples, full_catalog=full_catalog)
    nodes = len(Trie({item: prompts.name([item]) for item in data.warm}).children)
    assert 0 < sum(map(len, read)) < len(examples) * nodes / 4


def test_items_of_one_title_are_tied_and_chosen_or_cold_items_do_not_count(backbone, prompts, data, full_catalog):
    (example,) = split_examples(data, "test", "next", users=1)
    target, titles = example.targets[0], list(data.catalog.titles)
    twin, chosen = [i for i in data.warm.tolist() if i not in example.seen][0], example.history[0]
    titles[twin] = titles[chosen] = titles[target]
    catalog = Catalog(data.catalog.items, tuple(titles), data.catalog.images, data.catalog.index)
    renamed = Prompts(backbone, prompts.images, catalog.titles, "next", list_candidates=False)
    assert answer_with_model(backbone, renamed, [example], full_catalog=full_catalog).ranks[0, 1] == 1
    few = FullCatalog(np.array([twin]))
    assert few.candidates(example) == (target, twin)
    assert answer_with_model(backbone, renamed, [example], full_catalog=few).ranks.tolist() == [[0, 1]]


def test_a_trie_shares_prefixes():
    trie = Trie({7: [1, 2, 9], 8: [1, 3, 9], 5: [1, 2, 9]})
    assert len(trie.children) == 6  # root, 1, 2, 9, 3, 9
    assert trie.path([1, 2, 9]) == [1, 2, 3] and trie.items[3] == [7, 5]
    assert [part.tolist() for part in trie.below(1)] == [[2, 3], [2, 4]]
