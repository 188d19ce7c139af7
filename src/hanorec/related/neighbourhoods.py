"""An item's neighbourhood by more than its embedding: weak neighbours dropped, items that users choose together added.

In: every item's K nearest items (`hardness.nearest`) and the training histories. Out: tables of the same form, for the
hardness of pairs (Eq. 5) and for neighbour negatives. It is done in the manner of MLLMRec (arXiv 2508.15304), which
refines its item-item graph by a similarity threshold and by co-occurrence before a graph convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Changes(NamedTuple):
    """What a refinement changed."""

    threshold: float  # the smallest cosine for which a neighbour was kept
    edges: int  # of the K nearest of all items
    dropped: int  # edges that are gone
    added: int  # edges that are new

    def __str__(self) -> str:
        edges = f"{self.dropped} of {self.edges} edges dropped, {self.added} added"
        return f"refined neighbourhood, similarities of at least {self.threshold:.3f}: {edges}"


def refine(
    similarities: Tensor, neighbours: Tensor, histories: Sequence[Sequence[int]], *, threshold: float | None = None
) -> tuple[Tensor, Tensor, Changes]:
    """Every item's K neighbours of largest weight, where the weight of j for i is

        cos(i, j), if j is among the K nearest of i and cos(i, j) ≥ threshold, else 0
        + Jaccard(i, j), if j is among the K items of largest Jaccard index with i, else 0

    and Jaccard(i, j) = |U_i ∩ U_j| / |U_i ∪ U_j|, U_i being the users whose training history holds item i.

    MLLMRec's published code (src/models/mllmrec.py) adds up the same two graphs. It sets what is left of the first to 1
    and keeps both whole; here the cosine stays, and K neighbours in all, since Eq. 5 compares K similarities. Its graph
    is for a convolution, of which there is none here. Its threshold is tuned by dataset (0.4 to 0.7) on embeddings of
    descriptions that a language model wrote; other embeddings have cosines of another scale, hence the default.

    Args:
        similarities, neighbours: [items, K] as `hardness.nearest` returns them.
        histories: the items of every training user.
        threshold: in [0, 1]; None takes the median of `similarities` (0 if that is negative), which drops half of the
            edges, whatever their scale.
    Returns: the similarities, [items, K] descending, 0 where an item has fewer neighbours; whose they are, [items, K],
        -1 where there is none; and what changed.
    Errors: ValueError for a threshold out of range.
    """
    if threshold is None:
        threshold = max(0.0, similarities.median().item())
    elif not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a similarity from 0 to 1, got {threshold}")
    items, k = neighbours.shape
    weights, whose = torch.zeros_like(similarities), torch.full_like(neighbours, -1)
    dropped = added = 0
    graphs = zip(neighbours.tolist(), similarities.tolist(), chosen_together(histories, items, k), strict=True)
    for item, (nearest, cosines, together) in enumerate(graphs):
        weight = {other: cosine for other, cosine in zip(nearest, cosines) if cosine >= threshold}
        for other, jaccard in together.items():
            weight[other] = weight.get(other, 0.0) + jaccard
        strongest = sorted(weight, key=lambda other: -weight[other])[:k]
        weights[item, : len(strongest)] = torch.tensor([weight[other] for other in strongest])
        whose[item, : len(strongest)] = torch.tensor(strongest, dtype=torch.long)
        dropped += len(set(nearest) - set(strongest))
        added += len(set(strongest) - set(nearest))
    return weights, whose, Changes(threshold, neighbours.numel(), dropped, added)


def chosen_together(histories: Sequence[Sequence[int]], items: int, k: int) -> list[dict[int, float]]:
    """For every item the at most `k` others of largest Jaccard index with it, and that index, largest first.

    histories: the items of every user; items: how many there are in all. An item that nobody chose has none.
    """
    holding: list[list[np.ndarray]] = [[] for _ in range(items)]  # the histories that hold an item
    for history in histories:
        different = np.unique(history)
        for item in different:
            holding[item].append(different)
    users = np.array([len(own) for own in holding])
    result: list[dict[int, float]] = []
    for item, own in enumerate(holding):
        both = np.bincount(np.concatenate(own), minlength=items) if own else np.zeros(items, int)
        both[item] = 0  # no neighbour of its own
        others = np.flatnonzero(both)
        jaccard = both[others] / (users[item] + users[others] - both[others])
        largest = np.argsort(-jaccard, kind="stable")[:k]
        result.append(dict(zip(others[largest].tolist(), jaccard[largest].tolist())))
    return result
