"""Every option of `train_sft.py`, with its unit, default and bounds, in the groups that --help shows.

In: the command line, or a YAML or JSON file and the command line (`command_line.parse`). Out: `SFTOptions`, one flat
object, each of whose base classes is a group. `dpo_options` shares some of these groups. What the two stages have in
common (task, history, how an item is shown) is an option of this first stage alone: the second reads it from the SFT
run.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, Optional

from hanorec.errors import DataError
from hanorec.related.release import fixed_options
from hanorec.training.bounds import LARGEST_SEED
from hanorec.training.command_line import option, switch

Task = Literal["next", "top3", "yesno"]
Protocol = Literal["standard", "release"]
ItemView = Literal["image", "description", "both", "title"]
LARGEST_TRAINED_WHOLE = 20_000_000  # parameters, where --lora is auto


@dataclass
class DataOptions:
    _argument_group_name = "data"

    data: Optional[str] = option(
        None,
        "dataset folder, laid out as docs/data.md says (default: the toy catalogue, made in data/toy)",
        metavar="DIR",
    )
    task: Task = option("next", "task to train on: name the next item, name the next three, or answer yes or no")
    protocol: Protocol = option(
        "standard",
        "how examples, prompts and measures are made; release makes them as the authors' release does, for the tasks "
        "top3 and yesno, and fixes history, candidates and windows (docs/differences.md)",
    )
    history: Optional[int] = option(None, "most history items in a prompt (default: 5, and 3 for top3)", least=1)
    candidates: int = option(  # None until `complete_sft`
        None, "items the target is ranked among, itself included (default: 20; protocol release: 7)", least=2
    )
    list_candidates: bool = switch(  # None until `complete_sft`
        None,
        "list the candidates' titles in the prompt, as the paper does; the tiny backbone learns faster without "
        "(default: false; protocol release: true)",
    )
    item_view: ItemView = option(
        "image",
        "what stands before an item's title: its image, its description in words (descriptions.csv, which "
        "data/describe_items.py writes; MLLMRec, arXiv 2508.15304), both, or nothing (title)",
    )
    windows: Literal["nested", "every", "last"] = option(  # None until `complete_sft`
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


@dataclass
class LoraOptions:
    _argument_group_name = "what trains"

    layers: str = option(
        "language",
        "layers that train: those of the language model (language), those of the vision tower and the connector too "
        "(all; not in stage 2), or, with LoRA, linear layers of the language model whose names end in one of these "
        "words, separated by commas",
        metavar="NAMES",
    )
    lora_rank: int = option(8, "rank of the LoRA matrices", least=1)
    lora_alpha: int = option(32, "numerator of LoRA's scale, alpha / rank", least=1)
    lora_dropout: float = option(0.05, "probability of dropout on a LoRA layer's input", least=0, most=0.9)


@dataclass
class SFTLoraOptions(LoraOptions):
    lora: Literal["auto", "on", "off"] = option(
        "auto",
        "train LoRA adapters, or the weights themselves (off); auto trains the weights below 20 million parameters",
    )


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

    epochs: float = option(1.0, "passes over the training windows", above=0, most=1_000_000)
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
    seed: int = option(2025, "seed of everything random: order, negatives, dropout, noise", least=0, most=LARGEST_SEED)


@dataclass
class SFTOptimizationOptions(OptimizationOptions):
    epochs: float = option(1.5, "passes over the training windows", above=0, most=1_000_000)
    learning_rate: float = option(
        1e-3, "peak of AdamW's learning rate; the paper's 0.0001 suits LoRA on a large model", least=0
    )
    name_history: bool = switch(
        False,
        "also learn to name each item of a history from its image and the items before it, in the same forward; it "
        "teaches a catalogue's titles and what belongs to which image",
    )


@dataclass
class RunOptions:
    _argument_group_name = "run, checkpoints and log"

    output: str = option("runs/hanorec", "folder of the run", metavar="DIR")
    resume: bool = switch(False, "continue an unfinished run in --output")
    overwrite: bool = switch(False, "replace a run in --output")
    changed_run: bool = switch(False, "start from a run although files of it, or of its base, were changed since")
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
class SFTRunOptions(RunOptions):
    output: str = option("runs/sft", "folder of the run", metavar="DIR")
    validate_every: int = option(400, "steps between validations; the best state is kept", least=1)


@dataclass
class SFTOptions(DataOptions, ModelOptions, SFTLoraOptions, ComputeOptions, SFTOptimizationOptions, SFTRunOptions):
    """Supervised fine-tuning: the model learns to name the next item, given the history."""


def cache_folder(cache: str | None, run: str) -> Path:
    """The folder for what later runs need not compute again: --cache, or cache/ beside a run."""
    return Path(cache or Path(run).parent / "cache")


def complete_sft(options: SFTOptions) -> None:
    """Fill what was not given, by what the protocol fixes for the task or else by the default.

    Errors: DataError for a task that the protocol does not have, and for an option that was given another value than
    the protocol fixes.
    """
    fixed = fixed_by_protocol(options.protocol, options.task)
    for name, value in ({"candidates": 20, "list_candidates": False, "windows": "nested"} | fixed).items():
        if getattr(options, name, value) is None:
            setattr(options, name, value)
    check_fixed(options, fixed)


def fixed_by_protocol(protocol: str, task: str) -> dict[str, Any]:
    """The options that a protocol fixes for a task, by name. Errors: DataError for a task that it does not have."""
    return fixed_options(task) if protocol == "release" else {}


def check_fixed(options: Any, fixed: dict[str, Any]) -> None:
    """Errors: DataError for an option that has another value than its protocol fixes. Not every script has each."""
    for name, value in fixed.items():
        if str(given := getattr(options, name, value)) != str(value):
            flag = name.replace("_", "-")
            raise DataError(f"--{flag} {given}: the protocol release has {value} for this task".lower())


def lora_trains(options: SFTOptions, num_parameters: int) -> bool:
    """Whether adapters train, in place of the weights of a model of so many parameters.

    Errors: DataError for an option of adapters where weights train without them.
    """
    if options.lora == "on" or (options.lora == "auto" and num_parameters > LARGEST_TRAINED_WHOLE):
        return True
    usual = SFTOptions()
    for name in (field.name for field in fields(LoraOptions) if field.name != "layers"):
        if getattr(options, name) != getattr(usual, name):
            raise DataError(f"--{name.replace('_', '-')}: is of an adapter, and this model trains without one")
    if options.layers not in ("language", "all"):
        raise DataError(f"--layers {options.layers}: a model that trains without LoRA takes language or all")
    return False
