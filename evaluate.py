#!/usr/bin/env python3
"""Rank each user's target among candidates by exact log-likelihood, and put runs and baselines side by side.

    python evaluate.py                                         runs/sft and runs/hanorec on the test split
    python evaluate.py --split cold --modality full blank      does the model look at the images?
    python evaluate.py --runs runs/sft runs/dpo --users 500
    python evaluate.py --candidates all                        among the whole catalogue
    python evaluate.py --baselines random popularity           without those that train for minutes
    python evaluate.py --negatives listed                      among the items that negatives.tsv lists for the target
    python evaluate.py --show 3                                the lists of the first three users, after the table

Every method answers for the same users and candidates. Prints a Markdown table and writes
evaluation-<split>-<task>.json (with --candidates all: …-all.json, with --negatives listed: …-listed.json) into each
run's folder; for the task next with every user's place.
"""

from __future__ import annotations

import json
from pathlib import Path

from hanorec import distributed
from hanorec.data.dataset import TOY_FOLDER, Dataset, open_dataset, split_examples
from hanorec.data.examples import HISTORY, Example, listed_negatives
from hanorec.data.full_catalog import FullCatalog
from hanorec.errors import DataError, exit_on_user_error
from hanorec.evaluation.baselines import BASELINES, baseline_answers, baseline_names
from hanorec.evaluation.measures import (
    FIRST_MEASURE,
    Answers,
    measures,
    measures_by_length,
    rows_by_length,
    target_positions,
)
from hanorec.evaluation.ranking import answer_with_model
from hanorec.evaluation.report import by_length_table, results_table, share_of_possible, user_lists
from hanorec.models.images import CatalogImages
from hanorec.models.prompts import Prompts
from hanorec.randomness import rng
from hanorec.recommenders.networks import NETWORKS
from hanorec.recommenders.training import VALIDATION_USERS
from hanorec.related.release import release_split
from hanorec.training.options import STANDARD, EvaluationOptions, apply_protocol, cache_folder, example_options, parse
from hanorec.training.runs import load_run, read_config

# With data, task and history: what a model reads. Views of an item may differ, they are there to be compared.
PROMPT_SETTINGS = ("protocol", "list_candidates", "image_pixels", "image_views")


def main() -> None:
    options = parse(EvaluationOptions)
    baselines = baseline_names(options.baselines)
    configs = {run: read_config(run) for run in options.runs}
    fill_from_runs(options, configs)
    protocol = configs[options.runs[0]]["protocol"]
    data = open_dataset(options.data)
    descriptions = {run: data.descriptions(configs[run]["item_view"]) for run in options.runs}
    full_catalog = FullCatalog(data.warm) if options.candidates == "all" else None
    drawn = example_options(options) | {"candidates": 2 if full_catalog else int(options.candidates), "rejected": 0}
    if options.negatives == "listed":
        lists = listed_negatives(data.folder, data.catalog)
        drawn |= {"negatives": "listed", "neighbours": lists, "rejected": drawn["candidates"] - 1}
    if protocol == "release":
        examples = release_split(data, options.split, str(options.task), users=options.users, seed=options.seed)
    else:
        examples = split_examples(data, options.split, users=options.users, **drawn)
    if distributed.is_main_process():
        file = data.folder / f"{options.split}.tsv"
        how = f"task {options.task}, protocol {protocol}, candidates: {options.candidates}"
        print(f"{len(examples)} examples of {file}, {how}")
    of_models: dict[str, Answers] = {}
    for run in options.runs:
        of_models |= model_answers(run, data, examples, options, full_catalog, descriptions[run])
    if not distributed.is_main_process():
        return
    validation: list[Example] = []
    if any(BASELINES[name] in NETWORKS for name in baselines):
        as_next = {"task": "next", "history": options.history or HISTORY[str(options.task)]}
        validation = split_examples(data, "val", users=VALIDATION_USERS, **drawn | as_next)
    how_trained = dict(validation=validation, seed=options.seed, cache=cache_folder(options))
    answers = (
        baseline_answers(data, examples, options.task, full_catalog, protocol, names=baselines, **how_trained)
        | of_models
    )
    results = {method: measures(options.task, each, examples, protocol) for method, each in answers.items()}
    groups = rows_by_length([len(example.history) for example in examples])
    by_length = measures_by_length(options.task, answers, examples, groups, protocol)
    first_measure = "HR@10" if full_catalog else FIRST_MEASURE[options.task]

    print("\n" + results_table(results, first_measure))
    if len(by_length) > 1:
        counts = {length: len(rows) for length, rows in groups.items()}
        print("\nBy items in the history:\n\n" + by_length_table(by_length, counts, first_measure))
    for run in options.runs:
        share = share_of_possible(results, run, first_measure)
        if share is not None:
            print(f"\n{run} goes {share:.0%} of the way from popularity to the oracle in {first_measure}.")
        write_results(run, options, protocol, results, by_length, answers, examples)
    for user, example in enumerate(examples[: options.show]):
        scores = {run: answers[run].scores[user] for run in options.runs}
        print("\n" + user_lists(example, data.catalog.titles, scores))


