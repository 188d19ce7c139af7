"""The study's tables: methods in worlds, against SFT continued and against DPO, from the rows of results alone.

In: the rows. Out: Markdown: for each world and view the measures of every method with paired differences,
their 95 % intervals, and which of them survive Holm's correction; by length of history; trials on validation users; and
what failed or is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np

from experiments.cells import latest
from experiments.claims.commands import Key
from experiments.claims.worlds import METHODS, WORLDS
from experiments.common import MEASURES, ROOT, numbers, read_rows, shown, user_values
from hanorec.errors import DataError
from hanorec.evaluation.measures import examples_by_length
from hanorec.evaluation.paired import Difference, holm, paired_difference
from hanorec.evaluation.report import markdown

RESULTS = ROOT / "experiments" / "claims" / "results.jsonl"
REFERENCES = {"sft-continued": "SFT continued", "dpo": "DPO"}
OF_NEAR = ("HR@1", "pairs")  # measures of the view `near`; of the others HR@1 and NDCG@10
LEVEL = 0.05  # of Holm's correction

Contents = dict[Key, dict]


class Comparison(NamedTuple):
    """One paired comparison of the study."""

    world: str
    view: str
    method: str
    measure: str
    reference: str


def read_study(results: Path, study: str) -> tuple[Contents, Contents]:
    """The cells of a study that are done, trials included, in the order of worlds and methods, and those that failed.

    Errors: DataError where there is none, and for rows that are not of this study.
    """
    rows = latest((row for row in read_rows(results) if row.get("study") == study), Key._fields)
    if not rows:
        raise DataError(f"{results}: holds no row of the study {study}; experiments/claims/study.py makes them")
    worlds, methods = list(WORLDS), list(METHODS)
    for world, method, _ in rows:
        if world not in worlds or method.partition("@")[0] not in methods:
            raise DataError(f"{results}: the study has no cell {world}, {method}")
    keys = [Key(*key) for key in rows]
    keys.sort(key=lambda key: (worlds.index(key.world), methods.index(key.method.partition("@")[0]), key.seed))
    done = {key: rows[key] for key in keys if "failed" not in rows[key]}
    return done, {key: rows[key] for key in keys if "failed" in rows[key]}


def tables(results: Path, study: str) -> str:
    """All tables of a study as Markdown. Errors: as `read_study`, and DataError where two cells that are compared are
    not of the same users."""
    found, failed = read_study(results, study)
    trials = {key: row for key, row in found.items() if key.trial}
    done = {key: row for key, row in found.items() if not key.trial}
    compared = comparisons(done)
    survivors = surviving(compared)
    parts = [introduction(study, done, compared)]
    for world in [name for name in WORLDS if any(key.world == name for key in done)]:
        parts.append(f"## World `{world}`")
        for view in WORLDS[world].views:
            parts.append(f"`{view}`\n\n" + view_table(done, world, view, compared, survivors))
        lengths = [view for view in WORLDS[world].views if spread_of_lengths(done, world, view)]
        parts += [
            f"`{view}` by items in the history, NDCG@10\n\n" + length_table(done, world, view) for view in lengths
        ]
    if trials:
        parts.append("## Trials on validation users\n\n" + trial_table(trials))
    if failed:
        parts.append("## Failed\n\n" + "\n".join(f"- `{key.name}`: {row['failed']}" for key, row in failed.items()))
    return "\n\n".join(parts) + "\n"


def values(content: dict, view: str, measure: str) -> np.ndarray:
    """A measure of every user of a cell's view, [U]."""
    seen = content["views"][view]
    return user_values(seen["ahead"], seen["tied"], seen["candidates"], measure)


def paired(
    done: Contents, world: str, view: str, measure: str, one: str, other: str, rows: np.ndarray | None = None
) -> Difference | None:
    """The difference of two methods over the seeds that both have; None where there are none.

    rows: some of the users. Errors: DataError where the cells are of other users.
    """

    def value(content: dict) -> np.ndarray:
        return values(content, view, measure)[slice(None) if rows is None else rows]

    differences = differences_of(done, world, view, one, other, value)
    return paired_difference(differences) if differences else None


def differences_of(
    done: Contents, world: str, view: str, one: str, other: str, value: Callable[[dict], np.ndarray]
) -> list[np.ndarray]:
    """What one method's users have more of a value than another's, [U] for each seed that both methods have from the
    same SFT start: a start that was made again on another machine may have other weights.

    value: takes a cell's content, gives a number a user. Errors: DataError where the cells are of other users.
    """
    differences, users = [], set()
    for seed in seeds_of(done, world, one):
        first, second = done[Key(world, one, seed)], done.get(Key(world, other, seed))
        if second is not None and first["start"] == second["start"]:
            users |= {first["views"][view]["users"], second["views"][view]["users"]}
            if len(users) > 1:
                raise DataError(f"{world}, {view}, seed {seed}: {one} and {other} were measured on different users")
            differences.append(value(first) - value(second))
    return differences


def comparisons(done: Contents) -> dict[Comparison, Difference]:
    """Every method against every reference, in each view and measure."""
    result = {}
    for world, method in dict.fromkeys(cell[:2] for cell in done):
        for view in WORLDS[world].views:
            for reference in REFERENCES:
                for measure in measures_of(view) if method != reference else ():
                    difference = paired(done, world, view, measure, method, reference)
                    if difference is not None:
                        result[Comparison(world, view, method, measure, reference)] = difference
    return result


