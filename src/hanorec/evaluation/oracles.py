"""What is possible on the toy catalogue: the Bayes-optimal ranking, from words, images or both.

In: a toy dataset's `world.json`. Out: a scorer for each observer, which takes an `Example` and returns a score for each
of its candidates, proportional to the probability that this candidate is chosen next.

The choices of a user of one type are independent draws of cells (theme, style), and within a cell every item that the
user has not chosen is as likely as the others. So the history's evidence about the type is a product over its items:

    p(type | history) ∝ p(type) · Π p(what is seen of item t | type)
    p(next = c | history) = Σ_type p(type | history) · p(what is known of c | type) / (unseen items it may be)

The observer "words" sees themes only and the observer "images" styles only, in the history and among the candidates.
On the cold split the histories are cold and the candidates are warm, so that a model may know the candidates' styles
from training alone. There both observers know theme and style of the candidates, and are blind in the history only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hanorec.data.catalog import Catalog
from hanorec.data.examples import Example
from hanorec.data.toy import choice_probabilities
from hanorec.errors import DataError

OBSERVERS = ("both", "words", "images")


def read_oracles(
    folder: Path, catalog: Catalog, pool: np.ndarray, *, know_candidates: bool
) -> dict[str, Callable[[Example], np.ndarray]]:
    """The observers' scorers by name; empty where the dataset is no toy world, and where its images are exchanged
    between items, so that what is seen is not what is.

    pool [M]: the items that targets are chosen from. know_candidates: whether every observer knows theme and style of
    the candidates, as on the cold split.
    Errors: DataError where `world.json` is not one of this catalogue.
    """
    path = folder / "world.json"
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        cells = np.array([facts["items"][item] for item in catalog.items])  # [items, 2]: theme, style
        prior = np.array(facts["prior"])
        sizes = len(facts["themes"]), len(facts["styles"])
        choices = choice_probabilities(facts["world"]["affinity"]).reshape(-1, *sizes)
        if facts["world"].get("exchanged"):
            return {}
    except (KeyError, ValueError, TypeError) as error:
        raise DataError(f"{path}: does not describe this catalogue: {error!r}") from error

    theme, style = cells.T
    # p(what an observer sees | type): [types, items]
    seen = {
        "both": choices[:, theme, style],
        "words": choices.sum(axis=2)[:, theme],
        "images": choices.sum(axis=1)[:, style],
    }
    kind = {"both": theme * sizes[1] + style, "words": theme, "images": style}  # items of one kind look alike

    def scorer(observer: str) -> Callable[[Example], np.ndarray]:
        known = "both" if know_candidates else observer  # what is known of candidates

        def score(example: Example) -> np.ndarray:
            history, candidates = list(example.history), list(example.candidates)
            posterior = prior * seen[observer][:, history].prod(axis=1)
            posterior /= posterior.sum()
            unseen = np.setdiff1d(pool, history)
            alike = np.bincount(kind[known][unseen], minlength=kind[known].max() + 1)
            # At least 1, since a target that occurs in no training row is the only one of its kind that it may be.
            return posterior @ seen[known][:, candidates] / alike[kind[known][candidates]].clip(min=1)

        return score

    return {observer: scorer(observer) for observer in OBSERVERS}
