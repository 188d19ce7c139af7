"""Every option of `evaluate.py`, with its unit, default and bounds, in the groups that --help shows.

In: the command line, or a settings file and the command line. Out: `EvaluationOptions`, one flat object, completed by
what the runs say, if their models can be compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Optional

from hanorec.data.dataset import TOY_FOLDER
from hanorec.data.examples import HISTORY
from hanorec.errors import DataError
from hanorec.training.bounds import LARGEST_SEED
from hanorec.training.command_line import option, switch
from hanorec.training.options import SFTOptions, Task, check_fixed, fixed_by_protocol

MODALITIES = ("full", "blank", "shuffled", "no-titles")
# With data, task and history: what a model reads. Views of an item may differ, they are there to be compared.
PROMPT_SETTINGS = ("protocol", "list_candidates", "image_pixels", "image_views")


@dataclass
class EvaluatedOptions:
    _argument_group_name = "what is evaluated"

    runs: list[str] = option(
        ["runs/sft", "runs/hanorec"],
        "folders of finished runs, or backbones before training (tiny, a hub id, a folder)",
        metavar="DIR",
    )
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
    against: Optional[str] = option(
        None,
        "one of the runs or baselines: what the differences of the runs are taken from (default: the first run)",
        metavar="NAME",
    )
    remote_code: bool = switch(False, "run Python files that come with a run's checkpoint; only for those you trust")
    changed_run: bool = switch(False, "evaluate runs although files of theirs, or of their base, were changed since")
    show: int = option(
        0, "print history and best candidates of so many users, for each run (task next, modality full)", least=0
    )


@dataclass
class RankingOptions:
    _argument_group_name = "data and candidates"

    data: Optional[str] = option(None, "dataset folder (default: that of the first run)", metavar="DIR")
    split: str = option("test", "rows to rank: val, test or any other <split>.tsv; the toy catalogue has cold, too")
    task: Task = option(None, "task to evaluate (default: that of the first run)")  # None until `complete_evaluation`
    history: int = option(  # None until `complete_evaluation`
        None, "most history items in a prompt (default: as in the first run)", least=1
    )
    candidates: str = option(  # None until `complete_evaluation`
        None,
        "items the target is ranked among, itself included; all: every item that the user has not chosen (default: 20; "
        "for runs of the protocol release: 7)",
        least=2,
        or_word="all",
        metavar="N|all",
    )
    negatives: Literal["random", "popularity", "listed"] = option(
        "random",
        "draw the other candidates uniformly, by popularity in training, or among those that negatives.tsv lists for "
        "the target",
    )
    users: Optional[int] = option(None, "users to rank, drawn by the seed (default: all of them)", least=1)
    seed: int = option(2025, "seed that draws users and candidates", least=0, most=LARGEST_SEED)


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


def complete_evaluation(options: EvaluationOptions, runs: Mapping[str, SFTOptions]) -> SFTOptions:
    """Fill what was not given, by the runs, by what their protocol fixes for the task, or else by the default. Returns
    the first run's options with the task, history and candidates that are evaluated.

    runs: by folder, how each run in `options.runs` reads prompts. Errors: DataError where two runs differ in data, task
    or history and it is not given, or in a setting of their prompts; where an option contradicts their protocol; where
    an option does not fit the task, the prompts or another option.
    """
    first = runs[options.runs[0]]
    for name in PROMPT_SETTINGS:
        check_alike(name, runs, "evaluate them apart")
    if options.data is None:
        check_alike("data", runs, "give --data, or evaluate them apart")
        options.data = first.data
    if options.task is None:
        check_alike("task", runs, "give --task, or evaluate them apart")
        options.task = first.task
    fixed = fixed_by_protocol(first.protocol, options.task)
    options.candidates = str(options.candidates or fixed.get("candidates", 20))
    if options.history is None and "history" in fixed:
        options.history = fixed["history"]
    check_fixed(options, fixed)
    if options.history is None:
        usual = HISTORY[options.task]
        of_task = {run: replace(sft, history=sft.history or usual) for run, sft in runs.items()}
        check_alike("history", of_task, "give --history, or evaluate them apart")
        options.history = first.history or usual
    all_items = options.candidates == "all"
    if all_items and options.task != "next":
        raise DataError(f"--candidates all: ranks the next item; the task is {options.task}")
    if all_items and first.list_candidates:
        raise DataError(
            f"--candidates all: the prompts of {options.runs[0]} list the candidates, and cannot list all items"
        )
    if options.negatives != "random" and (all_items or options.task != "next"):
        raise DataError(
            f"--negatives {options.negatives}: draws some candidates for the next item (--candidates N, --task next)"
        )
    if options.show and options.task != "next":
        raise DataError(f"--show: is for the task next; the task is {options.task}")
    if options.show and (all_items or "full" not in options.modality):
        raise DataError("--show: shows the scores of listed candidates (--candidates N) in the modality full")
    listed = 2 if all_items else int(options.candidates)  # all items compete, however few an example lists
    return replace(first, task=options.task, history=options.history, candidates=listed)


def check_alike(name: str, runs: Mapping[str, SFTOptions], remedy: str) -> None:
    """Errors: DataError that names the first two runs that differ in an option, and both values."""

    def value(run: str):
        given = getattr(runs[run], name)
        return str(Path(given or TOY_FOLDER).resolve()) if name == "data" else given  # a folder has several names

    first, *others = runs
    for run in others:
        if value(run) != value(first):
            raise DataError(
                f"{first} and {run} cannot be compared: --{name.replace('_', '-')} was {value(first)!r} in {first} and "
                f"{value(run)!r} in {run}; {remedy}"
            )
