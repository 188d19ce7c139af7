"""Random numbers that are a function of a seed and of what they are drawn for.

In: a seed and a key. Out: a generator, or one seed made of several numbers. So no draw depends on the order of the
others, and a run that was stopped and resumed draws what it would have drawn.
"""

from __future__ import annotations

import hashlib
import json
import operator
import random

import numpy as np


def rng(seed: int, *key: str | int) -> np.random.Generator:
    """A generator that depends on the seed and the key alone: not on process, platform or earlier draws."""
    name = json.dumps([seed, *key], default=operator.index)  # tells "1" from 1 and "ab", "c" from "a", "bc"
    digest = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def mixed_seed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence([number % 2**32 for number in numbers]).generate_state(1, np.uint64)[0]) >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and PyTorch, and ask for deterministic kernels where there are any."""
    import torch  # here, since what only reads data starts without it

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else PyTorch fills every new tensor with NaN first.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
