"""Attention over a long packed sequence that passes over what no token sees.

In: queries, keys and values, and the mask of a packed sequence. Out: what PyTorch's own attention gives. A branch
sees its trunk up to where it leaves, and none of the other branches, so most of a dense mask is empty. Queries are
taken a block at a time, each with the keys that any of its tokens sees: the work then grows with what is seen and not
with the square of the length.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "sdpa_in_blocks"  # under which transformers knows it
BLOCK = 128  # queries in a block
LEAST = 512  # keys from which blocks pay on a CPU


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options,
) -> tuple[Tensor, None]:
    """`transformers`' scaled dot-product attention, in blocks of queries where that saves work on a CPU.

    Args:
        query: [B, heads, Q, width]. key, value: [B, key heads, L, width].
        attention_mask: [B, 1, Q, L], 0 (or True) where a key is seen.
    Returns: [B, Q, heads, width], and no weights.
    """
    if attention_mask is None or key.shape[2] < LEAST or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    visible = attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0
    sequences = []
    for b in range(len(query)):
        one = slice(b, b + 1)
        blocks = []
        for start in range(0, query.shape[2], BLOCK):
            block = slice(start, start + BLOCK)
            seen = visible[b, 0, block].any(dim=0).nonzero().flatten()
            keys, values = key[one].index_select(2, seen), value[one].index_select(2, seen)
            mask = attention_mask[one, :, block].index_select(3, seen)
            blocks.append(sdpa_attention_forward(module, query[one, :, block], keys, values, mask, **options)[0])
        sequences.append(torch.cat(blocks, dim=1))
    return torch.cat(sequences), None


def use_blocks(model: PreTrainedModel) -> None:
    """Let a model's language layers attend in blocks, where they would use PyTorch's scaled dot-product attention."""
    if model.config.get_text_config()._attn_implementation == "sdpa":
        model.set_attn_implementation({"text_config": NAME})


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
