"""What the folders `speed` and `checks` compare a step with: the operations it needs, and how fast a machine does them.

In: a model with a packed batch, or a device. Out: floating-point operations, or these a second.
"""

from __future__ import annotations

import re
import time
from typing import Any

import torch

from hanorec.models.packing import Packed


def matrix_product_rate(size: int, **where: Any) -> float:
    """FLOP/s of a large matrix product, the best of five. where: its device and dtype."""
    a, b = (torch.randn(size, size, **where) for _ in range(2))
    best = 0.0
    for _ in range(5):
        synchronize(a.device)
        begun = time.perf_counter()
        a @ b
        synchronize(a.device)
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def flops(model: torch.nn.Module, packed: Packed) -> float:
    """Of a forward and backward of the language model: 2 an element of a frozen matrix and token forward and 2 for
    the input's gradient; 2 + 2 + 2 for one that trains; attention over visible keys alone; the head where a token
    is predicted. Padding does not count, nor does what is computed twice or in vain."""
    text = model.config.get_text_config()
    language = re.compile(r"(text_model|language_model)\.(?!embed).")
    inner = [(n, p) for n, p in model.named_parameters() if language.search(n) and p.ndim == 2]
    a_token = sum((6 if p.requires_grad else 4) * p.numel() for _, p in inner)
    tokens = int((packed.attention_mask[:, 0].sum(-1) > 1).sum()) + len(packed.attention_mask)
    attention = 12 * text.hidden_size * text.num_hidden_layers * int(packed.attention_mask.sum())
    return tokens * a_token + attention + len(packed.labels) * 4 * text.vocab_size * text.hidden_size
