"""experiments/claims/diagnose.py: its λ, η, β and gradient weights are those of training, and its tables say what was
measured."""

from __future__ import annotations

import json
import math
import shutil
import sys

import pytest
import torch
from torch.testing import assert_close

from experiments.claims import diagnose
from hanorec.errors import DataError, exit_on_user_error
from hanorec.losses import RunningResponsiveness, hanorec_loss, policy_responsiveness
from hanorec.related.pair_objectives import dpo_loss
from hanorec.training.dpo_options import DPOOptions

FEW = ["--epochs", 2, "--batch-size", 16, "--train-users", 16, "--validate-users", 4,
       "--log-every", 1]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def trained(script, toy_folder, random_backbone, runs):
    """A run of SFT, one of DPO and one of HaNoRec, trained once for all tests."""
    if not (runs / "sft").exists():
        script(
            "train_sft",
            "--data",
            toy_folder,
            "--backbone",
            random_backbone,
            "--output",
            runs / "sft",
            "--candidates",
            8,
            *FEW,
        )
        for loss, recipe in (("dpo", []), ("hanorec", ["--recipe", "calibrated"])):
            status, _, errors = script(
                "train_dpo", "--sft", runs / "sft", "--loss", loss, *recipe, "--output", runs / loss, *FEW
            )
            assert status == 0, errors
    return runs


