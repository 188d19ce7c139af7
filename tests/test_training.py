"""Runs: deterministic, resumable, careful with what is on disk; and the calibrated recipe's responsiveness."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hanorec.catalog import DataError
from hanorec.preference_losses import RunningResponsiveness
from hanorec.training import Run, cosine_schedule, epoch_order, open_run, optimizer_for, read_config, total_steps

USERS = [f"user{i}" for i in range(10)]
LENGTHS = [5, 1, 9, 3, 3, 8, 2, 7, 4, 6]


def options(folder, **changes):
    base = dict(output=str(folder), seed=1, batch_size=4, forward_tokens=100, log_every=1, validate_every=3, checkpoint_every=2,
                resume=False, overwrite=False, epochs=3, max_steps=None)  # fmt: skip
    return SimpleNamespace(**base | changes)


def train(folder, *, stop_at=None, bad_at=None, **changes):
    """A run that fits one layer to noise; it can be stopped as by ctrl-C, or meet a loss that is not finite."""
    settings = options(folder, **changes)
    open_run(settings, "sft")
    torch.manual_seed(settings.seed)
    model = torch.nn.Linear(3, 1)
    total = total_steps(len(USERS), settings)
    optimizer = optimizer_for(model, 0.1, 0.01)
    schedule = cosine_schedule(optimizer, total, 0.2)
    running = RunningResponsiveness()
    batches = []
    with Run(settings, model, optimizer, schedule, total=total, running=running) as run:
        for batch in run.steps(USERS, LENGTHS):
            batches.append(batch)
            if run.step == stop_at:
                raise KeyboardInterrupt
            optimizer.zero_grad()
            x = torch.rand(len(batch), 3) + torch.randn(1, generator=run.generator)
            loss = (model(x) - 1).square().mean()
            if run.step == bad_at:
                raise ValueError("logits give a log-probability that is not finite")
            loss.backward()
            optimizer.step()
            schedule.step()
            running(loss[None].detach())
            run.log(loss=loss, scale=running.scale)
            run.consider(lambda: ("quality", -float(model.weight.detach().abs().sum())))
        run.finish(lambda f: torch.save(model.state_dict(), f / "model.pt"))
    return batches


def outcome(folder):
    return (
        torch.load(folder / "model.pt"),
        (folder / "metrics.jsonl").read_text(),
        (folder / "finished.json").read_text(),
    )


def test_every_epoch_visits_every_example_once_in_another_order(tmp_path):
    batches = train(tmp_path / "run")
    epochs = [sum(batches[i : i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] and sorted(len(b) for b in batches[:3]) == [2, 4, 4]


def test_an_epochs_batches_hold_similar_lengths():
    lengths = np.random.default_rng(0).integers(40, 160, 3000)
    order = epoch_order(lengths, 16, seed=1, epoch=0)
    assert sorted(sum(order, [])) == list(range(3000)) and {len(batch) for batch in order} == {16, 8}
    assert order == epoch_order(lengths, 16, seed=1, epoch=0) != epoch_order(lengths, 16, seed=1, epoch=1)

    def padding(batches):
        return sum(len(b) * lengths[b].max() for b in batches) / lengths.sum() - 1

    shuffled = [list(range(at, min(at + 16, 3000))) for at in range(0, 3000, 16)]
    assert padding(order) < 0.03 < 0.4 < padding(shuffled)
    means = [lengths[batch].mean() for batch in order]
    assert abs(np.corrcoef(means, range(len(means)))[0, 1]) < 0.3  # short ones do not come first


def test_a_step_over_the_token_budget_is_split(tmp_path):
    settings = options(tmp_path / "run", forward_tokens=20)
    open_run(settings, "sft")
    model = torch.nn.Linear(3, 1)
    optimizer = optimizer_for(model, 0.1, 0.01)
    run = Run(settings, model, optimizer, cosine_schedule(optimizer, 9, 0.2), total=9)
    batch = next(run.steps(USERS, [12, 1, 9, 3, 3, 30, 2, 7, 4, 6]))
    run.lengths = [12, 1, 9, 3, 3, 30, 2, 7, 4, 6]
    parts = run.parts([0, 2, 5, 7])  # of 12, 9, 30 and 7 tokens
    assert parts == [[5], [0], [2, 7]]  # 30 alone is over the budget; 2 × 12 would be; 2 × 9 fits
    assert sorted(sum(run.parts(batch), [])) == sorted(batch)


@pytest.mark.parametrize("stop_at", [1, 2, 5, 8])
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path, stop_at):
    train(tmp_path / "whole")
    with pytest.raises(DataError, match=f"interrupted at step {stop_at}; go on with --resume"):
        train(tmp_path / "halved", stop_at=stop_at)
    train(tmp_path / "halved", resume=True)
    (weights, log, finished), (weights2, log2, finished2) = outcome(tmp_path / "whole"), outcome(tmp_path / "halved")
    assert all(weights[name].equal(weights2[name]) for name in weights)
    assert (log, finished) == (log2, finished2)
    assert not (tmp_path / "halved" / "checkpoint").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_last_good_state(tmp_path):
    with pytest.raises(
        DataError, match=r"stopped at step 4: .*not finite.*user\d, user\d, user\d, user\d.*last good state"
    ) as stopped:
        train(tmp_path / "run", bad_at=4)
    assert str(tmp_path / "run" / "checkpoint") in str(stopped.value)
    assert json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())["step"] == 4
    train(tmp_path / "run", resume=True)  # without the fault it goes on from there


def test_the_best_state_is_the_one_that_is_saved(tmp_path):
    train(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    values = {line["step"] + 1: line["validation"] for line in lines if "validation" in line}
    finished = json.loads((tmp_path / "run" / "finished.json").read_text())
    assert finished["best_step"] == max(values, key=values.get)
    weight = torch.load(tmp_path / "run" / "model.pt")["weight"]
    assert -weight.abs().sum().item() == pytest.approx(max(values.values()), abs=1e-5)


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="exists and is not empty"):
        open_run(options(tmp_path / "run"), "sft")
    with pytest.raises(DataError, match="is not a run's folder"):
        open_run(options(tmp_path / "run", overwrite=True), "sft")
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def test_resume_needs_an_unfinished_run_of_the_same_settings(tmp_path):
    with pytest.raises(DataError, match="nothing to resume"):
        open_run(options(tmp_path / "none", resume=True), "sft")
    open_run(options(tmp_path / "run"), "sft")
    with pytest.raises(DataError, match="batch_size: 4 then, 8 now"):
        open_run(options(tmp_path / "run", resume=True, batch_size=8), "sft")
    train(tmp_path / "done")
    with pytest.raises(DataError, match="is finished"):
        open_run(options(tmp_path / "done", resume=True), "sft")


def test_a_checkpoint_cut_short_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError):
        train(tmp_path / "run", stop_at=3)
    weights = tmp_path / "run" / "checkpoint" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:20])
    with pytest.raises(DataError, match="not a whole checkpoint"):
        train(tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "not a run's folder"),
        ("{}", "not a run's folder"),
        ('{"kind": "dpo"}', "of kind 'dpo'"),
        ('{"kind": "sft"}', "not finished"),
    ],
)
def test_what_is_no_finished_run_of_the_kind_is_an_error(tmp_path, content, message):
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(DataError, match=message):
        read_config(tmp_path, "sft")


def test_the_schedule_rises_then_falls_to_zero_along_a_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = cosine_schedule(optimizer, 12, 1 / 6)
    rates = []
    for _ in range(12):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[:2] == [1.0, 2.0] and rates[2] == 2.0
    assert rates[7] == pytest.approx(1.0)  # half way down: (7 - 2) / 10
    assert rates[11] == pytest.approx(1 + math.cos(0.9 * math.pi))


def test_running_responsiveness_worked_by_hand():
    """Gaps 1, 2, 3, 10: mean size 4, trimmed mean 2.5. First call: s = 4, η = σ(0.625)/σ(1) = 0.65135/0.73106.

    Then gaps 0, 0, 0, 0: s = 0.9 · 4 = 3.6, η = σ(0)/σ(1) = 0.68394. Never below σ(−1)/σ(1) = 0.36788.
    """
    running = RunningResponsiveness()
    assert running(torch.tensor([1.0, 2.0, 3.0, 10.0])).item() == pytest.approx(0.89097, abs=1e-4)
    assert running(torch.zeros(4)).item() == pytest.approx(0.68394, abs=1e-4)
    assert running.scale == pytest.approx(3.6)
    assert running(torch.full((4,), -1e6)).item() >= math.exp(-1) - 1e-6
    assert RunningResponsiveness()(torch.zeros(2)).isfinite()
