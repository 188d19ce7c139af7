"""Every option of `train_dpo.py`, the paper's first, those of related work in a group of their own at the end.

In: the command line, or a settings file and the command line. Out: `DPOOptions`, one flat object, completed by what
depends on the objective, the recipe and the SFT run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

from hanorec.data.examples import TARGETS
from hanorec.errors import DataError
from hanorec.related.objectives import PAPER_BETA, WITH_HARDNESS, WITH_RESPONSIVENESS
from hanorec.training.command_line import option, switch
from hanorec.training.options import (
    ComputeOptions,
    LoraOptions,
    OptimizationOptions,
    RunOptions,
    SFTOptions,
    check_fixed,
    fixed_by_protocol,
)


@dataclass
class StartOptions:
    _argument_group_name = "SFT run and training windows"

    sft: str = option(
        "runs/sft",
        "folder of the finished SFT run: its model is start and reference; task, history, candidates and how an item "
        "is shown are as in this run",
        metavar="DIR",
    )
    data: Optional[str] = option(None, "dataset folder (default: that of the SFT run)", metavar="DIR")
    remote_code: bool = switch(False, "run Python files that come with the checkpoint; only for those that you trust")
    windows: Literal["nested", "every", "last"] = option(
        "last",
        "train on the last window of a user's row (the paper), or on all of them, read one by one (every) or many in "
        "one forward (nested)",
    )
    train_users: Optional[int] = option(
        None, "number of windows to train on, drawn by the seed (default: all)", least=1
    )


@dataclass
class HaNoRecOptions:
    _argument_group_name = "HaNoRec (arXiv 2511.18740)"

    recipe: Literal["paper", "calibrated"] = option(
        "paper",
        "paper takes Eqs. 5 and 8 as they stand; calibrated takes τ = 0.05 and a bounded, running responsiveness in "
        "the manner of DAMA (arXiv 2502.01943)",
    )
    beta: float = option(  # None until `complete_dpo`
        None,
        "β₀, the strength of the pull to the reference (default: that of the objective's paper; 0.1 for hanorec)",
        least=1e-9,
    )
    hardness: Literal["on", "off"] = option("on", "weigh pairs by their hardness λ (Eq. 6); off takes λ = 1")
    neighbours: int = option(10, "K, number of similar items that tell how hard a pair is (Eq. 5)", least=1)
    temperature: float = option(  # None until `complete_dpo`
        None,
        "τ, temperature of the softmax in Eq. 5 (default: 1 for the recipe paper, 0.05 for calibrated)",
        least=1e-9,
    )
    responsiveness: Literal["on", "off"] = option(
        "on", "scale β by the policy's responsiveness η (Eq. 8); off takes η = 1"
    )
    noise: Literal["logits", "lora", "none"] = option(  # None until `complete_dpo`
        None,
        "where NoDO adds Gaussian noise: to the response logits (the paper), to the LoRA weights (the authors' "
        "release), or nowhere (default: logits for HaNoRec, none for other objectives)",
    )
    noise_std: float = option(
        0.1, "σ_n, standard deviation of the noise; the paper: 0.1, and 0.05 on MicroLens", least=0
    )


@dataclass
class RelatedOptions:
    _argument_group_name = "related work (docs/objectives.md)"

    loss: str = option(
        "hanorec",
        f"objective to minimise, one of {', '.join(PAPER_BETA)}; docs/objectives.md has the paper of each",
        choices=tuple(PAPER_BETA),
        metavar="NAME",
    )
    sft_weight: float = option(
        0.0,
        "weight of the chosen response's negative log-likelihood a token, added to the objective (Pang et al., "
        "arXiv 2404.19733)",
        least=0,
    )
    rejected: int = option(
        1,
        "number of rejected responses for each example, each a pair with the chosen one (S-DPO, arXiv 2406.09215)",
        least=1,
    )
    negatives: Literal["random", "popularity", "neighbours", "listed", "policy", "policy-modality"] = option(
        "random",
        "draw rejected items uniformly (the paper), by popularity in training, among the K neighbours of the chosen "
        "item, among those that the dataset's negatives.tsv lists for it, by the SFT model's own probabilities, or by "
        "these and by how little an item's image agrees with its title and the history (M3PO, arXiv 2508.12458)",
    )
    neighbourhood: Literal["embeddings", "refined"] = option(
        "embeddings",
        "an item's K neighbours: the nearest by embeddings (the paper), or these without weak ones and with items that "
        "users choose together (MLLMRec, arXiv 2508.15304)",
    )


@dataclass
class DPOOptions(
    StartOptions, HaNoRecOptions, LoraOptions, ComputeOptions, OptimizationOptions, RunOptions, RelatedOptions
):
    """Preference optimization of an SFT model: a fresh LoRA adapter learns, the SFT model is the reference."""


def complete_dpo(options: DPOOptions, sft: SFTOptions) -> None:
    """Fill what was not given: the dataset from the SFT run, β₀, noise and τ from objective and recipe.

    Errors: DataError for options that do not fit the SFT run's task, protocol or number of candidates, for a vision
    tower that would train, and for an option that was given and would change nothing.
    """
    options.data = options.data or sft.data
    check_fixed(options, fixed_by_protocol(sft.protocol, sft.task))
    if options.negatives.startswith("policy") and sft.task != "next":
        raise DataError(f"--negatives {options.negatives}: draws titles of the task next; the task is {sft.task}")
    if sft.task == "yesno" and options.rejected > 1:
        raise DataError(f"--rejected {options.rejected}: a yes/no pair has one rejected response, the other answer")
    if options.layers == "all":
        raise DataError("--layers all: preference optimization keeps the vision tower as it is")
    listed = TARGETS[sft.task] * (1 + options.rejected)
    if sft.list_candidates and sft.task != "yesno" and listed > sft.candidates:
        raise DataError(
            f"--rejected {options.rejected}: the rejected and the chosen titles are {listed}, and prompts of "
            f"{options.sft} list {sft.candidates} candidates"
        )
    if options.noise is None:
        options.noise = "logits" if options.loss.startswith("hanorec") else "none"
    if options.beta is None:
        options.beta = PAPER_BETA[options.loss]
    check_effect(options)
    if options.temperature is None:
        options.temperature = 1.0 if options.recipe == "paper" else 0.05


def check_effect(options: DPOOptions) -> None:
    """Errors: DataError for an option that was given and would change nothing."""
    usual, of_loss = DPOOptions(), f"the loss {options.loss} has none"
    without = {
        "hardness": options.loss not in WITH_HARDNESS and of_loss,
        "recipe": options.loss not in WITH_HARDNESS and of_loss,
        "temperature": options.loss not in WITH_HARDNESS and of_loss,
        "responsiveness": options.loss not in WITH_RESPONSIVENESS and of_loss,
        "noise_std": options.noise == "none" and options.noise_std > 0 and "no noise is added; see --noise",
    }
    for name, reason in without.items():
        if reason and (given := getattr(options, name)) != getattr(usual, name):
            raise DataError(f"--{name.replace('_', '-')} {given}: {reason}")