@pytest.fixture
def call(monkeypatch, capsys):
    """diagnose.py as the command line calls it; returns (exit status, stdout, stderr)."""

    def call(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["diagnose.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop, exit_on_user_error():
            diagnose.main()
            raise SystemExit(0)
        return stop.value.code, *capsys.readouterr()

    return call


def test_the_diagnostics_of_a_run_are_those_of_its_training(call, trained, tmp_path, monkeypatch):
    """A batch is all 16 pairs, so that the log's deviation of λ is that of the pairs weighed here."""
    hardness, weigh = {}, diagnose.weigh

    def watched(options, found, *logps):
        hardness[options.loss] = found
        return weigh(options, found, *logps)

    monkeypatch.setattr(diagnose, "weigh", watched)
    status, out, errors = call("--runs", trained / "dpo", trained / "hanorec", "--output", tmp_path / "page.md")
    assert status == 0, errors
    page = (tmp_path / "page.md").read_text()
    assert page.strip() in out
    first = json.loads((trained / "hanorec" / "metrics.jsonl").read_text().splitlines()[1])
    assert first["hardness_std"] > 0.001 and len(hardness["hanorec"]) == 16
    assert hardness["hanorec"].std(correction=0).item() == pytest.approx(first["hardness_std"], abs=1e-5)
    dpo, hanorec = page.split("# " + str(trained / "hanorec"))
    assert "The loss dpo has no λ" in dpo and "| 1, hardest |" in dpo
    rows = [line.split("|")[1:-1] for line in hanorec.splitlines() if line.startswith(("| 1, hardest", "| 5, easiest"))]
    assert float(rows[0][1]) < float(rows[1][1])
    assert dpo.count("same pairs, before") == hanorec.count("same pairs, after") == 1


@pytest.mark.parametrize("loss", ["dpo", "hanorec"])
@pytest.mark.parametrize("recipe", ["paper", "calibrated"])
def test_the_gradient_weight_is_the_gradient_of_the_objective(loss, recipe):
    """Of −log σ(βΔ), summed over the pairs of each batch in turn, with respect to log π_θ of the chosen responses."""
    options = DPOOptions(loss=loss, recipe=recipe, beta=0.4, batch_size=4)
    generator = torch.Generator().manual_seed(3)
    logps, reference_logps = torch.randn(2, 8, 2, generator=generator).double() * 3
    hardness = torch.linspace(0.8, 1.2, 8).double()
    weighed = diagnose.weigh(options, hardness, logps, reference_logps)

    responsiveness = RunningResponsiveness() if recipe == "calibrated" else policy_responsiveness
    policy = logps.clone().requires_grad_()
    for rows in (slice(0, 4), slice(4, 8)):
        if loss == "dpo":
            output = dpo_loss(policy[rows], reference_logps[rows], beta=0.4)
        else:
            gaps = 0.4 * (policy - reference_logps)[rows] @ torch.tensor([1.0, -1.0]).double()
            columns = (*policy[rows].unbind(1), *reference_logps[rows].unbind(1))
            output = hanorec_loss(*columns, hardness[rows], beta=0.4, responsiveness=responsiveness(gaps))
            assert_close(weighed.beta[rows], output.beta)
        output.losses.sum().backward()
    assert (weighed.beta is None) == (loss == "dpo")
    assert_close(weighed.weight, -policy.grad[:, 0])


def test_parts_of_hanorec_that_were_off_have_no_effect():
    logps, reference_logps = torch.randn(2, 6, 2, generator=torch.Generator().manual_seed(0))
    off = DPOOptions(loss="hanorec", beta=0.1, hardness="off", responsiveness="off", batch_size=3)
    weighed = diagnose.weigh(off, torch.linspace(0.5, 2, 6), logps, reference_logps)
    assert_close(weighed.beta, torch.full((6,), 0.1))
    assert weighed.hardness.tolist() == [1] * 6 and weighed.responsiveness.tolist() == [1] * 2


def test_log_probabilities_are_told_a_response_and_a_token():
    """Of a chosen response of 2 tokens and rejected ones of 3 and 4; and one of 4, 2 and 1."""
    found = diagnose.mean_logps(torch.tensor([[-2.0, -6, -4], [-12, -2, -4]]), torch.tensor([[2, 3, 4], [4, 2, 1]]))
    assert found == {
        "chosen_logp": -7,
        "rejected_logp": -4,
        "chosen_logp_per_token": -2,
        "rejected_logp_per_token": -2,
    }


def test_fifths_begin_with_the_hardest_pairs():
    groups = diagnose.fifths(torch.tensor([1.5, 0.5, 1.1, 0.9, 1.2, 0.6, 1.3, 1.0, 0.7, 1.4]))
    assert [group.tolist() for group in groups] == [[1, 5], [8, 3], [7, 2], [4, 6], [9, 0]]


def test_the_course_has_means_and_extremes_of_each_part(tmp_path):
    lines = [{"step": step, "loss": step / 10, "accuracy": 0.5} for step in range(0, 100, 10)]
    lines.insert(3, {"step": 25, "NDCG@10": 0.7})  # a validation
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    parts = diagnose.course(tmp_path)
    assert [(part["first"], part["last"], part["loss"]) for part in parts][:2] == [(0, 10, 0.5), (20, 30, 2.5)]
    assert len(parts) == 5 and (parts[4]["loss:min"], parts[4]["loss:max"]) == (8, 9)
    (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[3]))
    with pytest.raises(DataError, match="no training step"):
        diagnose.course(tmp_path)


def test_folders_that_cannot_be_diagnosed_are_one_clear_line(call, trained, tmp_path):
    def refused(*arguments) -> str:
        status, _, errors = call(*arguments)
        assert status == 2 and errors.count("error: ") == 1 and "Traceback" not in errors, errors
        return errors.splitlines()[-1]

    assert "not a run's folder" in refused("--runs", tmp_path)
    assert "a run of kind 'sft', not 'dpo'" in refused("--runs", trained / "sft")
    shutil.copytree(trained / "hanorec", tmp_path / "unfinished", ignore=shutil.ignore_patterns("finished.json"))
    assert "is not finished" in refused("--runs", tmp_path / "unfinished")
    assert "--prompts 4: " in refused("--runs", trained / "hanorec", "--prompts", 4)


def test_figures_of_the_page_are_those_of_the_log():
    """β / β₀ of a part of the log, by hand."""
    part = {"first": 0, "last": 10, "hardness_mean": 1.0, "hardness_std": 0.05, "beta_mean": 0.11, "adapted": 0.25}
    part |= {"beta_min:min": 0.05, "beta_max:max": 0.2, "responsiveness:median": 1.1, "responsiveness:min": 0.9}
    cells = diagnose.cells_of_beta(part | {"responsiveness:max": math.pi}, beta=0.1)
    assert cells == ["1.000 ± 0.050", "1.100 [0.900, 3.142]", "1.100 [0.500, 2.000]", "25%"]
