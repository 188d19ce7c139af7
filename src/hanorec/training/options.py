"""Every option of the scripts, with its unit and default; also read from a YAML or JSON file.

In: the command line. Out: a dataclass. `--help` is made from the text below.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Optional

import yaml
from transformers import HfArgumentParser

from hanorec.errors import DataError


def option(default, help: str):
    return field(default=default, metadata={"help": help})


@dataclass
class RunOptions:
    """What both training stages share."""

    data: Optional[str] = option(
        None, "dataset folder, laid out as in data/README.md; without it the toy catalogue is made in data/toy"
    )
    task: Literal["next", "top3", "yesno"] = option(
        "next", "what is asked: the next item, the next three in order, or yes/no for one item"
    )
    history: Optional[int] = option(
        None, "items of history a prompt shows at most; the paper's, if not given: 5, for top3 3"
    )
    candidates: int = option(20, "items the target is ranked among, itself included")
    list_candidates: bool = option(
        False, "list the candidates' titles in the prompt, as the paper does; the tiny backbone learns faster without"
    )
    windows: Literal["every", "last"] = option(
        "every", "train on every window of a user's row, or on the last one only (the paper)"
    )
    train_users: Optional[int] = option(None, "train on so many windows, drawn by the seed; all, if not given")
    epochs: float = option(1.0, "passes over the training windows")
    max_steps: Optional[int] = option(None, "stop after so many optimizer steps, whatever the epochs")
    batch_size: int = option(16, "prompts an optimizer step")
    forward_tokens: int = option(
        8192, "tokens a forward takes at most, padding included; a step that has more is split, and needs less memory"
    )
    learning_rate: float = option(1e-4, "peak of the cosine schedule")
    warmup: float = option(0.03, "share of the steps in which the learning rate rises")
    weight_decay: float = option(0.01, "AdamW's, on matrices")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm")
    validate_every: int = option(200, "steps between validations, which keep the best state")
    validate_users: int = option(200, "users a validation ranks")
    log_every: int = option(10, "steps between lines of metrics.jsonl")
    checkpoint_every: int = option(200, "steps between checkpoints, for --resume")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "precision of forwards and of frozen weights (what trains is kept in float32); auto: bfloat16 on CUDA devices "
        "that have it, float16 on those that do not, else float32",
    )
    gradient_checkpointing: bool = option(
        False, "compute a layer's activations again in the backward instead of keeping them: less memory, more time"
    )
    image_pixels: int = option(262_144, "images with more pixels are scaled down to so many (the paper: 262144)")
    image_views: Literal["one", "many"] = option(
        "one", "how an image is seen where the processor would cut it into tiles too: whole, or whole and in tiles"
    )
    remote_code: bool = option(False, "run Python files that come with a checkpoint; only for those you trust")
    lora_rank: int = option(8, "rank of the LoRA matrices")
    lora_alpha: int = option(32, "LoRA's scale is alpha / rank")
    lora_dropout: float = option(0.05, "dropout before LoRA")
    lora_targets: str = option(
        "language",
        "layers that get LoRA: all linear ones of the language model (language), of vision tower and connector too "
        "(all), or those whose names end in one of these, separated by commas",
    )
    merge: bool = option(False, "write the model with its adapter merged too, as a plain checkpoint in merged/")
    cache: Optional[str] = option(
        None,
        "folder that keeps image features, neighbours and reference log-probabilities for later runs; cache/ beside "
        "the output, if not given",
    )
    seed: int = option(2025, "of everything random: order, negatives, dropout, noise")
    resume: bool = option(False, "go on with an unfinished run in --output")
    overwrite: bool = option(False, "replace a run in --output")


@dataclass
class SFTOptions(RunOptions):
    """Supervised fine-tuning: the next item's title given the history."""

    backbone: str = option("tiny", 'the model: "tiny" (embedded), a Hugging Face hub id, or a folder')
    output: str = option("runs/sft", "the run's folder")
    epochs: float = option(2.0, "passes over the training windows")
    lora: Literal["auto", "on", "off"] = option(
        "auto", "train LoRA adapters, or all weights; auto: all weights below 20 million parameters"
    )
    learning_rate: float = option(1e-3, "peak of the cosine schedule; the paper's 1e-4 suits LoRA on a large backbone")


