"""Two processes do together what one does alone: the same losses, β, adapter and metrics."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT
from safetensors.torch import load_file

from hanorec import processes

SHORT = ["--max-steps", 4, "--validate-every", 2, "--validate-users", 7, "--batch-size", 5, "--candidates", 6]
STAGES = [  # batches of 5 over 2 processes: shares of 3 and 2; the odd number of validation users too
    ("train_sft", "--output", "{}/sft", "--data", "DATA", *SHORT, "--train-users", 13, "--log-every", 1),
    ("train_dpo", "--sft", "ONE/sft", "--output", "{}/hanorec", *SHORT, "--lora-dropout", 0, "--log-every", 1),
    ("train_dpo", "--sft", "ONE/sft", "--output", "{}/split", *SHORT, "--lora-dropout", 0, "--log-every", 1,
     "--forward-tokens", 150, "--noise", "lora", "--noise-std", 0.01, "--recipe", "calibrated"),
    ("evaluate", "--runs", "{}/hanorec", "ONE/sft", "--users", 9, "--candidates", "6"),
    ("evaluate", "--runs", "{}/hanorec", "--users", 5, "--candidates", "all"),
]  # fmt: skip


def call(stages: list[list[str]]) -> None:
    for name, *arguments in stages:
        sys.argv = [f"{name}.py", *arguments]
        importlib.import_module(name).main()


def stages(base, name, data) -> list[list[str]]:
    """What one or two processes do. DPO starts from one process's SFT model, so that the stages are compared apart."""
    places = {"DATA": data, "ONE": base / "one", "{}": base / name}

    def placed(part) -> str:
        for word, place in places.items():
            part = str(part).replace(word, str(place))
        return part

    return [[placed(part) for part in stage] for stage in STAGES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, toy_folder):
    base = tmp_path_factory.mktemp("processes")
    before = sys.argv
    call(stages(base, "one", toy_folder))
    sys.argv = before
    (base / "stages.json").write_text(json.dumps(stages(base, "two", toy_folder)))
    program = base / "program.py"
    program.write_text(
        f"import json\nfrom tests.test_processes import call\ncall(json.load(open({str(base / 'stages.json')!r})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29517", str(program)],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return base / "one", base / "two"


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("run", ["sft", "hanorec", "split"])
def test_losses_beta_and_weights_are_those_of_one_process(folders, run):
    one, two = folders
    assert len(lines(one / run)) == 6  # four steps and two validations
    for alone, together in zip(lines(one / run), lines(two / run), strict=True):
        assert together == pytest.approx(alone, abs=1e-5, rel=1e-5) if "loss" in alone else together == alone
    name = "model.safetensors" if run == "sft" else "adapter_model.safetensors"
    alone, together = load_file(one / run / "model" / name), load_file(two / run / "model" / name)
    assert alone.keys() == together.keys()
    # A key's bias moves no attention: its gradient is zero but for rounding, which Adam scales up to a step.
    compared = [key for key in alone if not key.endswith("k_proj.bias")]
    assert max((alone[key] - together[key]).abs().max().item() for key in compared) < 1e-5


@pytest.mark.parametrize("name", ["evaluation-test-next", "evaluation-test-next-all"])
def test_metrics_are_exactly_those_of_one_process(folders, name):
    one, two = (json.loads((folder / "hanorec" / f"{name}.json").read_text())["measures"] for folder in folders)
    assert [*one.values()] == [*two.values()] and len(one) > 3  # the methods' names hold the folders


def test_one_process_shares_with_nobody():
    assert (processes.rank(), processes.count(), processes.is_first()) == (0, 1, True)
    assert processes.mine([1, 2, 3]) == processes.joined([1, 2, 3]) == [1, 2, 3]
