"""What a finished run of `train_dpo.py` did to its training pairs, told without training.

    python -m experiments.claims.diagnose                                  runs/hanorec
    python -m experiments.claims.diagnose --runs runs/dpo runs/hanorec     one after the other

Three questions: what came of λ, η and β over training; how much do hard pairs count, and are they learned; where do the
log-probabilities of chosen and rejected responses go? Prints a page in Markdown, and writes it to --output, if given.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hanorec.data.dataset import open_dataset
from hanorec.errors import DataError, exit_on_user_error
from hanorec.evaluation.report import markdown
from hanorec.losses import (
    RunningResponsiveness,
    adaptive_beta,
    chosen_and_rejected,
    log_ratio_margin,
    policy_responsiveness,
    reward_gaps,
)
from hanorec.models.scoring import score_all
from hanorec.randomness import rng
from hanorec.related.objectives import WITH_HARDNESS
from hanorec.training.dpo_options import DPOOptions
from hanorec.training.inputs import open_prompts
from hanorec.training.options import cache_folder
from hanorec.training.pairs import make_pairs
from hanorec.training.run_config import read_config
from hanorec.training.runs import load_run, load_sft

PARTS = 5  # of a run's steps, and of the pairs by hardness
NONE = "–"  # where an objective has no such number


class Weighed(NamedTuple):
    """What a run's policy makes of N pairs. None: the run's objective has no such thing."""

    margin: Tensor  # [N] Δ of Eq. 7, in nats
    likelier: Tensor  # [N] whether the policy finds the chosen response likelier than the rejected one
    hardness: Tensor | None  # [N] λ as it was applied
    responsiveness: Tensor | None  # [batches] η of Eq. 8, or of the calibrated recipe
    beta: Tensor | None  # [N] β of Eq. 11
    weight: Tensor | None  # [N] β σ(−βΔ), the gradient of −log σ(βΔ) in size; in DPO with β = β₀


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=["runs/hanorec"], metavar="DIR", help="finished DPO runs")
    parser.add_argument("--prompts", type=int, default=500, help="training prompts whose pairs are weighed")
    parser.add_argument("--seed", type=int, default=2025, help="seed that draws the prompts")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the page here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    page = "\n\n".join(diagnose(run, args.prompts, args.seed) for run in args.runs)
    if args.output:
        args.output.write_text(page + "\n", encoding="utf-8")
    print(page)


def diagnose(run: str, number: int, seed: int) -> str:
    """A run's page. number: of training prompts whose pairs are weighed, drawn by the seed.

    Errors: DataError for a folder that is no finished DPO run, for a log without a step, and for fewer than five pairs.
    """
    options = options_of(run)
    parts = course(run)
    reference, sft = load_sft(options.sft)
    data = open_dataset(options.data)
    prompts = open_prompts(reference, data, sft, cache=cache_folder(None, run))
    pairs = make_pairs(reference, prompts, data, replace(options, loss="hanorec", hardness="on"), sft)  # with λ
    drawn = sorted(rng(seed, "pairs").permutation(len(pairs.prompts))[:number].tolist())
    examples = [example for i in drawn for example in pairs.examples[i]]
    hardness, before = pairs.hardness[examples].flatten(), pairs.reference_logps[examples]
    if len(hardness) < PARTS:
        raise DataError(f"--prompts {number}: {PARTS} groups by hardness take as many pairs at least")
    policy, _ = load_run(run)
    x, y = [pairs.prompts[i] for i in drawn], [pairs.responses[i] for i in drawn]
    logps = score_all(policy, prompts.images, x, y, weights="").view_as(before)
    weighed = weigh(options, hardness, logps, before)
    lengths = torch.tensor([len(title) for titles in y for title in titles]).view_as(before)
    same = {"same pairs, before": mean_logps(before, lengths), "same pairs, after": mean_logps(logps, lengths)}
    likelier = (before[:, :1] > before[:, 1:]).flatten()
    hard_pairs = by_hardness(hardness, weighed, likelier, options)
    return "\n\n".join([
        f"# {run}: what happened in training",
        f"The loss is {options.loss}, β₀ is {options.beta}. {options.sft} is the start and the frozen reference.",
        f"## λ, η and β over training\n\n{over_training(parts, options)}",
        f"## What hard pairs count, and whether they are learned\n\n{hard_pairs}",
        f"## Log-probabilities over training\n\n{log_probabilities(parts, same)}",
    ])  # fmt: skip


def options_of(run: str) -> DPOOptions:
    """The options of a finished DPO run, from its config.json."""
    config = read_config(run, "dpo")
    options = DPOOptions(**{field.name: config[field.name] for field in fields(DPOOptions) if field.name in config})
    return replace(options, output=run)


# pairs


def weigh(options: DPOOptions, hardness: Tensor, logps: Tensor, reference_logps: Tensor) -> Weighed:
    """Eqs. 7, 8 and 11 for pairs that come in batches of the size with which the run was trained, without noise.

    hardness [N], logps and reference_logps [examples, 1 + R].
    """
    chosen, rejected = chosen_and_rejected(logps)
    pairs = (chosen, rejected, *chosen_and_rejected(reference_logps))
    margin = log_ratio_margin(*pairs)  # Δ, Eq. 7
    if options.loss not in WITH_HARDNESS:
        weight = options.beta * torch.sigmoid(-options.beta * margin) if options.loss == "dpo" else None
        return Weighed(margin, chosen > rejected, None, None, None, weight)
    responsiveness = RunningResponsiveness() if options.recipe == "calibrated" else policy_responsiveness
    hardness = torch.ones_like(hardness) if options.hardness == "off" else hardness
    etas, betas = [], []
    size = options.batch_size * options.rejected
    for *batch, weights in zip(*(side.split(size) for side in (*pairs, hardness))):
        eta = responsiveness(reward_gaps(*batch, beta=options.beta))  # η, Eq. 8
        etas.append(torch.ones_like(eta) if options.responsiveness == "off" else eta)
        betas.append(adaptive_beta(weights, etas[-1], beta=options.beta))  # β, Eq. 11
    beta = torch.cat(betas)
    weight = beta * torch.sigmoid(-beta * margin) if options.loss == "hanorec" else None
    return Weighed(margin, chosen > rejected, hardness, torch.stack(etas), beta, weight)


def fifths(hardness: Tensor) -> list[Tensor]:
    """The pairs' numbers in five groups of one size, from the hardest, whose λ is smallest, to the easiest."""
    return list(torch.tensor_split(hardness.argsort(stable=True), PARTS))


