"""What a model's forward takes: packed sequences, or each response in a sequence of its own.

In: what `packing.pack` has laid out, or prompts and responses for the plain way, which is for models that cannot read
them packed. Out: keyword arguments of a forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hanorec.models.layout import Layout
from hanorec.models.packing import Packed, Prompt, check_filled


def packed_inputs(packed: Packed, layout: Layout, device: torch.device, dtype: torch.dtype, first: int = 0) -> dict:
    """The keyword arguments with which a model's forward reads the columns from `first`; its cache holds those before.

    dtype: the type in which the model computes, which is also that of the masks.
    """
    assert packed.position_ids is not None, "packed_inputs takes what `pack` has laid out"
    masks = {
        kind: additive(visible.to(device), dtype)
        for kind, visible in layout.masks(packed.attention_mask, packed.offsets, first).items()
    }
    return {
        "input_ids": packed.input_ids[:, first:].to(device),
        "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
        "position_ids": packed.position_ids[..., first:].to(device),
    }


def unpacked_inputs(packed: Packed, layout: Layout, device: torch.device) -> dict:
    """The keyword arguments with which a model's forward reads sequences that `unpacked` has laid out.

    Token types are those that processors write: 1 where an image stands; and in families whose prompt sees all of
    itself, 1 behind the prompt.
    """
    types = packed.input_ids == layout.image_token
    if layout.visibility == "prefix":
        ends = torch.full((len(types),), packed.offsets.shape[1]).scatter_reduce(0, packed.row, packed.column, "amin")
        types = packed.offsets > ends[:, None]
    inputs = {"input_ids": packed.input_ids, "attention_mask": packed.attention_mask.long()}
    inputs |= {name: types.long() for name in layout.types}
    return {name: value.to(device) for name, value in inputs.items()}


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask that is added to attention scores: 0 where a key is visible, the least number of `dtype` elsewhere."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, torch.finfo(dtype).min)


def unpacked(prompts: Sequence[Prompt], responses: Sequence[Sequence[Sequence[int]]], *, pad: int) -> Packed:
    """Lay out each of N responses in a sequence of its own behind its prompt, padded on the right: the plain way, for a
    model that cannot read them packed.

    Errors: ValueError as `pack`.
    """
    check_filled(prompts, responses)
    if any(prompt.branches for prompt in prompts):
        raise ValueError("prompts: branches of one trunk can be read packed alone")
    pairs = [(prompt.ids, answer) for prompt, answers in zip(prompts, responses) for answer in answers]
    columns = max(len(ids) + len(answer) - 1 for ids, answer in pairs)
    input_ids, mask = np.full((len(pairs), columns), pad), np.zeros((len(pairs), columns), dtype=bool)
    for row, (ids, answer) in enumerate(pairs):
        length = len(ids) + len(answer) - 1
        input_ids[row, :length], mask[row, :length] = [*ids, *answer[:-1]], True
    number = np.repeat(np.arange(len(pairs)), [len(answer) for _, answer in pairs])
    column = np.concatenate([np.arange(len(answer)) + len(ids) - 1 for ids, answer in pairs])
    labels = np.concatenate([np.array(answer) for _, answer in pairs])
    offsets = np.broadcast_to(np.arange(columns), mask.shape).copy()
    tensors = (torch.from_numpy(array) for array in (offsets, number, column, labels, number))
    return Packed(torch.from_numpy(input_ids), torch.from_numpy(mask), None, *tensors)
