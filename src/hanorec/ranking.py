"""From examples to measures: every candidate scored by its exact log-likelihood, then the metrics.

In: examples and something that scores their candidates (the model, or a baseline). Out: what a model answered
(`Answers`) and, from it, one number a user and metric. A response's score is the log-probability of the whole
title and its end, so no title wins because it is the beginning of another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from hanorec import metrics
from hanorec.preferences import Example
from hanorec.prompts import Prompts
from hanorec.scoring import score

MAIN_MEASURE = {"next": "NDCG@10", "top3": "NDCG@3", "yesno": "AUC"}  # what the best state is chosen by


class Answers(NamedTuple):
    """What a recommender answered to U examples; None where the task does not ask for it."""

    scores: np.ndarray | None = None  # [U, C] next: one a candidate. [U, 1] yesno: of the item asked about
    lists: np.ndarray | None = None  # [U, 3] top3: item indices, best first
    hard: np.ndarray | None = None  # [U] yesno: 1 where the answer is Yes

    def take(self, rows: np.ndarray) -> Answers:
        """The answers to some of the examples."""
        return Answers(*(None if part is None else part[rows] for part in self))


def ask_scorer(scorer: Callable[[Example], np.ndarray], examples: Sequence[Example], task: str) -> Answers:
    """The answers of a baseline or oracle, which scores candidates. In top-3 lists ties fall at random."""
    scores = np.stack([scorer(example) for example in examples])
    if task != "top3":
        return Answers(scores=scores)
    candidates = np.array([example.candidates for example in examples])
    shuffled = np.random.default_rng(0).random(scores.shape)
    order = np.lexsort((shuffled, -scores))[:, :3]
    return Answers(lists=np.take_along_axis(candidates, order, axis=1))


@torch.no_grad()
def ask_model(prompts: Prompts, examples: Sequence[Example], *, batch_size: int = 16, progress: str = "") -> Answers:
    """The answers of the model, noise and dropout off.

    Top-3 lists are written one place after the other: the likeliest title, then the likeliest after it, …
    """
    model = prompts.encoder.backbone.model
    was_training = model.training
    model.eval()
    starts = tqdm(range(0, len(examples), batch_size), desc=progress, unit="batch", disable=not progress, leave=False)
    parts = [_ask_batch(prompts, examples[start : start + batch_size]) for start in starts]
    model.train(was_training)
    return Answers(*(None if part[0] is None else np.concatenate(part) for part in zip(*parts)))


def _ask_batch(prompts: Prompts, examples: Sequence[Example]) -> Answers:
    if prompts.task == "yesno":
        both = [[prompts.answers["Yes"], prompts.answers["No"]] for _ in examples]
        yes, no = _scores(prompts, [prompts.prompt(example) for example in examples], both).T
        return Answers(scores=(1 / (1 + np.exp(np.clip(no - yes, -700, 700))))[:, None], hard=(yes > no).astype(int))
    if prompts.task == "next":
        responses = [[prompts.name([item]) for item in example.candidates] for example in examples]
        return Answers(scores=_scores(prompts, [prompts.prompt(example) for example in examples], responses))
    lists = np.empty((len(examples), 0), dtype=int)
    for place in range(3):
        left = [[item for item in e.candidates if item not in taken] for e, taken in zip(examples, lists)]
        asked = [prompts.prompt(example, taken) for example, taken in zip(examples, lists)]
        responses = [[prompts.name([item], last=place == 2) for item in items] for items in left]
        best = _scores(prompts, asked, responses).argmax(axis=1)
        lists = np.column_stack([lists, [items[b] for items, b in zip(left, best)]])
    return Answers(lists=lists)


def _scores(prompts: Prompts, asked: list, responses: list) -> np.ndarray:
    return score(prompts.encoder, asked, responses).view(len(asked), -1).double().cpu().numpy()


def user_measures(task: str, answers: Answers, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """One number an example and metric, [U]; yes/no measures belong to all users together, see `measures`."""
    targets = np.array([example.targets for example in examples])
    if task == "top3":
        return {
            "HR@3": metrics.list_hit_rate(answers.lists, targets),
            "NDCG@3": metrics.list_ndcg(answers.lists, targets),
        }
    target = np.array([example.candidates.index(example.targets[0]) for example in examples])
    ahead, tied = metrics.positions(answers.scores, target)
    return {
        **{f"HR@{k}": metrics.hit_rate(ahead, tied, k) for k in (1, 3, 5, 10)},
        **{f"NDCG@{k}": metrics.ndcg(ahead, tied, k) for k in (3, 5, 10)},
        "MRR": metrics.reciprocal_rank(ahead, tied),
    }


def point_measures(task: str, answers: Answers, examples: Sequence[Example]) -> dict[str, float]:
    """Every measure of a task. Yes/no: "AUC" from probabilities, "AUC hard" from the answers Yes and No, as the
    authors compute it."""
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
    columns = {"AUC": answers.scores[:, 0]}
    return columns if answers.hard is None else columns | {"AUC hard": answers.hard}
