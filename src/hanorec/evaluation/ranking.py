"""From examples to measures: every candidate scored by its exact log-likelihood, then the metrics.

In: examples and something that scores their candidates, a model or a baseline. Out: its answers (`Answers`) and, from
them, one number a user and metric. A response's score is the log-probability of the whole title and its end, so no
title wins because it is a prefix of another. The candidates are those of the example, or the whole catalogue
(`FullCatalog`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from hanorec import distributed
from hanorec.data.examples import Example
from hanorec.errors import DataError
from hanorec.evaluation import catalog_ranking, metrics
from hanorec.models.backbone import Backbone
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import batches, score

FIRST_MEASURE = {"next": "HR@1", "top3": "HR@3", "yesno": "AUC"}  # what a table shows first, with its interval
MAIN_MEASURE = {"next": "NDCG@10", "top3": "NDCG@3", "yesno": "AUC"}  # what the best state is chosen by
CUTOFFS = (1, 3, 5, 10)  # places counted among listed candidates
FULL_CUTOFFS = (10, 20, catalog_ranking.DEPTH)  # and among the whole catalogue


class Answers(NamedTuple):
    """What a recommender answered to U examples; a field is None where it does not belong to the task."""

    scores: np.ndarray | None = None  # [U, C] next: one a candidate. [U, 1] yesno: p(Yes) of the one candidate
    places: np.ndarray | None = None  # [U, 2] next, whole catalogue: items ahead of the target, items tied with it
    lists: np.ndarray | None = None  # [U, 3] top3: item indices, best first
    hard: np.ndarray | None = None  # [U] yesno: 1 where the answer is Yes

    def take(self, rows: np.ndarray) -> Answers:
        """The answers to some of the examples."""
        return Answers(*(None if column is None else column[rows] for column in self))


class FullCatalog:
    """The whole catalogue as candidates: every item of `pool` [M] that the user has not chosen, and the target."""

    def __init__(self, pool: np.ndarray):
        self.pool = frozenset(pool.tolist())

    def is_candidate(self, example: Example) -> Callable[[int], bool]:
        """A test of whether an item is a candidate besides the target."""
        return lambda item: item in self.pool and item not in example.seen

    def candidates(self, example: Example) -> tuple[int, ...]:
        """The target, and after it all other candidates."""
        return (*example.targets, *(self.pool - example.seen - set(example.targets)))


def answer_with_scorer(
    scorer: Callable[[Example], np.ndarray],
    examples: Sequence[Example],
    task: str,
    full_catalog: FullCatalog | None = None,
) -> Answers:
    """The answers of a baseline or oracle; in top-3 lists ties fall at random.

    scorer: takes an example and returns a score for each of its candidates, [C]; higher is better.
    """
    if full_catalog is not None:  # one user's candidates at a time: those of all users would not fit
        places = []
        for example in examples:
            scores = scorer(replace(example, candidates=full_catalog.candidates(example)))
            places.append([counts[0] for counts in metrics.positions(scores[None], [0])])
        return Answers(places=np.array(places))
    scores = np.stack([scorer(example) for example in examples])
    if task != "top3":
        return Answers(scores=scores)
    candidates = np.array([example.candidates for example in examples])
    shuffled = np.random.default_rng(0).random(scores.shape)
    order = np.lexsort((shuffled, -scores))[:, :3]
    return Answers(lists=np.take_along_axis(candidates, order, axis=1))


@torch.no_grad()
def answer_with_model(
    backbone: Backbone,
    prompts: Prompts,
    examples: Sequence[Example],
    *,
    forward_tokens: int = 8192,
    full_catalog: FullCatalog | None = None,
    progress: str = "",
) -> Answers:
    """The answers of a model, with noise and dropout off.

    A top-3 list is written one place after the other: the likeliest title, then the likeliest after it, and so on.
    forward_tokens: most tokens in a forward. full_catalog: rank the whole catalogue (task next). progress: what a
    progress bar says; without it there is none. Errors: DataError where a model whose responses cannot be packed is to
    rank the whole catalogue.
    """
    model = backbone.model
    was_training = model.training
    model.eval()
    if full_catalog is not None and backbone.layout.plain:
        raise DataError(f"--candidates all: needs packed responses, but {backbone.layout.plain}")
    if full_catalog is None:
        lengths = [prompts.length(prompts.prompt(e), [prompts.name([item]) for item in e.candidates]) for e in examples]
        answer_batch = _answer_batch
    else:
        lengths = [2 * prompts.length(prompts.prompt(e), ()) for e in examples]  # half of it for what the search reads
        titles = full_catalog.pool.union(*(e.targets for e in examples))
        trie = catalog_ranking.Trie({item: prompts.name([item]) for item in sorted(titles)})
        answer_batch = partial(_rank_full_catalog, trie=trie, full_catalog=full_catalog)
    micro_batches = batches(lengths, forward_tokens)
    quiet = not progress or not distributed.is_main_process()
    with tqdm(total=len(examples), desc=progress, unit="user", disable=quiet, leave=False) as bar:

        def answer(batch: list[int]) -> Answers:
            bar.update(distributed.world_size() * len(batch))
            return answer_batch(backbone, prompts, [examples[i] for i in batch])

        answers = distributed.map_over_ranks(answer, micro_batches)
    model.train(was_training)
    joined = Answers(*(None if column[0] is None else np.concatenate(column) for column in zip(*answers)))
    return joined.take(np.argsort(np.concatenate(micro_batches)))


def validate(
    backbone: Backbone, prompts: Prompts, examples: Sequence[Example], forward_tokens: int
) -> tuple[str, float]:
    """The name of the measure that the best state is chosen by, and its value on held-out examples, 0 to 1."""
    measure = MAIN_MEASURE[prompts.task]
    answers = answer_with_model(backbone, prompts, examples, forward_tokens=forward_tokens)
    return measure, point_measures(prompts.task, answers, examples)[measure]


def _rank_full_catalog(
    backbone: Backbone,
    prompts: Prompts,
    examples: Sequence[Example],
    *,
    trie: catalog_ranking.Trie,
    full_catalog: FullCatalog,
) -> Answers:
    x = [prompts.prompt(example) for example in examples]
    targets = [prompts.chosen(example) for example in examples]
    is_candidate = [full_catalog.is_candidate(example) for example in examples]
    places = catalog_ranking.places(backbone, prompts.images, x, targets, trie, is_candidate)
    return Answers(places=np.column_stack(places))


def _answer_batch(backbone: Backbone, prompts: Prompts, examples: Sequence[Example]) -> Answers:
    if prompts.task == "yesno":
        both = [[prompts.answers["Yes"], prompts.answers["No"]] for _ in examples]
        yes, no = _scores(backbone, prompts, [prompts.prompt(example) for example in examples], both).T
        return Answers(scores=(1 / (1 + np.exp(np.clip(no - yes, -700, 700))))[:, None], hard=(yes > no).astype(int))
    if prompts.task == "next":
        responses = [[prompts.name([item]) for item in example.candidates] for example in examples]
        return Answers(scores=_scores(backbone, prompts, [prompts.prompt(example) for example in examples], responses))
    lists = np.empty((len(examples), 0), dtype=int)
    for place in range(3):
        left = [[item for item in e.candidates if item not in taken] for e, taken in zip(examples, lists)]
        x = [prompts.prompt(example, taken.tolist()) for example, taken in zip(examples, lists)]
        responses = [[prompts.name([item], last=place == 2) for item in items] for items in left]
        best = _scores(backbone, prompts, x, responses).argmax(axis=1)
        lists = np.column_stack([lists, [items[b] for items, b in zip(left, best)]])
    return Answers(lists=lists)


def _scores(backbone: Backbone, prompts: Prompts, x: list, responses: list) -> np.ndarray:
    return score(backbone, prompts.images, x, responses).view(len(x), -1).double().cpu().numpy()


def measures_by_length(
    task: str, answers: Mapping[str, Answers], examples: Sequence[Example]
) -> dict[int, dict[str, dict[str, float]]]:
    """Every measure of every method, apart for each length of history: {length: {method: {measure: value}}}."""
    lengths = np.array([len(example.history) for example in examples])
    groups = {}
    for length in sorted(set(lengths.tolist())):
        rows = np.flatnonzero(lengths == length)
        group = [examples[int(row)] for row in rows]
        groups[length] = {method: point_measures(task, each.take(rows), group) for method, each in answers.items()}
    return groups


def user_measures(task: str, answers: Answers, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """One number an example and metric, [U], of the tasks next and top3. The measures of yes/no belong to all users
    together, see `measures`."""
    if answers.lists is not None:
        targets = np.array([example.targets for example in examples])
        return {
            "HR@3": metrics.list_hit_rate(answers.lists, targets),
            "NDCG@3": metrics.list_ndcg(answers.lists, targets),
        }
    if answers.places is not None:
        ahead, tied = answers.places.T
        return {
            **{f"HR@{k}": metrics.hit_rate(ahead, tied, k) for k in FULL_CUTOFFS},
            **{f"NDCG@{k}": metrics.ndcg(ahead, tied, k) for k in FULL_CUTOFFS},
        }
    assert task == "next" and answers.scores is not None
    target = np.array([example.candidates.index(example.targets[0]) for example in examples])
    ahead, tied = metrics.positions(answers.scores, target)
    return {
        **{f"HR@{k}": metrics.hit_rate(ahead, tied, k) for k in CUTOFFS},
        **{f"NDCG@{k}": metrics.ndcg(ahead, tied, k) for k in CUTOFFS[1:]},
        "MRR": metrics.reciprocal_rank(ahead, tied),
    }


def point_measures(task: str, answers: Answers, examples: Sequence[Example]) -> dict[str, float]:
    """The value of every measure of a task. Those of yes/no are "AUC" from probabilities, and "AUC hard" from the
    answers Yes and No, as the authors compute it."""
    if task != "yesno":
        return {name: float(values.mean()) for name, values in user_measures(task, answers, examples).items()}
    labels = np.array([example.candidates[0] in example.targets for example in examples])
    return {name: metrics.auc(column, labels) for name, column in _yesno_columns(answers).items()}


def measures(task: str, answers: Answers, examples: Sequence[Example]) -> dict[str, tuple[float, float, float]]:
    """Every measure of a task as (value, low, high): the interval is a bootstrap over users at 95 %."""
    if task != "yesno":
        values = user_measures(task, answers, examples)
        return {name: (float(v.mean()), *metrics.bootstrap_interval(v)) for name, v in values.items()}
    labels = np.array([example.candidates[0] in example.targets for example in examples])
    result = {}
    for name, column in _yesno_columns(answers).items():

        def statistic(users: np.ndarray, column: np.ndarray = column) -> float:
            rows = np.concatenate([2 * users, 2 * users + 1])  # a user is a Yes row and a No row
            return metrics.auc(column[rows], labels[rows])

        interval = metrics.bootstrap_interval(np.zeros(len(labels) // 2), statistic=statistic, samples=300)
        result[name] = (metrics.auc(column, labels), *interval)
    return result


def _yesno_columns(answers: Answers) -> dict[str, np.ndarray]:
    assert answers.scores is not None
    columns = {"AUC": answers.scores[:, 0]}
    return columns if answers.hard is None else columns | {"AUC hard": answers.hard}
