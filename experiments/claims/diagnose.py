#!/usr/bin/env python3
"""Why does a run rank as it does? Diagnostics of finished run folders, without training.

    python experiments/diagnose.py                                        runs/sft and runs/hanorec
    python experiments/diagnose.py --runs runs/dpo runs/hanorec --name diagnose-dpo

The runs are those of `train_dpo.py` after one run of `train_sft.py`, of the task next. Six questions: what came of λ, η
and β; how much do hard pairs count, and are they learned; where do the log-probabilities of chosen and rejected
responses go; is an image near its title in the model's own space; what is lost without the images; which items
moved. Writes experiments/results/<name>.json and .md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from diagnose_items import lost_by_length, moved, places_of, retrieval
from diagnose_pairs import (
    Weighed,
    adapts,
    course,
    logps_of,
    mean_logps,
    options_of,
    quintiles,
    training_pairs,
    weigh_pairs,
)
from diagnose_tables import document
from torch import Tensor

from evaluate import check_alike
from hanorec.data.dataset import Dataset, open_dataset, split_examples
from hanorec.errors import DataError, exit_on_user_error
from hanorec.models.backbone import Backbone
from hanorec.models.images import CatalogImages
from hanorec.models.prompts import Prompts
from hanorec.training.runs import load_run, load_sft, load_start, read_config

RESULTS = Path(__file__).resolve().parent / "results"
ALIKE = ("data", "task", "protocol", "history", "list_candidates", "item_view", "image_pixels", "image_views")
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)  # quantiles that tell a distribution
ADAPTED = 0.05  # a β counts as adapted where it differs from β₀ by more than this share of it, as in the log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sft", default="runs/sft", metavar="DIR", help="finished SFT run that the others started from"
    )
    parser.add_argument("--runs", nargs="+", default=["runs/hanorec"], metavar="DIR", help="finished DPO runs")
    parser.add_argument("--split", default="test", help="rows whose targets are ranked: test, val, cold, …")
    parser.add_argument("--users", type=int, default=1000, help="users to rank, drawn by the seed")
    parser.add_argument("--pairs", type=int, default=1000, help="training examples whose pairs are weighed")
    parser.add_argument("--seed", type=int, default=2025, help="seed that draws users, candidates and pairs")
    parser.add_argument("--name", default="diagnose", help="of the results files")
    args = parser.parse_args()
    if args.users < 1:
        raise DataError(f"--users {args.users}: at least one user has to be ranked")
    torch.set_num_threads(1)
    configs = read_configs(args.sft, args.runs)
    found = diagnose(args, configs)
    text = document(found)
    (RESULTS / f"{args.name}.json").write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (RESULTS / f"{args.name}.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def read_configs(sft: str, runs: list[str]) -> dict[str, dict]:
    """The configs of the SFT run and of the others, by folder.

    Errors: DataError for a folder that is no finished run of its kind, for a run of another SFT run or another task
    than next, and for prompts that differ.
    """
    configs = {sft: read_config(sft, "sft")} | {run: read_config(run, "dpo") for run in runs}
    for run in runs:
        if Path(configs[run]["sft"]).resolve() != Path(sft).resolve():
            raise DataError(f"{run}: was trained after {configs[run]['sft']}, not {sft}; give it as --sft")
    for name in ALIKE:
        check_alike(name, configs, None, "diagnose them apart")
    if configs[sft]["task"] != "next":
        raise DataError(f"{sft}: its task is {configs[sft]['task']}; the diagnostics are of the task next")
    return configs


def diagnose(args: argparse.Namespace, configs: dict[str, dict]) -> dict:
    """All numbers, as they are written to the JSON file."""
    config = configs[args.sft]
    runs, courses = {run: options_of(configs[run]) for run in args.runs}, {run: course(run) for run in args.runs}
    data = open_dataset(config["data"])
    titles = data.catalog.titles
    drawn = dict(task="next", history=config["history"], candidates=config["candidates"], seed=args.seed)
    examples = split_examples(data, args.split, users=args.users, **drawn)

    reference, _ = load_sft(args.sft)
    prompts = prompts_of(reference, config, data, args.sft)
    pairs = training_pairs(runs, reference, prompts, data, args.pairs, args.seed)
    how = dict(dtype=config["dtype"], views=config["image_views"], remote_code=config["remote_code"])
    start = load_start(config["backbone"], **how)
    recalls = {config["backbone"]: retrieval(start, prompts_of(start, config, data, args.sft), titles, args.seed)}
    logps, places = {}, {}
    for name in configs:
        backbone = reference if name == args.sft else load_run(name)[0]
        prompts = prompts_of(backbone, config, data, args.sft)
        recalls[name] = retrieval(backbone, prompts, titles, args.seed)
        logps[name] = logps_of(backbone, prompts, pairs.examples)
        places[name] = places_of(backbone, prompts, examples, args.seed, name)

    by = next((run for run, options in runs.items() if adapts(options)), args.runs[0])  # whose λ makes the quintiles
    groups = quintiles(pairs.hardness[by])
    likelier = (logps[args.sft][:, :1] > logps[args.sft][:, 1:]).flatten()
    history = np.array([len(example.history) for example in examples])
    found = {
        "options": vars(args),
        "users": len(examples),
        "candidates": config["candidates"],
        "pairs": len(likelier),
        "hardness of": by,
        "hardness": [pairs.hardness[by][group].mean().item() for group in groups],
        "logps": {name: mean_logps(each, prompts, pairs.examples) for name, each in logps.items()},
        "sft": [{"likelier": share(likelier[group])} for group in groups],
        "retrieval": recalls,
        "lost": {name: lost_by_length(each, history) for name, each in places.items()},
        "runs": {},
    }
    for run, options in runs.items():
        weighed = weigh_pairs(options, pairs.hardness[run], logps[run], logps[args.sft])
        moves = moved(places[args.sft]["full"], places[run]["full"], [example.targets[0] for example in examples])
        for row in [*moves["up"], *moves["down"]]:
            row["title"] = titles[row["item"]]
        found["runs"][run] = {
            "loss": options.loss,
            "recipe": options.recipe if adapts(options) else None,
            "beta": options.beta,
            "course": courses[run],
            "pairs": distributions(weighed, options.beta),
            "quintiles": [of_group(weighed, group) for group in groups],
            "moved": moves,
        }
    return found


def prompts_of(backbone: Backbone, config: dict, data: Dataset, sft: str) -> Prompts:
    """The prompts of the SFT run's task, with the images as this model sees them."""
    how = dict(cache=Path(sft).parent / "cache", pixels=config["image_pixels"])
    images = CatalogImages(backbone, data.catalog.images, frozen=True, **how)
    return Prompts(
        backbone,
        images,
        data.catalog.titles,
        "next",
        list_candidates=config["list_candidates"],
        protocol=config["protocol"],
        item_view=config["item_view"],
        descriptions=data.descriptions(config["item_view"]),
    )


def distributions(weighed: Weighed, beta: float) -> dict:
    """Quantiles (`LEVELS`) of λ, η and β / β₀ over the pairs, and the share of pairs whose β is adapted; nothing where
    the run has no such thing."""
    if weighed.beta is None:
        return {}
    ratio = weighed.beta / beta
    parts = {"λ": weighed.hardness, "η": weighed.responsiveness, "β / β₀": ratio}
    quantiles = {name: np.quantile(values.double().numpy(), LEVELS).tolist() for name, values in parts.items()}
    return quantiles | {"adapted": share((ratio - 1).abs() > ADAPTED)}


def of_group(weighed: Weighed, group: Tensor) -> dict:
    """Means over a group of pairs, given by their numbers."""
    return {
        "weight": None if weighed.weight is None else weighed.weight[group].mean().item(),
        "margin": weighed.margin[group].mean().item(),
        "accuracy": share(weighed.margin[group] > 0),
        "likelier": share(weighed.likelier[group]),
    }


def share(holds: Tensor) -> float:
    return holds.double().mean().item()


if __name__ == "__main__":
    with exit_on_user_error():
        main()
