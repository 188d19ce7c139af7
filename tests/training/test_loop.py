"""Runs: deterministic, resumable, careful with what is on disk."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import SERVER

from experiments.checks.power_cut import Killed, cut, dies_at
from hanorec import files
from hanorec.data.batching import batches, epoch_order
from hanorec.errors import DataError, Interrupted, MachineError, exit_on_user_error
from hanorec.losses import NotFiniteError, RunningResponsiveness
from hanorec.training import checkpoints, loop
from hanorec.training.loop import Run
from hanorec.training.optimization import adamw, clip_gradients, cosine_learning_rate, set_learning_rate
from hanorec.training.options import SFTOptions
from hanorec.training.run_config import read_config
from hanorec.training.runs import check_output, open_run
from hanorec.training.schedule import MicroBatch, Schedule, make_schedule

USERS = [f"user{i}" for i in range(10)]
LENGTHS = [5, 1, 9, 3, 3, 8, 2, 7, 4, 6]


def options(folder, **changes):
    base = dict(output=str(folder), seed=1, batch_size=4, forward_tokens=100, log_every=1, validate_every=3,
                checkpoint_every=2, epochs=3)  # fmt: skip
    return SFTOptions(**base | changes)


def train(folder, *, stop_at=None, late_at=None, bad_at=None, start=-100.0, **changes):
    """A run that fits one layer to noise; it can get a signal (`stop_at`: step, signal), or meet a loss that is not
    finite."""
    settings = options(folder, **changes)
    open_run(settings, Path(folder).parent)
    torch.manual_seed(settings.seed)
    model = torch.nn.Linear(3, 1)
    schedule = make_schedule(USERS, LENGTHS, len(USERS), settings)
    optimizer, scaler = adamw(model, 0.01), torch.amp.GradScaler("cpu", enabled=False)
    running = RunningResponsiveness()
    batches = []
    with Run(settings, model, optimizer, scaler, schedule, running=running) as run:
        if run.step == 0:
            run.start_from("quality", start)
        for batch in run.batches():
            batches.append(batch)
            set_learning_rate(optimizer, cosine_learning_rate(run.step, schedule.steps, 0.1, 0.2))
            if stop_at and run.step == stop_at[0]:
                os.kill(os.getpid(), stop_at[1])
            run.seed(batch)
            x = torch.rand(len(batch), 3) + torch.randn(1, generator=run.generator())
            loss = (model(x) - 1).square().mean()
            run.require_finite("loss", loss / 0 if run.step == bad_at else loss)
            loss.backward()
            clip_gradients(model, 10.0)
            optimizer.step()
            optimizer.zero_grad()
            if run.step == late_at:
                os.kill(os.getpid(), signal.SIGTERM)
            running(loss[None].detach())
            if run.should_log():
                run.log({"loss": loss, **running.state_dict()})
            if run.should_validate():
                run.keep_if_best("quality", -float(model.weight.detach().abs().sum()))
        run.finish(save)
    return batches


def save(folder, weights, finished):
    torch.save(weights, folder / "model.pt")
    files.to_disk(folder / "model.pt")


def outcome(folder):
    finished = json.loads((folder / "finished.json").read_text())
    del finished["files"]["config.json"]  # it names the folder
    return torch.load(folder / "model.pt"), (folder / "metrics.jsonl").read_text(), finished


def test_every_epoch_visits_every_example_once_in_another_order(tmp_path):
    batches = train(tmp_path / "run")
    epochs = [sum(batches[i : i + 3], []) for i in (0, 3, 6)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] and sorted(len(b) for b in batches[:3]) == [2, 4, 4]


def test_a_prompt_that_is_longer_than_a_forward_is_read_alone_and_a_line_says_so_once():
    with pytest.warns(UserWarning, match="longer than the 1,237 tokens") as said:
        assert batches([400, 1238, 500], 1237) == [[1], [2, 0]]
        batches([1300], 1237)
        batches([1237], 1237)
    assert len(said) == 1


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


def schedule_of(lengths, **changes):
    settings = dict(size=4, steps=9, seed=1, forward_tokens=100)
    return Schedule(USERS[: len(lengths)], lengths, **settings | changes)


def test_a_step_over_the_token_budget_is_split():
    schedule = schedule_of([12, 1, 9, 3, 3, 30, 2, 7, 4, 6], forward_tokens=20)
    (own,) = schedule.micro_batches([0, 2, 5, 7])  # of 12, 9, 30 and 7 tokens
    # 30 alone is over the budget; 2 × 12 would be; 2 × 9 fits
    assert own == [MicroBatch([5]), MicroBatch([0]), MicroBatch([2, 7])]
    for batch in schedule.batches():  # the last of an epoch is smaller, and counts as much
        (own,) = schedule.micro_batches(batch)
        assert sorted(sum((micro.indices for micro in own), [])) == sorted(batch) and all(m.counts for m in own)


def test_a_rank_with_nothing_to_do_gets_a_prompt_that_does_not_count(monkeypatch):
    schedule = schedule_of(LENGTHS)
    monkeypatch.setattr("hanorec.distributed.world_size", lambda: 3)
    assert schedule.micro_batches([4, 5])[2] == [MicroBatch([4], counts=False)]
    assert schedule.micro_batches([4, 5, 6])[2] == [MicroBatch([6])]
    shares = schedule.micro_batches([0, 1, 2, 3, 4])
    assert [sorted(i for micro in own for i in micro.indices) for own in shares] == [[0, 3], [1, 4], [2]]


def test_where_weights_are_sharded_all_ranks_have_equally_many_forwards(monkeypatch):
    schedule = schedule_of([12, 1, 9, 3, 3, 30, 2, 7, 4, 6], forward_tokens=20)
    monkeypatch.setattr("hanorec.distributed.world_size", lambda: 2)
    monkeypatch.setattr("hanorec.distributed.is_sharded", lambda: True)
    first, second = schedule.micro_batches([5, 1, 0, 3])  # of 30 and 12 tokens, and of 1 and 3
    assert [micro.counts for micro in first] == [True, True]
    assert second == [MicroBatch([3, 1]), MicroBatch([5], counts=False)]


def test_a_run_that_is_resumed_reads_on_where_it_was():
    schedule = schedule_of(LENGTHS)
    whole = list(schedule.batches())
    assert len(whole) == 9 and list(schedule.batches(5)) == whole[5:]


def test_a_nested_prompt_counts_as_all_its_examples(tmp_path):
    """Ten prompts that ask for 25 examples: a batch of 4 examples has 2 prompts, 5 steps an epoch."""
    schedule = make_schedule(USERS, LENGTHS, 25, options(tmp_path))
    assert (schedule.size, schedule.steps) == (2, 15)
    assert make_schedule(USERS, LENGTHS, 25, options(tmp_path, max_steps=7)).steps == 7


def same_outcome(one, other):
    (weights, log, finished), (weights2, log2, finished2) = outcome(one), outcome(other)
    assert all(weights[name].equal(weights2[name]) for name in weights)
    assert (log, finished) == (log2, finished2)
    left = ("checkpoint", ".partial", files.LOCK)  # by a run that was killed late
    names = {path.name for path in other.iterdir() if not any(part in path.name for part in left)}
    assert names == {"config.json", "finished.json", "metrics.jsonl", "model.pt"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("step", [0, 5, 7])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, step, number):
    """The signal comes within a step, which is finished first; the handlers are then as they were."""
    train(tmp_path / "whole")
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"stopped at step {step + 1}; go on with --resume") as stopped:
        train(tmp_path / "halved", stop_at=(step, number))
    assert stopped.value.signal == number
    assert signal.getsignal(number) is before
    train(tmp_path / "halved", resume=True)
    same_outcome(tmp_path / "whole", tmp_path / "halved")


def test_a_signal_that_comes_after_a_steps_update_stops_after_that_step(tmp_path):
    """What stops a run is agreed on between steps, so that no rank waits for one that has gone."""
    train(tmp_path / "whole")
    with pytest.raises(Interrupted, match="stopped at step 4;"):
        train(tmp_path / "late", late_at=3)
    train(tmp_path / "late", resume=True)
    same_outcome(tmp_path / "whole", tmp_path / "late")


def test_the_second_signal_stops_at_once_and_one_that_is_ignored_stays_so(tmp_path, monkeypatch):
    """As under nohup, where a run goes on though its terminal is gone."""
    monkeypatch.setattr(checkpoints, "save", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="stopped at once") as stopped:
        train(tmp_path / "twice", checkpoint_every=100, stop_at=(2, signal.SIGHUP), late_at=2)
    assert stopped.value.signal == signal.SIGTERM
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        train(tmp_path / "ignored", checkpoint_every=100, stop_at=(2, signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)


def hung_up(folder):
    """Train with a terminal that goes in step 2."""
    side, terminal = os.openpty()
    for output in (1, 2):
        os.dup2(terminal, output)
    os.close(terminal)
    sys.stdout, sys.stderr = (open(output, "w", buffering=1, closefd=False) for output in (1, 2))
    kill = os.kill
    os.kill = lambda *which: os.close(side) or kill(*which)
    with exit_on_user_error():
        train(folder, stop_at=(2, signal.SIGHUP), validate_every=1)


def test_a_run_whose_terminal_is_gone_leaves_a_checkpoint(tmp_path):
    """Whatever it prints from then on goes nowhere."""
    train(tmp_path / "whole", validate_every=1)
    run = SERVER.Process(target=hung_up, args=(tmp_path / "halved",))
    run.start()
    run.join()
    assert run.exitcode == 129
    train(tmp_path / "halved", resume=True, validate_every=1)
    same_outcome(tmp_path / "whole", tmp_path / "halved")


@pytest.mark.parametrize("number, status", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_stopped_run_ends_with_the_status_that_its_signal_has(tmp_path, number, status, capsys):
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        train(tmp_path / "run", stop_at=(1, getattr(signal, number)))
    assert stop.value.code == status and "go on with --resume" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("power", [True, False], ids=["killed", "power-cut"])
@pytest.mark.parametrize("moment", range(0, 72, 5))
def test_a_run_that_died_between_any_two_operations_on_files_ends_as_if_it_had_not(tmp_path, moment, power):
    """From the start of a run to its end, at every fifth operation on a file, before it or after it. Where the power
    goes too, a file has what was forced to the disk, or nothing."""
    train(tmp_path / "whole")
    with dies_at(moment) as on_disk, pytest.raises(Killed):
        train(tmp_path / "halved")
    if not power:
        cut(tmp_path / "halved", on_disk)
    again = dict(resume=(tmp_path / "halved").exists())
    if not (tmp_path / "halved" / "finished.json").exists():
        train(tmp_path / "halved", **again)
    same_outcome(tmp_path / "whole", tmp_path / "halved")


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_last_good_state(tmp_path):
    with pytest.raises(
        DataError, match=r"stopped at step 4: .*not finite.*user\d, user\d, user\d, user\d.*last good state"
    ) as stopped:
        train(tmp_path / "run", bad_at=4)
    assert str(tmp_path / "run" / "checkpoint") in str(stopped.value)
    assert json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())["step"] == 4
    train(tmp_path / "run", resume=True)  # without the fault it goes on from there


def test_gradients_whose_norm_is_not_finite_are_an_error_except_to_a_float16_scaler():
    model = torch.nn.Linear(3, 1)
    model.weight.grad = torch.full((1, 3), math.inf)
    with pytest.raises(NotFiniteError, match="gradients"):
        clip_gradients(model, 1.0)
    model.weight.grad = torch.full((1, 3), math.inf)
    assert clip_gradients(model, 1.0, must_be_finite=False).isinf()
    model.weight.grad = torch.tensor([[3.0, 0.0, 4.0]])
    assert clip_gradients(model, 1.0).item() == 5.0  # the norm before; after it is 1
    torch.testing.assert_close(model.weight.grad, torch.tensor([[0.6, 0.0, 0.8]]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("lost", [[0], [3, 4], "cut", "zeros"])
def test_steps_that_the_log_lacks_are_told_on_resume(tmp_path, lost):
    """Lines that are gone, one that is cut, a page that was never written; the run ends all the same."""
    with pytest.raises(Interrupted):
        train(tmp_path / "run", stop_at=(5, signal.SIGINT))
    log = tmp_path / "run" / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    if lost == "cut":
        log.write_text("".join(lines[:-1]) + lines[-1][:9])
    elif lost == "zeros":
        log.write_bytes(log.read_bytes()[:-100] + bytes(100))
    else:
        log.write_text("".join(line for line in lines if json.loads(line)["step"] not in lost))
    with pytest.warns(UserWarning, match=r"metrics.jsonl: has [78] of the 9 lines of the steps before 6, from which"):
        train(tmp_path / "run", resume=True)
    assert all("step" in json.loads(line) for line in log.read_text().splitlines())


def test_the_best_state_is_the_one_that_is_saved(tmp_path):
    train(tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": -1, "validation": -100.0, "measure": "quality"}
    values = {line["step"] + 1: line["validation"] for line in lines[1:] if "validation" in line}
    finished = json.loads((tmp_path / "run" / "finished.json").read_text())
    assert finished["best_step"] == max(values, key=values.get)
    weight = torch.load(tmp_path / "run" / "model.pt")["weight"]
    assert -weight.abs().sum().item() == pytest.approx(max(values.values()), abs=1e-5)


def test_a_run_says_where_it_started_and_whether_it_came_further(tmp_path, capsys):
    train(tmp_path / "further")
    assert "step 0: quality on validation -100.0000" in capsys.readouterr().out
    assert json.loads((tmp_path / "further" / "finished.json").read_text())["start"] == -100
    train(tmp_path / "never", start=0.0)  # no weights have a quality above it
    out = capsys.readouterr().out
    assert "never: on validation, no state that was looked at is above step 0 (0.0000)" in out
    assert (tmp_path / "never" / "model.pt").is_file()  # what was trained is kept all the same


def test_a_folder_with_something_in_it_is_not_overwritten(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="exists and is not empty"):
        open_run(options(tmp_path / "run"), tmp_path)
    with pytest.raises(DataError, match="is not a run's folder"):
        open_run(options(tmp_path / "run", overwrite=True), tmp_path)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


def hold(folder, began, ends):
    open_run(options(folder, resume=True), folder.parent)
    began.set()
    ends.wait(60)


@pytest.mark.parametrize("how", [dict(resume=True), dict(overwrite=True), dict(overwrite=True, seed=3)])
def test_two_processes_do_not_train_in_one_folder(tmp_path, how):
    """The second says who is there, and leaves everything as it is; when the first has died, the folder is free."""
    with pytest.raises(Interrupted):
        train(tmp_path / "run", stop_at=(3, signal.SIGINT))
    began, ends = SERVER.Event(), SERVER.Event()
    other = SERVER.Process(target=hold, args=(tmp_path / "run", began, ends))
    other.start()
    assert began.wait(60)
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for refused in (lambda: train(tmp_path / "run", **how), lambda: check_output(options(tmp_path / "run", **how))):
        with pytest.raises(DataError, match=f"process {other.pid} on {socket.gethostname()} is writing here"):
            refused()
    assert before == {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    other.kill()
    other.join()
    train(tmp_path / "run", **how)
    assert not (tmp_path / "run" / files.LOCK).exists()


def test_of_two_that_begin_in_one_new_folder_at_once_one_is_refused(tmp_path):
    """The other has not yet named its folder."""
    (tmp_path / ".run.new").mkdir()
    with ProcessPoolExecutor(1, SERVER) as other:
        other.submit(files.lock, tmp_path / ".run.new").result()
        with pytest.raises(DataError, match=r"\.run\.new: process \d+ on .* is writing here"):
            open_run(options(tmp_path / "run"), tmp_path)
    train(tmp_path / "run")  # what the other left is taken over


def test_a_lock_that_is_a_link_leaves_its_target_alone(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / files.LOCK).symlink_to(tmp_path / "mine")
    files.lock(tmp_path)
    files.lock(tmp_path)  # one process may do so twice
    files.unlock(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and (tmp_path / "mine").read_text() == "mine"


def test_resume_needs_an_unfinished_run_of_the_same_settings(tmp_path):
    with pytest.raises(DataError, match="nothing to resume"):
        open_run(options(tmp_path / "none", resume=True), tmp_path)
    open_run(options(tmp_path / "run"), tmp_path)
    with pytest.raises(DataError, match="batch_size: 4 then, 8 now"):
        open_run(options(tmp_path / "run", resume=True, batch_size=8), tmp_path)
    train(tmp_path / "done")
    left = tmp_path / "done" / "checkpoint.old"  # by one that was killed when all was done
    left.mkdir()
    os.utime(left, (0, 0))
    with pytest.raises(DataError, match="is finished"):
        open_run(options(tmp_path / "done", resume=True), tmp_path)
    assert not left.exists()


def test_resume_needs_the_rows_and_titles_that_the_run_began_with(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.tsv").write_text("1\t1 2 3\n")
    open_run(options(tmp_path / "run"), data)
    open_run(options(tmp_path / "run", resume=True), data)
    (data / "train.tsv").write_text("1\t1 3 2\n")
    with pytest.raises(DataError, match=r"train.tsv of .*data changed since this run was started"):
        open_run(options(tmp_path / "run", resume=True), data)


def test_resume_needs_the_version_that_began_the_run(tmp_path):
    """Another one may have other options, or other numbers."""
    open_run(options(tmp_path / "run"), tmp_path)
    config = tmp_path / "run" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"version": "0.2.0"}))
    with pytest.raises(DataError, match="started with other settings .version: '0.2.0' then, '1.0.0' now"):
        open_run(options(tmp_path / "run", resume=True), tmp_path)


def test_a_cache_in_the_runs_folder_is_refused_before_it_is_written(tmp_path):
    for run, cache in (("run", "run"), ("run", "run/cache"), ("cache", None)):  # None: cache/ beside the run
        with pytest.raises(DataError, match="lies in the run's folder"):
            open_run(options(tmp_path / run, cache=cache and str(tmp_path / cache)), tmp_path)
        assert not (tmp_path / run).exists()


def shorten(path):
    path.write_bytes(path.read_bytes()[:20])


def test_where_a_checkpoint_is_cut_short_the_one_before_is_used(tmp_path):
    train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", stop_at=(4, signal.SIGINT))
    shorten(tmp_path / "run" / "checkpoint" / "weights.safetensors")
    with pytest.warns(UserWarning, match="checkpoint: not a whole checkpoint of this run.*going on from .* step 4"):
        train(tmp_path / "run", resume=True)
    same_outcome(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("change", [dict(step=3), dict(best=math.nan), dict(step="4"), dict(start=0.5), dict(more=1)])
def test_where_a_checkpoints_numbers_are_damaged_the_one_before_is_used(tmp_path, change):
    train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", stop_at=(4, signal.SIGINT))
    state = tmp_path / "run" / "checkpoint" / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | change))
    with pytest.warns(UserWarning, match="checkpoint: not a whole checkpoint .*what was written.* of step 4"):
        train(tmp_path / "run", resume=True)
    same_outcome(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("what", ["weights", "best", "optimizer"])
def test_where_a_checkpoints_tensors_are_damaged_the_one_before_is_used(tmp_path, what):
    train(tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", stop_at=(4, signal.SIGINT))
    path = tmp_path / "run" / "checkpoint" / f"{what}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]))
    with pytest.warns(UserWarning, match="checkpoint: not a whole checkpoint .*what was written.* of step 4"):
        train(tmp_path / "run", resume=True)
    same_outcome(tmp_path / "whole", tmp_path / "run")


def test_where_no_checkpoint_is_whole_the_error_names_them(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path / "run", stop_at=(4, signal.SIGINT))
    shorten(tmp_path / "run" / "checkpoint" / "weights.safetensors")
    shorten(tmp_path / "run" / "checkpoint.old" / "optimizer.safetensors")
    with pytest.raises(DataError, match="checkpoint: not a whole checkpoint.*checkpoint.old: not a whole checkpoint"):
        train(tmp_path / "run", resume=True)


def test_a_full_disk_is_a_clear_error_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
    train(tmp_path / "whole")
    save_file, calls = checkpoints.save_file, []

    def full(*arguments):
        calls.append(0)
        if len(calls) > 4:  # within the second checkpoint
            raise OSError(28, "No space left on device")
        save_file(*arguments)

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(
        MachineError, match="step 4 cannot be written.*No space left.*last good checkpoint is .*--resume"
    ):
        train(tmp_path / "run")
    monkeypatch.undo()
    assert json.loads((tmp_path / "run" / "checkpoint" / "state.json").read_text())["step"] == 2
    train(tmp_path / "run", resume=True)
    same_outcome(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("what", ["log", "model", "finished"])
@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), OSError(30, "Read-only file system"),
     Exception("No space left on device (os error 28)"), MemoryError("Unable to allocate")],
    ids=["full", "read-only", "tokenizers", "memory"],
)  # fmt: skip
def test_where_the_machine_fails_a_run_ends_in_a_line_and_goes_on_later(tmp_path, monkeypatch, capsys, what, error):
    """While the log, the model and the last file are written."""
    train(tmp_path / "whole")
    owner, name = {"log": (loop, "append_line"), "model": (torch, "save"), "finished": (files, "replace_text")}[what]
    original, calls = getattr(owner, name), []

    def failing(*arguments):
        calls.append(0)
        if len(calls) > dict(log=5, model=0, finished=1)[what]:  # config.json is the first that is replaced
            raise error
        original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop, exit_on_user_error():
        patch.setattr(owner, name, failing)
        train(tmp_path / "run")
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 3 and str(tmp_path / "run" / "checkpoint") in last and "go on with --resume" in last
    train(tmp_path / "run", resume=True)
    same_outcome(tmp_path / "whole", tmp_path / "run")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        train(tmp_path / "run", stop_at=(1, signal.SIGINT))
    folder = tmp_path / "run" / "checkpoint"
    state = json.loads((folder / "state.json").read_text())
    del state["digest"]
    kinds = ("weights", "best", "optimizer")
    checkpoints.save(tmp_path / "run", {kind: {"another.weight": torch.zeros(3)} for kind in kinds}, state)
    shutil.rmtree(tmp_path / "run" / "checkpoint.old")
    with pytest.raises(DataError, match="not a whole checkpoint of this run.*weights of other layers"):
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
    rates = [cosine_learning_rate(step, 12, 2.0, 1 / 6) for step in range(12)]
    assert rates[:2] == [1.0, 2.0] and rates[2] == 2.0
    assert rates[7] == pytest.approx(1.0)  # half way down: (7 - 2) / 10
    assert rates[11] == pytest.approx(1 + math.cos(0.9 * math.pi))
