"""experiments/diagnose.py: its λ, η, β and gradient weights are those of training, and its tables say what was measured."""

from __future__ import annotations

import json
import math
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.testing import assert_close

sys.path.insert(0, str(ROOT / "experiments"))

import diagnose
import diagnose_items
import diagnose_pairs
import diagnose_tables

from hanorec.errors import DataError
from hanorec.models.packing import Prompt
from hanorec.models.prompts import Prompts
from hanorec.training.options import DPOOptions

FEW = ["--epochs", 2, "--batch-size", 16, "--train-users", 16, "--validate-users", 4, "--candidates", 8,
       "--log-every", 1]  # fmt: skip
TO_DIAGNOSE = ["--users", 12, "--pairs", 16, "--name", "few"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def trained(script, toy_folder, random_backbone, runs):
    """A run of SFT, one of DPO and one of HaNoRec, trained once for all tests."""
    if not (runs / "sft").exists():
        script("train_sft", "--data", toy_folder, "--backbone", random_backbone, "--output", runs / "sft", *FEW)
        for loss, recipe in (("dpo", []), ("hanorec", ["--recipe", "calibrated"])):
            status, _, errors = script(
                "train_dpo", "--sft", runs / "sft", "--loss", loss, *recipe, "--output", runs / loss, *FEW
            )
            assert status == 0, errors
    return runs


@pytest.fixture
def call(script, monkeypatch, tmp_path):
    """diagnose.py as the command line calls it, on runs after one SFT run; its results go to a folder of their own."""
    monkeypatch.setattr(diagnose, "RESULTS", tmp_path)
    monkeypatch.setattr(diagnose_items, "RETRIEVAL_ITEMS", 20)

    def call(sft, *runs, more=()):
        return script("diagnose", "--sft", sft, "--runs", *runs, *TO_DIAGNOSE, *more)

    return call


@pytest.fixture
def prompts(backbone, images, data):
    return Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)


def test_the_diagnostics_of_a_run_are_those_of_its_training(call, trained, tmp_path, monkeypatch):
    """A batch is all 16 pairs, so that the log's deviation of λ is that of the pairs drawn here."""
    drawn = []
    make = diagnose.training_pairs
    monkeypatch.setattr(diagnose, "training_pairs", lambda *given: drawn.append(make(*given)) or drawn[0])
    status, out, errors = call(trained / "sft", trained / "dpo", trained / "hanorec")
    assert status == 0, errors
    found = json.loads((tmp_path / "few.json").read_text())
    first = json.loads((trained / "hanorec" / "metrics.jsonl").read_text().splitlines()[1])
    dpo, hanorec = (found["runs"][str(trained / name)] for name in ("dpo", "hanorec"))
    assert found["pairs"] == 16 and not dpo["pairs"] and dpo["recipe"] is None
    assert found["hardness of"] == str(trained / "hanorec") and found["hardness"] == sorted(found["hardness"])
    hardness = drawn[0].hardness[str(trained / "hanorec")]
    assert first["hardness_std"] > 0.001
    assert hardness.std(correction=0).item() == pytest.approx(first["hardness_std"], abs=1e-5)
    assert hanorec["pairs"]["λ"] == pytest.approx(np.quantile(hardness.numpy(), diagnose.LEVELS).tolist())
    assert len(hanorec["pairs"]["η"]) == 5 and len(hanorec["course"]) == 2
    page = (tmp_path / "few.md").read_text()
    assert page.strip() in out
    _, over_training, after_training, *_ = page.split("\n## ")
    for section in (over_training, after_training):
        (row,) = [line for line in section.splitlines() if line.startswith(f"| {trained / 'dpo'} ")]
        assert all(cell.strip() == "–" for cell in row.split("|")[2:-1])
    recalls = found["retrieval"]
    assert len(recalls) == 4 and all(each["chance"]["items"] == 20 for each in recalls.values())
    assert [cell["users"] for cell in found["lost"][str(trained / "sft")]][0] == 12


