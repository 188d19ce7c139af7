"""experiments/sasrec_size.py: the network that it makes larger is SASRec as it begins. prompt_tokens.py: what is expected
after an item depends on no later one, and with a question as if the prompt stood alone. small_backbone.py: a language
model as small as SASRec is one that SFT takes."""

from __future__ import annotations

import sys

import pytest
import torch
from conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments"))

import prompt_tokens
import sasrec_size
import small_backbone

from hanorec.evaluation.recommenders import SASRec, Settings
from hanorec.models import tiny
from hanorec.models.backbone import language_model, load_backbone


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


@pytest.mark.parametrize("question, line_ends", [(0, False), (0, True), (1, False), (3, True)])
def test_a_branch_sees_the_items_so_far_and_its_own_question(question, line_ends):
    """Each item alone at the end of a shorter row, where one causal mask is all there is, gives the same."""
    torch.manual_seed(0)
    network = prompt_tokens.Prompted(9, Settings(width=8, length=6), question, line_ends).eval()
    items = torch.randint(0, 9, (2, 5))
    with torch.no_grad():
        expected = network(items)
        assert expected.shape == (2, 5, 8)
        for number in range(1, 6):
            tokens = []
            for item in items[0, :number]:
                tokens += [network.fixed.weight[0]] * line_ends + [network.items.weight[item]]
            alone = torch.stack([*tokens, *network.fixed.weight[1:]])[None]
            last = network.layers(inputs_embeds=alone).last_hidden_state[0, -1]
            torch.testing.assert_close(expected[0, number - 1], last, atol=1e-5, rtol=0)


def test_a_backbone_as_small_as_sasrec_loads_with_the_vocabulary_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", "--like", str(tiny.PRETRAINED), "--output", str(tmp_path / "small")])
    small_backbone.main()
    backbone = load_backbone(str(tmp_path / "small"), dtype="float32", device=torch.device("cpu"))
    layers = language_model(backbone.model).layers
    assert (backbone.width, len(layers)) == (Settings().width, Settings().layers)
    assert backbone.tokens("Comet") == load_backbone("tiny").tokens("Comet")
