"""Log-probabilities of many responses to one prompt, in one forward: the only way in which SFT, DPO and
evaluation get theirs.

In: prompts (token ids, and which items' images fill their placeholders) and for each prompt its responses.
Out: one summed log-probability a response. A prompt and its responses are packed into one sequence:

    [padding][prompt][response 1][response 2] … [padding]

Each response sees the prompt and itself, never its siblings, and its positions go on where the prompt ends, so
the result equals the plain forward over prompt + response while the prompt is read once. Prompts end at one
column, so that logits are computed from that column on and never for the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hanorec.backbone import ImageEncoder, image_outputs
from hanorec.losses import response_logps

IGNORE = -100


class Prompt(NamedTuple):
    """Token ids with image placeholders, and the items whose image features fill these, in order."""

    ids: list[int]
    images: list[int]


class Packed(NamedTuple):
    """B sequences of L columns holding N responses of at most T tokens, all on the CPU."""

    input_ids: Tensor  # [B, L]
    attention_mask: Tensor  # [B, 1, L, L] bool: query row may see key column
    position_ids: Tensor  # [B, L]
    row: Tensor  # [N] which sequence a response is in
    column: Tensor  # [N, T] which of the kept columns predicts each of its tokens
    labels: Tensor  # [N, T] its tokens, IGNORE where there are none
    keep: int  # how many last columns need logits


def pack(prompts: Sequence[Prompt], responses: Sequence[Sequence[Sequence[int]]], *, pad: int) -> Packed:
    """Lay out each prompt with its responses. The N responses are numbered prompt by prompt.

    Errors: ValueError for no prompts, an empty prompt, or a response without tokens.
    """
    if not prompts or len(prompts) != len(responses):
        raise ValueError(f"prompts: {len(prompts)} of them with {len(responses)} lists of responses")
    if any(not prompt.ids for prompt in prompts) or any(not answer for answers in responses for answer in answers):
        raise ValueError("prompts and responses: each needs at least one token")
    start = max(len(prompt.ids) for prompt in prompts)  # the column where responses begin
    width = max(sum(map(len, answers)) for answers in responses)
    longest = max(len(answer) for answers in responses for answer in answers)
    total = sum(map(len, responses))

    input_ids = torch.full((len(prompts), start + width), pad)
    positions = torch.zeros_like(input_ids)
    segment = torch.full_like(input_ids, -1)  # -1 padding, 0 prompt, 1, 2, … responses
    row = torch.empty(total, dtype=torch.long)
    column = torch.zeros(total, longest, dtype=torch.long)
    labels = torch.full((total, longest), IGNORE)
    number = 0
    for b, (prompt, answers) in enumerate(zip(prompts, responses)):
        length = len(prompt.ids)
        input_ids[b, start - length : start] = torch.tensor(prompt.ids)
        positions[b, start - length : start] = torch.arange(length)
        segment[b, start - length : start] = 0
        at = start
        for k, answer in enumerate(answers, 1):
            end = at + len(answer)
            input_ids[b, at:end] = torch.tensor(answer)
            positions[b, at:end] = torch.arange(length, length + len(answer))
            segment[b, at:end] = k
            row[number] = b
            labels[number, : len(answer)] = input_ids[b, at:end]
            # Kept column 0 is the prompt's last: it predicts every response's first token.
            column[number, 1 : len(answer)] = torch.arange(at - start + 1, end - start)
            number, at = number + 1, end

    mine, other = segment[:, :, None], segment[:, None, :]
    causal = torch.ones(start + width, start + width, dtype=torch.bool).tril()
    visible = causal & ((other == 0) | (other == mine)) & (other >= 0)
    visible |= torch.eye(start + width, dtype=torch.bool)  # padding sees itself: a softmax needs something
    return Packed(input_ids, visible[:, None], positions, row, column, labels, width + 1)


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
    hidden = torch.zeros(packed.attention_mask.shape, dtype=model.dtype)
    hidden.masked_fill_(~packed.attention_mask, torch.finfo(model.dtype).min)  # additive: every attention takes it
    logits = model(
        input_ids=packed.input_ids.to(device),
        attention_mask=hidden.to(device),
        position_ids=packed.position_ids.to(device),
        logits_to_keep=packed.keep,
        use_cache=False,
        **image_outputs(encoder.features([item for prompt in prompts for item in prompt.images])),
    ).logits
    own = logits[packed.row[:, None].to(device), packed.column.to(device)]
    return response_logps(own, packed.labels.to(device), noise_std=noise_std, generator=generator)
