"""Rejected items that the reference itself would name: draws from its own probabilities.

In: examples whose rejected items are a random pool, and the reference. Out: the same examples, with the rejected items
drawn from the pool by how likely the reference finds them and, if wanted, by how little an item's image agrees with its
title and with the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from hanorec.data.dataset import Dataset
from hanorec.data.examples import Example
from hanorec.errors import DataError
from hanorec.models.backbone import Backbone
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score_all
from hanorec.randomness import rng

POOL = 50  # random items that an example's negatives are drawn from


def pool_size(data: Dataset, rejected: int) -> int:
    """How many random items each example's negatives are drawn from: `POOL`, or as many as every user has not chosen.

    Errors: DataError where `rejected` negatives cannot be drawn from so many.
    """
    size = min(POOL, len(data.warm) - max(len(set(history.items)) for history in data.train))
    if size < rejected:
        raise DataError(f"{rejected} rejected items are to be drawn from {size}, which is all that some user leaves")
    return size


def policy_negatives(
    reference: Backbone,
    prompts: Prompts,
    examples: Sequence[Example],
    rejected: int,
    *,
    weights: str,
    candidates: int = 20,
    temperature: float = 1.0,
    modalities: tuple[Tensor, Tensor] | None = None,
    modality_weight: float = 1.0,
    forward_tokens: int = 8192,
    cache: Path | None = None,
    seed: int = 2025,
) -> list[Example]:
    """Draw rejected items of an example's pool without replacement, with probability ∝ exp(score),

        score = log π_ref(title | prompt) / T + w · c,    c of `modality_conflict`; 0 without `modalities`

    The second term is in the manner of M3PO (arXiv 2508.12458). Its M3P-Score joins the model's own log-probability
    with a multimodal alignment score, to reject what the model is confident of although it fits badly. Here the chosen
    response is known and needs no score; alignment is measured in the model's own input space, and rejected items are
    drawn from the scores, not the best ones taken.

    Args:
        examples: of the task "next", each with its pool as `rejected`, one item a response.
        rejected: number of items to draw for each.
        weights, forward_tokens, cache: as in `score_all`.
        candidates: number of items that a prompt may list afterwards; the target and the drawn ones are among them.
        temperature: T; small values draw what the reference finds likeliest, large ones any item of the pool.
        modalities: titles and images of the catalogue, as `hardness.embed_modalities` returns them.
        modality_weight: w, in nats; how much a standard deviation of agreement counts.
    Returns: the examples with `rejected` responses each, in the order in which their items were drawn.
    Errors: ValueError for another task; DataError for a pool of fewer than `rejected` items.
    """
    if prompts.task != "next":
        raise ValueError(f"policy negatives are titles of the task next; the task is {prompts.task}")
    pools = [[items[0] for items in example.rejected] for example in examples]
    if min(map(len, pools)) < rejected:
        raise DataError(f"{rejected} rejected items are to be drawn from a pool of {min(map(len, pools))}")
    x = [prompts.prompt(example) for example in examples]
    titles = [[prompts.name([item]) for item in pool] for pool in pools]
    logps = score_all(reference, prompts.images, x, titles, weights=weights, forward_tokens=forward_tokens, cache=cache)
    drawn = []
    for example, pool, row in zip(examples, pools, logps.view(len(examples), -1).numpy()):
        # The largest of log-probability / T + Gumbel noise are a draw without replacement (arXiv 1903.06059).
        noise = rng(seed, "policy negatives", example.user, *example.history).gumbel(size=len(pool))
        score = row / temperature
        if modalities is not None:
            score = score + modality_weight * modality_conflict(*modalities, pool, example.history)
        order = np.argsort(-(score + noise))
        items = [pool[place] for place in order]
        listed = {*example.targets, *items[: max(rejected, candidates - 1)]}
        shown = tuple(item for item in example.candidates if item in listed)
        drawn.append(replace(example, rejected=tuple((item,) for item in items[:rejected]), candidates=shown))
    return drawn


def modality_conflict(text: Tensor, image: Tensor, pool: Sequence[int], history: Sequence[int]) -> np.ndarray:
    """How little each item of a pool agrees with itself and with the history, by its image:

        c = −½ [z(cos(image, title)) + z(cos(image, mean image of the history))],  z = (value − mean) / deviation

    over the items of the pool that have an image, so that neither cosine's scale matters; 0 for an item without.

    Args:
        text, image: [items, width] of the catalogue, rows of length 1; an image row is 0 where there is none.
        pool, history: items, as rows of these.
    Returns: [pool].
    """
    own = image[list(pool)]
    shown = own.any(dim=1).numpy()
    with_title = (own * text[list(pool)]).sum(dim=1)
    with_history = own @ normalize(image[list(history)].mean(dim=0), dim=0)
    return -(_standard(with_title.numpy(), shown) + _standard(with_history.numpy(), shown)) / 2


def _standard(values: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Standard scores among the values counted; 0 for the others, and for all where these do not differ."""
    result = np.zeros(len(values))
    if counted.any() and (deviation := values[counted].std()) > 1e-6:
        result[counted] = (values[counted] - values[counted].mean()) / deviation
    return result
