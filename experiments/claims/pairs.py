"""What `diagnose.py` says of preference pairs: λ, η, β and the gradient weight of fixed pairs, and the course of a log.

In: the options of DPO runs, their reference, and log-probabilities. Out: Eqs. 5 to 11 for the pairs as `train_dpo.py`
applies them, and means over the parts of a run's log.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hanorec.cache import weights_fingerprint
from hanorec.data.dataset import Dataset, split_examples
from hanorec.data.examples import Example, listed_negatives
from hanorec.errors import DataError
from hanorec.hardness import pair_hardness
from hanorec.losses import adaptive_beta, log_ratio_margin, policy_responsiveness
from hanorec.models.backbone import Backbone
from hanorec.models.prompts import Prompts, windows_for
from hanorec.models.scoring import score_all
from hanorec.randomness import rng
from hanorec.training.objective import choose_objective, takes
from hanorec.training.options import DPOOptions, example_options
from hanorec.training.pairs import chosen_and_rejected

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from train_dpo import examples_from_policy, neighbourhood

PARTS = 5  # of a run's steps, and of the pairs by hardness


class Pairs(NamedTuple):
    """N training pairs that several runs have in common."""

    examples: list[Example]  # with R rejected responses each: N = len(examples) · R
    hardness: dict[str, Tensor]  # by run: [N] λ of Eq. 6 with the run's own K and τ, its mean over all training pairs


class Weighed(NamedTuple):
    """What a run's policy makes of N pairs. None: the run's objective has no such thing."""

    margin: Tensor  # [N] Δ of Eq. 7, in nats
    likelier: Tensor  # [N] whether the policy finds the chosen response likelier than the rejected one
    hardness: Tensor | None  # [N] λ
    responsiveness: Tensor | None  # [batches] η of Eq. 8, or of the calibrated recipe
    beta: Tensor | None  # [N] β of Eq. 11
    weight: Tensor | None  # [N] β σ(−βΔ), the gradient of −log σ(βΔ) in size; in DPO with β = β₀


def options_of(config: dict) -> DPOOptions:
    """The options of a DPO run, from its config.json."""
    return DPOOptions(**{field.name: config[field.name] for field in fields(DPOOptions) if field.name in config})


def adapts(options: DPOOptions) -> bool:
    """Whether a run has a λ, an η and a β of its own for every pair: HaNoRec does, plain DPO does not."""
    return takes(options.loss, "hardness") and takes(options.loss, "responsiveness")


def training_pairs(
    runs: dict[str, DPOOptions], reference: Backbone, prompts: Prompts, data: Dataset, number: int, seed: int
) -> Pairs:
    """Draw training examples of the runs, and λ of each of their pairs in each run.

    Errors: DataError where two runs were trained on other pairs, and for fewer than five.
    """
    first: list[Example] = []
    hardness = {}
    for run, options in runs.items():
        kept = dict(weights=weights_fingerprint(reference.model.state_dict()), cache=Path(run).parent / "cache")
        similarities, neighbours = neighbourhood(reference, prompts.images, data, options, **kept)
        examples = _examples(reference, prompts, data, options, neighbours, kept)
        first = first or examples
        if examples != first:
            raise DataError(f"{run} and {next(iter(runs))}: were trained on other pairs; diagnose them apart")
        hardness[run] = pair_hardness(similarities, examples, temperature=options.temperature)
    drawn = rng(seed, "pairs").permutation(len(first))[:number].tolist()
    if len(drawn) < PARTS:
        raise DataError(
            f"--pairs {number}: {PARTS} groups by hardness take as many of the {len(first)} examples at least"
        )
    return Pairs([first[i] for i in drawn], {run: each[drawn].flatten() for run, each in hardness.items()})


def _examples(
    reference: Backbone, prompts: Prompts, data: Dataset, options: DPOOptions, neighbours: Tensor, kept: dict
) -> list[Example]:
    """All training examples of a run with the rejected items of all of its epochs, as `train_dpo.py` draws them."""
    rejected = options.rejected * (ceil(options.epochs) if options.fresh_negatives else 1)
    windows = windows_for(reference.layout, options.windows)
    drawn = dict(windows=windows, users=options.train_users, **example_options(options))
    if options.negatives.startswith("policy"):
        return examples_from_policy(reference, prompts, data, options, rejected, drawn, **kept)
    near = listed_negatives(data.folder, data.catalog) if options.negatives == "listed" else neighbours.numpy()
    return split_examples(data, "train", rejected=rejected, negatives=options.negatives, neighbours=near, **drawn)


def logps_of(backbone: Backbone, prompts: Prompts, examples: Sequence[Example]) -> Tensor:
    """log π of each example's chosen and rejected responses without noise or dropout, [examples, 1 + R] in nats."""
    x = [prompts.prompt(example) for example in examples]
    y = [[prompts.chosen(example), *prompts.rejected(example)] for example in examples]
    return score_all(backbone, prompts.images, x, y, weights="").view(len(examples), -1)