def mean_logps(logps: Tensor, lengths: Tensor) -> dict[str, float]:
    """Means of log π over examples, in nats a response and a token, by the names that logs have for them.

    logps, lengths: [examples, 1 + R], the chosen response first; lengths in tokens.
    """
    columns = {"chosen_logp": slice(0, 1), "rejected_logp": slice(1, None)}
    found = {name: logps[:, which].mean().item() for name, which in columns.items()}
    return found | {f"{name}_per_token": (logps / lengths)[:, which].mean().item() for name, which in columns.items()}


# the log


def course(run: str | Path) -> list[dict]:
    """A DPO run's log in up to five parts of about as many logged steps each: the mean of every number, and with
    ":min", ":median" and ":max" behind a name the least, the median and the greatest.

    Errors: DataError for a log that cannot be read or has no training step.
    """
    path = Path(run) / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    steps = [line for line in lines if "loss" in line]
    if not steps:
        raise DataError(f"{path}: holds no training step")
    parts = []
    for numbers in np.array_split(np.arange(len(steps)), min(PARTS, len(steps))):
        part = {"first": steps[numbers[0]]["step"], "last": steps[numbers[-1]]["step"]}
        for name in steps[0]:
            values = np.array([steps[i][name] for i in numbers], dtype=float)
            part |= {name: values.mean(), f"{name}:min": values.min(), f"{name}:max": values.max()}
            part[f"{name}:median"] = np.median(values)
        parts.append(part)
    return parts


# tables


