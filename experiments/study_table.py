"""The study's tables: methods in worlds, against SFT continued and against DPO, from the cells' files alone.

In: the folder of results. Out: Markdown: for each world and view the measures of every method with paired differences,
their 95 % intervals, and which of them survive Holm's correction; by length of history; trials on validation users; and
what failed or is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import NamedTuple

import numpy as np
from study_cells import Cell, fingerprint, same
from study_run import numbers, read_cells
from study_worlds import METHODS, WORLDS

from hanorec.errors import DataError
from hanorec.evaluation import metrics
from hanorec.evaluation.measures import rows_by_length
from hanorec.evaluation.paired import Difference, holm, paired_difference
from hanorec.evaluation.report import markdown

REFERENCES = {"sft-continued": "SFT continued", "dpo": "DPO"}
MEASURES: dict[str, Callable[[np.ndarray, np.ndarray, int], np.ndarray]] = {  # ahead, tied, candidates -> [U]
    "HR@1": lambda ahead, tied, _: metrics.hit_rate(ahead, tied, 1),
    "NDCG@10": lambda ahead, tied, _: metrics.ndcg(ahead, tied, 10),
    "pairs": lambda ahead, tied, candidates: 1 - (ahead + tied / 2) / (candidates - 1),
}
OF_NEAR = ("HR@1", "pairs")  # measures of the view `near`; of the others HR@1 and NDCG@10
LEVEL = 0.05  # of Holm's correction

Contents = dict[Cell, dict]


class Comparison(NamedTuple):
    """One paired comparison of the study."""

    world: str
    view: str
    method: str
    measure: str
    reference: str


def tables(results: Path, cells: Sequence[Cell]) -> str:
    """All tables as Markdown.

    cells: those asked for. Files of other cells are left alone, but for trials in the same worlds, and so are cells of
    other settings than today's.
    Errors: DataError where the folder is missing, holds something other than cells, or none of these, and where two
    cells are not of the same users.
    """
    contents = read_cells(results)
    worlds, asked = {cell.world for cell in cells}, set(cells)
    found = {
        cell: content
        for cell, content in contents.items()
        if (cell in asked or (cell.trial and cell.world in worlds))
        and same(content["fingerprint"], fingerprint(cell), any_code=True)
    }
    if not found:
        raise DataError(f"{results}: holds none of the {len(cells)} cells asked for")
    trials = {cell: content for cell, content in found.items() if cell.trial and "failed" not in content}
    done = {cell: content for cell, content in found.items() if not cell.trial and "failed" not in content}
    compared = comparisons(done)
    survivors = surviving(compared)
    parts = [introduction(results, done, len([cell for cell in cells if not cell.trial]), compared)]
    for world in [name for name in WORLDS if any(cell.world == name for cell in done)]:
        parts.append(f"## World `{world}`")
        for view in WORLDS[world].views:
            parts.append(f"`{view}`\n\n" + view_table(done, world, view, compared, survivors))
        lengths = [view for view in WORLDS[world].views if spread_of_lengths(done, world, view)]
        parts += [
            f"`{view}` by items in the history, NDCG@10\n\n" + length_table(done, world, view) for view in lengths
        ]
    if trials:
        parts.append("## Trials on validation users\n\n" + trial_table(trials))
    failed = [f"- `{cell.name}`: {content['failed']}" for cell, content in found.items() if "failed" in content]
    if failed:
        parts.append("## Failed\n\n" + "\n".join(failed))
    return "\n\n".join(parts) + "\n"


def values(content: dict, view: str, measure: str) -> np.ndarray:
    """A measure of every user of a cell's view, [U]."""
    seen = content["views"][view]
    ahead = numbers(seen["ahead"])
    tied = numbers(seen["tied"]) if seen["tied"] else np.zeros_like(ahead)
    return MEASURES[measure](ahead, tied, seen["candidates"])


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
        first, second = done[Cell(world, one, seed)], done.get(Cell(world, other, seed))
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


def introduction(results: Path, done: Contents, wanted: int, compared: dict[Comparison, Difference]) -> str:
    codes = {content["fingerprint"]["code"] for content in done.values()}
    starts: dict[tuple[str, int], set[str]] = {}
    for (world, _, seed), content in done.items():
        starts.setdefault((WORLDS[world].start, seed), set()).add(content["start"])
    several = sum(len(found) > 1 for found in starts.values())
    family = max(sum((e.measure, e.reference) == (m, r) for e in compared) for m in MEASURES for r in REFERENCES)
    sentences = [
        f"Written by `python experiments/study.py --table` from the files in `{results.name}/`:",
        f"{len(done)} of {wanted} cells, made by {len(codes)} version{'s' * (len(codes) > 1)} of the code.",
        f"Starts made again with other weights: {several}; cells of two starts are not compared." if several else "",
        "Values are means over seeds and users. Differences are paired, with 95 % bootstrap intervals over users and",
        f"seeds. An asterisk marks what survives Holm's correction at {100 * LEVEL:.0f} %, over all comparisons of a",
        f"measure with a reference (at most {family}). `pairs` is the share of the other candidates that the target is",
        "ahead of.",
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
            row.append(f"{np.mean([values(done[Cell(world, method, seed)], view, measure) for seed in seeds]):.3f}")
            for reference in REFERENCES:
                key = Comparison(world, view, method, measure, reference)
                row.append(shown(compared.get(key), key in survivors))
        if greyed:
            each = [done[Cell(world, method, seed)] for seed in seeds]
            lost = [values(content, view, "NDCG@10") - values(content, blank, "NDCG@10") for content in each]
            row.append(shown(paired_difference(lost), False))
        rows.append(row)
    return markdown([*header, *["NDCG@10 lost with grey images"] * greyed], rows)


def length_table(done: Contents, world: str, view: str) -> str:
    """NDCG@10 by length of history, and against SFT continued."""
    reference = next(iter(REFERENCES))
    history = numbers(next(c for cell, c in done.items() if cell.world == world)["views"][view]["history"])
    groups = rows_by_length(history)
    header = ["method"]
    for length, group in groups.items():
        header += [f"{length} (n={len(group)})", f"− {REFERENCES[reference]}"]
    rows = []
    for method in methods_of(done, world):
        row = [method]
        for group in groups.values():
            each = [values(done[Cell(world, method, s)], view, "NDCG@10")[group] for s in seeds_of(done, world, method)]
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
        means = [
            np.mean([values(trials[Cell(world, method, s)], "val", m) for s in seeds]) for m in ("NDCG@10", "HR@1")
        ]
        rows.append([world, name, rate, str(len(seeds)), *(f"{mean:.3f}" for mean in means)])
    order = list(METHODS)
    rows.sort(key=lambda row: (row[0], order.index(row[1]), float(row[2])))
    return markdown(["world", "method", "learning rate", "seeds", "NDCG@10", "HR@1"], rows)


def measures_of(view: str) -> tuple[str, ...]:
    return OF_NEAR if view == "near" else ("HR@1", "NDCG@10")


def shown(difference: Difference | None, survives: bool) -> str:
    if difference is None:
        return "–"
    return f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]{'*' * survives}"


def spread_of_lengths(done: Contents, world: str, view: str) -> bool:
    """Whether a view has histories of many lengths."""
    first = next(content for cell, content in done.items() if cell.world == world)
    return len(set(first["views"][view]["history"])) > 6


def methods_of(done: Contents, world: str) -> list[str]:
    return [method for method in METHODS if any(cell[:2] == (world, method) for cell in done)]


def seeds_of(done: Contents, world: str, method: str) -> list[int]:
    return sorted(cell.seed for cell in done if cell[:2] == (world, method))
