"""Where tokens stand and what they see when prompts that begin alike and their responses share one sequence.

In: prompts and their responses as token ids, and the `Layout` of a model family. Out: `Packed`, whose tensors a model's
forward takes. A sequence is

    [padding][trunk][the branches and their responses as a tree][padding]

The trunk is what the prompts of a sequence have in common: a whole prompt, behind which its responses stand, or, with
nested windows, a user's row, which a branch leaves behind each item with a question of its own. A token sees the
tokens before it in its own prompt and response, and its position is the one it has there. So the result equals the
plain forward over each prompt + response, while trunk and common beginnings are read once. A response's last token is
predicted and never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hanorec.models.layout import Layout

COMMON = Layout()  # causal, positions 0, 1, 2, …


class Branch(NamedTuple):
    """A prompt that leaves a trunk behind its first `end` tokens and goes on with `ids`, which show the images of
    `image_items`."""

    end: int
    ids: list[int]
    image_items: list[int] = []


class Prompt(NamedTuple):
    """Token ids with image placeholders, and the items whose image features fill these, in order: a prompt, or the
    trunk of several, its `branches`."""

    ids: list[int]
    image_items: list[int]
    branches: tuple[Branch, ...] = ()

    @property
    def leaves(self) -> tuple[Branch, ...]:
        """Where responses stand: behind each branch, or behind the prompt itself."""
        return self.branches or (Branch(len(self.ids), []),)

    @property
    def length(self) -> int:
        """Tokens of trunk and branches."""
        return len(self.ids) + sum(len(branch.ids) for branch in self.branches)

    @property
    def all_image_items(self) -> list[int]:
        """The items whose images trunk and branches show, in the order of their placeholders in a packed sequence."""
        return self.image_items + [item for branch in self.branches for item in branch.image_items]


class Tree(NamedTuple):
    """The responses to one prompt as a tree, which holds their common beginnings once.

    Nodes are the tokens to be read, parents first; node -1 is the prompt's last token. Each of the responses' M tokens
    is predicted at a node.
    """

    tokens: list[int]  # the token of every node
    parents: list[int]  # the node before it
    nodes: list[int]  # [M] the node at which a response's token is predicted
    labels: list[int]  # [M] that token
    response: list[int]  # [M] the number of its response


class Packed(NamedTuple):
    """B sequences of L columns, whose responses have M tokens in all; on the CPU."""

    input_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, 1, L, L] bool: whether row sees column. From `unpacked` [B, L]: whether no padding
    position_ids: Tensor | None  # [B, L], or [3, B, L] where they have three axes. None: the model computes them
    offsets: Tensor  # [B, L] how many tokens of its own prompt + response stand before a token
    row: Tensor  # [M] the sequence, and
    column: Tensor  # [M] the column, at which each response token is predicted
    labels: Tensor  # [M] that token
    response: Tensor  # [M] the number of its response, counted prompt by prompt


def tree(responses: Sequence[Sequence[int]]) -> Tree:
    """Lay the responses to one prompt out as a tree."""
    children: dict[tuple[int, int], int] = {}
    built = Tree([], [], [], [], [])
    for number, response in enumerate(responses):
        node = -1
        for length, token in enumerate(response, 1):
            built.nodes.append(node)
            built.labels.append(token)
            built.response.append(number)
            if length < len(response):
                parent, node = node, children.setdefault((node, token), len(children))
                if node == len(built.tokens):
                    built.tokens.append(token)
                    built.parents.append(parent)
    return built


def pack(
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Sequence[int]]],
    *,
    pad: int,
    start: int | None = None,
    layout: Layout = COMMON,
    grids: Sequence[Tensor | None] | None = None,
) -> Packed:
    """Lay out each of B prompts with its branches and responses in one sequence.

    responses: each prompt's, those of one branch after those of another, as many for every branch.
    pad: the token id of padding.
    start: the column at which all trunks end and their trees begin; by default the longest trunk's length.
    grids: the patch grids of the images of each prompt (`Prompt.all_image_items`), [images, 3], where positions have
        three axes.
    Errors: ValueError for no prompts, an empty prompt, a response without tokens, responses that branches cannot share
        evenly, or branches where a prompt sees all of itself.
    """
    check_filled(prompts, responses)
    if layout.visibility == "prefix" and any(prompt.branches for prompt in prompts):
        raise ValueError("prompts: each sees all of itself, so that they cannot be branches of one trunk")
    forests = [[tree(share) for share in shares(prompt, answers)] for prompt, answers in zip(prompts, responses)]
    start = max(len(prompt.ids) for prompt in prompts) if start is None else start
    columns = start + max(map(tokens_behind, prompts, forests))

    input_ids = np.full((len(prompts), columns), pad)
    offsets = np.zeros_like(input_ids)
    positions = np.zeros((3 if layout.axes else 1, *input_ids.shape), dtype=input_ids.dtype)
    mask = np.zeros((len(prompts), 1, columns, columns), dtype=bool)
    mask[:, 0] = np.eye(columns, dtype=bool)  # padding sees itself: a softmax needs something
    row, column, labels, response, number = [], [], [], [], 0
    for b, (prompt, trees) in enumerate(zip(prompts, forests)):
        sequence = SequenceBuilder(layout, input_ids[b], offsets[b], positions[:, b], mask[b, 0])
        first, free = start - len(prompt.ids), start
        left = grids[b] if grids else None  # the grids of the images that are not yet laid out
        sequence.add_prompt(prompt.ids, first, None, None if left is None else left[: len(prompt.image_items)])
        left = None if left is None else left[len(prompt.image_items) :]
        for branch, t in zip(prompt.leaves, trees):
            last = first + branch.end - 1
            if branch.ids:
                sequence.add_prompt(branch.ids, free, last, None if left is None else left[: len(branch.image_items)])
                left = None if left is None else left[len(branch.image_items) :]
                free += len(branch.ids)
                last = free - 1
            columns_of_nodes = sequence.add_tree(t, free, last)
            free += len(t.tokens)
            row += [b] * len(t.nodes)
            column += columns_of_nodes[t.nodes].tolist()
            labels += t.labels
            response += [number + in_tree for in_tree in t.response]
            number = response[-1] + 1
    positions = positions if layout.axes else positions[0]
    tensors = map(torch.from_numpy, (input_ids, mask, positions, offsets))
    return Packed(*tensors, *map(torch.tensor, (row, column, labels, response)))


class SequenceBuilder:
    """One sequence of L columns while it is filled: token ids [L], offsets [L], positions [1 or 3, L], what each column
    sees [L, L] and the highest position that it has reached [L]."""

    def __init__(
        self, layout: Layout, ids: np.ndarray, offsets: np.ndarray, positions: np.ndarray, visible: np.ndarray
    ):
        self.layout, self.ids, self.offsets, self.positions, self.visible = layout, ids, offsets, positions, visible
        self.reached = np.zeros_like(ids)

    def add_prompt(self, ids: list[int], at: int, behind: int | None, grids: Tensor | None) -> None:
        """Write a trunk, or a branch behind the column `behind`, into the columns from `at`."""
        here = slice(at, at + len(ids))
        self.ids[here], self.offsets[here] = ids, np.arange(len(ids))
        self.positions[:, here] = self.layout.positions(ids, grids)
        self.visible[here, here] = self.layout.prompt_mask(ids)
        if behind is not None:
            self.offsets[here] += self.offsets[behind] + 1
            self.positions[:, here] += self.reached[behind] + 1 - self.layout.first
            self.visible[here] |= self.visible[behind]
        self.reached[here] = np.maximum.accumulate(self.positions[:, here].max(axis=0))

    def add_tree(self, t: Tree, at: int, behind: int) -> np.ndarray:
        """Write a tree behind the column `behind` into the columns from `at`; returns the columns of its nodes, that of
        node -1 at the end."""
        columns = np.array([*range(at, at + len(t.tokens)), behind])
        self.ids[at : at + len(t.tokens)] = t.tokens
        for column, parent in enumerate(columns[t.parents].tolist(), at):
            self.offsets[column] = self.offsets[parent] + 1
            self.positions[:, column] = self.reached[column] = self.reached[parent] + 1  # behind all of the prompt
            self.visible[column] |= self.visible[parent]
        return columns


def shares(prompt: Prompt, responses: Sequence[Sequence[int]]) -> list[Sequence[Sequence[int]]]:
    """The responses of each of a prompt's branches; all of them where there are no branches.

    Errors: ValueError where the branches cannot share them evenly.
    """
    size, rest = divmod(len(responses), len(prompt.leaves))
    if rest:
        raise ValueError(f"responses: {len(responses)} of them for {len(prompt.leaves)} branches")
    return [responses[at : at + size] for at in range(0, len(responses), size)]


def tokens_behind(prompt: Prompt, trees: Sequence[Tree]) -> int:
    """How many columns branches and responses take behind a trunk."""
    return sum(len(branch.ids) + len(t.tokens) for branch, t in zip(prompt.leaves, trees))


def check_filled(prompts: Sequence[Prompt], responses: Sequence[Sequence[Sequence[int]]]) -> None:
    """Errors: ValueError for no prompts, an empty prompt, or a response without tokens."""
    if not prompts or len(prompts) != len(responses):
        raise ValueError(f"prompts: {len(prompts)} of them with {len(responses)} lists of responses")
    if any(not prompt.ids for prompt in prompts) or any(not answer for answers in responses for answer in answers):
        raise ValueError("prompts and responses: each needs at least one token")
