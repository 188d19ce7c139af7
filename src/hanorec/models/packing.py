"""Where tokens stand and what they see when a prompt and its responses share one sequence.

In: prompts and their responses as token ids, and the `Layout` of a model family. Out: `Packed`, whose tensors a model's
forward takes. A sequence is

    [padding][prompt][the responses' tokens as a tree][padding]

Responses that begin alike share their first tokens. A token sees the prompt and the tokens before it in its own
response, and its position is the one it has there. So the result equals the plain forward over prompt + response,
while the prompt and common beginnings are read once. A response's last token is predicted and never read.
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


class Prompt(NamedTuple):
    """Token ids with image placeholders, and the items whose image features fill these, in order."""

    ids: list[int]
    images: list[int]


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
        back = packed.places[:, None, first:, None] - packed.places[:, None, None, :]  # tokens between the two
        window = packed.places.shape[1] if self.window is None else self.window
        return {kind: visible & (back < window) if kind == SLIDING else visible for kind in self.kinds}


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
    """Lay out each of B prompts with its responses in one sequence.

    pad: the token id of padding.
    start: the column at which all prompts end and their responses begin; by default the longest prompt's length.
    grids: the patch grids of each prompt's images, [images, 3], where positions have three axes.
    Errors: ValueError for no prompts, an empty prompt, or a response without tokens.
    """
    check_filled(prompts, responses)
    trees = [tree(answers) for answers in responses]
    start = max(len(prompt.ids) for prompt in prompts) if start is None else start
    columns = start + max(len(t.tokens) for t in trees)

    input_ids = np.full((len(prompts), columns), pad)
    places = np.zeros_like(input_ids)
    positions = np.zeros((3 if layout.axes else 1, *input_ids.shape), dtype=input_ids.dtype)
    mask = np.zeros((len(prompts), 1, columns, columns), dtype=bool)
    mask[:, 0] = np.eye(columns, dtype=bool)  # padding sees itself: a softmax needs something
    for b, (prompt, t) in enumerate(zip(prompts, trees)):
        length, end = len(prompt.ids), start + len(t.tokens)
        first = start - length
        input_ids[b, first:start], input_ids[b, start:end] = prompt.ids, t.tokens
        places[b, first:start] = np.arange(length)
        positions[:, b, first:start] = layout.positions(prompt.ids, grids[b] if grids else None)
        next_position = positions[:, b, first:start].max(initial=0) + 1  # responses begin behind all of the prompt
        visible = mask[b, 0]
        visible[first:start, first:start] = layout.prompt_mask(prompt.ids)
        for column, parent in enumerate(t.parents, start):  # node n stands in column start + n
            visible[column] |= visible[start + parent]
            places[b, column] = places[b, start + parent] + 1
            positions[:, b, column] = next_position + places[b, column] - length

    counts = [len(answers) for answers in responses]
    offsets = np.cumsum([0, *counts[:-1]])
    fields = {
        "row": [np.full(len(t.nodes), b) for b, t in enumerate(trees)],
        "column": [np.array(t.nodes) + start for t in trees],
        "labels": [np.array(t.labels) for t in trees],
        "response": [np.array(t.response) + offset for t, offset in zip(trees, offsets)],
    }
    joined = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in fields.items()}
    positions = positions if layout.axes else positions[0]
    return Packed(*map(torch.from_numpy, (input_ids, mask, positions, places)), **joined)


def apart(prompts: Sequence[Prompt], responses: Sequence[Sequence[Sequence[int]]], *, pad: int) -> Packed:
    """Lay out each of N responses in a sequence of its own behind its prompt, padded on the right: the plain way, for a
    model that cannot read them packed.

    Errors: ValueError as `pack`.
    """
    check_filled(prompts, responses)
    pairs = [(prompt.ids, answer) for prompt, answers in zip(prompts, responses) for answer in answers]
    columns = max(len(ids) + len(answer) - 1 for ids, answer in pairs)
    input_ids, mask = np.full((len(pairs), columns), pad), np.zeros((len(pairs), columns), dtype=bool)
    for row, (ids, answer) in enumerate(pairs):
        length = len(ids) + len(answer) - 1
        input_ids[row, :length], mask[row, :length] = [*ids, *answer[:-1]], True
    number = np.repeat(np.arange(len(pairs)), [len(answer) for _, answer in pairs])
    column = np.concatenate([np.arange(len(answer)) + len(ids) - 1 for ids, answer in pairs])
    labels = np.concatenate([np.array(answer) for _, answer in pairs])
    places = np.broadcast_to(np.arange(columns), mask.shape).copy()
    tensors = (torch.from_numpy(array) for array in (places, number, column, labels, number))
    return Packed(torch.from_numpy(input_ids), torch.from_numpy(mask), None, *tensors)


def check_filled(prompts: Sequence[Prompt], responses: Sequence[Sequence[Sequence[int]]]) -> None:
    """Errors: ValueError for no prompts, an empty prompt, or a response without tokens."""
    if not prompts or len(prompts) != len(responses):
        raise ValueError(f"prompts: {len(prompts)} of them with {len(responses)} lists of responses")
    if any(not prompt.ids for prompt in prompts) or any(not answer for answers in responses for answer in answers):
        raise ValueError("prompts and responses: each needs at least one token")


def packed_inputs(packed: Packed, layout: Layout, device: torch.device, dtype: torch.dtype, first: int = 0) -> dict:
    """The keyword arguments with which a model's forward reads the columns from `first`; its cache holds those before.

    dtype: the type in which the model computes, which is also that of the masks.
    """
    assert packed.position_ids is not None, "packed_inputs takes what `pack` has laid out"
    masks = {kind: additive(visible, dtype).to(device) for kind, visible in layout.masks(packed, first).items()}
    return {
        "input_ids": packed.input_ids[:, first:].to(device),
        "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
        "position_ids": packed.position_ids[..., first:].to(device),
    }


def apart_inputs(packed: Packed, layout: Layout, device: torch.device) -> dict:
    """The keyword arguments with which a model's forward reads sequences that `apart` has laid out.

    Token types are those that processors write: 1 where an image stands; and in families whose prompt sees all of
    itself, 1 behind the prompt.
    """
    types = packed.input_ids == layout.image_token
    if layout.visibility == "prefix":
        ends = torch.full((len(types),), packed.places.shape[1]).scatter_reduce(0, packed.row, packed.column, "amin")
        types = packed.places > ends[:, None]
    inputs = {"input_ids": packed.input_ids, "attention_mask": packed.attention_mask.long()}
    inputs |= {name: types.long() for name in layout.types}
    return {name: value.to(device) for name, value in inputs.items()}


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to attention scores: 0 where a key is visible, the least number of `dtype` elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)
