"""Random numbers are a function of a seed and a key."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from hanorec.randomness import rng


def test_rng_is_told_apart_by_seed_and_key():
    keys = [
        (0,),
        (1,),
        (0, "u"),
        (0, "u", 1),
        (0, "u", "1"),
        (0, "u1"),
        (0, "", "u1"),
        (0, "1", "u"),
        (0, "ü"),
    ]
    assert len({rng(*key).integers(2**62) for key in keys}) == len(keys)
    assert rng(0, np.int64(5)).integers(2**62) == rng(0, 5).integers(2**62)
    with pytest.raises(TypeError):
        rng(0, b"u")


def test_rng_is_the_same_in_every_process():
    # pinned: another value would change every published draw
    assert rng(2025, "user", 3).integers(1000, size=4).tolist() == [490, 316, 443, 882]
    command = "from hanorec.randomness import rng; print(rng(2025, 'user', 3).integers(1000, size=4).tolist())"
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}  # hash() gives other numbers there
    printed = subprocess.check_output([sys.executable, "-c", command], env=environment, text=True)
    assert printed.strip() == "[490, 316, 443, 882]"
