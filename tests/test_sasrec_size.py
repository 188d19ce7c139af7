"""experiments/sasrec_size.py: the network that it makes larger is SASRec as it begins."""

from __future__ import annotations

import sys

import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments"))

import sasrec_size

from hanorec.evaluation.recommenders import SASRec, Settings


def test_without_a_change_of_size_it_is_sasrec():
    torch.manual_seed(0)
    items, settings = torch.randint(0, 9, (2, 5)), Settings(width=8, length=6)
    known, sized, small = (
        SASRec(9, settings),
        sasrec_size.Sized(9, settings),
        sasrec_size.Sized(9, settings, scaled=False),
    )
    for network in (sized, small):
        network.load_state_dict(known.state_dict())
    with torch.no_grad():
        exact = known.eval()(items)
        torch.testing.assert_close(sized.eval()(items), exact)
        assert not torch.allclose(small.eval()(items), exact, atol=1e-2)


def test_a_step_has_the_size_that_it_says():
    network = sasrec_size.Sized(9, Settings(layers=4, width=192), heads=6, feedforward=512)
    layer = network.layers.layers[0]
    assert len(network.layers.layers) == 4 and layer.self_attn.num_heads == 6
    assert layer.linear1.weight.shape == (512, 192) and network.items.weight.shape == (10, 192)
