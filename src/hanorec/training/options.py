"""Every option of the three scripts, with its unit, default and bounds, in the groups that --help shows.

In: the command line, or a YAML or JSON file and the command line. Out: one flat object a script: `SFTOptions`,
`DPOOptions` or `EvaluationOptions`. Each base class of these is a group; `command_line.parse` reads them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Optional

from hanorec.data.examples import TARGETS
from hanorec.errors import DataError
from hanorec.related.objectives import OBJECTIVES
from hanorec.related.release import fixed_options
from hanorec.training.command_line import option, switch
from hanorec.training.command_line import parse as parse
from hanorec.training.objective import OWN_OPTIONS, default_beta, takes

Task = Literal["next", "top3", "yesno"]
Protocol = Literal["standard", "release"]
ItemView = Literal["image", "description", "both", "title"]
MODALITIES = ("full", "blank", "shuffled", "no-titles")
STANDARD = {"candidates": 20, "list_candidates": False, "windows": "nested"}  # where no protocol fixes another value


@dataclass
class DataOptions:
    _argument_group_name = "data"

    data: Optional[str] = option(
        None,
        "dataset folder, laid out as data/README.md says (default: the toy catalogue, made in data/toy)",
        metavar="DIR",
    )
    task: Task = option("next", "task to train on: name the next item, name the next three, or answer yes or no")
    protocol: Protocol = option(
        "standard",
        "how examples, prompts and measures are made; release makes them as the authors' release does, for the tasks "
        "top3 and yesno, and fixes history, candidates, windows and negatives (docs/differences.md)",
    )
    history: Optional[int] = option(None, "most history items in a prompt (default: 5, and 3 for top3)", least=1)
    candidates: Optional[int] = option(
        None, "items the target is ranked among, itself included (default: 20; protocol release: 7)", least=2
    )
    list_candidates: Optional[bool] = switch(
        None,
        "list the candidates' titles in the prompt, as the paper does; the tiny backbone learns faster without "
        "(default: false; protocol release: true)",
    )
    item_view: ItemView = option(
        "image",
        "how an item is shown before its title: as its image, as its description in words (descriptions.csv, which "
        "data/describe_items.py writes), as both, or not at all (title)",
    )
    windows: Optional[Literal["nested", "every", "last"]] = option(
        None,
        "train on all windows of a user's row, many in one forward (nested: a row is cut into chunks of --history "
        "items and a target, and every position of a chunk is predicted from those before it) or one by one (every), "
        "or on the last one only, as the paper does (default: nested, and every for a backbone that cannot; protocol "
        "release: last)",
    )
    train_users: Optional[int] = option(
        None, "number of windows to train on, drawn by the seed (default: all)", least=1
    )


@dataclass
class ModelOptions:
    _argument_group_name = "model"

    backbone: str = option(
        "tiny",
        "model to train: tiny (it comes with the code), a Hugging Face hub id, a folder, or the folder of an SFT run",
        metavar="NAME",
    )
    image_pixels: int = option(262_144, "scale images down to this many pixels at most, as the paper does", least=1)
    image_views: Literal["one", "many"] = option(
        "one", "show an image once, whole, or also in tiles, where the processor makes them"
    )
    remote_code: bool = switch(False, "run Python files that come with a checkpoint; only for those that you trust")
    lora: Literal["auto", "on", "off"] = option(
        "auto",
        "train LoRA adapters, or the weights themselves (off); auto trains the weights below 20 million parameters",
    )
    train_vision: bool = switch(
        False,
        "without LoRA: also train the vision tower and what leads from it to the language model; frozen, as in the "
        "authors' release, every image is encoded once",
    )


@dataclass
class LoraOptions:
    _argument_group_name = "LoRA"

    lora_rank: int = option(8, "rank of the LoRA matrices", least=1)
    lora_alpha: int = option(32, "numerator of LoRA's scale, alpha / rank", least=1)
    lora_dropout: float = option(0.05, "probability of dropout on a LoRA layer's input", least=0, most=0.9)
    lora_targets: str = option(
        "language",
        "layers that get LoRA: all linear layers of the language model (language), those of the vision tower and the "
        "connector too (all), or those layers of the language model whose names end in one of these words, separated "
        "by commas",
        metavar="NAMES",
    )
    merge: bool = switch(False, "also write the model with its adapter merged, as a plain checkpoint in merged/")


@dataclass
class ComputeOptions:
    _argument_group_name = "precision and memory"

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto",
        "precision of forwards and of frozen weights (trained weights are float32); auto is bfloat16 on CUDA devices "
        "that have it, float16 on other CUDA devices, and float32 elsewhere",
    )
    forward_tokens: int = option(
        8192, "most tokens in a forward, padding included; a larger step takes several forwards", least=1
    )
    gradient_checkpointing: bool = switch(False, "compute activations again in the backward: less memory, more time")


@dataclass
class OptimizationOptions:
    _argument_group_name = "optimization"

    epochs: float = option(1.0, "passes over the training windows", least=0)
    max_steps: Optional[int] = option(None, "most optimizer steps (default: those of the epochs)", least=1)
    batch_size: int = option(
        16,
        "targets in an optimizer step, over all processes; nested windows take the number of whole chunks that comes "
        "nearest on average, at least one",
        least=1,
    )
    learning_rate: float = option(1e-4, "peak of AdamW's learning rate, before it falls to zero in a cosine", least=0)
    warmup: float = option(0.03, "share of the steps in which the learning rate rises", least=0, most=1)
    weight_decay: float = option(0.01, "AdamW's weight decay, on matrices only", least=0)
    max_grad_norm: float = option(1.0, "clip the gradients of a step to this norm", least=1e-9)
    seed: int = option(2025, "seed of everything random: order, negatives, dropout, noise", least=0)


@dataclass
class CheckpointOptions:
    _argument_group_name = "checkpoints and logging"

    output: str = option("runs/hanorec", "folder of the run", metavar="DIR")
    resume: bool = switch(False, "continue an unfinished run in --output")
    overwrite: bool = switch(False, "replace a run in --output")
    checkpoint_every: int = option(200, "steps between checkpoints, from which --resume continues", least=1)
    validate_every: int = option(200, "steps between validations; the best state is kept", least=1)
    validate_users: int = option(200, "users ranked in a validation", least=1)
    log_every: int = option(10, "steps between lines of metrics.jsonl", least=1)
    cache: Optional[str] = option(
        None,
        "folder that keeps image features, neighbours and reference log-probabilities for later runs (default: cache/ "
        "beside the output)",
        metavar="DIR",
    )


@dataclass
class SFTOptimizationOptions(OptimizationOptions):
    epochs: float = option(1.5, "passes over the training windows", least=0)
    learning_rate: float = option(
        1e-3, "peak of AdamW's learning rate; the paper's 0.0001 suits LoRA on a large model", least=0
    )
    name_history: bool = switch(
        False,
        "also learn to name each item of a history from its image and the items before it, in the same forward; it "
        "teaches a catalogue's titles and what belongs to which image",
    )


@dataclass
class SFTCheckpointOptions(CheckpointOptions):
    output: str = option("runs/sft", "folder of the run", metavar="DIR")
    validate_every: int = option(400, "steps between validations; the best state is kept", least=1)


@dataclass
class SFTOptions(DataOptions, ModelOptions, LoraOptions, ComputeOptions, SFTOptimizationOptions, SFTCheckpointOptions):
    """Supervised fine-tuning: the model learns to name the next item, given the history."""


@dataclass
class InheritedOptions:
    """What a DPO run takes from its SFT run, unless told otherwise; `fill_defaults` puts it in place of None."""

    _argument_group_name = "data and model, by default as in the SFT run"

    data: Optional[str] = option(None, "dataset folder (default: that of the SFT run)", metavar="DIR")
    task: Optional[Task] = option(None, "task to train on (default: that of the SFT run)")
    protocol: Optional[Protocol] = option(
        None, "how examples, prompts and measures are made (default: as in the SFT run)"
    )
    history: Optional[int] = option(None, "most history items in a prompt (default: as in the SFT run)", least=1)
    candidates: Optional[int] = option(None, "items the target is ranked among (default: as in the SFT run)", least=2)
    list_candidates: Optional[bool] = switch(None, "list candidates in the prompt (default: as in the SFT run)")
    item_view: Optional[ItemView] = option(None, "how an item is shown (default: as in the SFT run)")
    image_pixels: Optional[int] = option(None, "most pixels of an image (default: as in the SFT run)", least=1)
    image_views: Optional[Literal["one", "many"]] = option(
        None, "images whole, or also in tiles (default: as in the SFT run)"
    )
    remote_code: Optional[bool] = switch(None, "run a checkpoint's Python files (default: as in the SFT run)")


@dataclass
class DPODataOptions:
    _argument_group_name = "SFT run and training windows"

    sft: str = option("runs/sft", "folder of the finished SFT run", metavar="DIR")
    windows: Literal["nested", "every", "last"] = option(
        "last",
        "train on the last window of a user's row (the paper), or on all of them, read one by one (every) or many in "
        "one forward (nested)",
    )
    train_users: Optional[int] = option(
        None, "number of windows to train on, drawn by the seed (default: all)", least=1
    )


@dataclass
class PreferenceOptions:
    _argument_group_name = "preference optimization"

    loss: str = option(
        "hanorec", f"objective to minimise, one of {', '.join(OBJECTIVES)}", choices=tuple(OBJECTIVES), metavar="NAME"
    )
    recipe: Literal["paper", "calibrated"] = option(
        "paper",
        "paper takes Eqs. 5 and 8 as they stand; calibrated takes τ = 0.05 and a bounded, running responsiveness",
    )
    hardness: Literal["on", "off"] = option("on", "weigh pairs by their hardness λ (Eq. 6); off takes λ = 1")
    responsiveness: Literal["on", "off"] = option("on", "scale β by the policy's responsiveness η; off takes η = 1")
    beta: Optional[float] = option(
        None,
        "β₀, the strength of the pull to the reference (default: that of the objective's paper; 0.1 for hanorec)",
        least=1e-9,
    )
    sft_weight: float = option(
        0.0, "weight of the chosen response's negative log-likelihood a token, added to the objective", least=0
    )
    label_smoothing: float = option(0.1, "cdpo: probability that a preference is wrong", least=0, most=0.499)
    gamma: float = option(1.0, "simpo: γ, the reward margin to reach", least=0)
    alpha: float = option(0.6, "beta-dpo: by how much β follows a batch's margins", least=0)
    keep: float = option(0.8, "beta-dpo and dama: share of a batch's pairs that is drawn", least=1e-9, most=1)
    neighbours: int = option(10, "K, number of similar items that tell how hard a pair is (Eq. 5)", least=1)
    neighbourhood: Literal["embeddings", "refined"] = option(
        "embeddings",
        "an item's K neighbours, for hardness and neighbour negatives: the nearest by embeddings (the paper), or these "
        "without weak ones and with items that users choose together",
    )
    neighbour_threshold: Optional[float] = option(
        None,
        "refined neighbourhood: smallest similarity of a neighbour by embeddings (default: the median over all items)",
        least=0,
        most=1,
    )
    temperature: Optional[float] = option(
        None,
        "τ, temperature of the softmax in Eq. 5 (default: 1 for the recipe paper, 0.05 for calibrated)",
        least=1e-9,
    )
    noise: Optional[Literal["logits", "lora", "none"]] = option(
        None,
        "where NoDO adds Gaussian noise: to the response logits (the paper), to the LoRA weights (the authors' "
        "release), or nowhere (default: logits for HaNoRec, none for other objectives)",
    )
    noise_std: float = option(
        0.1, "σ_n, standard deviation of the noise; the paper: 0.1, and 0.05 on MicroLens", least=0
    )
    negatives: Literal["random", "popularity", "neighbours", "listed", "policy", "policy-modality"] = option(
        "random",
        "draw rejected items uniformly, by popularity in training, among the K neighbours of the chosen item, among "
        "those that the dataset's negatives.tsv lists for it, by the SFT model's own probabilities, or by these and by "
        "how little an item's image agrees with its title and the history",
    )
    negative_pool: int = option(50, "policy negatives: number of random items to draw from", least=1)
    negative_temperature: float = option(
        1.0, "policy negatives: temperature of the probabilities; low values draw the likeliest items", least=1e-6
    )
    negative_modality_weight: float = option(
        1.0, "policy-modality negatives: what a standard deviation of agreement counts, in nats", least=0
    )
    rejected: int = option(1, "number of rejected responses for each example, each a pair with the chosen one", least=1)
    fresh_negatives: bool = switch(False, "draw other rejected items every epoch")


@dataclass
class DPOOptions(
    DPODataOptions,
    InheritedOptions,
    PreferenceOptions,
    LoraOptions,
    ComputeOptions,
    OptimizationOptions,
    CheckpointOptions,
):
    """Preference optimization of an SFT model: a fresh LoRA adapter learns, the SFT model is the reference."""


@dataclass
class EvaluatedOptions:
    _argument_group_name = "what is evaluated"

    runs: list[str] = option(["runs/sft", "runs/hanorec"], "folders of finished runs", metavar="DIR")
    modality: list[str] = option(
        ["full"],
        "what a model sees of the history, one or several of: everything, grey images (blank), images exchanged "
        "between items (shuffled), or images without titles",
        choices=MODALITIES,
    )
    baselines: list[str] = option(
        ["random", "popularity", "co-occurrence", "sasrec"],
        "what the runs are compared with: these, gru4rec, or all; sasrec and gru4rec train for some minutes, once a "
        "dataset, history and seed",
        metavar="NAME",
    )
    remote_code: bool = switch(False, "run Python files that come with a run's checkpoint; only for those you trust")
    show: int = option(
        0, "print history and best candidates of so many users, for each run (task next, modality full)", least=0
    )


@dataclass
class RankingOptions:
    _argument_group_name = "data and candidates"

    data: Optional[str] = option(None, "dataset folder (default: that of the first run)", metavar="DIR")
    split: str = option("test", "rows to rank: val, test or any other <split>.tsv; the toy catalogue has cold, too")
    task: Optional[Task] = option(None, "task to evaluate (default: that of the first run)")
    history: Optional[int] = option(None, "most history items in a prompt (default: as in the first run)", least=1)
    candidates: Optional[str] = option(
        None,
        "items the target is ranked among, itself included; all: every item that the user has not chosen (default: 20; "
        "for runs of the protocol release: 7)",
        least=2,
        or_word="all",
        metavar="N|all",
    )
    negatives: Literal["random", "listed"] = option(
        "random", "draw the other candidates uniformly, or among those that negatives.tsv lists for the target"
    )
    users: Optional[int] = option(None, "users to rank, drawn by the seed (default: all of them)", least=1)
    seed: int = option(2025, "seed that draws users and candidates", least=0)


@dataclass
class EvaluationComputeOptions:
    _argument_group_name = "memory and cache"

    forward_tokens: int = option(8192, "most tokens in a forward, padding included; fewer need less memory", least=1)
    cache: Optional[str] = option(
        None,
        "folder that keeps image features and trained baselines for later runs (default: cache/ beside the first run)",
        metavar="DIR",
    )


@dataclass
class EvaluationOptions(EvaluatedOptions, RankingOptions, EvaluationComputeOptions):
    """Rank candidates with trained runs and baselines, side by side, on the same users and candidates."""


def apply_protocol(
    options: SFTOptions | DPOOptions | EvaluationOptions, protocol: str, otherwise: dict[str, Any]
) -> None:
    """Fill what was not given: by what the protocol fixes for the task (which is known), otherwise by `otherwise`.

    Errors: DataError for a task that the protocol does not have, and for an option that was given another value than
    the protocol fixes.
    """
    fixed = fixed_options(str(options.task)) if protocol == "release" else {}
    for name, value in (otherwise | fixed).items():
        given = getattr(options, name, value)  # not every script has every option
        if given is None:
            setattr(options, name, value)
        elif name in fixed and str(given) != str(value):
            option_name = name.replace("_", "-")
            raise DataError(f"--{option_name} {given}: --protocol release with task {options.task} has {value}".lower())


def fill_defaults(options: DPOOptions, sft_config: dict[str, Any]) -> None:
    """Fill what was not given: `InheritedOptions` from the protocol and the SFT run's config, β₀, noise and τ from loss
    and recipe.

    Errors: DataError as `apply_protocol` raises it, for fresh negatives with the task yesno, whose rejected response is
    always the other answer, and options that do not fit task, loss, number of candidates or the frozen vision tower.
    """
    options.task, options.protocol = options.task or sft_config["task"], options.protocol or sft_config["protocol"]
    inherited = {field.name: sft_config[field.name] for field in fields(InheritedOptions)}
    apply_protocol(options, options.protocol, inherited)
    if options.fresh_negatives and options.task == "yesno":
        raise DataError("--fresh-negatives: the rejected response of a yes/no pair is always the other answer")
    if options.negatives.startswith("policy") and options.task != "next":
        raise DataError(f"--negatives {options.negatives}: draws titles of the task next; the task is {options.task}")
    if options.task == "yesno" and options.rejected > 1:
        raise DataError(f"--rejected {options.rejected}: a yes/no pair has one rejected response, the other answer")
    if options.lora_targets == "all":
        raise DataError("--lora-targets all: preference optimization keeps the vision tower as it is")
    listed = TARGETS[options.task] * (1 + options.rejected * draws_of_negatives(options))
    if options.list_candidates and options.task != "yesno" and listed > (options.candidates or listed):
        raise DataError(f"--candidates {options.candidates}: the rejected and the chosen titles are {listed}")
    if options.noise is None:
        options.noise = "logits" if options.loss.startswith("hanorec") else "none"
    if options.beta is None:
        options.beta = default_beta(options.loss)
    _check_effect(options)
    if options.temperature is None:
        options.temperature = 1.0 if options.recipe == "paper" else 0.05


def _check_effect(options: DPOOptions) -> None:
    """Errors: DataError for an option that was given and would change nothing."""
    of_loss = f"the loss {options.loss} has none"
    belongs = {name: (takes(options.loss, name), of_loss) for name in (*OWN_OPTIONS, "hardness", "responsiveness")}
    belongs["recipe"] = belongs["temperature"] = belongs["hardness"]
    belongs["neighbour_threshold"] = options.neighbourhood == "refined", "belongs to --neighbourhood refined"
    policy = options.negatives.startswith("policy"), "belongs to --negatives policy"
    belongs["negative_pool"] = belongs["negative_temperature"] = policy
    modality = options.negatives == "policy-modality"
    belongs["negative_modality_weight"] = modality, "belongs to --negatives policy-modality"
    belongs["noise_std"] = options.noise != "none" or options.noise_std == 0, "no noise is added; see --noise"
    usual = DPOOptions()
    for name, (has_effect, why) in belongs.items():
        if not has_effect and (given := getattr(options, name)) != getattr(usual, name):
            raise DataError(f"--{name.replace('_', '-')} {given}: {why}")


def check_lora_options(options: SFTOptions, lora: bool) -> None:
    """Errors: DataError for an option of adapters where weights train without them, and the other way round."""
    usual = SFTOptions()
    if lora and options.train_vision:
        raise DataError("--train-vision: is of a model that trains without LoRA, which has --lora-targets all")
    for name in (field.name for field in fields(LoraOptions) if not lora):
        if getattr(options, name) != getattr(usual, name):
            raise DataError(f"--{name.replace('_', '-')}: is of an adapter, and this model trains without one")


def draws_of_negatives(options: DPOOptions) -> int:
    """How often each example's rejected responses are drawn: once, or once an epoch."""
    return max(1, math.ceil(options.epochs)) if options.fresh_negatives else 1


def cache_folder(options: SFTOptions | DPOOptions | EvaluationOptions) -> Path:
    """The folder for what later runs need not compute again: --cache, or cache/ beside the (first) run."""
    run = options.runs[0] if isinstance(options, EvaluationOptions) else options.output
    return Path(options.cache or Path(run).parent / "cache")


def example_options(options: EvaluationOptions) -> dict[str, Any]:
    """The options that say which examples a split gives, as arguments of `dataset.split_examples`."""
    return dict(task=options.task, history=options.history, candidates=options.candidates, seed=options.seed)
