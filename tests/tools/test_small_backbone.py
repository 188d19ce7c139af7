"""tools/small_backbone.py: a language model as small as SASRec is one that SFT takes."""

from __future__ import annotations

import sys

import torch

from hanorec.models import tiny
from hanorec.models.backbone import language_model, load_backbone
from hanorec.recommenders.networks import Settings
from tools import small_backbone


def test_a_backbone_as_small_as_sasrec_loads_with_the_vocabulary_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["", "--like", str(tiny.PRETRAINED), "--output", str(tmp_path / "small")])
    small_backbone.main()
    backbone = load_backbone(str(tmp_path / "small"), dtype="float32", device=torch.device("cpu"))
    layers = language_model(backbone.model).layers
    assert (backbone.width, len(layers)) == (Settings().width, Settings().layers)
    assert backbone.tokens("Comet") == load_backbone("tiny").tokens("Comet")