@dataclass
class DPOOptions(RunOptions):
    """Preference optimization of an SFT model: a fresh LoRA adapter, the SFT model as reference."""

    sft: str = option("runs/sft", "folder of the finished SFT run")
    windows: Literal["every", "last"] = option(
        "last", "train on the last window of a user's row (the paper), or on every one"
    )
    data: Optional[str] = option(None, "dataset folder; the SFT run's, if not given")
    task: Optional[Literal["next", "top3", "yesno"]] = option(None, "what is asked; the SFT run's, if not given")
    history: Optional[int] = option(None, "items of history a prompt shows at most; the SFT run's, if not given")
    candidates: Optional[int] = option(None, "items the target is ranked among; the SFT run's, if not given")
    list_candidates: Optional[bool] = option(
        None, "list the candidates' titles in the prompt; as the SFT run did, if not given"
    )
    image_pixels: Optional[int] = option(
        None, "images with more pixels are scaled down to so many; as the SFT run did, if not given"
    )
    image_views: Optional[Literal["one", "many"]] = option(
        None, "how an image is seen, whole (one) or in tiles too (many); as the SFT run did, if not given"
    )
    remote_code: Optional[bool] = option(
        None, "run Python files that come with a checkpoint; as the SFT run did, if not given"
    )
    output: str = option("runs/hanorec", "the run's folder")
    loss: Literal["hanorec", "dpo"] = option(
        "hanorec", "the objective; dpo is HaNoRec with hardness and responsiveness at 1"
    )
    recipe: Literal["paper", "calibrated"] = option(
        "paper",
        "paper: Eqs. 5 and 8 as they stand; calibrated: temperature 0.05 in Eq. 5 and a bounded, running "
        "responsiveness",
    )
    noise: Optional[Literal["logits", "lora", "none"]] = option(
        None,
        "where NoDO adds Gaussian noise: the response logits (the paper), the LoRA weights (the authors' release), "
        "or nowhere; if not given, logits for hanorec and none for dpo",
    )
    noise_std: float = option(
        0.1, "standard deviation of the noise; the paper: 0.1 (Netflix, MovieLens), 0.05 (MicroLens)"
    )
    beta: float = option(0.1, "β₀, how strongly the policy is tied to the reference")
    neighbours: int = option(10, "K, similar items that tell how hard a pair is (Eq. 5)")
    temperature: Optional[float] = option(None, "τ of Eq. 5; the recipe's, if not given: 1, calibrated 0.05")
    negatives: Literal["random", "popularity", "neighbours"] = option(
        "random", "how rejected items are drawn; neighbours: among the K nearest of the chosen item"
    )
    rejected: int = option(1, "rejected responses an example, each a pair with the chosen one")
    fresh_negatives: bool = option(False, "draw other rejected items every epoch")


@dataclass
class EvaluationOptions:
    """Rank candidates with trained runs and baselines, side by side, on the same users and candidates."""

    runs: list[str] = field(
        default_factory=lambda: ["runs/sft", "runs/hanorec"], metadata={"help": "folders of finished runs"}
    )
    data: Optional[str] = option(None, "dataset folder; the first run's, if not given")
    split: str = option(
        "test", "which rows: val, test, or any other <split>.tsv of the dataset (the toy catalogue has cold)"
    )
    task: Optional[Literal["next", "top3", "yesno"]] = option(None, "what is asked; the first run's, if not given")
    history: Optional[int] = option(None, "items of history a prompt shows at most; the first run's, if not given")
    candidates: str = option(
        "20", "items the target is ranked among, itself included; all: every item the user has not chosen"
    )
    users: Optional[int] = option(None, "users to rank, drawn by the seed; all, if not given")
    modality: list[str] = field(
        default_factory=lambda: ["full"],
        metadata={
            "help": "what a model sees of the history, one or more of full, blank (every image grey), "
            "shuffled (images exchanged between items), no-titles (titles hidden)"
        },
    )
    forward_tokens: int = option(8192, "tokens a forward takes at most, padding included; fewer need less memory")
    cache: Optional[str] = option(None, "folder that keeps image features; cache/ beside the first run, if not given")
    seed: int = option(2025, "of users and candidates")


