"""Every objective with every kind of negatives: 20 steps each, with a backbone of one layer and width 32."""

from __future__ import annotations

import json
import math
from typing import get_args, get_type_hints

import pytest

from hanorec.related.objectives import PAPER_BETA
from hanorec.training.dpo_options import RelatedOptions
from tools import families

NEGATIVES = get_args(get_type_hints(RelatedOptions)["negatives"])
# 20 users in batches of 2, twice: 20 steps. Two LoRA matrices learn.
SHORT = ["--batch-size", 2, "--train-users", 20, "--validate-users", 1, "--validate-every", 20, "--log-every", 1]
DPO = [*SHORT, "--epochs", 2, "--rejected", 2, "--layers", "q_proj"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder for runs, all of which start from `sft` and share what is kept in `cache`."""
    return tmp_path_factory.mktemp("combinations")


@pytest.fixture
def sft_run(script, toy_folder, runs, monkeypatch):
    """The SFT run to start from, made by the first test."""
    if not (runs / "sft").exists():
        monkeypatch.setitem(families.TEXT, "num_hidden_layers", 1)
        backbone = families.save(families.smolvlm, runs / "backbone")
        small = ["--backbone", backbone, "--history", 2, "--candidates", 5, "--image-pixels", 32 * 32]
        status, _, errors = script("train_sft", "--data", toy_folder, "--output", runs / "sft", *small, *SHORT)
        assert status == 0, errors
    return runs / "sft"


@pytest.mark.parametrize("negatives", NEGATIVES)
@pytest.mark.parametrize("loss", PAPER_BETA)
def test_20_steps_of_an_objective_on_a_kind_of_negatives(script, runs, sft_run, loss, negatives):
    options = ["--sft", sft_run, "--output", runs / "dpo", "--overwrite", "--loss", loss, "--negatives", negatives]
    status, _, errors = script("train_dpo", *options, *DPO)
    assert status == 0, errors
    lines = [json.loads(line) for line in (runs / "dpo" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(20))
    for line in steps:
        assert all(math.isfinite(value) for value in line.values()) and line["grad_norm"] > 0
        assert line["chosen_logp"] < line["chosen_logp_per_token"] < 0 and line["rejected_logp"] < 0
        assert 0 <= line["adapted"] <= 1
    config = json.loads((runs / "dpo" / "config.json").read_text())
    assert config["noise"] == ("logits" if loss.startswith("hanorec") else "none") and config["beta"] > 0
