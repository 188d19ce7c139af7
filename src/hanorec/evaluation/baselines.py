"""What a model is compared with: chance, popularity, and on the toy catalogue the best that is possible.

In: a dataset and examples. Out: the same `Answers` as a model's, by method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from hanorec.data.dataset import Dataset
from hanorec.data.examples import Example
from hanorec.evaluation.measures import Answers
from hanorec.evaluation.oracles import read_oracles
from hanorec.evaluation.ranking import FullCatalog, answer_with_scorer

ORACLE_NAMES = {
    "words": "oracle: words alone",
    "images": "oracle: images alone",
    "both": "oracle: words and images",
}


def baseline_answers(
    data: Dataset,
    examples: Sequence[Example],
    task: str,
    full_catalog: FullCatalog | None = None,
    protocol: str = "standard",
) -> dict[str, Answers]:
    """The answers of chance (a constant score, since ties are counted exactly), of popularity in training, and on a toy
    world of the Bayes-optimal observers, by the name of their row in a table. The observers know that negatives occur
    in training, so with the protocol "release", whose negatives need not, there are none.

    Errors: DataError where `world.json` is not one of this catalogue.
    """
    cold = not np.isin([item for example in examples for item in example.history], data.warm).any()
    oracles = {}
    if protocol == "standard":
        oracles = read_oracles(data.folder, data.catalog, data.warm, know_candidates=cold)
    scorers: dict[str, Callable[[Example], np.ndarray]] = {
        "random": lambda example: np.zeros(len(example.candidates)),
        "popularity": lambda example: data.counts[list(example.candidates)].astype(float),
    }
    scorers |= {ORACLE_NAMES[observer]: scorer for observer, scorer in oracles.items()}
    return {name: answer_with_scorer(scorer, examples, task, full_catalog) for name, scorer in scorers.items()}
