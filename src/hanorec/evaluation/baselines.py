"""What a model is compared with: chance, popularity, recommenders that know items by number, and on the toy catalogue
the best that is possible.

In: a dataset and examples. Out: `Answers` like those of a model, by method.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hanorec.data.dataset import Dataset
from hanorec.data.examples import Example
from hanorec.data.full_catalog import FullCatalog
from hanorec.errors import DataError
from hanorec.evaluation.measures import Answers
from hanorec.evaluation.oracles import read_oracles
from hanorec.evaluation.ranking import answer_with_scorer
from hanorec.recommenders.counts import Scorer, co_occurrence_scorer, popularity_scorer
from hanorec.recommenders.networks import network_scorer
from hanorec.recommenders.training import train_network

BASELINES = {  # by short name: the name in a table
    "random": "random",
    "popularity": "popularity",
    "co-occurrence": "item co-occurrence",
    "sasrec": "SASRec",
    "gru4rec": "GRU4Rec",
}
ORACLE_NAMES = {
    "words": "oracle: words alone",
    "images": "oracle: images alone",
    "both": "oracle: words and images",
}


def baseline_names(asked: Sequence[str]) -> list[str]:
    """The names of `BASELINES` that are asked for, in the order of the table; `all` stands for every one.

    Errors: DataError for another name.
    """
    for name in asked:
        if name not in (*BASELINES, "all"):
            raise DataError(f"baselines {name}: there is no such baseline; there are {', '.join(BASELINES)}, and all")
    return [name for name in BASELINES if name in asked or "all" in asked]


def baseline_answers(
    data: Dataset,
    examples: Sequence[Example],
    task: str,
    full_catalog: FullCatalog | None = None,
    protocol: str = "standard",
    *,
    names: Sequence[str] = ("random", "popularity"),
    validation: Sequence[Example] = (),
    seed: int = 2025,
    cache: Path | None = None,
) -> dict[str, Answers]:
    """The answers of the baselines `names`, and on a toy world of the Bayes-optimal observers, by name in a table.

    Chance is a constant score, since ties are counted exactly. The observers know that negatives occur in training. So
    there are none with the protocol "release", whose negatives need not.
    validation: the examples of the task next that choose the best epoch of SASRec and GRU4Rec. seed: of their training.
    cache: the folder that keeps what was trained. Errors: DataError where `world.json` is not one of this catalogue.
    """

    def scorer(name: str) -> Scorer:
        if name == "random":
            return lambda example: np.zeros(len(example.candidates))
        if name == "popularity":
            return popularity_scorer(data.counts)
        if name == "co-occurrence":
            return co_occurrence_scorer([user.items for user in data.train], len(data.catalog))
        network = train_network(BASELINES[name], data, validation, full_catalog, seed=seed, cache=cache)
        return network_scorer(network, examples)

    cold = not np.isin([item for example in examples for item in example.history], data.warm).any()
    oracles = {}
    if protocol == "standard":
        oracles = read_oracles(data.folder, data.catalog, data.warm, know_candidates=cold)
    scorers = {BASELINES[name]: scorer(name) for name in names}
    scorers |= {ORACLE_NAMES[observer]: oracle for observer, oracle in oracles.items()}
    return {name: answer_with_scorer(scorer, examples, task, full_catalog) for name, scorer in scorers.items()}
