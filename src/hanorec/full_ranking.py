"""Where a user's next item stands among the whole catalogue, without scoring the whole catalogue.

In: prompts, each with its target, and every title as a path in a `Trie` of tokens. Out: how many items are likelier
than the target, exact up to `DEPTH`. Reading a node of the trie gives the log-probabilities of all its children at
once, and a title is never likelier than its beginning. So a beginning less likely than the target's whole title need
not be read on: the search reads the likeliest beginnings first, and ends when none is left above the target or when
DEPTH items are ahead of it. A prompt's keys and values are read once and stay; each node adds its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from transformers import DynamicCache

from hanorec.images import ImageEncoder, image_outputs
from hanorec.scoring import Prompt, additive, pack

DEPTH = 50  # the last place that any measure asks for
WIDTH = 16  # nodes of a user's that are read in one forward


class Trie:
    """Token sequences as a tree: `children[node]` maps a token to a node, `items[node]` are those that end there.
    Node 0 is the root; items of the same tokens end at the same node."""

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
        """The tokens that go on from a node, and the nodes they lead to."""
        if node not in self._arrays:
            on = self.children[node]
            self._arrays[node] = np.fromiter(on.keys(), int, len(on)), np.fromiter(on.values(), int, len(on))
        return self._arrays[node]

    def path(self, tokens: Sequence[int]) -> list[int]:
        """The nodes that a sequence of the trie goes through, the last one its end."""
        nodes = [0]
        for token in tokens:
            nodes.append(self.children[nodes[-1]][token])
        return nodes[1:]


class Node(NamedTuple):
    """A beginning that is worth reading on; the likeliest is the least."""

    cost: float  # -log-probability of the beginning
    node: int
    token: int
    columns: tuple[int, ...]  # where the tokens before it stand in the sequence, after the prompt


class Search:
    """One user's search: the target's log-probability, the items ahead of it, the beginnings still to be read."""

    def __init__(self, trie: Trie, target: Sequence[int], allowed: Callable[[int], bool]):
        self.trie, self.allowed = trie, allowed
        self.path = trie.path(target)
        self.floor, self.ahead, self.tied = -np.inf, 0, 0
        self.open: list[Node] = []

    def start(self, target: Sequence[int], first_column: int, logps: np.ndarray) -> None:
        """logps [len(target), V]: next-token log-probabilities after the prompt and after each token of the target but
        its last; token k stands in column first_column + k."""
        along = np.cumsum(logps[np.arange(len(target)), list(target)], dtype=np.float64)
        self.floor = float(along[-1])
        self.tied = sum(map(self.allowed, self.trie.items[self.path[-1]]))
        columns = tuple(range(first_column, first_column + len(target) - 1))
        for place, node in enumerate([0, *self.path[:-1]]):
            before = float(along[place - 1]) if place else 0.0
            self.read(node, before, columns[:place], logps[place], known=self.path[place])

    def read(self, node: int, logp: float, columns: tuple[int, ...], logps: np.ndarray, known: int = -1) -> None:
        """Take in a node's next-token log-probabilities [V]. columns: of the tokens up to it. known: the child that is
        already followed."""
        tokens, children = self.trie.below(node)
        totals = logp + logps[tokens].astype(np.float64)
        for k in np.flatnonzero((totals >= self.floor) & (children != known)).tolist():
            ending = sum(map(self.allowed, self.trie.items[children[k]]))
            if totals[k] > self.floor:
                self.ahead += ending
            else:
                self.tied += ending
            if self.trie.children[children[k]]:
                heapq.heappush(self.open, Node(-totals[k], int(children[k]), int(tokens[k]), columns))

    def likeliest(self) -> list[Node]:
        """The nodes to read next; none where the target's place is known."""
        return [heapq.heappop(self.open) for _ in range(min(WIDTH, len(self.open)))] if self.ahead < DEPTH else []


@torch.no_grad()
def places(
    encoder: ImageEncoder,
    prompts: Sequence[Prompt],
    targets: Sequence[Sequence[int]],
    trie: Trie,
    allowed: Sequence[Callable[[int], bool]],
) -> tuple[np.ndarray, np.ndarray]:
    """How many items are ahead of each target ([B], at least DEPTH means any number from there), and how many others
    have its very title ([B]).

    targets: the target's tokens for each prompt, in the trie. allowed: for each prompt whether an item counts, false
    for the target itself.
    """
    backbone = encoder.backbone
    model, device = backbone.model, backbone.device
    packed = pack(prompts, [[target] for target in targets], pad=backbone.pad)
    cache, start = DynamicCache(), max(len(prompt.ids) for prompt in prompts)
    output = model(
        input_ids=packed.input_ids.to(device),
        attention_mask=additive(packed.attention_mask, model.dtype).to(device),
        position_ids=packed.position_ids.to(device),
        logits_to_keep=packed.input_ids.shape[1] - start + 1,  # the prompt's last token and the target's
        past_key_values=cache,
        use_cache=True,
        **image_outputs(encoder.features([item for prompt in prompts for item in prompt.images])),
    )
    searches = [Search(trie, target, test) for target, test in zip(targets, allowed)]
    logps = output.logits.float().log_softmax(-1).cpu().numpy()
    for search, target, rows in zip(searches, targets, logps):
        search.start(target, start, rows[: len(target)])

    in_prompt = packed.attention_mask[:, 0, start - 1, :start]  # [B, columns of the prompt]
    while any(chosen := [search.likeliest() for search in searches]):
        width, read = max(map(len, chosen)), cache.get_seq_length()
        ids = torch.full((len(searches), width), backbone.pad)
        positions = torch.zeros_like(ids)
        visible = torch.zeros(len(searches), 1, width, read + width, dtype=torch.bool)
        visible[:, 0, :, read:] = torch.eye(width, dtype=torch.bool)
        for b, nodes in enumerate(chosen):
            for k, node in enumerate(nodes):
                ids[b, k], positions[b, k] = node.token, len(prompts[b].ids) + len(node.columns)
                visible[b, 0, k, :start] = in_prompt[b]
                visible[b, 0, k, list(node.columns)] = True
        output = model(
            input_ids=ids.to(device),
            attention_mask=additive(visible, model.dtype).to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
        )
        logps = output.logits.float().log_softmax(-1).cpu().numpy()
        for search, nodes, rows in zip(searches, chosen, logps):
            for k, (node, row) in enumerate(zip(nodes, rows)):
                search.read(node.node, -node.cost, (*node.columns, read + k), row)
    return np.array([search.ahead for search in searches]), np.array([search.tied for search in searches])
