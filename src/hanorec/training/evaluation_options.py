"""Every option of `evaluate.py`, with its unit, default and bounds, in the groups that --help shows.

In: the command line, or a settings file and the command line. Out: `EvaluationOptions`, one flat object.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Optional

from hanorec.training.command_line import option, switch
from hanorec.training.options import Task

MODALITIES = ("full", "blank", "shuffled", "no-titles")


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