def surviving(compared: dict[Comparison, Difference]) -> set[Comparison]:
    """What survives Holm's correction, over all comparisons of one measure with one reference."""
    survivors = set()
    for reference in REFERENCES:
        for measure in MEASURES:
            family = [each for each in compared if (each.measure, each.reference) == (measure, reference)]
            adjusted = holm([compared[each].p for each in family])
            survivors |= {each for each, p in zip(family, adjusted) if p <= LEVEL}
    return survivors


def introduction(study: str, done: Contents, compared: dict[Comparison, Difference]) -> str:
    versions = {content["version"] for content in done.values()}
    starts: dict[tuple[str, int], set[str]] = {}
    for (world, _, seed), content in done.items():
        starts.setdefault((WORLDS[world].start, seed), set()).add(content["start"])
    several = sum(len(found) > 1 for found in starts.values())
    counts = [sum((e.measure, e.reference) == (m, r) for e in compared) for m in MEASURES for r in REFERENCES]
    sentences = [
        f"Written by `python -m experiments.claims.study --table --study {study}` from `results.jsonl`: {len(done)}",
        f"cells, made by {len(versions)} version{'s' * (len(versions) != 1)} of the code.",
        f"Starts made again with other weights: {several}; cells of two starts are not compared." if several else "",
        "Values are means over seeds and users. Differences are paired, with 95 % bootstrap intervals over users and",
        f"seeds. An asterisk marks what survives Holm's correction at {100 * LEVEL:.0f} %, over all comparisons of a",
        f"measure with a reference (at most {max(counts)}). `pairs` is the share of the other candidates that the",
        "target is ahead of.",
    ]
    return "# The study\n\n" + fill(" ".join(filter(None, sentences)), 120)


def view_table(done: Contents, world: str, view: str, compared: dict, survivors: set[Comparison]) -> str:
    blank = f"{view}, blank"
    greyed = any(blank in content["views"] for cell, content in done.items() if cell.world == world)
    header = ["method", "seeds"]
    for measure in measures_of(view):
        header += [measure, *(f"{measure} − {name}" for name in REFERENCES.values())]
    rows = []
    for method in methods_of(done, world):
        seeds = seeds_of(done, world, method)
        row = [method, str(len(seeds))]
        for measure in measures_of(view):
            row.append(f"{np.mean([values(done[Key(world, method, seed)], view, measure) for seed in seeds]):.3f}")
            for reference in REFERENCES:
                key = Comparison(world, view, method, measure, reference)
                row.append(shown(compared.get(key), key in survivors))
        if greyed:
            each = [done[Key(world, method, seed)] for seed in seeds]
            lost = [values(content, view, "NDCG@10") - values(content, blank, "NDCG@10") for content in each]
            row.append(shown(paired_difference(lost), False))
        rows.append(row)
    return markdown([*header, *["NDCG@10 lost with grey images"] * greyed], rows)


def length_table(done: Contents, world: str, view: str) -> str:
    """NDCG@10 by length of history, and against SFT continued."""
    reference = next(iter(REFERENCES))
    history = numbers(next(c for cell, c in done.items() if cell.world == world)["views"][view]["history"])
    groups = examples_by_length(history)
    header = ["method"]
    for length, group in groups.items():
        header += [f"{length} (n={len(group)})", f"− {REFERENCES[reference]}"]
    rows = []
    for method in methods_of(done, world):
        row = [method]
        for group in groups.values():
            each = [values(done[Key(world, method, s)], view, "NDCG@10")[group] for s in seeds_of(done, world, method)]
            row.append(f"{np.mean(each):.3f}")
            other = method != reference
            row.append(shown(paired(done, world, view, "NDCG@10", method, reference, group) if other else None, False))
        rows.append(row)
    return markdown(header, rows)


def trial_table(trials: Contents) -> str:
    """NDCG@10 and HR@1 of validation users for each learning rate that was tried."""
    rows = []
    for world, method in dict.fromkeys(cell[:2] for cell in trials):
        seeds = seeds_of(trials, world, method)
        name, _, rate = method.partition("@")
        means = [np.mean([values(trials[Key(world, method, s)], "val", m) for s in seeds]) for m in ("NDCG@10", "HR@1")]
        rows.append([world, name, rate, str(len(seeds)), *(f"{mean:.3f}" for mean in means)])
    order = list(METHODS)
    rows.sort(key=lambda row: (row[0], order.index(row[1]), float(row[2])))
    return markdown(["world", "method", "learning rate", "seeds", "NDCG@10", "HR@1"], rows)


def measures_of(view: str) -> tuple[str, ...]:
    return OF_NEAR if view == "near" else ("HR@1", "NDCG@10")


def spread_of_lengths(done: Contents, world: str, view: str) -> bool:
    """Whether a view has histories of many lengths."""
    first = next(content for cell, content in done.items() if cell.world == world)
    return len(set(first["views"][view]["history"])) > 6


def methods_of(done: Contents, world: str) -> list[str]:
    return [method for method in METHODS if any(cell[:2] == (world, method) for cell in done)]


def seeds_of(done: Contents, world: str, method: str) -> list[int]:
    return sorted(cell.seed for cell in done if cell[:2] == (world, method))