def over_training(parts: list[dict], options: DPOOptions) -> str:
    if options.loss not in WITH_HARDNESS:
        return f"The loss {options.loss} has no λ, no η and one β."
    rows = [[steps(part), *cells_of_beta(part, options.beta)] for part in parts]
    return (
        "How hard pairs are (λ, Eq. 6), how strongly the policy responds (η, Eq. 8) and what β comes of both (Eq. 11), "
        "each without unit, by the run's log. A line is a fifth of the logged steps. λ: mean ± standard deviation over "
        "the pairs of a step. η: median over the steps, and in brackets the least and the greatest. β / β₀: mean over "
        "the pairs, and in brackets the smallest and the largest of all. Adapted: the share of pairs whose β differs "
        "from β₀ by more than 5 %.\n\n" + markdown(["steps", "λ", "η", "β / β₀", "adapted"], rows)
    )


def cells_of_beta(part: dict, beta: float) -> list[str]:
    """λ, η, β / β₀ and the share of adapted pairs in a part of a log."""
    low, high = part["beta_min:min"] / beta, part["beta_max:max"] / beta
    middle, least, greatest = (part[f"responsiveness:{which}"] for which in ("median", "min", "max"))
    return [
        f"{part['hardness_mean']:.3f} ± {part['hardness_std']:.3f}",
        f"{middle:.3f} [{least:.3f}, {greatest:.3f}]",
        f"{part['beta_mean'] / beta:.3f} [{low:.3f}, {high:.3f}]",
        f"{part['adapted']:.0%}",
    ]


def by_hardness(hardness: Tensor, weighed: Weighed, likelier: Tensor, options: DPOOptions) -> str:
    def mean(values: Tensor | None, group: Tensor, how: str) -> str:
        return NONE if values is None else f"{values[group].double().mean().item():{how}}"

    ratio = None if weighed.beta is None else weighed.beta / options.beta
    rows = []
    for number, group in enumerate(fifths(hardness), 1):
        rows.append([
            {1: "1, hardest", PARTS: f"{PARTS}, easiest"}.get(number, str(number)),
            mean(hardness, group, ".4f"),
            mean(ratio, group, ".3f"),
            mean(weighed.weight, group, ".4f"),
            mean(weighed.margin, group, "+.3f"),
            mean(weighed.margin > 0, group, ".3f"),
            mean(likelier, group, ".3f"),
            mean(weighed.likelier, group, ".3f"),
        ])  # fmt: skip
    header = ["fifth", "λ", "β / β₀", "gradient weight", "Δ", "Δ > 0", "likelier, SFT", "likelier, run"]
    return (
        f"{len(hardness)} training pairs in fifths by λ, the hardest first, by the trained policy and its reference "
        "without noise. All numbers are means over a fifth. Gradient weight: β σ(−βΔ), the size of the gradient that a "
        "pair gives to its margin Δ. Δ: by how many nats the policy prefers the chosen response more than the "
        "reference does. Likelier: the share of pairs where the model gives the chosen response the higher "
        "probability.\n\n" + markdown(header, rows)
    )


def log_probabilities(parts: list[dict], same: dict[str, dict]) -> str:
    names = ("chosen_logp", "rejected_logp", "chosen_logp_per_token", "rejected_logp_per_token", "accuracy")
    rows = []
    for when, part in ({steps(part): part for part in parts} | same).items():
        rows.append([when, *(f"{part[name]:.3f}" if name in part else NONE for name in names)])
    header = ["steps", "chosen", "rejected", "chosen, a token", "rejected, a token", "accuracy"]
    return (
        "log π of chosen and rejected responses, in nats a response and in nats a token, by the run's log, with noise "
        "and dropout. A line is the mean over a fifth of the logged steps. Every step has other pairs, so the last two "
        "lines compare the pairs of the last table by the reference and by the trained policy without noise. Where "
        "both fall, training takes chosen responses down together with the rejected ones. Accuracy: the share of a "
        "step's pairs where the chosen response has the larger reward.\n\n" + markdown(header, rows)
    )


def steps(part: dict) -> str:
    return f"{part['first']} to {part['last']}" if part["first"] < part["last"] else str(part["first"])


if __name__ == "__main__":
    with exit_on_user_error():
        main()
