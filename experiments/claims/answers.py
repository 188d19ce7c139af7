"""The paper's claims, answered by rule from the study's cells.

In: the cells of the study. Out: for each claim, recipe and world one answer, with the difference that it rests on; the
same as Markdown. The rule: a 95 % interval of the paired difference wholly above 0 is a yes, wholly below 0 a no, and
anything else is not shown. What has no cells is not measured.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.claims.table import LEVEL, Contents, differences_of, measures_of, values
from experiments.claims.worlds import CATALOGUES, REAL, STARTS, WORLDS
from experiments.common import numbers, shown
from hanorec.evaluation.paired import Difference, holm, paired_difference
from hanorec.evaluation.report import markdown

CLAIMS = {
    "hardness": "Hard pairs matter, and β should know them",
    "responsiveness": "The policy's responsiveness matters",
    "noise": "Noise on the output distribution repairs the modality bias that the reference passes on, above all over "
    "long histories",
    "whole": "The whole method is better than DPO, and better than more SFT",
}  # fmt: skip
RECIPES = ("paper", "calibrated")
LONG = 11  # items from which a history is long, in worlds of histories of up to 20
VERDICTS = ("yes", "no", "not shown", "not measured")
HEADER = ("recipe", "world", "answer", "difference [95 %]", "compared with", "users of", "measure", "seeds", "users")


class Question(NamedTuple):
    """One comparison: does `method` measure better than `other`?

    minus: a view whose measure is taken off first (empty: none). longest: whether only long histories count.
    """

    claim: str
    recipe: str
    world: str
    view: str
    measure: str
    other: str
    minus: str = ""
    longest: bool = False

    @property
    def method(self) -> str:
        return f"hanorec-{self.recipe}"

    @property
    def where(self) -> str:
        """The users, in words."""
        histories = f", histories of {LONG} items or more" * self.longest
        return (f"{self.view} less {self.minus}" if self.minus else self.view) + histories


class Answer(NamedTuple):
    """What the cells say to a question. seeds, users: how many stand behind the difference, each user once."""

    question: Question
    verdict: str
    difference: Difference | None = None
    seeds: int = 0
    users: int = 0


def questions(worlds: Sequence[str]) -> Iterator[Question]:
    """Every question that the paper's claims put to some worlds, about the methods of each world's grid.

    The whole method, hardness and responsiveness are asked about in the first view of a world and in `near`; noise on
    the cold split, and where the start is biased also on blank images, in what images add, and over long histories.
    """
    for claim in CLAIMS:
        for recipe in RECIPES:
            for world in worlds:
                own, grid = WORLDS[world].views, WORLDS[world].methods
                if claim == "noise":
                    views = [view for view in own if view == "cold" or WORLDS[world].data == REAL]
                else:
                    views = [view for view in own if view != "cold"]
                others = ("dpo", "sft-continued") if claim == "whole" else (f"{recipe}-no-{claim}",)
                others = tuple(other for other in others if grid is None or other in grid)
                for view in views:
                    measure = "pairs" if "pairs" in measures_of(view) else "NDCG@10"
                    for other in others:
                        first = Question(claim, recipe, world, view, measure, other)
                        yield first
                        if claim == "noise" and _of(STARTS[WORLDS[world].start][0], "exchanged") > 0:
                            blank = f"{view}, blank"
                            yield first._replace(view=blank)
                            yield first._replace(minus=blank)
                            if _of(WORLDS[world].data, "longest_row") > LONG:
                                yield first._replace(longest=True)
                                yield first._replace(minus=blank, longest=True)


def _of(catalogue: str, name: str) -> float:
    """What sets a toy catalogue apart; 0 where it is as by default, or real."""
    return CATALOGUES.get(catalogue, {}).get(name, 0)


def answer(done: Contents, question: Question) -> Answer:
    """Errors: DataError where the two methods were measured on different users."""
    world, view, one, other = question.world, question.view, question.method, question.other

    def value(content: dict) -> np.ndarray:
        result = values(content, view, question.measure)
        if question.minus:
            result = result - values(content, question.minus, question.measure)
        if question.longest:
            result = result[numbers(content["views"][view]["history"]) >= LONG]
        return result

    each = differences_of(done, world, view, one, other, value)
    if not each or not len(each[0]):
        return Answer(question, "not measured")
    difference = paired_difference(each)
    return Answer(question, verdict(difference), difference, len(each), len(each[0]))


def verdict(difference: Difference) -> str:
    """yes, no or not shown, by where the interval lies."""
    return "yes" if difference.low > 0 else "no" if difference.high < 0 else "not shown"


def answers(done: Contents, worlds: Sequence[str]) -> list[Answer]:
    """The answers to all questions about some worlds."""
    return [answer(done, question) for question in questions(worlds)]


def rows(answered: Sequence[Answer], claim: str) -> list[list[str]]:
    """A claim's answers as the rows of a table under `HEADER`; an asterisk marks what survives Holm's correction over
    all answers."""
    compared = [each for each in answered if each.difference is not None]
    adjusted = holm([each.difference.p for each in compared if each.difference]) if compared else []
    survivors = {each.question for each, p in zip(compared, adjusted) if p <= LEVEL}
    table = []
    for each in answered:
        asked = each.question
        if asked.claim == claim:
            counts = [str(each.seeds), str(each.users)] if each.difference else ["–", "–"]
            found = [each.verdict, shown(each.difference, asked in survivors)]
            table.append([asked.recipe, asked.world, *found, asked.other, asked.where, asked.measure, *counts])
    return table


def summary(answered: Sequence[Answer], claim: str) -> str:
    """A claim's answers counted, in one sentence."""
    parts = []
    for recipe in RECIPES:
        found = Counter(e.verdict for e in answered if (e.question.claim, e.question.recipe) == (claim, recipe))
        parts.append(f"{recipe}: " + ", ".join(f"{found[name]} {name}" for name in VERDICTS if found[name]))
    return "; ".join(parts) + "."


def rule() -> list[str]:
    """How the answers are found, in sentences."""
    return [
        "Each line compares the recipe with the same recipe without the part, or with another method: the same users "
        "and seeds, paired. The answer is yes where the 95 % bootstrap interval of the difference lies wholly above 0, "
        "no where it lies wholly below 0, and not shown otherwise. Not measured: a cell is missing or failed.",
        "Intervals cover other users and, with several seeds, other training runs; with one seed they cover users "
        f"alone. An asterisk marks what survives Holm's correction at {100 * LEVEL:.0f} % over all lines: of many true "
        "zeros, some intervals leave 0 out by chance.",
        "NDCG@10 and pairs (the share of other candidates that the target is ahead of) go from 0 to 1. “cold less "
        "cold, blank” is what true images add to NDCG@10.",
    ]


def claims_page(answered: Sequence[Answer], about: str, notes: Sequence[str]) -> str:
    """All claims as Markdown. about: what was read. notes: further lines, one a failed cell."""
    parts = ["# The paper's claims", about, *rule()]
    for number, (claim, text) in enumerate(CLAIMS.items(), 1):
        parts += [f"## {number}. {text}", summary(answered, claim), markdown(HEADER, rows(answered, claim))]
    if notes:
        parts += ["## Failed cells", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts) + "\n"
