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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers, as the models' configs name them
VISIBILITIES = ("causal", "image", "prefix")  # see `Layout`


class Branch(NamedTuple):
    """A prompt that leaves a trunk behind its first `end` tokens and goes on with `ids`, which show `images`."""

    end: int
    ids: list[int]
    images: list[int] = []


class Prompt(NamedTuple):
    """Token ids with image placeholders, and the items whose image features fill these, in order: a prompt, or the
    trunk of several, its `branches`."""

    ids: list[int]
    images: list[int]
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
    def all_images(self) -> list[int]:
        """The images of trunk and branches, in the order of their placeholders in a packed sequence."""
        return self.images + [item for branch in self.branches for item in branch.images]


@dataclass(frozen=True)
class Layout:
    """How a model family places tokens and what they see. The default is the common way: causal, positions 0, 1, 2, …

    image_token: id of the placeholder for a token of an image.
    visibility: what a prompt's token sees besides the tokens before it: nothing ("causal"), the rest of its image
        ("image"), or the whole prompt ("prefix").
    kinds: the kinds of attention that the layers have.
    window: how many tokens back a layer with sliding attention sees, the token itself included.
    first: position of a sequence's first token.
    axes: computes the positions of a prompt in three axes, [3, tokens], from its ids and its images' patch grids
        [images, 3]; None where positions have one axis.
    types: names of the token types that a forward takes.
    plain: why responses cannot be packed, so that each is read with a prompt of its own; empty where they can.
    """

    image_token: int = -1
    visibility: str = "causal"
    kinds: frozenset[str] = frozenset({FULL})
    window: int | None = None
    first: int = 0
    axes: Callable[[Sequence[int], Tensor | None], np.ndarray] | None = None
    types: tuple[str, ...] = ()
    plain: str = ""

    def positions(self, ids: Sequence[int], grids: Tensor | None) -> np.ndarray:
        """Positions of a prompt's tokens, [1 or 3, tokens]."""
        return self.axes(ids, grids) if self.axes else np.arange(self.first, self.first + len(ids))[None]

    def prompt_mask(self, ids: Sequence[int]) -> np.ndarray:
        """Which tokens of a prompt (columns) each of its tokens (rows) sees, [tokens, tokens] bool."""
        if self.visibility == "prefix":
            return np.ones((len(ids), len(ids)), dtype=bool)
        visible = np.tri(len(ids), dtype=bool)
        if self.visibility == "image":
            image = np.array(ids) == self.image_token
            begins = image & ~np.concatenate([[False], image[:-1]])
            run = np.where(image, np.cumsum(begins), 0)  # the number of the run of placeholders, 0 for text
            visible |= image & (run[:, None] == run)
        return visible

    def masks(self, packed: Packed, first: int = 0) -> dict[str, Tensor]:
        """Which columns each column from `first` sees, [B, 1, L - first, L] bool, for each kind of layer."""
        visible = packed.attention_mask[:, :, first:]
        if SLIDING not in self.kinds or self.window is None:
            return dict.fromkeys(self.kinds, visible)
        back = packed.places[:, None, first:, None] - packed.places[:, None, None, :]  # tokens between the two
        return {kind: visible & (back < self.window) if kind == SLIDING else visible for kind in self.kinds}


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
    attention_mask: Tensor  # [B, 1, L, L] bool: whether row sees column. From `apart` [B, L]: whether no padding
    position_ids: Tensor | None  # [B, L], or [3, B, L] where they have three axes. None: the model computes them
    places: Tensor  # [B, L] how many tokens of its own prompt + response stand before a token
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
        for place, token in enumerate(response, 1):
            built.nodes.append(node)
            built.labels.append(token)
            built.response.append(number)
            if place < len(response):
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
    layout: Layout = Layout(),
    grids: Sequence[Tensor | None] | None = None,
) -> Packed:
    """Lay out each of B prompts with its branches and responses in one sequence.

    responses: each prompt's, those of one branch after those of another, as many for every branch.
    pad: the token id of padding.
    start: the column at which all trunks end and their trees begin; by default the longest trunk's length.
    grids: the patch grids of each prompt's images (`Prompt.all_images`), [images, 3], where positions have three axes.
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
    places = np.zeros_like(input_ids)
    positions = np.zeros((3 if layout.axes else 1, *input_ids.shape), dtype=input_ids.dtype)
    mask = np.zeros((len(prompts), 1, columns, columns), dtype=bool)
    mask[:, 0] = np.eye(columns, dtype=bool)  # padding sees itself: a softmax needs something
    row, column, labels, response, number = [], [], [], [], 0
    for b, (prompt, trees) in enumerate(zip(prompts, forests)):
        sequence = Unfinished(layout, input_ids[b], places[b], positions[:, b], mask[b, 0])
        first, free = start - len(prompt.ids), start
        left = grids[b] if grids else None  # the grids of the images that are not yet laid out
        sequence.add_prompt(prompt.ids, first, None, None if left is None else left[: len(prompt.images)])
        left = None if left is None else left[len(prompt.images) :]
        for branch, t in zip(prompt.leaves, trees):
            last = first + branch.end - 1
            if branch.ids:
                sequence.add_prompt(branch.ids, free, last, None if left is None else left[: len(branch.images)])
                left = None if left is None else left[len(branch.images) :]
                free += len(branch.ids)
                last = free - 1
            columns_of_nodes = sequence.add_tree(t, free, last)
            free += len(t.tokens)
            row += [b] * len(t.nodes)
            column += columns_of_nodes[t.nodes].tolist()
            labels += t.labels
            response += [number + own for own in t.response]
            number = response[-1] + 1
    positions = positions if layout.axes else positions[0]
    tensors = map(torch.from_numpy, (input_ids, mask, positions, places))
    return Packed(*tensors, *map(torch.tensor, (row, column, labels, response)))


class Unfinished:
    """One sequence of L columns while it is filled: token ids [L], places [L], positions [1 or 3, L], what each column
    sees [L, L] and the highest position that it has reached [L]."""

    def __init__(self, layout: Layout, ids: np.ndarray, places: np.ndarray, positions: np.ndarray, visible: np.ndarray):
        self.layout, self.ids, self.places, self.positions, self.visible = layout, ids, places, positions, visible
        self.reached = np.zeros_like(ids)

    def add_prompt(self, ids: list[int], at: int, behind: int | None, grids: Tensor | None) -> None:
        """Write a trunk, or a branch behind the column `behind`, into the columns from `at`."""
        here = slice(at, at + len(ids))
        self.ids[here], self.places[here] = ids, np.arange(len(ids))
        self.positions[:, here] = self.layout.positions(ids, grids)
        self.visible[here, here] = self.layout.prompt_mask(ids)
        if behind is not None:
            self.places[here] += self.places[behind] + 1
            self.positions[:, here] += self.reached[behind] + 1 - self.layout.first
            self.visible[here] |= self.visible[behind]
        self.reached[here] = np.maximum.accumulate(self.positions[:, here].max(axis=0))

    def add_tree(self, t: Tree, at: int, behind: int) -> np.ndarray:
        """Write a tree behind the column `behind` into the columns from `at`; returns the columns of its nodes, that of
        node -1 at the end."""
        columns = np.array([*range(at, at + len(t.tokens)), behind])
        self.ids[at : at + len(t.tokens)] = t.tokens
        for column, parent in enumerate(columns[t.parents].tolist(), at):
            self.places[column] = self.places[parent] + 1
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
