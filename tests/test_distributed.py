"""Two processes do together what one does alone: the same losses, β, adapter and metrics."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from processes import free_port, run_ranks, start_ranks
from safetensors.torch import load_file

from hanorec import distributed
from hanorec.cache import cached
from hanorec.data.toy import World, make_toy
from hanorec.errors import Interrupted

SHORT = ["--max-steps", 4, "--validate-every", 2, "--validate-users", 7, "--batch-size", 5]
SFT = [*SHORT, "--candidates", 6]
LOG = ["--log-every", 1]
ADAPTER = [*LOG, "--lora-dropout", 0]
SPLIT = ["--forward-tokens", 150]
STAGES = {  # batches of 5 over 2 processes: shares of 3 and 2 (or rows of several), unequally many forwards where split
    "sft": ("train_sft", "--output", "HERE/sft", "--data", "DATA", *SFT, *LOG, "--train-users", 13,
            "--windows", "nested", "--layers", "all"),
    "lora": ("train_sft", "--output", "HERE/lora", "--data", "DATA", *SFT, *ADAPTER, *SPLIT, "--lora", "on",
             "--learning-rate", 1e-4),
    "hanorec": ("train_dpo", "--sft", "ONE/sft", "--output", "HERE/hanorec", *SHORT, *ADAPTER),
    "split": ("train_dpo", "--sft", "ONE/sft", "--output", "HERE/split", *SHORT, *ADAPTER, *SPLIT, "--recipe", "calibrated",
              "--windows", "nested"),
    "noise": ("train_dpo", "--sft", "ONE/sft", "--output", "HERE/noise", *SHORT, *ADAPTER, "--noise", "lora"),
    "evaluate": ("evaluate", "--runs", "HERE/hanorec", "ONE/sft", "--users", 9, "--candidates", "6",
                 "--baselines", "random", "co-occurrence"),
    "all": ("evaluate", "--runs", "HERE/hanorec", "--users", 5, "--candidates", "all", "--baselines", "sasrec"),
}  # fmt: skip
SHARDED = ["lora", "hanorec", "split", "noise"]


def call(stages: list[list[str]]) -> None:
    for name, *arguments in stages:
        sys.argv = [f"{name}.py", *arguments]
        importlib.import_module(name).main()


def stages(base, name, data, wanted) -> list[list[str]]:
    """What a group of processes does. DPO starts from one process's SFT model, so that the stages are compared apart."""
    places = {"DATA": data, "ONE": base / "one", "HERE": base / name}

    def placed(part) -> str:
        for word, place in places.items():
            part = str(part).replace(word, str(place))
        return part

    return [[placed(part) for part in STAGES[stage]] for stage in wanted]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Runs of one process (in folder one), of two (two), and of two with sharded weights (sharded), which `accelerate`
    launches. No cold items: each process opens all images of each run."""
    base = tmp_path_factory.mktemp("processes")
    toy = make_toy(base / "toy", World(6, 0, users=60, cold_users=0, longest_row=6, shortest_row=4))
    before = sys.argv
    call(stages(base, "one", toy, STAGES))
    sys.argv = before
    run_ranks(2, call, stages(base, "two", toy, STAGES))
    (base / "sharded.json").write_text(json.dumps(stages(base, "sharded", toy, SHARDED)))
    program = base / "sharded.py"
    program.write_text(
        f"import json\nfrom test_distributed import call\ncall(json.load(open({str(base / 'sharded.json')!r})))\n"
    )
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", ROOT / "configs" / "fsdp.yaml"]
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT, ROOT / "tests")))
    done = subprocess.run(
        [*launcher, "--num_processes", "2", "--main_process_port", str(free_port()), program],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return base


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


TRAINED = ["sft", "lora", "hanorec", "split", "noise"]


@pytest.mark.parametrize("name, run", [*(("two", run) for run in TRAINED), *(("sharded", run) for run in SHARDED)])
def test_losses_beta_and_weights_are_those_of_one_process(base, name, run):
    one, two = base / "one", base / name
    assert [line["step"] for line in lines(one / run) if "loss" in line] == [0, 1, 2, 3]
    validations = 2 if run in ("sft", "lora") else 3  # DPO's first is of the SFT model
    assert sum("validation" in line for line in lines(one / run)) == validations
    # Sums in another order round otherwise. Adam and the division of Eq. 8 scale that up: to 3e-5 on some CPUs.
    for alone, together in zip(lines(one / run), lines(two / run), strict=True):
        assert together == pytest.approx(alone, abs=1e-5, rel=1e-4) if "loss" in alone else together == alone
    file = "model.safetensors" if run == "sft" else "adapter_model.safetensors"
    alone, together = load_file(one / run / "model" / file), load_file(two / run / "model" / file)
    assert alone.keys() == together.keys()
    # A key's bias moves no attention: its gradient is zero but for rounding, which Adam scales up to a step.
    compared = [key for key in alone if not key.endswith("k_proj.bias")]
    tolerance = 1e-4 if run == "sft" else 1e-5  # a tenth of a step, whose learning rate is 1e-3 in SFT and 1e-4 in DPO
    assert max((alone[key] - together[key]).abs().max().item() for key in compared) < tolerance


@pytest.mark.parametrize("name", ["evaluation-test-next", "evaluation-test-next-all"])
def test_metrics_are_exactly_those_of_one_process(base, name):
    one, two = (
        json.loads((base / folder / "hanorec" / f"{name}.json").read_text())["measures"] for folder in ("one", "two")
    )
    assert [*one.values()] == [*two.values()] and len(one) > 3  # the methods' names hold the folders


def call_stopped(stages: list[list[str]]) -> None:
    with pytest.raises(Interrupted, match="stopped at step"):
        call(stages)


def test_two_processes_that_were_stopped_end_as_if_they_had_not_been(base, tmp_path):
    """Both finish the same step, though one alone hears the signal."""
    (hanorec,) = stages(base, "two", "", ["hanorec"])

    def command(run: str) -> list[str]:
        more = ["--output", str(tmp_path / run), "--max-steps", "24", "--validate-every", "10"]
        return [*hanorec, *more]  # the last of an option counts

    run_ranks(2, call, [command("whole")])
    ranks = start_ranks(2, call_stopped, [command("stopped")])
    log = tmp_path / "stopped" / "metrics.jsonl"
    while not (log.exists() and log.read_text()) and not ranks.join(timeout=0.01):
        pass
    os.kill(ranks.pids()[1], signal.SIGTERM)
    while not ranks.join():
        pass
    run_ranks(2, call, [[*command("stopped"), "--resume"]])
    for left in ("metrics.jsonl", "model/adapter_model.safetensors"):
        assert (tmp_path / "whole" / left).read_bytes() == (tmp_path / "stopped" / left).read_bytes(), left
    whole, stopped = (json.loads((tmp_path / run / "finished.json").read_text()) for run in ("whole", "stopped"))
    for finished in (whole, stopped):
        del finished["files"]["config.json"]  # it names the folder
    assert whole == stopped


def share_gradients() -> None:
    """Of three weights each rank's loss has one of its own, and the third is in none."""
    weights = torch.nn.ParameterList(torch.ones(2) for _ in range(3))
    (3.0 * weights[distributed.rank()]).sum().backward()
    distributed.all_reduce_gradients(weights)
    assert [None if w.grad is None else w.grad.tolist() for w in weights] == [[3, 3], [3, 3], None]


