"""Log-probabilities of many responses to one prompt, in one forward: the only way in which SFT, DPO and
evaluation get theirs.

In: prompts (token ids, and which items' images fill their placeholders) and for each prompt its responses.
Out: one summed log-probability a response. A prompt and its responses are packed into one sequence:

    [padding][prompt][the responses' tokens as a tree] [padding]

Responses that begin alike share their first tokens. A token sees the prompt and the tokens before it in its own
response, and its position is the one it has there, so the result equals the plain forward over prompt + response
while prompt and common beginnings are read once. A response's last token is predicted and never read. The output
head sees only the positions that predict a response's token, so there are no logits of the prompt or of padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hanorec.images import ImageEncoder, image_outputs
from hanorec.losses import response_logps


class Prompt(NamedTuple):
    """Token ids with image placeholders, and the items whose image features fill these, in order."""

    ids: list[int]
    images: list[int]


class Tree(NamedTuple):
    """The responses to one prompt, their common beginnings once. Nodes are tokens to be read, parents first; the
    prompt's last token is node -1. Each of the M tokens of the responses is predicted at a node."""

    tokens: list[int]
    parents: list[int]
    nodes: list[int]  # [M] where a response's token is predicted
    labels: list[int]  # [M] the token
    response: list[int]  # [M] the number of its response


class Packed(NamedTuple):
    """B sequences of L columns, whose responses have M tokens in all; on the CPU."""

    input_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, 1, L, L] bool: query row may see key column
    position_ids: Tensor  # [B, L]
    row: Tensor  # [M] the sequence
    column: Tensor  # [M] and the column that predict each response token
    labels: Tensor  # [M] the token
    response: Tensor  # [M] the number of its response, counted prompt by prompt


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """All numbers 0 … len(lengths) - 1 in batches of similar lengths, each with at most `tokens` tokens after padding
    to its longest (or one number alone)."""
    found: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):  # the longest comes first and sets the width
        if not found or (len(found[-1]) + 1) * lengths[found[-1][0]] > tokens:
            found.append([])
        found[-1].append(number)
    return found


def tree(responses: Sequence[Sequence[int]]) -> Tree:
    """Lay the responses to one prompt out as a tree."""
    children: dict[tuple[int, int], int] = {}
    found = Tree([], [], [], [], [])
    for number, response in enumerate(responses):
        node = -1
        for place, token in enumerate(response, 1):
            found.nodes.append(node)
            found.labels.append(token)
            found.response.append(number)
            if place < len(response):
                parent, node = node, children.setdefault((node, token), len(children))
                if node == len(found.tokens):
                    found.tokens.append(token)
                    found.parents.append(parent)
    return found


def pack(
    prompts: Sequence[Prompt], responses: Sequence[Sequence[Sequence[int]]], *, pad: int, start: int | None = None
) -> Packed:
    """Lay out each prompt with its responses. Prompts end at one column, where the responses begin.

    start: that column; by default the length of the longest prompt.
    Errors: ValueError for no prompts, an empty prompt, or a response without tokens.
    """
    if not prompts or len(prompts) != len(responses):
        raise ValueError(f"prompts: {len(prompts)} of them with {len(responses)} lists of responses")
    if any(not prompt.ids for prompt in prompts) or any(not answer for answers in responses for answer in answers):
        raise ValueError("prompts and responses: each needs at least one token")
    trees = [tree(answers) for answers in responses]
    start = max(len(prompt.ids) for prompt in prompts) if start is None else start
    columns = start + max(len(t.tokens) for t in trees)

    input_ids = np.full((len(prompts), columns), pad)
    positions = np.zeros_like(input_ids)
    visible = np.zeros((len(prompts), 1, columns, columns), dtype=bool)
    visible[:, 0] = np.eye(columns, dtype=bool)  # padding sees itself: a softmax needs something
    for b, (prompt, t) in enumerate(zip(prompts, trees)):
        length, end = len(prompt.ids), start + len(t.tokens)
        first = start - length
        input_ids[b, first:start], input_ids[b, start:end] = prompt.ids, t.tokens
        positions[b, first:start] = np.arange(length)
        seen = visible[b, 0]
        seen[first:start, first:start] = np.tri(length, dtype=bool)
        for column, parent in enumerate(t.parents, start):  # node n stands in column start + n
            seen[column] |= seen[start + parent]
            positions[b, column] = positions[b, start + parent] + 1

    counts = [len(answers) for answers in responses]
    offsets = np.cumsum([0, *counts[:-1]])
    fields = {
        "row": [np.full(len(t.nodes), b) for b, t in enumerate(trees)],
        "column": [np.array(t.nodes) + start for t in trees],
        "labels": [np.array(t.labels) for t in trees],
        "response": [np.array(t.response) + offset for t, offset in zip(trees, offsets)],
    }
    joined = {name: torch.from_numpy(np.concatenate(parts)) for name, parts in fields.items()}
    return Packed(*map(torch.from_numpy, (input_ids, visible, positions)), **joined)


@contextmanager
def head_at(model: torch.nn.Module, row: Tensor, column: Tensor) -> Iterator[None]:
    """While open, the model's output head sees these M positions of the hidden states [B, L, D] alone, as
    [1, M, D]: its logits are [1, M, V]."""
    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][row, column][None],))
    try:
        yield
    finally:
        handle.remove()


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that every attention takes: 0 where a key is visible, the least number of `dtype` elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype).masked_fill_(~visible, torch.finfo(dtype).min)


def score(
    encoder: ImageEncoder,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Sequence[int]]],
    *,
    noise_std: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """log π(response | prompt) for every response, [N], numbered prompt by prompt; differentiable.

    noise_std, generator: NoDO on the logits, see `losses.response_logps`.
    """
    backbone = encoder.backbone
    model, device = backbone.model, backbone.device
    packed = pack(prompts, responses, pad=backbone.pad)
    with head_at(model, packed.row.to(device), packed.column.to(device)):
        logits = model(
            input_ids=packed.input_ids.to(device),
            attention_mask=additive(packed.attention_mask, model.dtype).to(device),
            position_ids=packed.position_ids.to(device),
            use_cache=False,
            **image_outputs(encoder.features([item for prompt in prompts for item in prompt.images])),
        ).logits[0]
    labels = packed.labels[:, None].to(device)
    logps = response_logps(logits[:, None], labels, noise_std=noise_std, generator=generator)  # [M], one a token
    return logps.new_zeros(sum(map(len, responses))).index_add(0, packed.response.to(device), logps)
