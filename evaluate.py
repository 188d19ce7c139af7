#!/usr/bin/env python3
"""Rank each user's target among candidates by exact log-likelihood, and put runs and baselines side by side.

    python evaluate.py                                         runs/sft and runs/hanorec on the test split
    python evaluate.py --split cold --modality full blank      does the model look at the images?
    python evaluate.py --runs runs/sft runs/dpo --users 500
    python evaluate.py --runs tiny runs/sft                    the backbone before any training, and after SFT
    python evaluate.py --candidates all                        among the whole catalogue
    python evaluate.py --baselines random popularity           without those that train for minutes
    python evaluate.py --negatives popularity                  among items that are drawn by their popularity
    python evaluate.py --negatives listed                      among the items that negatives.tsv lists for the target
    python evaluate.py --against sasrec                        by how much is each run above SASRec?
    python evaluate.py --show 3                                the lists of the first three users, after the table

Every method answers for the same users and candidates. Prints a Markdown table and writes
evaluation-<split>-<task>.json (with --candidates all: …-all.json, with --negatives listed: …-listed.json, and so on)
into each run's folder; for the task next with the rank of every user's target.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from hanorec import distributed, files
from hanorec.data.dataset import Dataset, open_dataset
from hanorec.data.examples import Example, listed_negatives
from hanorec.data.full_catalog import FullCatalog
from hanorec.errors import DataError, MachineError, exit_on_user_error, shown
from hanorec.evaluation.baselines import BASELINES, baseline_answers, baseline_names
from hanorec.evaluation.differences import differences_table, seed_groups, seeds_table
from hanorec.evaluation.measures import (
    FIRST_MEASURE,
    MAIN_MEASURE,
    Answers,
    examples_by_length,
    measures,
    measures_by_length,
    target_positions,
    user_measures,
)
from hanorec.evaluation.ranking import answer_with_model
from hanorec.evaluation.report import by_length_table, results_table, share_of_possible, user_lists
from hanorec.models.backbone import check_hub, load_backbone
from hanorec.randomness import rng
from hanorec.recommenders.networks import NETWORKS
from hanorec.recommenders.training import VALIDATION_USERS
from hanorec.training.command_line import parse
from hanorec.training.digests import check_run, warn_of_changed_data
from hanorec.training.evaluation_options import EvaluationOptions, complete_evaluation
from hanorec.training.inputs import open_examples, open_prompts
from hanorec.training.options import SFTOptions, cache_folder, complete_sft
from hanorec.training.run_config import but_for_the_seed, is_run, sft_options
from hanorec.training.runs import load_run


def main() -> None:
    options = parse(EvaluationOptions)
    baselines = baseline_names(options.baselines)
    if options.against not in (None, *options.runs, *baselines):
        raise DataError(f"--against {options.against}: is none of the runs and baselines that are evaluated")
    runs = read_runs(options.runs)
    sft = complete_evaluation(options, runs)  # what is ranked, and how prompts are written
    data = open_dataset(options.data)
    for run in filter(is_run, runs):  # what is wrong with the last is said before hours of ranking the first
        check_run(run, changed_run=options.changed_run)
        warn_of_changed_data(run, data.folder)
    for each in runs.values():
        data.descriptions(each.item_view)
    full_catalog = FullCatalog(data.warm) if options.candidates == "all" else None
    drawn: dict[str, Any] = {"seed": options.seed, "rejected": 0}
    if options.negatives != "random":
        lists = listed_negatives(data.folder, data.catalog) if options.negatives == "listed" else None
        drawn |= {"negatives": options.negatives, "neighbours": lists, "rejected": sft.candidates - 1}
    examples = open_examples(data, options.split, sft, users=options.users, **drawn)
    if distributed.is_main_process():
        how = f"task {sft.task}, protocol {sft.protocol}, candidates: {options.candidates}"
        print(f"{len(examples)} examples of {shown(str(data.folder / options.split))}.tsv, {how}")

    of_runs: dict[str, Answers] = {}
    for run in runs:
        of_runs |= run_answers(run, runs[run], data, examples, options, full_catalog)
    if not distributed.is_main_process():
        return
    validation: list[Example] = []
    if any(BASELINES[name] in NETWORKS for name in baselines):  # they choose the best epoch of what is trained
        next_item = replace(sft, task="next", protocol="standard")
        validation = open_examples(data, "val", next_item, users=VALIDATION_USERS, **drawn)
    answers = baseline_answers(
        data,
        examples,
        sft.task,
        full_catalog,
        sft.protocol,
        names=baselines,
        validation=validation,
        seed=options.seed,
        cache=cache_of(options),
    )
    report(options, sft, data, examples, answers | of_runs)


def read_runs(names: list[str]) -> dict[str, SFTOptions]:
    """How each run reads prompts, by its folder. A checkpoint that no run has trained reads them as the first run does,
    or by the defaults. Errors: DataError for what is neither."""
    own = {name: sft_options(name) if is_run(name) else None for name in names}
    usual = next(filter(None, own.values()), SFTOptions())
    complete_sft(usual)
    for name in names:
        if own[name] is None and name != "tiny" and not (Path(name) / "config.json").is_file():
            try:
                check_hub(name)
            except DataError as error:
                raise DataError(f"{name}: not a run's folder; {error}") from error
    return {name: options or usual for name, options in own.items()}


def cache_of(options: EvaluationOptions) -> Path:
    """--cache, or cache/ beside the first run; nothing is written beside a checkpoint."""
    return cache_folder(options.cache, next(filter(is_run, options.runs), "runs/none"))


def run_answers(
    run: str,
    sft: SFTOptions,
    data: Dataset,
    examples: list[Example],
    options: EvaluationOptions,
    full_catalog: FullCatalog | None,
) -> dict[str, Answers]:
    """A run's or a checkpoint's answers, once for each modality, by the name of their row in the table."""
    if is_run(run):
        backbone, _ = load_run(run, remote_code=options.remote_code, changed_run=options.changed_run)
    else:
        backbone = load_backbone(run, views=sft.image_views, remote_code=options.remote_code)
    sft, cache = replace(sft, task=options.task), cache_of(options)
    answers, images = {}, None
    for modality in options.modality:
        mask_titles = modality == "no-titles"
        prompts = open_prompts(backbone, data, sft, cache=cache, images=images, mask_titles=mask_titles)
        images = prompts.images
        images.set_modality(backbone, "full" if mask_titles else modality, rng(options.seed, "shuffled"))
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


def report(
    options: EvaluationOptions, sft: SFTOptions, data: Dataset, examples: list[Example], answers: dict[str, Answers]
) -> None:
    """Print the tables and the lists of users, and write each run's evaluation-<split>-<task>.json.

    answers: by the name of their row in the tables.
    """
    results = {method: measures(sft.task, each, examples, sft.protocol) for method, each in answers.items()}
    groups = examples_by_length([len(example.history) for example in examples])
    by_length = measures_by_length(sft.task, answers, examples, groups, sft.protocol)
    first_measure = "HR@10" if options.candidates == "all" else FIRST_MEASURE[sft.task]
    print("\n" + results_table(results, first_measure))
    if len(by_length) > 1:
        counts = {length: len(indices) for length, indices in groups.items()}
        print("\nBy items in the history:\n\n" + by_length_table(by_length, counts, first_measure))
    for run in options.runs:
        share = share_of_possible(results, run, first_measure)
        if share is not None:
            print(f"\n{run} goes {share:.0%} of the way from popularity to the oracle in {first_measure}.")
    report_differences(options, sft, examples, answers, first_measure)
    scores = {run: answers[run].scores for run in options.runs}
    for user, example in enumerate(examples[: options.show]):
        of_user = {run: each[user] for run, each in scores.items() if each is not None}
        print("\n" + user_lists(example, data.catalog.titles, of_user))
    failures = []
    for run in filter(is_run, options.runs):  # last, so that a folder that cannot be written takes no table away
        try:
            files.remove_leftovers(Path(run))
            write_results(run, options, sft.protocol, results, by_length, answers, examples)
        except OSError as error:
            failures.append(f"{run}: its results cannot be written ({error})")
    if failures:
        raise MachineError("; ".join(failures))


def report_differences(
    options: EvaluationOptions,
    sft: SFTOptions,
    examples: list[Example],
    answers: dict[str, Answers],
    first_measure: str,
) -> None:
    """Print the means of runs that differ by their seed alone, and by how much the runs differ."""
    rows = {method: name for name in options.runs for method in answers if f"{method}, ".startswith(f"{name}, ")}
    methods, name = list(rows), options.against or options.runs[0]
    against = BASELINES.get(name) or next(method for method in methods if rows[method] == name)
    if sft.task == "yesno" or methods == [against]:  # an AUC is of all users together
        return
    of_users = {method: user_measures(sft.task, each, examples, sft.protocol) for method, each in answers.items()}
    groups = seed_groups({run: but_for_the_seed(run) for run in options.runs if run in answers and is_run(run)})
    if groups:
        print("\n" + seeds_table(groups, of_users, list(of_users[against])))
    of_table = list(dict.fromkeys([first_measure, MAIN_MEASURE[sft.task]]))
    print("\n" + differences_table(of_users, methods, against, of_table, groups))


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
        positions = {method: target_positions(answers[method], examples) for method in measured}
        content["per_user"] = {
            "users": [example.user for example in examples],
            "history": [len(example.history) for example in examples],
            "ahead": {method: ahead.tolist() for method, (ahead, _) in positions.items()},
            "tied": {method: tied.tolist() for method, (_, tied) in positions.items()},
        }
    suffix = "-all" if options.candidates == "all" else "" if options.negatives == "random" else f"-{options.negatives}"
    path = Path(run) / f"evaluation-{options.split}-{options.task}{suffix}.json"
    files.replace_text(path, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
