"""Rejected items that the reference itself would name: draws from its own probabilities.

In: examples whose rejected items are a random pool, and the reference. Out: the same examples, with the rejected items
drawn from the pool by how likely the reference finds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from hanorec.data.examples import Example
from hanorec.data.interactions import rng
from hanorec.errors import DataError
from hanorec.models.backbone import Backbone
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score_all


def policy_negatives(
    reference: Backbone,
    prompts: Prompts,
    examples: Sequence[Example],
    rejected: int,
    *,
    weights: str,
    candidates: int = 20,
    temperature: float = 1.0,
    forward_tokens: int = 8192,
    cache: Path | None = None,
    seed: int = 2025,
) -> list[Example]:
    """Draw rejected items without replacement, with probability ∝ π_ref(title | prompt)^(1/T) over an example's pool.

    Args:
        examples: of the task "next", each with its pool as `rejected`, one item a response.
        rejected: number of items to draw for each.
        weights, forward_tokens, cache: as in `score_all`.
        candidates: number of items that a prompt may list afterwards; the target and the drawn ones are among them.
        temperature: T; small values draw what the reference finds likeliest, large ones any item of the pool.
    Returns: the examples with `rejected` responses each, in the order in which their items were drawn.
    Errors: DataError for another task, or a pool of fewer than `rejected` items.
    """
    if prompts.task != "next":
        raise DataError(f"--negatives policy: draws titles of the task next; the task is {prompts.task}")
    pools = [[items[0] for items in example.rejected] for example in examples]
    if min(map(len, pools)) < rejected:
        raise DataError(f"--negative-pool {min(map(len, pools))}: {rejected} rejected items are to be drawn from it")
    x = [prompts.prompt(example) for example in examples]
    titles = [[prompts.name([item]) for item in pool] for pool in pools]
    logps = score_all(reference, prompts.images, x, titles, weights=weights, forward_tokens=forward_tokens, cache=cache)
    drawn = []
    for example, pool, row in zip(examples, pools, logps.view(len(examples), -1).numpy()):
        # The largest of log-probability / T + Gumbel noise are a draw without replacement (arXiv 1903.06059).
        noise = rng(seed, "policy negatives", example.user, *example.history).gumbel(size=len(pool))
        order = np.argsort(-(row / temperature + noise))
        items = [pool[place] for place in order]
        listed = {*example.targets, *items[: max(rejected, candidates - 1)]}
        shown = tuple(item for item in example.candidates if item in listed)
        drawn.append(replace(example, rejected=tuple((item,) for item in items[:rejected]), candidates=shown))
    return drawn