@pytest.mark.parametrize("loss", ["dpo", "hanorec"])
@pytest.mark.parametrize("recipe", ["paper", "calibrated"])
def test_the_gradient_weight_is_the_gradient_of_the_objective(loss, recipe):
    """Of −log σ(βΔ), summed over the pairs of each batch in turn, with respect to log π_θ of the chosen responses."""
    options = DPOOptions(loss=loss, recipe=recipe, beta=0.4, batch_size=4)
    generator = torch.Generator().manual_seed(3)
    logps, reference_logps = torch.randn(2, 8, 2, generator=generator).double() * 3
    hardness = torch.linspace(0.8, 1.2, 8).double()
    weighed = diagnose_pairs.weigh_pairs(options, hardness, logps, reference_logps)

    objective, running = diagnose_pairs.choose_objective(options)
    policy = logps.clone().requires_grad_()
    for rows in (slice(0, 4), slice(4, 8)):
        extra = {}
        if loss == "hanorec":
            gaps = 0.4 * (policy - reference_logps)[rows] @ torch.tensor([1.0, -1.0]).double()
            extra = {"responsiveness": running(gaps) if running else diagnose_pairs.policy_responsiveness(gaps)}
        lengths = torch.ones(4, 2)
        output = objective(policy[rows], reference_logps[rows], lengths=lengths, hardness=hardness[rows, None], **extra)
        output.losses.sum().backward()
        if weighed.beta is not None:
            assert_close(weighed.beta[rows], output.beta)
    assert (weighed.beta is None) == (loss == "dpo")
    assert_close(weighed.weight, -policy.grad[:, 0])


def test_parts_of_hanorec_that_were_off_have_no_effect():
    logps, reference_logps = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
    off = DPOOptions(loss="hanorec", beta=0.1, hardness="off", responsiveness="off", batch_size=3)
    weighed = diagnose_pairs.weigh_pairs(off, torch.linspace(0.5, 2, 6), logps, reference_logps)
    assert_close(weighed.beta, torch.full((6,), 0.1))
    assert weighed.hardness.tolist() == [1] * 6 and weighed.responsiveness.tolist() == [1] * 2


def test_log_probabilities_are_told_a_response_and_a_token(prompts):
    """Of a chosen response of 2 tokens and rejected ones of 3 and 4; and one of 4, 2 and 1."""
    lengths = {"one": [2, 3, 4], "other": [4, 2, 1]}
    prompts.chosen = lambda example: [0] * lengths[example][0]
    prompts.rejected = lambda example: [[0] * length for length in lengths[example][1:]]
    logps = torch.tensor([[-2.0, -6, -4], [-12, -2, -4]])
    found = diagnose_pairs.mean_logps(logps, prompts, ["one", "other"])
    assert found == {
        "chosen_logp": -7,
        "rejected_logp": -4,
        "chosen_logp_per_token": -2,
        "rejected_logp_per_token": -2,
    }


def test_quintiles_begin_with_the_hardest_pairs():
    groups = diagnose_pairs.quintiles(torch.tensor([1.5, 0.5, 1.1, 0.9, 1.2, 0.6, 1.3, 1.0, 0.7, 1.4]))
    assert [group.tolist() for group in groups] == [[1, 5], [8, 3], [7, 2], [4, 6], [9, 0]]


def test_the_course_has_means_and_extremes_of_each_part(tmp_path):
    lines = [{"step": step, "loss": step / 10, "accuracy": 0.5} for step in range(0, 100, 10)]
    lines.insert(3, {"step": 25, "NDCG@10": 0.7})  # a validation
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    parts = diagnose_pairs.course(tmp_path)
    assert [(part["first"], part["last"], part["loss"]) for part in parts][:2] == [(0, 10, 0.5), (20, 30, 2.5)]
    assert len(parts) == 5 and (parts[4]["loss:min"], parts[4]["loss:max"]) == (8, 9)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[3]))
    with pytest.raises(DataError, match="no training step"):
        diagnose_pairs.course(tmp_path)


def test_an_image_that_equals_its_title_is_found(backbone, prompts, data, monkeypatch):
    titles = data.catalog.titles
    head = backbone.model.get_output_embeddings().weight.detach()
    named = torch.stack([head[backbone.title_tokens(title)].mean(dim=0) for title in titles])
    points = torch.randn(len(titles), backbone.width, generator=torch.Generator().manual_seed(0))
    both = {"input": points + 5, "output": 3 * named - 1}  # a kind of token may lie apart as a whole
    monkeypatch.setattr(diagnose_items, "embed_modalities", lambda *_: (points, both["input"]))
    monkeypatch.setattr(diagnose_items, "last_states", lambda *_: both["output"])
    found = diagnose_items.retrieval(backbone, prompts, titles, seed=1)
    assert found["input"] == found["output"] == {"recall@1": 1, "recall@10": 1}
    assert found["chance"] == {"recall@1": 1 / len(titles), "recall@10": 10 / len(titles), "items": len(titles)}
    both |= {"input": points.roll(1, dims=0), "output": named.roll(1, dims=0)}
    found = diagnose_items.retrieval(backbone, prompts, titles, seed=1)
    assert found["input"]["recall@1"] < 0.1 and found["output"]["recall@1"] < 0.1


