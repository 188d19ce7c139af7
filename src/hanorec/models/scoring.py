"""Log-probabilities of many responses to one prompt, in one forward: the only way in which SFT, DPO and
evaluation get theirs.

In: prompts (token ids, and which items' images fill their placeholders) and for each prompt its responses.
Out: one summed log-probability a response. A prompt is packed with its responses and read once (`packing.py`); where a
model family does not allow that, each response is read with a prompt of its own. The output head sees only the
positions that predict a response's token, so there are no logits of the prompt or of padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from hanorec.losses import response_logps
from hanorec.models.backbone import Backbone
from hanorec.models.images import ImageEncoder
from hanorec.models.packing import Packed, Prompt, apart, apart_inputs, pack, packed_inputs


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """All numbers 0 … len(lengths) - 1 in batches of similar lengths, each with at most `tokens` tokens after padding
    to its longest (or one number alone)."""
    found: list[list[int]] = []
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):  # the longest comes first and sets the width
        if not found or (len(found[-1]) + 1) * lengths[found[-1][0]] > tokens:
            found.append([])
        found[-1].append(number)
    return found


def logits_at(backbone: Backbone, row: Tensor, column: Tensor, **inputs) -> Tensor:
    """The model's logits at M positions alone, [M, V]: its output head never sees the others."""
    row, column = row.to(backbone.device), column.to(backbone.device)
    head = backbone.model.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda _, hidden: (hidden[0][row, column][None],))
    half = backbone.compute != torch.float32
    try:
        with torch.autocast(backbone.device.type, backbone.compute) if half else nullcontext():
            return backbone.model(**inputs).logits[0]
    finally:
        handle.remove()


def pack_for(encoder: ImageEncoder, prompts: Sequence[Prompt], responses, *, start: int | None = None) -> Packed:
    """`pack` as the encoder's backbone needs it."""
    backbone = encoder.backbone
    grids = [encoder.grids(prompt.images) for prompt in prompts] if backbone.layout.axes else None
    return pack(prompts, responses, pad=backbone.pad, start=start, layout=backbone.layout, grids=grids)


def score(
    encoder: ImageEncoder,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[Sequence[int]]],
    *,
    noise_std: float = 0.0,
    generators: Sequence[torch.Generator] | None = None,
) -> Tensor:
    """log π(response | prompt) for every response, [N], numbered prompt by prompt; differentiable.

    noise_std, generators: NoDO on the logits, see `losses.response_logps`; a generator for each prompt.
    """
    backbone = encoder.backbone
    device, layout = backbone.device, backbone.layout
    if layout.plain:
        packed = apart(prompts, responses, pad=backbone.pad)
        items = [item for prompt, answers in zip(prompts, responses) for item in prompt.images * len(answers)]
        inputs = apart_inputs(packed, layout, device) | encoder.grid_inputs(items)
    else:
        packed = pack_for(encoder, prompts, responses)
        items = [item for prompt in prompts for item in prompt.images]
        inputs = packed_inputs(packed, layout, device, backbone.compute)
    logits = logits_at(backbone, packed.row, packed.column, **inputs, **encoder.outputs(items), use_cache=False)
    labels = packed.labels[:, None].to(device)
    if generators is not None:  # one a token: those of a prompt's responses take turns at its generator
        generators = [g for g, answers in zip(generators, responses) for answer in answers for _ in answer]
    logps = response_logps(logits[:, None], labels, noise_std=noise_std, generator=generators)  # [M], one a token
    return logps.new_zeros(sum(map(len, responses))).index_add(0, packed.response.to(device), logps)
