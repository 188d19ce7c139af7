#!/usr/bin/env python3
"""Rank each user's target among candidates by exact log-likelihood, and put runs and baselines side by side.

    python evaluate.py                                         runs/sft and runs/hanorec on the test split
    python evaluate.py --split cold --modality full blank      does the model look at the images?
    python evaluate.py --runs runs/sft runs/dpo --users 500
    python evaluate.py --candidates all                        among the whole catalogue

Every method answers for the same users and candidates. Prints a Markdown table and writes
evaluation-<split>-<task>.json (with --candidates all: …-all.json) into each run's folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hanorec import distributed
from hanorec.data.dataset import Dataset, open_dataset, split_examples
from hanorec.data.examples import Example
from hanorec.data.interactions import rng
from hanorec.errors import DataError, exit_on_user_error
from hanorec.evaluation.oracles import read_oracles
from hanorec.evaluation.ranking import (
    Answers,
    FullCatalog,
    answer_with_model,
    answer_with_scorer,
    measures,
    point_measures,
)
from hanorec.evaluation.report import by_length_table, results_table, share_of_possible
from hanorec.models.images import CatalogImages
from hanorec.models.prompts import Prompts
from hanorec.training.options import EvaluationOptions, cache_folder, example_options, parse
from hanorec.training.runs import load_run, read_config

FIRST_MEASURE = {"next": "HR@1", "top3": "HR@3", "yesno": "AUC"}


def main() -> None:
    options = parse(EvaluationOptions)
    configs = {run: read_config(run) for run in options.runs}
    first = configs[options.runs[0]]
    for name in ("data", "task", "history"):
        if getattr(options, name) is None:
            setattr(options, name, first[name])
    data = open_dataset(options.data)
    full_catalog = FullCatalog(data.familiar) if options.candidates == "all" else None
    if full_catalog:
        check_whole_catalogue(options, configs)
    drawn = example_options(options) | {"candidates": 2 if full_catalog else int(options.candidates)}
    examples = split_examples(data, options.split, users=options.users, **drawn)
    file = data.folder / f"{options.split}.tsv"
    if distributed.is_main_process():
        print(f"{len(examples)} examples of {file}, task {options.task}, candidates: {options.candidates}")

    answers = baseline_answers(data, examples, options.task, full_catalog)
    for run in options.runs:
        answers |= model_answers(run, data, examples, options, full_catalog)
    if not distributed.is_main_process():
        return
    results = {method: measures(options.task, given, examples) for method, given in answers.items()}
    main_measure = "HR@10" if full_catalog else FIRST_MEASURE[options.task]
    groups = by_length(options.task, answers, examples)

    print("\n" + results_table(results, main_measure))
    if len(groups) > 1:
        counts = {length: sum(len(e.history) == length for e in examples) for length in groups}
        table = {length: {m: values[main_measure] for m, values in rows.items()} for length, rows in groups.items()}
        print("\nBy items in the history:\n\n" + by_length_table(table, counts, main_measure))
    for run in options.runs:
        share = share_of_possible(results, run, main_measure)
        if share is not None:
            print(f"\n{run} goes {share:.0%} of the way from popularity to the oracle in {main_measure}.")
        write_results(run, options, results, groups, len(examples))


def check_whole_catalogue(options: EvaluationOptions, configs: dict[str, dict]) -> None:
    """Errors: DataError where --candidates all makes no sense."""
    if options.task != "next":
        raise DataError(f"--candidates all: ranks the next item; the task is {options.task}")
    for run, config in configs.items():
        if config["list_candidates"]:
            raise DataError(
                f"--candidates all: the prompts of {run} list the candidates, and no prompt can list them all"
            )


def baseline_answers(
    data: Dataset, examples: list[Example], task: str, full_catalog: FullCatalog | None
) -> dict[str, Answers]:
    """Random (a constant score: ties are counted exactly), popularity in training, and on the toy catalogue the
    Bayes-optimal observers."""
    cold = not np.isin([item for example in examples for item in example.history], data.familiar).any()
    oracles = read_oracles(data.folder, data.catalog, data.familiar, know_candidates=cold)
    names = {"words": "oracle: words alone", "images": "oracle: images alone", "both": "oracle: words and images"}
    scorers = {
        "random": lambda example: np.zeros(len(example.candidates)),
        "popularity": lambda example: data.counts[list(example.candidates)].astype(float),
        **{names[observer]: scorer for observer, scorer in oracles.items()},
    }
    return {name: answer_with_scorer(scorer, examples, task, full_catalog) for name, scorer in scorers.items()}


def model_answers(
    run: str, data: Dataset, examples: list[Example], options: EvaluationOptions, full_catalog: FullCatalog | None
) -> dict[str, Answers]:
    """A run's answers, once for each modality asked for."""
    backbone, config = load_run(run)
    features = dict(cache=cache_folder(options), pixels=config["image_pixels"])
    images = CatalogImages(backbone, data.catalog.images, frozen=True, **features)
    answers = {}
    for modality in options.modality:
        images.set_modality(backbone, "full" if modality == "no-titles" else modality, rng(options.seed, "shuffled"))
        prompts = Prompts(
            backbone, images, data.catalog.titles, options.task,
            list_candidates=config["list_candidates"], mask_titles=modality == "no-titles",
        )  # fmt: skip
        name = run if modality == "full" else f"{run}, {modality}"
        answers[name] = answer_with_model(
            backbone, prompts, examples, forward_tokens=options.forward_tokens, full_catalog=full_catalog, progress=name
        )
    return answers


def by_length(
    task: str, answers: dict[str, Answers], examples: list[Example]
) -> dict[int, dict[str, dict[str, float]]]:
    """Every measure of every method, apart for each length of history."""
    lengths = np.array([len(example.history) for example in examples])
    groups = {}
    for length in sorted(set(lengths.tolist())):
        rows = np.flatnonzero(lengths == length)
        some = [examples[row] for row in rows]
        groups[length] = {method: point_measures(task, given.take(rows), some) for method, given in answers.items()}
    return groups


def write_results(run: str, options: EvaluationOptions, results: dict, groups: dict, examples: int) -> None:
    """evaluation-<split>-<task>.json: this run's measures, the baselines', and how they were asked for."""
    others = [other for other in options.runs if other != run]
    own = {method: m for method, m in results.items() if method.split(", ")[0] not in others}
    content = {"options": vars(options), "examples": examples, "measures": own, "by_history_length": groups}
    whole = "-all" if options.candidates == "all" else ""
    path = Path(run) / f"evaluation-{options.split}-{options.task}{whole}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
