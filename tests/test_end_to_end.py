"""The three scripts, one after the other, on a small toy catalogue: as a user runs them, only shorter."""

from __future__ import annotations

import json
import math
import re
import runpy
import shutil
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT

import evaluate
from hanorec import files
from hanorec.data.interactions import read_sequences
from hanorec.data.toy import World, make_toy
from hanorec.errors import exit_on_user_error
from hanorec.evaluation.ranking import answer_with_model
from hanorec.models.backbone import load_backbone
from hanorec.models.encoding import LANGUAGE
from hanorec.training.runs import load_run
from tools import families

FEW = ["--max-steps", 4, "--validate-every", 2, "--validate-users", 6, "--batch-size", 4, "--log-every", 1,
       "--train-users", 16]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder for runs, which share what is kept in `cache`."""
    return tmp_path_factory.mktemp("runs")


def sft(script, folder, runs, name="sft", *more):
    return script("train_sft", "--data", folder, "--output", runs / name, "--candidates", 8, *FEW, *more)


def dpo(script, runs, name, *more, sft="sft"):
    return script("train_dpo", "--sft", runs / sft, "--output", runs / name, *FEW, *more)


def once(run, make):
    """The folder of a run that several tests use; `make` is called by the first of them."""
    if not run.exists():
        status, _, errors = make()
        assert status == 0, errors
    return run


@pytest.fixture
def sft_run(script, toy_folder, runs):
    return once(runs / "sft", lambda: sft(script, toy_folder, runs))


@pytest.fixture
def hanorec_run(script, runs, sft_run):
    return once(runs / "hanorec", lambda: dpo(script, runs, "hanorec"))


def older(run, **change):
    """Make a run look as if a version before 1.0.0 had made it. change: other values; None takes an option out."""
    for name, gone in (("config.json", {"version", "made_from"}), ("finished.json", {"files"})):
        content = json.loads((run / name).read_text())
        content = {key: value for key, value in content.items() if key not in gone}
        if name == "config.json":
            content = {
                key: value for key, value in (content | change).items() if value is not None or key not in change
            }
        (run / name).write_text(json.dumps(content))


def log(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_sft_trains_and_leaves_a_model_that_hugging_face_loads(sft_run):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    left = {p.name for p in sft_run.iterdir() if not p.name.startswith("evaluation")}
    assert left == {"config.json", "metrics.jsonl", "finished.json", "model"}
    AutoModelForImageTextToText.from_pretrained(sft_run / "model")
    AutoProcessor.from_pretrained(sft_run / "model")
    assert [line["step"] for line in log(sft_run) if "loss" in line] == [0, 1, 2, 3]


def test_the_vision_tower_trains_where_it_is_asked_to(script, toy_folder, runs, sft_run):
    assert sft(script, toy_folder, runs, "vision", "--layers", "all")[0] == 0
    before, frozen, trained = (
        dict(load_backbone(str(name), dtype="float32", device=torch.device("cpu")).model.named_parameters())
        for name in ("tiny", sft_run / "model", runs / "vision" / "model")
    )
    for name, weight in before.items():
        language = bool(LANGUAGE.search(name))
        assert weight.equal(frozen[name]) != language and not weight.equal(trained[name]), name


def test_two_runs_with_one_seed_give_identical_metrics(script, toy_folder, runs, sft_run, hanorec_run):
    sft(script, toy_folder, runs, "sft-again")
    assert log(sft_run) == log(runs / "sft-again")
    dpo(script, runs, "hanorec-again")
    assert log(hanorec_run) == log(runs / "hanorec-again")
    dpo(script, runs, "hanorec-other", "--seed", 3)
    assert log(runs / "hanorec-other") != log(hanorec_run)


def test_the_pages_example_of_ranking_in_python_runs(runs, data, capsys, hanorec_run):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8"), re.S)
    (code,) = (block for block in blocks if "load_run" in block)
    exec(code.replace("runs/hanorec", str(hanorec_run)), {})
    printed = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert {title for _, title in printed} == {data.catalog.titles[item] for item in (65, 35, 89, 92)}
    scores = [float(score) for score, _ in printed]
    assert scores == sorted(scores, reverse=True) and scores[0] < 0


def test_a_prompt_beyond_the_models_context_is_an_error_before_anything_is_trained_or_ranked(
    script, toy_folder, runs, sft_run, tmp_path, data
):
    """A title of 3,000 words, which a single validation user meets."""
    folder = tmp_path / "long"
    shutil.copytree(toy_folder, folder)
    item = data.catalog.items[next(number for number, count in enumerate(data.counts) if not count)]
    titles = (folder / "titles.csv").read_text().splitlines()
    long = [f"{item},{'word ' * 3000}" if line.startswith(f"{item},") else line for line in titles]
    (folder / "titles.csv").write_text("\n".join(long))
    first, *others = (folder / "val.tsv").read_text().splitlines()
    (folder / "val.tsv").write_text("\n".join([f"{first.rsplit(' ', 1)[0]} {item}", *others]))
    few = ["--validate-users", 100, "--max-steps", 4]
    for said in (
        script("train_sft", "--data", folder, "--output", runs / "long", *few),
        script("train_dpo", "--data", folder, "--sft", sft_run, "--output", runs / "long", *few),
        script("evaluate", "--data", folder, "--runs", sft_run, "--split", "val"),
    ):
        assert said[0] == 2 and f"at most 2,048. The longest title in it is that of item {item}" in said[2]
        assert not (runs / "long").exists()


def test_a_split_step_computes_what_a_whole_one_does(script, toy_folder, runs, sft_run):
    status, _, errors = sft(script, toy_folder, runs, "sft-split", "--forward-tokens", 150)
    assert status == 0, errors
    for whole, split in zip(log(sft_run), log(runs / "sft-split")):
        assert split == pytest.approx(whole, rel=2e-3) if "loss" in whole else True


def test_the_first_dpo_step_starts_at_the_reference(script, runs, sft_run):
    """A fresh adapter changes nothing, so without noise Δ = 0 and the loss is log 2, whatever β is."""
    status, _, errors = dpo(script, runs, "dpo", "--loss", "dpo", "--lora-dropout", 0)
    assert status == 0, errors
    start, first = log(runs / "dpo")[:2]
    finished = json.loads((sft_run / "finished.json").read_text())
    assert start == {"step": -1, "validation": pytest.approx(finished["best"], abs=1e-6), "measure": "NDCG@10"}
    assert first["loss"] == pytest.approx(0.693147, abs=1e-4)
    assert first["beta_min"] == first["beta_max"] == pytest.approx(0.1) and first["hardness_std"] == 0


def test_nested_windows_train_from_end_to_end(script, toy_folder, runs):
    """Over nested windows, too, DPO starts at the reference, in one forward or in several."""
    status, _, errors = sft(script, toy_folder, runs, "nested", "--windows", "nested", "--name-history")
    assert status == 0, errors
    several = ("--rejected", 2, "--noise", "none", "--lora-dropout", 0)
    for name, more in (("nested-dpo", ()), ("nested-split", ("--forward-tokens", 100))):
        status, _, errors = dpo(script, runs, name, *several, *more, "--windows", "nested", sft="nested")
        assert status == 0, errors
    whole, split = log(runs / "nested-dpo"), log(runs / "nested-split")
    assert whole[1]["margin"] == pytest.approx(0, abs=1e-4) and whole[1]["accuracy"] < 1
    for one, other in zip(whole, split, strict=True):
        assert other == pytest.approx(one, rel=2e-3, abs=1e-4) if "loss" in one else True


def test_a_run_does_not_replace_what_it_starts_from(script, toy_folder, tmp_path):
    assert sft(script, toy_folder, tmp_path)[0] == 0
    before = (tmp_path / "sft" / "config.json").read_text()
    status, _, errors = sft(script, toy_folder, tmp_path, "sft", "--backbone", tmp_path / "sft", "--overwrite")
    assert status == 2 and "is what this run starts from" in errors
    status, _, errors = dpo(script, tmp_path, "sft", "--overwrite")
    assert status == 2 and "is what this run starts from" in errors
    assert (tmp_path / "sft" / "config.json").read_text() == before
    status, _, errors = dpo(script, tmp_path, "all", "--layers", "all")
    assert status == 2 and "keeps the vision tower as it is" in errors


def test_options_of_sft_that_do_not_fit_are_errors(script, toy_folder, runs):
    for message, *more in (
        ["--lora-rank: is of an adapter, and this model trains without one", "--lora-rank", 4],
        ["--layers q_proj: a model that trains without LoRA takes language or all", "--layers", "q_proj"],
    ):
        status, _, errors = sft(script, toy_folder, runs, "nowhere", *more)
        assert status == 2 and message in errors.splitlines()[-1], errors


SOME = ["--max-steps", 2, "--train-users", 8, "--validate-users", 2, "--overwrite", "--rejected", 3]


def test_negatives_that_cannot_be_drawn_are_an_error(script, runs, sft_run):
    def fails(message, *more):
        status, _, errors = dpo(script, runs, "undrawn", *SOME, *more)
        assert status == 2 and message in errors.splitlines()[-1], errors

    for negatives in ("policy", "policy-modality"):
        fails("60 rejected items are to be drawn from 50", "--negatives", negatives, "--rejected", 60)
    for known in ("random", "popularity", "neighbours", "policy", "policy-modality"):
        fails(known, "--negatives", "nearest")


def test_a_refined_neighbourhood_says_how_many_edges_change(script, runs, sft_run):
    def refined(*more):
        status, out, errors = dpo(script, runs, "refined", "--neighbourhood", "refined", *more, *SOME)
        assert status == 0, errors
        line = r"^refined neighbourhood, similarities of at least (\S+): (\d+) of (\d+) edges dropped, (\d+) added$"
        ((threshold, *edges),) = re.findall(line, out, re.MULTILINE)
        return float(threshold), *map(int, edges)

    threshold, dropped, edges, added = refined("--negatives", "neighbours")
    assert 0 < threshold < 1 and 0 < added <= dropped <= edges / 2


def test_hanorec_without_its_parts_is_dpo(script, runs, sft_run):
    """λ = η = 1 and no noise: the same losses, step by step."""
    off = ["--hardness", "off", "--responsiveness", "off", "--noise", "none"]
    assert dpo(script, runs, "bare", *off, *SOME)[0] == 0
    assert dpo(script, runs, "plain", "--loss", "dpo", *SOME)[0] == 0
    assert log(runs / "bare") == log(runs / "plain")
    assert dpo(script, runs, "bare-softmax", "--loss", "hanorec-softmax", *off, "--beta", 1, *SOME)[0] == 0
    assert dpo(script, runs, "s-dpo", "--loss", "s-dpo", *SOME)[0] == 0
    for bare, plain in zip(log(runs / "bare-softmax"), log(runs / "s-dpo"), strict=True):
        assert bare == pytest.approx(plain, abs=1e-5)


def test_the_sft_weight_adds_the_chosen_responses_negative_log_likelihood(script, runs, sft_run):
    """The logged loss is the objective alone, log 2 in the first step; the gradient has what is added, too."""
    more = ["--loss", "dpo", "--lora-dropout", 0, *SOME]
    assert dpo(script, runs, "weighted", "--sft-weight", 0.5, *more)[0] == 0
    first = log(runs / "weighted")[1]
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)  # the objective alone
    assert dpo(script, runs, "unweighted", *more)[0] == 0
    gradient, without = first["grad_norm"], log(runs / "unweighted")[1]["grad_norm"]
    assert gradient > 2 * without  # what is added is felt


@pytest.mark.parametrize("loss, part", [("dpo", "hardness"), ("s-dpo", "responsiveness"), ("dama", "responsiveness")])
def test_a_part_that_an_objective_does_not_have_cannot_be_turned_off(script, runs, loss, part, sft_run):
    status, _, errors = dpo(script, runs, "partless", "--loss", loss, f"--{part}", "off")
    assert status == 2 and f"--{part} off: the loss {loss} has none" in errors


@pytest.mark.parametrize(
    "more",
    [
        ["--noise", "lora", "--noise-std", 0.01],
        ["--recipe", "calibrated", "--negatives", "neighbours", "--rejected", 3],
        ["--forward-tokens", 150],
    ],
)
def test_hanorec_logs_its_hardness_responsiveness_and_beta(script, runs, more, sft_run):
    status, _, errors = dpo(script, runs, "variant", *more, "--overwrite")
    assert status == 0, errors
    for line in (line for line in log(runs / "variant") if "loss" in line):
        assert 0 < line["beta_min"] <= line["beta_mean"] <= line["beta_max"]
        assert line["hardness_std"] > 0 and 0 < line["responsiveness"] < 4
    assert (runs / "variant" / "model" / "adapter_model.safetensors").is_file()


def test_evaluation_puts_everything_in_one_table(script, runs, sft_run, hanorec_run):
    status, out, errors = script(
        "evaluate",
        "--runs",
        sft_run,
        hanorec_run,
        "--candidates",
        8,
        "--modality",
        "full",
        "blank",
        "shuffled",
        "no-titles",
        "--baselines",
        "all",
    )
    assert status == 0, errors
    less = out[out.index(f"| less {sft_run} ") :]
    rows = {line.split("|")[1].strip() for line in less.splitlines() if line.startswith(f"| {runs}")}
    others = [f"{run}{more}" for run in (sft_run, hanorec_run) for more in ("", ", blank", ", shuffled", ", no-titles")]
    assert rows == {*others} - {str(sft_run)} and "seeds |" not in out
    assert len(list((runs / "cache").glob("sasrec-*.safetensors"))) == 1
    for method in (
        "random",
        "popularity",
        "item co-occurrence",
        "SASRec",
        "GRU4Rec",
        "oracle: words alone",
        "oracle: images alone",
        "oracle: words and images",
        f"{hanorec_run}, blank",
    ):
        assert f"| {method} " in out
    result = json.loads((hanorec_run / "evaluation-test-next.json").read_text())
    assert result["measures"]["random"]["HR@1"][0] == pytest.approx(1 / 8)
    assert f"{hanorec_run}, no-titles" in result["measures"] and str(sft_run) not in result["measures"]
    assert script("evaluate", "--runs", sft_run, "--candidates", 8, "--split", "cold", "--users", 5)[0] == 0


def test_differences_are_from_any_row_and_runs_of_other_seeds_are_put_together(script, toy_folder, runs, sft_run):
    assert sft(script, toy_folder, runs, "sft-9", "--seed", 9)[0] == 0
    ranking = ("evaluate", "--runs", sft_run, runs / "sft-9", "--users", 6, "--against")
    status, out, errors = script(*ranking, "popularity")
    assert status == 0, errors
    assert "| less popularity" in out and len(re.findall(rf"\| {sft_run}, 2 seeds +\| ", out)) == 2
    status, _, errors = script(*ranking, "sasrec")
    assert status == 2 and "--against sasrec: is none of the runs and baselines that are evaluated" in errors


def test_the_whole_catalogue_is_ranked(script, runs, sft_run):
    status, out, errors = script("evaluate", "--runs", sft_run, "--candidates", "all", "--users", 12)
    assert status == 0, errors
    measures = json.loads((sft_run / "evaluation-test-next-all.json").read_text())["measures"]
    assert set(measures[str(sft_run)]) == {f"{name}@{k}" for name in ("HR", "NDCG") for k in (10, 20, 50)}
    assert 0 < measures["random"]["HR@10"][0] < 0.15 and "oracle: words and images" in measures
    assert (runs / "cache").is_dir()


def test_the_rank_of_every_users_target_is_written_and_gives_the_measures(script, runs, sft_run):
    options = ("evaluate", "--runs", sft_run, "--candidates", 8, "--users", 12)
    assert script(*options)[0] == 0
    result = json.loads((sft_run / "evaluation-test-next.json").read_text())
    each, name = result["per_user"], str(sft_run)
    assert len(each["users"]) == len(set(each["users"])) == len(each["history"]) == 12
    assert np.mean(np.array(each["ahead"][name]) == 0) == pytest.approx(result["measures"][name]["HR@1"][0])
    assert each["tied"]["random"] == [7] * 12 and each["ahead"]["random"] == [0] * 12


def test_the_lists_of_users_are_shown_without_scoring_them_again(script, data, runs, monkeypatch, sft_run, hanorec_run):
    calls = []
    monkeypatch.setattr(evaluate, "answer_with_model", lambda *a, **k: calls.append(a) or answer_with_model(*a, **k))
    options = ("evaluate", "--runs", sft_run, hanorec_run, "--candidates", 8, "--users", 12, "--show", 2)
    status, out, errors = script(*options)
    assert status == 0 and len(calls) == 2, errors
    result = json.loads((sft_run / "evaluation-test-next.json").read_text())["per_user"]
    blocks = out.split("\nuser ")[1:]
    assert [block.splitlines()[0] for block in blocks] == result["users"][:2]
    rows = {row.user: row.items for row in read_sequences(data.folder / "test.tsv", data.catalog)}
    for user, block in enumerate(blocks):
        rank = result["ahead"][str(sft_run)][user] + 1
        assert re.search(rf"truth +rank {rank} of 8 +rank \d of 8$", block, re.MULTILINE)
        *_, last, target = [data.catalog.titles[item] for item in rows[result["users"][user]]]
        assert re.search(rf"{last}\n +then  \* {target}\n", block)
    for wrong in (("--task", "yesno"), ("--candidates", "all"), ("--modality", "blank")):
        status, out, errors = script(*options, *wrong)
        assert status == 2 and errors.startswith("error: --show: ") and errors.count("\n") == 1 and not out, errors


def test_a_run_keeps_the_view_of_an_item(script, toy_folder, runs, tmp_path, sft_run):
    """DPO and the evaluation show items as the SFT run did; a run that is older than the option shows images."""
    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    status, _, errors = sft(script, folder, tmp_path, "words", "--item-view", "description")
    assert status == 2 and "descriptions.csv: no such file" in errors and "data/describe_items.py" in errors
    assert not (tmp_path / "words").exists()
    (folder / "descriptions.csv").write_text("0,of waves\n1,of dots\n")
    assert sft(script, folder, tmp_path, "words", "--item-view", "description")[0] == 0
    status, _, errors = dpo(script, tmp_path, "words-hanorec", sft="words")
    assert status == 0, errors
    assert load_run(tmp_path / "words-hanorec")[1].item_view == "description"
    older(shutil.copytree(sft_run, tmp_path / "seen"), item_view=None)
    assert load_run(tmp_path / "seen")[1].item_view == "image"

    names = [str(tmp_path / name) for name in ("words", "words-hanorec", "seen")]
    options = ("evaluate", "--runs", *names, "--data", folder, "--candidates", 8, "--users", 12)
    status, out, errors = script(*options, "--modality", "full", "blank")
    assert status == 0, errors
    out, _ = out.split("| less ")
    rows = dict(re.findall(r"^\| (\S+(?:, blank)?) +\| (.+)$", out, re.MULTILINE))
    assert all(rows[name] == rows[f"{name}, blank"] for name in names[:2])  # who shows no image loses nothing with it
    (folder / "descriptions.csv").unlink()
    status, out, errors = script(*options)
    assert status == 2 and "descriptions.csv: no such file" in errors


def test_a_backbone_before_training_is_a_row_and_nothing_is_written_beside_it(
    script, toy_folder, tmp_path, monkeypatch, random_backbone, sft_run
):
    base = shutil.copytree(random_backbone, tmp_path / "models" / "base")
    before = {path: path.stat().st_mtime_ns for path in base.parent.rglob("*")}
    monkeypatch.chdir(tmp_path)
    status, out, errors = script("evaluate", "--runs", base, sft_run, "--users", 4)
    assert status == 0, errors
    assert "candidates: 20" in out and re.search(rf"^\| {base} +\| 0\.", out, re.MULTILINE) and f"| less {base}" in out
    status, out, errors = script("evaluate", "--runs", "tiny", base, "--data", toy_folder, "--users", 4)
    assert status == 0 and re.search(r"^\| tiny +\| 0\.", out, re.MULTILINE), errors
    assert {path: path.stat().st_mtime_ns for path in base.parent.rglob("*")} == before
    assert {path.name for path in tmp_path.iterdir()} == {"models", "runs"}  # the cache


def test_candidates_that_are_drawn_by_popularity_take_its_lead_from_popularity(script, sft_run):
    """Among items drawn by it, how popular an item is says less of whether it was chosen than among any items."""
    found = {}
    for drawn, name in (("random", "test-next"), ("popularity", "test-next-popularity")):
        status, _, errors = script("evaluate", "--runs", sft_run, "--candidates", 20, "--negatives", drawn)
        assert status == 0, errors
        found[drawn] = json.loads((sft_run / f"evaluation-{name}.json").read_text())["measures"]["popularity"]["MRR"][0]
    assert found["popularity"] < found["random"]


def test_candidates_can_be_those_that_a_dataset_lists(script, runs, sft_run):
    """The small world lists 95 far and 5 near items for each: to popularity and chance these are as good as others."""
    options = ("evaluate", "--runs", sft_run, "--negatives", "listed", "--users", 12)
    status, _, errors = script(*options, "--candidates", 8)
    assert status == 0, errors
    result = json.loads((sft_run / "evaluation-test-next-listed.json").read_text())
    assert result["options"]["negatives"] == "listed" and result["measures"]["random"]["HR@1"][0] == pytest.approx(
        1 / 8
    )
    status, _, errors = script(*options, "--candidates", "all")
    assert status == 2 and "--negatives listed: draws some candidates" in errors


def task_run(script, folder, runs, task):
    return once(runs / task, lambda: sft(script, folder, runs, task, "--task", task))


@pytest.mark.parametrize("task", ["top3", "yesno"])
def test_the_other_tasks_run_from_end_to_end(script, toy_folder, runs, task):
    first, second = task_run(script, toy_folder, runs, task), runs / f"{task}-hanorec"
    status, _, errors = dpo(script, runs, second.name, sft=task)
    assert status == 0, errors
    status, out, errors = script("evaluate", "--runs", first, second, "--candidates", 8, "--users", 20)
    assert status == 0, errors
    assert ("NDCG@3" if task == "top3" else "AUC hard") in out


@pytest.fixture(scope="module")
def long_rows(tmp_path_factory):
    """A toy catalogue whose training rows have six items, which the protocol of the release needs."""
    world = World(warm_per_cell=8, cold_per_cell=1, users=40, cold_users=2, shortest_row=8, longest_row=8)
    return make_toy(tmp_path_factory.mktemp("long") / "toy", world)


FEWER = ["--max-steps", 2, "--train-users", 12, "--validate-users", 8, "--batch-size", 4, "--log-every", 1]


def release_run(script, folder, runs, task):
    run = runs / f"release-{task}"
    options = ["--data", folder, "--output", run, "--task", task, "--protocol", "release"]
    return once(run, lambda: script("train_sft", *options, *FEWER))


@pytest.mark.parametrize("task, measures", [("top3", {"HR@3", "NDCG@3"}), ("yesno", {"AUC", "AUC hard"})])
def test_the_protocol_of_the_release_runs_from_end_to_end(script, long_rows, runs, task, measures):
    first, second = release_run(script, long_rows, runs, task), runs / f"release-{task}-hanorec"
    status, _, errors = script("train_dpo", "--sft", first, "--output", second, *FEWER)
    assert status == 0, errors
    assert json.loads((second / "config.json").read_text())["windows"] == "last"
    assert (load_run(second)[1].protocol, load_run(second)[1].list_candidates) == ("release", True)
    lines = [line for line in log(second) if "loss" in line]
    assert len(lines) == 2 and all(line["hardness_std"] > 0 for line in lines)
    status, out, errors = script("evaluate", "--runs", first, second, "--users", 12)
    assert status == 0 and "12 examples" in out and "protocol release" in out, errors  # one a user
    result = json.loads((second / f"evaluation-test-{task}.json").read_text())
    assert set(result["measures"][str(second)]) == measures and result["protocol"] == "release"


def test_what_the_protocol_of_the_release_lacks_is_an_error(script, toy_folder, long_rows, runs, tmp_path):
    def fails(call, message):
        status, _, errors = call
        assert status == 2 and message in errors and "Traceback" not in errors, errors

    def release(*more):
        return script("train_sft", "--data", long_rows, "--output", tmp_path / "run", "--protocol", "release", *more)

    fails(release(), "the protocol release has the tasks top3 and yesno; the task is next")
    fails(release("--task", "top3", "--candidates", 20), "--candidates 20: the protocol release has 7 for this task")
    top3, standard = release_run(script, long_rows, runs, "top3"), task_run(script, toy_folder, runs, "top3")
    both = script("evaluate", "--runs", top3, standard, "--data", long_rows)
    fails(both, "cannot be compared: --protocol was 'release'")
    fails(script("evaluate", "--runs", top3, "--task", "next"), "the protocol release has the tasks top3 and yesno")
    assert not list(tmp_path.iterdir())


def test_runs_of_another_task_history_or_prompt_are_not_compared(script, toy_folder, runs, sft_run):
    def fails(other, option, *values):
        status, _, errors = script("evaluate", "--runs", sft_run, runs / other, "--candidates", 8)
        assert status == 2 and f"{sft_run} and {runs / other} cannot be compared: --{option}" in errors, errors
        assert all(repr(value) in errors for value in values)

    task_run(script, toy_folder, runs, "top3")
    fails("top3", "task", "next", "top3")
    assert sft(script, toy_folder, runs, "short", "--history", 2)[0] == 0
    fails("short", "history", 5, 2)
    assert sft(script, toy_folder, runs, "listing", "--list-candidates")[0] == 0
    fails("listing", "list-candidates", False, True)
    both = ("--runs", sft_run, runs / "short", "--candidates", 8, "--users", 4)
    assert script("evaluate", *both, "--history", 3)[0] == 0  # told what to compare them on


def test_a_larger_backbone_gets_lora_and_is_read_back(script, toy_folder, runs):
    assert sft(script, toy_folder, runs, "lora", "--lora", "on", "--list-candidates")[0] == 0
    assert (runs / "lora" / "model" / "adapter_config.json").is_file()
    status, _, errors = dpo(script, runs, "lora-hanorec", sft="lora")
    assert status == 0, errors
    assert load_run(runs / "lora-hanorec")[1].list_candidates is True
    assert script("evaluate", "--runs", runs / "lora", runs / "lora-hanorec", "--candidates", 8, "--users", 5)[0] == 0
    status, _, errors = script("evaluate", "--runs", runs / "lora", "--candidates", "all")
    assert status == 2 and "the prompts of" in errors and "list the candidates" in errors


def test_adapters_of_both_stages_merge_into_a_plain_checkpoint_that_scores_the_same(script, toy_folder, runs, tmp_path):
    assert sft(script, toy_folder, runs, "some", "--lora", "on", "--layers", "q_proj,v_proj")[0] == 0
    assert dpo(script, runs, "some-hanorec", "--gradient-checkpointing", sft="some")[0] == 0
    backbone, _ = load_run(runs / "some-hanorec")
    ids = torch.tensor([backbone.tokens("Comet of the tide")])
    with torch.no_grad():
        here = backbone.model(input_ids=ids).logits
        backbone.model.merge_and_unload().save_pretrained(tmp_path / "merged")
        backbone.processor.save_pretrained(tmp_path / "merged")
        merged = load_backbone(str(tmp_path / "merged"), device=backbone.device)
        torch.testing.assert_close(here, merged.model(input_ids=ids).logits, atol=1e-4, rtol=1e-4)


def test_half_precision_runs_from_end_to_end(script, toy_folder, runs):
    few = ["--max-steps", 2, "--train-users", 8, "--validate-users", 2, "--overwrite"]
    small = ["--backbone", families.save(families.smolvlm, runs / "smolvlm")]
    for dtype in ("bfloat16", "float16"):
        status, _, errors = sft(script, toy_folder, runs, f"{dtype}-sft", "--dtype", dtype, *small, *few)
        assert status == 0, errors
        status, _, errors = dpo(script, runs, f"{dtype}-dpo", "--dtype", dtype, *few, sft=f"{dtype}-sft")
        assert status == 0, errors
        assert all(abs(line["loss"]) < 20 for line in log(runs / f"{dtype}-dpo") if "loss" in line)


def test_options_can_come_from_a_file(script, toy_folder, runs):
    settings = runs / "settings.yaml"
    settings.write_text(
        f"data: {toy_folder}\noutput: {runs / 'from-file'}\nmax_steps: 1\nbatch_size: 2\nvalidate_users: 2\ncandidates: 5\n"
    )
    status, _, errors = script("train_sft", settings)
    assert status == 0, errors
    settings.write_text("max_stepz: 1\n")
    status, _, errors = script("train_sft", settings)
    assert status == 2 and "max_stepz" in errors


def test_what_a_user_can_mend_is_one_line_and_exit_status_2(script, toy_folder, runs, tmp_path, sft_run, hanorec_run):
    def fails(call, message):
        status, _, errors = call
        assert status == 2 and message in errors and "Traceback" not in errors, errors

    fails(script("train_sft", "--data", tmp_path / "nowhere", "--output", tmp_path / "a"), "nowhere: no such folder")
    fails(sft(script, toy_folder, runs), "exists and is not empty")
    fails(sft(script, toy_folder, tmp_path, "b", "--candidates", 9999), "9999 candidates asked for")
    fails(sft(script, toy_folder, tmp_path, "c", "--backbone", tmp_path), "no model checkpoint")
    fails(sft(script, toy_folder, tmp_path, "c", "--backbone", "nobody/nothing"), "the Hugging Face hub")
    fails(sft(script, toy_folder, tmp_path, "c", "--backbone", "no/such/thing"), "neither a folder nor a checkpoint")
    fails(sft(script, toy_folder, tmp_path, "c", "--lora", "on", "--layers", "nose"), "layers nose")
    fails(sft(script, toy_folder, tmp_path, "d", "--batch-size", 0), "--batch-size 0: must be a number of at least 1")
    fails(script("train_sft", "--epoch-count", 3), "unrecognized arguments: --epoch-count 3")
    fails(script("evaluate", "--runs", sft_run, "--modality", "loud"), "invalid choice: 'loud' (choose from")
    fails(script("evaluate", "--runs", sft_run, "--candidates", "some"), "--candidates some: must be a number")
    fails(script("evaluate", "--runs", sft_run, "--baselines", "bert4rec"), "there are random, popularity, co-occ")
    fails(script("evaluate", "--runs", sft_run, "--candidates", "all", "--task", "top3"), "the task is top3")
    fails(dpo(script, runs, "g", "--layers", "all"), "--layers all: ")
    fails(dpo(script, runs, "g", "--task", "yesno"), "unrecognized arguments: --task yesno")
    fails(script("train_dpo", "--sft", tmp_path, "--output", tmp_path / "e"), "not a run's folder")
    fails(script("evaluate", "--runs", hanorec_run, toy_folder), "not a run's folder")
    assert not list(tmp_path.iterdir())  # nothing half-written
    broken = shutil.copytree(toy_folder, tmp_path / "toy")
    (broken / "train.tsv").write_text("u0 1 2 3\n")
    fails(sft(script, broken, tmp_path, "f"), "train.tsv:1: expected user<TAB>item")


def test_an_adapter_for_another_base_model_is_refused(script, toy_folder, runs, random_backbone):
    """The random backbone has another vocabulary, and the same names of layers."""
    assert sft(script, toy_folder, runs, "on-tiny", "--lora", "on", "--layers", "all")[0] == 0
    older(runs / "on-tiny", backbone=str(families.save(families.llava, runs / "llava")))
    status, _, errors = dpo(script, runs, "on-other", sft="on-tiny")
    assert status == 2 and f"its adapter does not fit {runs / 'llava'}" in errors


def test_out_of_memory_says_which_options_lower_it(capsys):
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB.\nMore.")
    errors = capsys.readouterr().err
    assert stop.value.code == 3 and "Tried to allocate 3 GiB. What lowers it: fewer forward tokens" in errors


def test_a_checkpoints_own_code_runs_only_if_asked_for(script, toy_folder, runs, random_backbone, tmp_path):
    place = shutil.copytree(random_backbone, tmp_path / "own-code")
    config = json.loads((place / "config.json").read_text())
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForImageTextToText": "own.OwnModel"}
    (place / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": classes}))
    (place / "own.py").write_text(
        "from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration\n"
        "class OwnConfig(SmolVLMConfig):\n    model_type = 'own'\n"
        "class OwnModel(SmolVLMForConditionalGeneration):\n    config_class = OwnConfig\n"
    )
    status, _, errors = sft(script, toy_folder, runs, "own", "--backbone", place)
    assert status == 2 and "cannot be loaded" in errors
    status, _, errors = sft(script, toy_folder, runs, "own", "--backbone", place, "--remote-code", "--lora", "on")
    assert status == 0, errors
    status, _, errors = dpo(script, runs, "own-hanorec", sft="own")
    assert status == 2 and "cannot be loaded" in errors  # what the SFT run was told is not trusted
    assert dpo(script, runs, "own-hanorec", "--remote-code", sft="own")[0] == 0


def test_an_adapter_of_another_sft_model_is_refused(script, toy_folder, runs, sft_run):
    shutil.copytree(sft_run, runs / "sft-moved")
    dpo(script, runs, "on-moved", sft="sft-moved")
    sft(script, toy_folder, runs, "sft-moved", "--seed", 9, "--overwrite")
    status, _, errors = script("evaluate", "--runs", runs / "on-moved", "--candidates", 8)
    assert status == 2 and "made from another SFT run" in errors


def test_a_dpo_run_of_an_older_version_is_read_as_its_sft_run_or_refused(script, runs, hanorec_run):
    old = shutil.copytree(hanorec_run, runs / "old")
    older(old, task="next", candidates=8)
    assert load_run(old)[1] == load_run(hanorec_run)[1]
    older(old, history=2)
    status, _, errors = script("evaluate", "--runs", old)
    assert status == 2 and "has another history than its SFT run, which version 0.2.0 alone can read" in errors


def test_titles_full_of_special_tokens_are_words_like_others(script, toy_folder, runs, tmp_path):
    """In histories, in listed candidates, in responses, and in the embeddings that hardness comes from."""
    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    lines = (folder / "titles.csv").read_text().splitlines()
    special = ("<image>", "<|im_start|>", "<end_of_utterance>", "<fake_token_around_image>", "<|pad|>", "<global-img>")
    renamed = [f"{line} {special[k % 6]} and {special[(k + 1) % 6]}" for k, line in enumerate(lines[1:])]
    (folder / "titles.csv").write_text("\n".join([lines[0], *renamed]) + "\n")
    few = ["--max-steps", 1, "--validate-users", 2, "--train-users", 4]
    status, _, errors = sft(script, folder, tmp_path, "sft", "--list-candidates", *few)
    assert status == 0, errors
    status, _, errors = dpo(script, tmp_path, "hanorec", *few)
    assert status == 0, errors
    status, out, errors = script("evaluate", "--runs", tmp_path / "hanorec", "--candidates", 8, "--users", 5)
    assert status == 0 and "NDCG@10" in out, errors


def test_a_run_made_in_one_precision_loads_in_another(script, toy_folder, runs):
    """As where it trained on a GPU and is evaluated on a CPU: the reference is known by its files."""
    few = ["--max-steps", 1, "--train-users", 4, "--validate-users", 2]
    assert sft(script, toy_folder, runs, "half", "--dtype", "bfloat16", *few)[0] == 0
    assert dpo(script, runs, "half-dpo", "--dtype", "bfloat16", *few, sft="half")[0] == 0
    for name in ("half", "half-dpo"):
        config = runs / name / "config.json"
        config.write_text(config.read_text().replace('"bfloat16"', '"float32"'))
    backbone, _ = load_run(runs / "half-dpo", changed_run=True)
    assert backbone.compute == torch.float32


def test_a_finished_run_has_a_model_card(sft_run, hanorec_run):
    card = (hanorec_run / "model" / "README.md").read_text()
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["library_name"] == "peft" and "dpo" in metadata["tags"]
    assert "NDCG@10" in card and str(sft_run) in card and "| `noise_std` | `0.1` |" in card
    code = card.split("```python\n")[1].split("```")[0]
    scope: dict = {}
    exec(code, scope)  # how to load it, as the card says
    assert scope["policy"].active_adapters == ["default"]


def test_the_card_of_an_adapter_on_the_tiny_backbone_loads_it(script, toy_folder, runs):
    assert sft(script, toy_folder, runs, "carded", "--lora", "on")[0] == 0
    code = (runs / "carded" / "model" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    scope: dict = {}
    exec(code, scope)
    assert scope["model"].active_adapters == ["default"]


@pytest.mark.parametrize("lora", ["off", "on"])
def test_sft_goes_on_from_the_model_of_an_sft_run(script, toy_folder, tmp_path, lora):
    """Without a learning rate the second run ends as the first, whether it trains all weights or an adapter, and a
    third one on top of it does, too."""
    assert sft(script, toy_folder, tmp_path)[0] == 0
    still = ["--learning-rate", 0, "--lora", lora]
    for name, start in (("second", "sft"), ("third", "second")):
        status, _, errors = sft(script, toy_folder, tmp_path, name, "--backbone", tmp_path / start, *still)
        assert status == 0, errors
    first, third = (load_run(tmp_path / name)[0].model.state_dict() for name in ("sft", "third"))
    assert first.keys() == third.keys() and all(first[name].equal(third[name]) for name in first)
    assert ("load_sft" in (tmp_path / "third" / "model" / "README.md").read_text()) == (lora == "on")


def test_an_sft_run_that_cannot_be_gone_on_from_is_refused(script, toy_folder, runs, tmp_path, sft_run, hanorec_run):
    status, _, errors = sft(script, toy_folder, tmp_path, "b", "--backbone", hanorec_run)
    assert status == 2 and "a run of kind 'dpo', not 'sft'" in errors
    start = shutil.copytree(sft_run, tmp_path / "start")
    assert sft(script, toy_folder, tmp_path, "more", "--backbone", start, "--lora", "on")[0] == 0
    assert sft(script, toy_folder, tmp_path, "start", "--overwrite", "--seed", 7)[0] == 0
    status, _, errors = script("evaluate", "--runs", tmp_path / "more", "--candidates", 8)
    assert status == 2 and f"was made from another SFT run than the one now in {start}" in errors
    (start / "finished.json").unlink()
    status, _, errors = sft(script, toy_folder, tmp_path, "c", "--backbone", start)
    assert status == 2 and "this run is not finished" in errors


@pytest.mark.parametrize("size", [0, 4, 1000, -100])
def test_a_run_whose_weights_are_cut_is_named_with_the_file(script, runs, tmp_path, sft_run, hanorec_run, size):
    for run, name in ((sft_run, "model"), (hanorec_run, "adapter_model")):
        copy = shutil.copytree(run, tmp_path / run.name)
        path = copy / "model" / f"{name}.safetensors"
        path.write_bytes(path.read_bytes()[:size])
        ranking = ("evaluate", "--runs", copy, "--candidates", 8, "--users", 3)
        status, _, errors = script(*ranking)
        assert status == 2 and errors.startswith(f"error: {copy}: model/{path.name} changed since this run"), errors
        status, _, errors = script(*ranking, "--changed-run")
        assert status == 2 and re.match(f"error: .*{copy.name}/model(/{path.name})?: ", errors.splitlines()[-1]), errors
    status, _, errors = dpo(script, tmp_path, "more", sft=sft_run.name)
    assert status == 2 and "model.safetensors changed since this run was finished" in errors.splitlines()[-1]


def test_results_that_cannot_be_written_leave_the_table_and_the_other_runs_results(
    script, tmp_path, monkeypatch, sft_run
):
    others = shutil.ignore_patterns("evaluation-*")  # what other tests left in the run
    full, other = (shutil.copytree(sft_run, tmp_path / name, ignore=others) for name in ("full", "other"))
    mine = tmp_path / "mine.json"
    mine.write_text("mine")
    (other / "evaluation-test-next.json").symlink_to(mine)
    replace_text = files.replace_text

    def replace(path, text):
        if path.parent == full:
            raise OSError(30, "Read-only file system")
        replace_text(path, text)

    monkeypatch.setattr(files, "replace_text", replace)
    status, out, errors = script("evaluate", "--runs", full, other, "--users", 3)
    assert status == 3 and "| NDCG@10" in out and f"error: {full}: its results cannot be written" in errors
    assert json.loads((other / "evaluation-test-next.json").read_text())["examples"] == 3
    assert mine.read_text() == "mine"


def test_broken_images_are_warned_about_and_counted(script, toy_folder, tmp_path):
    folder = shutil.copytree(toy_folder, tmp_path / "toy")
    images = sorted((folder / "images").iterdir())
    images[0].write_bytes(images[0].read_bytes()[:100])
    images[1].write_text("no image")
    status, _, errors = sft(script, folder, tmp_path)
    assert status == 0 and images[0].name in errors and "2 of" in errors and "treated as without image" in errors


def test_a_script_run_from_the_shell_shows_no_traceback(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["train_sft.py", "--data", str(tmp_path / "none"), "--output", str(tmp_path / "run")]
    )
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "train_sft.py"), run_name="__main__")
    assert stop.value.code == 2 and capsys.readouterr().err.strip() == f"error: {tmp_path / 'none'}: no such folder"
    status, out, _ = script("evaluate", "--help")
    assert status == 0 and "usage" in out
