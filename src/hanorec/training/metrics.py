"""What a run writes down: `metrics.jsonl` in its folder, a line of JSON a logged step.

In: what a step of stage 2 computed, or numbers by name. Out: lines, which rank 0 alone writes.
"""

from __future__ import annotations

import json
import warnings
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from hanorec import distributed, files
from hanorec.losses import LossOutput
from hanorec.training.pairs import PairBatch

LOG = "metrics.jsonl"


def append_line(folder: Path, line: dict) -> None:
    """Write a line at the end of a run's log."""
    if distributed.is_main_process():
        with open(folder / LOG, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def drop_lines_from(folder: Path, step: int, expected: int) -> int:
    """Leave out the lines from a step on, which a resumed run writes again (from step 0 on, all of them), and lines
    that are damaged. Returns how many stay, with a warning where that is less than `expected`, as after a power cut."""
    log, stay = folder / LOG, []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if log.is_file() else []:
        with suppress(ValueError, LookupError, TypeError):  # cut, or bytes that were never written
            if json.loads(line)["step"] < step > 0 and line.endswith("\n"):
                stay.append(line)
    if distributed.is_main_process():
        files.replace_text(log, "".join(stay))
    if len(stay) < expected:
        there = f"{len(stay)} of the {expected} lines"
        warnings.warn(f"{log}: has {there} of the steps before {step}, from which this run goes on", stacklevel=3)
    return len(stay)


def preference_metrics(output: LossOutput, beta: float, logps: Tensor, batch: PairBatch) -> dict[str, Tensor]:
    """A logged step of stage 2, each number over its pairs or responses.

    margin: the difference of the rewards, in nats (for HaNoRec β Δ). chosen_logp, rejected_logp: log π_θ of a response,
    in nats, and in nats a token. adapted: the share of pairs whose β differs from β₀ by more than 5 %.
    """
    rewards = {"chosen_reward": output.chosen_rewards, "rejected_reward": output.rejected_rewards}
    per_token = logps / batch.lengths
    return {
        "loss": output.loss,
        "margin": (output.chosen_rewards - output.rejected_rewards).mean(),
        "accuracy": (output.chosen_rewards > output.rejected_rewards).float().mean(),
        **{name: values.mean() for name, values in rewards.items()},
        "chosen_logp": logps[:, 0].mean(),
        "rejected_logp": logps[:, 1:].mean(),
        "chosen_logp_per_token": per_token[:, 0].mean(),
        "rejected_logp_per_token": per_token[:, 1:].mean(),
        "beta_mean": output.beta.mean(),
        "beta_min": output.beta.min(),
        "beta_max": output.beta.max(),
        "adapted": ((output.beta / beta - 1).abs() > 0.05).float().mean(),
        "hardness_mean": batch.hardness.mean(),
        "hardness_std": batch.hardness.std(correction=0),
        "responsiveness": output.responsiveness,
    }