def fill_from_runs(options: EvaluationOptions, configs: dict[str, dict]) -> None:
    """Take data, task and history, where they are not given, from the runs, and check that the runs are comparable.

    configs: the config of each run in `options.runs`. Errors: DataError where two runs differ in one of these and it is
    not given, or in a setting of their prompts; where an option contradicts their protocol; where --candidates all
    meets a task or prompts that it cannot rank; where --show has no candidates to show.
    """
    first = options.runs[0]
    for name in PROMPT_SETTINGS:
        check_alike(name, configs, options.task, "evaluate them apart")
    for name in ("data", "task", "history"):
        if name == "history":  # which the protocol may fix for the task
            apply_protocol(options, configs[first]["protocol"], STANDARD)
        if getattr(options, name) is None:
            check_alike(name, configs, options.task, f"give --{name}, or evaluate them apart")
            setattr(options, name, configs[first][name])
    options.candidates = str(options.candidates)
    if options.candidates == "all" and options.task != "next":
        raise DataError(f"--candidates all: ranks the next item; the task is {options.task}")
    if options.candidates == "all" and configs[first]["list_candidates"]:
        raise DataError(f"--candidates all: the prompts of {first} list the candidates, and cannot list all items")
    if options.negatives == "listed" and (options.candidates == "all" or options.task != "next"):
        raise DataError("--negatives listed: draws some candidates for the next item (--candidates N, --task next)")
    if options.show and options.task != "next":
        raise DataError(f"--show: is for the task next; the task is {options.task}")
    if options.show and (options.candidates == "all" or "full" not in options.modality):
        raise DataError("--show: shows the scores of listed candidates (--candidates N) in the modality full")


def check_alike(name: str, configs: dict[str, dict], task: str | None, remedy: str) -> None:
    """Errors: DataError that names the first two runs that differ in a setting, and both values."""

    def value(run: str):
        if name == "data":  # one folder can be written in several ways
            return str(Path(configs[run]["data"] or TOY_FOLDER).resolve())
        if name == "history":
            return configs[run]["history"] or HISTORY[task or configs[run]["task"]]
        return configs[run][name]

    first, *others = configs
    for run in others:
        if value(run) != value(first):
            raise DataError(
                f"{first} and {run} cannot be compared: --{name.replace('_', '-')} was {value(first)!r} in {first} and "
                f"{value(run)!r} in {run}; {remedy}"
            )


def model_answers(
    run: str,
    data: Dataset,
    examples: list[Example],
    options: EvaluationOptions,
    full_catalog: FullCatalog | None,
    descriptions: tuple[str, ...],
) -> dict[str, Answers]:
    """A run's answers, once for each modality, by the name of their row in the table.

    descriptions: of every item, empty where the run's view of an item shows none.
    """
    backbone, config = load_run(run, remote_code=options.remote_code)
    cache, pixels = cache_folder(options), config["image_pixels"]
    images = CatalogImages(backbone, data.catalog.images, frozen=True, cache=cache, pixels=pixels)
    answers = {}
    for modality in options.modality:
        mask_titles = modality == "no-titles"
        images.set_modality(backbone, "full" if mask_titles else modality, rng(options.seed, "shuffled"))
        prompts = Prompts(
            backbone,
            images,
            data.catalog.titles,
            options.task,
            list_candidates=config["list_candidates"],
            protocol=config["protocol"],
            item_view=config["item_view"],
            descriptions=descriptions,
            mask_titles=mask_titles,
        )
        name = run if modality == "full" else f"{run}, {modality}"
        answers[name] = answer_with_model(
            backbone,
            prompts,
            examples,
            forward_tokens=options.forward_tokens,
            full_catalog=full_catalog,
            progress=name,
        )
    return answers


def write_results(
    run: str,
    options: EvaluationOptions,
    protocol: str,
    results: dict,
    by_length: dict,
    answers: dict[str, Answers],
    examples: list[Example],
) -> None:
    """evaluation-<split>-<task>.json: this run's measures, the baselines', and the options they were made with.

    For the task next there is `per_user`, too: user ids, lengths of the histories, and for each row of the table how
    many candidates are ahead of each user's target and how many are tied with it.
    """
    other_runs = [other for other in options.runs if other != run]
    measured = {method: row for method, row in results.items() if method.split(", ")[0] not in other_runs}
    content = {
        "options": vars(options),
        "protocol": protocol,
        "examples": len(examples),
        "measures": measured,
        "by_history_length": by_length,
    }
    if options.task == "next":
        places = {method: target_positions(answers[method], examples) for method in measured}
        content["per_user"] = {
            "users": [example.user for example in examples],
            "history": [len(example.history) for example in examples],
            "ahead": {method: ahead.tolist() for method, (ahead, _) in places.items()},
            "tied": {method: tied.tolist() for method, (_, tied) in places.items()},
        }
    suffix = "-all" if options.candidates == "all" else "-listed" if options.negatives == "listed" else ""
    path = Path(run) / f"evaluation-{options.split}-{options.task}{suffix}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
