#!/usr/bin/env python3
"""Rank each user's target among candidates by exact log-likelihood, and put runs and baselines side by side.

    python evaluate.py                                         runs/sft and runs/hanorec on the test split
    python evaluate.py --split cold --modality full blank      does the model look at the images?
    python evaluate.py --runs runs/sft runs/dpo --users 500

Every method answers for the same users and candidates. Prints a Markdown table and writes
evaluation-<split>-<task>.json into each run's folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hanorec.dataset import Dataset, open_dataset, split_examples
from hanorec.interactions import rng
from hanorec.options import EvaluationOptions, example_options, parse
from hanorec.oracles import read_oracles
from hanorec.preferences import Example
from hanorec.prompts import Prompts
from hanorec.ranking import Answers, ask_model, ask_scorer, measures, point_measures
from hanorec.report import by_length_table, results_table, share_of_possible
from hanorec.session import encoder_for, load_run
from hanorec.training import clear_errors, read_config

FIRST_MEASURE = {"next": "HR@1", "top3": "HR@3", "yesno": "AUC"}


def main() -> None:
    options = parse(EvaluationOptions)
    configs = {run: read_config(run) for run in options.runs}
    first = configs[options.runs[0]]
    for name in ("data", "task", "history"):
        if getattr(options, name) is None:
            setattr(options, name, first[name])
    data = open_dataset(options.data)
    examples = split_examples(data, options.split, users=options.users, **example_options(options))
    file = data.folder / f"{options.split}.tsv"
    print(f"{len(examples)} examples of {file}, task {options.task}, {options.candidates} candidates")

    answers = baseline_answers(data, examples, options.task)
    for run in options.runs:
        answers |= model_answers(run, data, examples, options)
    results = {method: measures(options.task, given, examples) for method, given in answers.items()}
    main_measure = FIRST_MEASURE[options.task]
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


def baseline_answers(data: Dataset, examples: list[Example], task: str) -> dict[str, Answers]:
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
    return {name: ask_scorer(scorer, examples, task) for name, scorer in scorers.items()}


def model_answers(run: str, data: Dataset, examples: list[Example], options: EvaluationOptions) -> dict[str, Answers]:
    """A run's answers, once for each modality asked for."""
    backbone, config = load_run(run)
    encoder = encoder_for(backbone, data.catalog)
    encoder.freeze()
    answers = {}
    for modality in options.modality:
        encoder.look("full" if modality == "no-titles" else modality, rng(options.seed, "shuffled"))
        prompts = Prompts(
            encoder, data.catalog.titles, options.task,
            list_candidates=config["list_candidates"], mask_titles=modality == "no-titles",
        )  # fmt: skip
        name = run if modality == "full" else f"{run}, {modality}"
        answers[name] = ask_model(prompts, examples, batch_size=options.batch_size, progress=name)
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
    path = Path(run) / f"evaluation-{options.split}-{options.task}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with clear_errors():
        main()