def parse(kind: type):
    """Options of a kind from the command line, or from the YAML or JSON file that is its only argument.

    Errors: DataError for a file that cannot be read or names an option that does not exist, and for numbers that
    make no sense.
    """
    parser = HfArgumentParser(kind, description=kind.__doc__)
    file = Path(sys.argv[1]) if len(sys.argv) == 2 else None
    if file is not None and file.suffix in (".yaml", ".yml", ".json"):
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}  # JSON is YAML
            (options,) = parser.parse_dict(values)
        except (OSError, ValueError, yaml.YAMLError, AttributeError) as error:
            raise DataError(f"{file}: {error}") from error
    else:
        options, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
        if unknown:
            parser.error(f"unknown: {' '.join(unknown)}; see --help")
    for name, least in POSITIVE.items():
        value = getattr(options, name, None)
        if value is not None and not isinstance(value, str) and not value >= least:
            raise DataError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    if kind is EvaluationOptions and options.candidates != "all":
        options.candidates = str(options.candidates)  # a number, where it comes from a file
        if not options.candidates.isdecimal() or int(options.candidates) < 2:
            raise DataError(f"--candidates {options.candidates}: must be a number of at least 2, or all")
    unknown = set(getattr(options, "modality", [])) - set(MODALITIES)
    if unknown:
        raise DataError(f"--modality {' '.join(sorted(unknown))}: not among {', '.join(MODALITIES)}")
    return options


MODALITIES = ("full", "blank", "shuffled", "no-titles")
POSITIVE = {
    **dict.fromkeys(
        (
            "history",
            "train_users",
            "max_steps",
            "batch_size",
            "forward_tokens",
            "validate_every",
            "users",
            "image_pixels",
        ),
        1,
    ),
    **dict.fromkeys(("validate_users", "log_every", "checkpoint_every", "lora_rank", "neighbours", "rejected"), 1),
    **dict.fromkeys(("epochs", "learning_rate", "warmup", "weight_decay", "noise_std"), 0),
    **dict.fromkeys(("beta", "temperature", "max_grad_norm"), 1e-9),
    "candidates": 2,
}


TAKEN_OVER = ("data", "task", "history", "candidates", "list_candidates", "image_pixels", "image_views", "remote_code")


def complete(options: DPOOptions, sft: dict) -> None:
    """Fill what was not given: data, task and prompt from the SFT run's config, noise and τ from loss and recipe."""
    for name in TAKEN_OVER:
        if getattr(options, name) is None:
            setattr(options, name, sft[name])
    if options.fresh_negatives and options.task == "yesno":
        raise DataError("--fresh-negatives: the rejected answer of a yes/no pair is always the other answer")
    if options.noise is None:
        options.noise = "logits" if options.loss == "hanorec" else "none"
    if options.temperature is None:
        options.temperature = 1.0 if options.recipe == "paper" else 0.05


def cache_folder(options) -> Path:
    """The folder for what later runs need not compute again: --cache, or cache/ beside the (first) run."""
    return Path(options.cache or Path(getattr(options, "output", None) or options.runs[0]).parent / "cache")


def example_options(options) -> dict:
    """The options that say which examples a split gives, as arguments of `dataset.split_examples`."""
    return dict(task=options.task, history=options.history, candidates=options.candidates, seed=options.seed)