def test_a_last_state_is_what_the_output_head_reads_behind_a_prompt(backbone, images):
    """Prompts of several lengths in one forward; each read alone gives the same logits."""
    prompts = [Prompt(backbone.prefix + images.placeholders(item), [item]) for item in (2, 3)]
    prompts.append(Prompt(backbone.prefix + images.placeholders(4) + backbone.tokens("\n"), [4]))
    states = diagnose_items.last_states(backbone, images, prompts)
    for prompt, state in zip(prompts, states):
        with torch.no_grad():
            inputs = {"input_ids": torch.tensor([prompt.ids])} | images.outputs(backbone, prompt.image_items)
            logits = backbone.model(**inputs).logits[0, -1]
            assert_close(backbone.model.get_output_embeddings()(state), logits, rtol=1e-4, atol=1e-4)


def test_what_is_lost_is_paired_by_user_and_told_by_length():
    """Users 0 and 1 have 3 items and lose their hit with grey images; users 2 and 3 have 5 and keep it."""
    hit, miss, untied = [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]
    places = {
        m: (np.array(ahead), np.array(untied)) for m, ahead in (("full", hit), ("blank", miss), ("shuffled", hit))
    }
    every, short, long = diagnose_items.lost_by_length(places, np.array([3, 3, 5, 5]))
    assert [(each["from"], each["to"], each["users"]) for each in (every, short, long)] == [
        (3, 5, 4),
        (3, 3, 2),
        (5, 5, 2),
    ]
    assert [each["lost"]["blank"]["value"] for each in (every, short, long)] == [0.5, 1, 0]
    assert every["lost"]["shuffled"]["value"] == 0 and every["HR@1"] == 1
    many = diagnose_items.lost_by_length({m: (np.zeros(19, int), np.zeros(19, int)) for m in places}, np.arange(2, 21))
    assert [(each["from"], each["to"]) for each in many] == [(2, 20), (2, 5), (6, 10), (11, 15), (16, 20)]


def test_items_that_moved_most_have_three_users_and_stand_by_their_mean():
    """Item 7 moves up by 2, 3 and 4 places, item 8 down by 1 three times; item 9, up by 9, has two users."""
    targets = [7, 7, 7, 8, 8, 8, 9, 9]
    before = [np.array([4, 4, 4, 0, 0, 0, 9, 9]), np.array([0, 0, 2, 0, 0, 0, 0, 0])]
    after = [np.array([2, 1, 1, 1, 1, 1, 0, 0]), np.zeros(8, dtype=int)]
    found = diagnose_items.moved(before, after, targets)
    assert found["up"] == [{"item": 7, "users": 3, "up": 3.0}]
    assert found["down"] == [{"item": 8, "users": 3, "up": -1.0}]
    assert found["mean"]["value"] == pytest.approx(24 / 8) and found["items"] == 2
    assert (found["moved up"], found["moved down"]) == (5 / 8, 3 / 8)
    assert "--users ranks more" in diagnose_tables.items(found | {"up": [], "down": []})


def test_folders_that_cannot_be_diagnosed_are_one_clear_line(call, trained, tmp_path):
    def refused(*folders, more=()) -> str:
        status, _, errors = call(*folders, more=more)
        last = errors.splitlines()[-1]
        assert status == 2 and errors.count("error: ") == 1 and "Traceback" not in errors, errors
        return last

    assert "not a run's folder" in refused(trained / "sft", tmp_path)
    assert "a run of kind 'sft', not 'dpo'" in refused(trained / "sft", trained / "sft")
    shutil.copytree(trained / "hanorec", tmp_path / "unfinished", ignore=shutil.ignore_patterns("finished.json"))
    assert "is not finished" in refused(trained / "sft", tmp_path / "unfinished")
    shutil.copytree(trained / "sft", tmp_path / "sft")
    assert "give it as --sft" in refused(tmp_path / "sft", trained / "hanorec")
    shutil.copytree(trained / "hanorec", tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"seed": 3}))  # which draws the pairs
    assert "other pairs; diagnose them apart" in refused(trained / "sft", trained / "hanorec", tmp_path / "other")
    assert "--pairs 4: " in refused(trained / "sft", trained / "hanorec", more=("--pairs", 4))
    assert "--users 0: " in refused(trained / "sft", trained / "hanorec", more=("--users", 0))


def test_figures_of_the_page_are_those_of_the_log():
    """β / β₀ of a part of the log, by hand."""
    part = {"first": 0, "last": 10, "hardness_mean": 1.0, "hardness_std": 0.05, "beta_mean": 0.11, "adapted": 0.25}
    part |= {"beta_min:min": 0.05, "beta_max:max": 0.2, "responsiveness:median": 1.1, "responsiveness:min": 0.9}
    cells = diagnose_tables.cells_of_beta(part | {"responsiveness:max": math.pi}, beta=0.1)
    assert cells == ["1.000 ± 0.050", "1.100 [0.900, 3.142]", "1.100 [0.500, 2.000]", "25%"]