def test_a_gradient_is_shared_where_any_rank_has_one():
    """A weight that takes no part stays without, so that AdamW does not let it decay."""
    run_ranks(2, share_gradients)
    weights = torch.nn.ParameterList(torch.ones(2) for _ in range(2))
    weights[0].sum().backward()
    distributed.all_reduce_gradients(weights)
    assert weights[0].grad is not None and weights[1].grad is None


def keep_together(base) -> None:
    """Each rank has a folder of its own; what one of them has lost, all make again."""
    folder, made = base / str(distributed.rank()), []

    def make() -> dict:
        made.append(distributed.map_over_ranks(float, [1, 2]))
        return {"numbers": torch.tensor(made[-1])}

    for times, lost in enumerate([[], [1], []], 1):
        if distributed.rank() in lost:
            shutil.rmtree(folder)
        assert cached(folder, "some", "f" * 20, make, together=True)["numbers"].tolist() == [1, 2]
        assert len(made) == min(times, 2)


def test_what_all_ranks_make_is_made_by_all_or_none(tmp_path):
    run_ranks(2, keep_together, tmp_path)


def test_one_process_shares_with_nobody():
    assert (distributed.rank(), distributed.world_size(), distributed.is_main_process()) == (0, 1, True)
    assert distributed.map_over_ranks(str, [1, 2, 3]) == ["1", "2", "3"] and distributed.all_reduce_max(4) == 4
    assert distributed.all_gather_rows(torch.ones(2, 3)).equal(torch.ones(2, 3)) and not distributed.is_sharded()
