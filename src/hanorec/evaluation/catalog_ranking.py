"""Where a user's next item stands among the whole catalogue, without scoring the whole catalogue.

In: prompts, each with its target, and every title as a path in a `Trie` of tokens. Out: how many items are likelier
than the target, exact up to `DEPTH`. Reading a node of the trie gives the log-probabilities of all its children at
once, and a title is never likelier than its prefix. So a prefix less likely than the target's whole title need
not be read on. The search reads the longest prefix first. It ends when no prefix is likelier than the target, or
when DEPTH items are ahead of the target. A prompt's keys and values are computed once.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from hanorec.models.backbone import Backbone
from hanorec.models.images import CatalogImages
from hanorec.models.inputs import packed_inputs
from hanorec.models.packing import Packed, Prompt
from hanorec.models.scoring import logits_at, pack_for

DEPTH = 50  # the last rank that any measure counts
PREFIXES_PER_FORWARD = 256  # of all users together


class Trie:
    """Titles as a tree of tokens: `children[node]` maps a token to a node, `items[node]` are the items whose titles end
    there. Node 0 is the root; items of the same title end at the same node."""

    def __init__(self, sequences: dict[int, Sequence[int]]):
        self.children: list[dict[int, int]] = [{}]
        self.items: list[list[int]] = [[]]
        for item, tokens in sequences.items():
            node = 0
            for token in tokens:
                node = self.children[node].setdefault(token, len(self.children))
                if node == len(self.children):
                    self.children.append({})
                    self.items.append([])
            self.items[node].append(item)
        self._arrays: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def below(self, node: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens that follow a node and the nodes that they lead to, [children] each."""
        if node not in self._arrays:
            on = self.children[node]
            self._arrays[node] = np.fromiter(on.keys(), int, len(on)), np.fromiter(on.values(), int, len(on))
        return self._arrays[node]

    def path(self, tokens: Sequence[int]) -> list[int]:
        """The nodes that a title's tokens lead through, less the root; the title ends at the last one."""
        nodes = [0]
        for token in tokens:
            nodes.append(self.children[nodes[-1]][token])
        return nodes[1:]


class Prefix(NamedTuple):
    """The first tokens of titles, still to be read on. The longest sorts first, and among them the likeliest: whatever
    is likelier than the target has to be read anyway, unless enough whole titles are found before."""

    minus_length: int
    cost: float  # -log-probability
    node: int
    tokens: tuple[int, ...]


class Search:
    """One user's search: the target's log-probability, the items ahead of it, the prefixes still to be read.

    logps [len(target), V]: next-token log-probabilities after the prompt and after each token of the target but its
    last. allowed: whether an item counts.
    """

    def __init__(self, trie: Trie, target: Sequence[int], logps: np.ndarray, allowed: Callable[[int], bool]):
        self.trie, self.allowed = trie, allowed
        path = trie.path(target)
        along = np.cumsum(logps[np.arange(len(target)), list(target)], dtype=np.float64)
        self.floor = float(along[-1])
        self.ahead, self.tied = 0, sum(map(allowed, trie.items[path[-1]]))
        self.open: list[Prefix] = []
        for length, node in enumerate([0, *path[:-1]]):
            before = float(along[length - 1]) if length else 0.0
            self.read(Prefix(-length, -before, node, tuple(target[:length])), logps[length], followed=path[length])

    def read(self, prefix: Prefix, logps: np.ndarray, followed: int = -1) -> None:
        """Take in the next-token log-probabilities [V] after a prefix. followed: the child that is known already."""
        tokens, children = self.trie.below(prefix.node)
        totals = logps[tokens].astype(np.float64) - prefix.cost
        for k in np.flatnonzero((totals >= self.floor) & (children != followed)).tolist():
            child = int(children[k])
            ending = sum(map(self.allowed, self.trie.items[child]))
            if totals[k] > self.floor:
                self.ahead += ending
            else:
                self.tied += ending
            if self.trie.children[child]:
                longer = (*prefix.tokens, int(tokens[k]))
                heapq.heappush(self.open, Prefix(-len(longer), -float(totals[k]), child, longer))

    def next(self, number: int) -> list[Prefix]:
        """The prefixes to read next; none where the target's rank is known."""
        return [heapq.heappop(self.open) for _ in range(min(number, len(self.open)))] if self.ahead < DEPTH else []


@torch.no_grad()
def target_ranks(
    backbone: Backbone,
    images: CatalogImages,
    prompts: Sequence[Prompt],
    targets: Sequence[Sequence[int]],
    trie: Trie,
    allowed: Sequence[Callable[[int], bool]],
) -> tuple[np.ndarray, np.ndarray]:
    """How many items are ahead of each target ([B], at least DEPTH means any number from there), and how many others
    have its very title ([B]).

    targets: each prompt's target as tokens, in the trie. allowed: for each prompt a test of whether an item counts,
    false for the target itself.
    """
    cache, start = DynamicCache(), max(len(prompt.ids) for prompt in prompts)
    packed = pack_for(backbone, images, prompts, [[target] for target in targets])
    features = images.outputs(backbone, [item for prompt in prompts for item in prompt.image_items])
    logps = iter(_next_logps(backbone, packed, packed.row, packed.column, cache, 0, features))
    searches = [
        Search(trie, target, np.stack([next(logps) for _ in target]), test) for target, test in zip(targets, allowed)
    ]
    active = list(range(len(searches)))  # whose prompts the cache holds
    while active:
        if cache.get_seq_length() > start:
            cache.crop(start - cache.get_seq_length())  # leaves the prompts alone
        chosen = [searches[b].next(max(1, PREFIXES_PER_FORWARD // len(active))) for b in active]
        unfinished = [i for i, prefixes in enumerate(chosen) if prefixes]
        if len(unfinished) < len(active):
            active, chosen = [active[i] for i in unfinished], [chosen[i] for i in unfinished]
            cache.batch_select_indices(torch.tensor(unfinished, device=backbone.device, dtype=torch.long))
        if active:
            # A response's last token is predicted and never read, so each prefix gets one more token, whose
            # distribution is the one wanted.
            responses = [[(*prefix.tokens, 0) for prefix in prefixes] for prefixes in chosen]
            packed = pack_for(backbone, images, [prompts[b] for b in active], responses, start=start)
            ends = torch.tensor([len(tokens) for of_prompt in responses for tokens in of_prompt]).cumsum(0) - 1
            logps = iter(_next_logps(backbone, packed, packed.row[ends], packed.column[ends], cache, start, {}))
            for b, prefixes in zip(active, chosen):
                for prefix in prefixes:
                    searches[b].read(prefix, next(logps))
    return np.array([search.ahead for search in searches]), np.array([search.tied for search in searches])


def _next_logps(
    backbone: Backbone, packed: Packed, row: Tensor, column: Tensor, cache: DynamicCache, first: int, features: dict
) -> np.ndarray:
    """Next-token log-probabilities at these positions, [positions, V]; columns before `first` are in the cache."""
    inputs = packed_inputs(packed, backbone.layout, backbone.device, backbone.compute, first)
    logits = logits_at(backbone, row, column - first, **inputs, **features, past_key_values=cache, use_cache=True)
    return logits.float().log_softmax(-1).cpu().numpy()
