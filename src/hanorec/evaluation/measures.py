"""From answers to measures: what a recommender answered, one number a user and metric, and intervals.

In: `Answers` to examples, from a model or a baseline (`ranking`). Out: the measures of their task, for each example,
for all of them with 95 % intervals, and by the length of the history. With the protocol "release" the measures of
top-3 lists count the newest target alone, which stands first, as the authors' release does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hanorec.data.examples import Example
from hanorec.evaluation import catalog_ranking, metrics

FIRST_MEASURE = {"next": "HR@1", "top3": "HR@3", "yesno": "AUC"}  # what a table shows first, with its interval
MAIN_MEASURE = {"next": "NDCG@10", "top3": "NDCG@3", "yesno": "AUC"}  # what the best state is chosen by
CUTOFFS = (1, 3, 5, 10)  # ranks counted among listed candidates
FULL_CUTOFFS = (10, 20, catalog_ranking.DEPTH)  # and among the whole catalogue


class Answers(NamedTuple):
    """What a recommender answered to U examples; a field is None where it does not belong to the task."""

    scores: np.ndarray | None = None  # [U, C] next: one a candidate. [U, 1] yesno: p(Yes) of the one candidate
    ranks: np.ndarray | None = None  # [U, 2] next, whole catalogue: items ahead of the target, items tied with it
    lists: np.ndarray | None = None  # [U, 3] top3: item indices, best first
    hard: np.ndarray | None = None  # [U] yesno: 1 where the answer is Yes

    def take(self, indices: np.ndarray) -> Answers:
        """The answers to some of the examples."""
        return Answers(*(None if field is None else field[indices] for field in self))


def examples_by_length(lengths: Sequence[int]) -> dict[str, np.ndarray]:
    """Which examples have a history of how many items, shortest first: {"3": indices}. lengths: of each history.

    More than six lengths are put together by fives (or tens, …), so that at most five are left: {"6 to 10": indices}.
    """
    items = np.asarray(lengths)
    width = 5 * math.ceil(items.max() / 25) if len(np.unique(items)) > 6 else 1
    group_of = (items - 1) // width
    groups = {}
    for group in np.unique(group_of):
        indices = np.flatnonzero(group_of == group)
        low, high = items[indices].min(), items[indices].max()
        groups[str(low) if low == high else f"{low} to {high}"] = indices
    return groups


def measures_by_length(
    task: str,
    answers: Mapping[str, Answers],
    examples: Sequence[Example],
    groups: Mapping[str, np.ndarray],
    protocol: str = "standard",
) -> dict[str, dict[str, dict[str, float]]]:
    """Every measure of every method in each group of `examples_by_length`: {length: {method: {measure: value}}}."""
    by_length = {}
    for length, indices in groups.items():
        of_length = [examples[int(index)] for index in indices]
        by_length[length] = {
            method: point_measures(task, each.take(indices), of_length, protocol) for method, each in answers.items()
        }
    return by_length


def user_measures(
    task: str, answers: Answers, examples: Sequence[Example], protocol: str = "standard"
) -> dict[str, np.ndarray]:
    """One number an example and metric, [U], of the tasks next and top3. The measures of yes/no belong to all users
    together, see `measures`."""
    if answers.lists is not None:
        targets = np.array([example.targets[:1] if protocol == "release" else example.targets for example in examples])
        return {
            "HR@3": metrics.list_hit_rate(answers.lists, targets),
            "NDCG@3": metrics.list_ndcg(answers.lists, targets),
        }
    ahead, tied = target_positions(answers, examples)
    if answers.ranks is not None:
        return {
            **{f"HR@{k}": metrics.hit_rate(ahead, tied, k) for k in FULL_CUTOFFS},
            **{f"NDCG@{k}": metrics.ndcg(ahead, tied, k) for k in FULL_CUTOFFS},
        }
    return {
        **{f"HR@{k}": metrics.hit_rate(ahead, tied, k) for k in CUTOFFS},
        **{f"NDCG@{k}": metrics.ndcg(ahead, tied, k) for k in CUTOFFS[1:]},
        "MRR": metrics.reciprocal_rank(ahead, tied),
    }


def target_positions(answers: Answers, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
    """How many candidates are ahead of each target of the task next and how many are tied with it, [U] each."""
    if answers.ranks is not None:
        ahead, tied = answers.ranks.T
        return ahead, tied
    assert answers.scores is not None
    target = np.array([example.candidates.index(example.targets[0]) for example in examples])
    return metrics.positions(answers.scores, target)


def point_measures(
    task: str, answers: Answers, examples: Sequence[Example], protocol: str = "standard"
) -> dict[str, float]:
    """The value of every measure of a task. Those of yes/no are "AUC" from probabilities, and "AUC hard" from the
    answers Yes and No, as the authors compute it."""
    if task != "yesno":
        of_users = user_measures(task, answers, examples, protocol)
        return {name: float(values.mean()) for name, values in of_users.items()}
    labels = np.array([example.candidates[0] in example.targets for example in examples])
    return {name: metrics.auc(column, labels) for name, column in _yesno_columns(answers).items()}


def measures(
    task: str, answers: Answers, examples: Sequence[Example], protocol: str = "standard"
) -> dict[str, tuple[float, float, float]]:
    """Every measure of a task as (value, low, high): the interval is a bootstrap over users at 95 %. A resample whose
    true answers are all Yes or all No (only possible where a user is one example) counts as an AUC of 0.5."""
    if task != "yesno":
        values = user_measures(task, answers, examples, protocol)
        return {name: (float(v.mean()), *metrics.bootstrap_interval(v)) for name, v in values.items()}
    labels = np.array([example.candidates[0] in example.targets for example in examples])
    # A user is an example with the answer Yes and one with No, or with the release's protocol one of them.
    examples_of_users = np.arange(len(labels)).reshape(-1, 1 if protocol == "release" else 2)
    result = {}
    for name, column in _yesno_columns(answers).items():

        def statistic(users: np.ndarray, column: np.ndarray = column) -> float:
            indices = examples_of_users[users].ravel()
            return metrics.auc(column[indices], labels[indices]) if len(set(labels[indices])) == 2 else 0.5

        interval = metrics.bootstrap_interval(np.zeros(len(examples_of_users)), statistic=statistic, samples=300)
        result[name] = (metrics.auc(column, labels), *interval)
    return result


def _yesno_columns(answers: Answers) -> dict[str, np.ndarray]:
    assert answers.scores is not None
    columns = {"AUC": answers.scores[:, 0]}
    return columns if answers.hard is None else columns | {"AUC hard": answers.hard}