def mean_logps(logps: Tensor, prompts: Prompts, examples: Sequence[Example]) -> dict[str, float]:
    """Means over examples of `logps_of` them, in nats a response and a token, by the names that logs have for them."""
    tokens = torch.tensor([[len(y) for y in (prompts.chosen(e), *prompts.rejected(e))] for e in examples])
    columns = {"chosen_logp": slice(0, 1), "rejected_logp": slice(1, None)}
    made = {name: logps[:, own].mean().item() for name, own in columns.items()}
    return made | {f"{name}_per_token": (logps / tokens)[:, own].mean().item() for name, own in columns.items()}


def weigh_pairs(options: DPOOptions, hardness: Tensor, logps: Tensor, reference_logps: Tensor) -> Weighed:
    """Eqs. 7, 8 and 11 for pairs that come in batches of the size with which the run was trained, without noise.

    hardness [N], logps and reference_logps [examples, 1 + R].
    """
    chosen, rejected = chosen_and_rejected(logps)
    margin = log_ratio_margin(chosen, rejected, *chosen_and_rejected(reference_logps))  # Δ, Eq. 7
    likelier, beta0 = chosen > rejected, options.beta
    if not adapts(options):
        weight = beta0 * torch.sigmoid(-beta0 * margin) if options.loss == "dpo" else None
        return Weighed(margin, likelier, None, None, None, weight)
    _, running = choose_objective(options)
    hardness = torch.ones_like(hardness) if options.hardness == "off" else hardness
    etas, betas = [], []
    size = options.batch_size * options.rejected
    for own_margin, own_hardness in zip(margin.split(size), hardness.split(size)):
        gaps = beta0 * own_margin  # R, Eq. 7
        eta = running(gaps) if running else policy_responsiveness(gaps)  # η, Eq. 8
        etas.append(torch.ones_like(eta) if options.responsiveness == "off" else eta)
        betas.append(adaptive_beta(own_hardness, etas[-1], beta=beta0))  # β, Eq. 11
    beta = torch.cat(betas)
    weight = beta * torch.sigmoid(-beta * margin) if options.loss == "hanorec" else None
    return Weighed(margin, likelier, hardness, torch.stack(etas), beta, weight)


def quintiles(hardness: Tensor) -> list[Tensor]:
    """The pairs' numbers in five groups of one size, from the hardest, whose λ is smallest, to the easiest."""
    return list(torch.tensor_split(hardness.argsort(stable=True), PARTS))


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
    made = []
    for part in np.array_split(np.arange(len(steps)), min(PARTS, len(steps))):
        own = {name: np.array([steps[i][name] for i in part], dtype=float) for name in steps[0]}
        made.append({"first": steps[part[0]]["step"], "last": steps[part[-1]]["step"]})
        for name, values in own.items():
            made[-1] |= {name: values.mean(), f"{name}:min": values.min(), f"{name}:max": values.max()}
            made[-1][f"{name}:median"] = np.median(values)
    return made
