"""From examples to answers: every candidate scored by its exact log-likelihood.

In: examples and something that scores their candidates, a model or a baseline. Out: its `Answers`, which `measures`
takes. A response's score is the log-probability of the whole title and its end, so no title wins because it is a prefix
of another. The candidates are those of the example, or the whole catalogue (`FullCatalog`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from hanorec import distributed
from hanorec.data.batching import batches
from hanorec.data.examples import Example
from hanorec.data.full_catalog import FullCatalog
from hanorec.errors import DataError
from hanorec.evaluation import catalog_ranking, metrics
from hanorec.evaluation.measures import MAIN_MEASURE, Answers, point_measures
from hanorec.models.backbone import Backbone
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score


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
        ranks = []
        for example in examples:
            scores = scorer(replace(example, candidates=full_catalog.candidates(example)))
            ranks.append([counts[0] for counts in metrics.positions(scores[None], [0])])
        return Answers(ranks=np.array(ranks))
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

    A top-3 list is written one title after the other: the likeliest, then the likeliest behind it, and so on.
    forward_tokens: most tokens in a forward. full_catalog: rank the whole catalogue (task next). progress: what a
    progress bar says; without it there is none. Errors: DataError where a model whose responses cannot be packed is to
    rank the whole catalogue.
    """
    model = backbone.model
    was_training = model.training
    model.eval()
    if full_catalog is not None and backbone.layout.why_unpacked:
        raise DataError(f"candidates all: needs packed responses, but {backbone.layout.why_unpacked}")
    if full_catalog is None:
        lengths = [prompts.length(prompts.prompt(e), [prompts.name([item]) for item in e.candidates]) for e in examples]
        answer_batch = _answer_batch
    else:
        titles = full_catalog.pool.union(*(e.targets for e in examples))
        longest = max(titles, key=lambda item: len(prompts.titles[item]))  # it has to fit behind each prompt, too
        x = [prompts.prompt(replace(example, candidates=(longest,))) for example in examples]
        lengths = [2 * prompts.length(prompt, ()) for prompt in x]  # half of it for what the search reads
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
    return measure, point_measures(prompts.task, answers, examples, prompts.protocol)[measure]


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
    ranks = catalog_ranking.target_ranks(backbone, prompts.images, x, targets, trie, is_candidate)
    return Answers(ranks=np.column_stack(ranks))


def _answer_batch(backbone: Backbone, prompts: Prompts, examples: Sequence[Example]) -> Answers:
    if prompts.task == "yesno":
        both = [[prompts.answers["Yes"], prompts.answers["No"]] for _ in examples]
        yes, no = _scores(backbone, prompts, [prompts.prompt(example) for example in examples], both).T
        return Answers(scores=(1 / (1 + np.exp(np.clip(no - yes, -700, 700))))[:, None], hard=(yes > no).astype(int))
    if prompts.task == "next":
        responses = [[prompts.name([item]) for item in example.candidates] for example in examples]
        return Answers(scores=_scores(backbone, prompts, [prompts.prompt(example) for example in examples], responses))
    lists = np.empty((len(examples), 0), dtype=int)
    x = [prompts.prompt(example) for example in examples]
    for rank in range(3):
        left = [[item for item in e.candidates if item not in taken] for e, taken in zip(examples, lists)]
        responses = [
            [prompts.name([*taken.tolist(), item], last=rank == 2) for item in items]
            for items, taken in zip(left, lists)
        ]
        best = _scores(backbone, prompts, x, responses).argmax(axis=1)
        lists = np.column_stack([lists, [items[b] for items, b in zip(left, best)]])
    return Answers(lists=lists)


def _scores(backbone: Backbone, prompts: Prompts, x: list, responses: list) -> np.ndarray:
    return score(backbone, prompts.images, x, responses).view(len(x), -1).cpu().double().numpy()
