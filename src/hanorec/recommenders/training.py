"""How SASRec and GRU4Rec are trained.

In: the training histories that a network learns from, and the validation examples that choose its best epoch. Out: the
network with the weights after that epoch.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from hanorec import distributed
from hanorec.cache import cached, content_fingerprint
from hanorec.data.batching import batches
from hanorec.data.dataset import Dataset
from hanorec.data.examples import Example
from hanorec.data.full_catalog import FullCatalog
from hanorec.recommenders.counts import Scorer
from hanorec.recommenders.networks import NETWORKS, Network, Settings, item_logits, network_scorer

VALIDATION_USERS = 1000  # as many as choose the best epoch well enough
MOST_LOGITS = 1e10  # in a training: some minutes of one CPU thread


def train_network(
    name: str,
    data: Dataset,
    validation: Sequence[Example],
    full_catalog: FullCatalog | None = None,
    *,
    seed: int = 2025,
    settings: Settings | None = None,
    cache: Path | None = None,
) -> Network:
    """A network of `NETWORKS`, trained on the training histories, after its best epoch.

    validation: examples of the task next; the best epoch has the highest NDCG@10 on them, among their candidates or
    among the `full_catalog`. seed: of weights, chunks and dropout. settings: None for those of `NETWORKS`. cache: the
    folder that keeps the weights.
    """
    kind, usual = NETWORKS[name]
    settings = settings or usual
    device = distributed.device()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = kind(len(data.catalog), settings).to(device)

        def make() -> dict[str, Tensor]:
            def validate() -> float:
                return ndcg_at_10(network_scorer(network, validation), validation, full_catalog)

            histories = [user.items for user in data.train]
            return fit(network, histories, validate, settings, np.random.default_rng(seed), progress=name)

        ranked = [(e.history, e.targets, e.candidates, sorted(e.seen)) for e in validation]
        pool = None if full_catalog is None else sorted(full_catalog.pool)
        conditions = repr((settings, seed, ranked, pool))
        fingerprint = content_fingerprint(conditions, *data.catalog.items, data.folder / "train.tsv")
        network.load_state_dict(cached(cache, name.lower(), fingerprint, make))
    return network.eval()


def ndcg_at_10(scorer: Scorer, examples: Sequence[Example], full_catalog: FullCatalog | None = None) -> float:
    """The mean NDCG@10 of the examples' targets, 0 to 1. A target tied with m others has each of the m + 1 ranks with
    equal chance, as in `hanorec.evaluation.metrics`."""
    gains = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(10) + 2))])  # [k]: the sum over the first k ranks
    values = []
    for example in examples:
        if full_catalog is not None:
            example = replace(example, candidates=full_catalog.candidates(example))
        scores = scorer(example)
        target = scores[example.candidates.index(example.targets[0])]
        first, end = (scores > target).sum(), (scores >= target).sum()  # its ranks, from 0: first to end - 1
        values.append((gains[min(end, 10)] - gains[min(first, 10)]) / (end - first))
    return float(np.mean(values))


def fit(
    network: Network,
    histories: Sequence[tuple[int, ...]],
    validate: Callable[[], float],
    settings: Settings,
    generator: np.random.Generator,
    progress: str = "",
) -> dict[str, Tensor]:
    """Train a network to name every next item of the histories: full softmax and cross-entropy, which makes SASRec
    strong (Klenitskiy & Vasilev, arXiv 2309.07602). Returns its weights after the epoch with the highest `validate()`.

    generator: draws chunks and batches. progress: what a progress bar says; without it there is none. Where many
    histories and items would take more than `MOST_LOGITS`, there are fewer epochs, of a random part of the histories.
    Errors: ValueError where training has made the scores NaN.
    """
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate, betas=(0.9, 0.98))
    padding = len(network.items.weight) - 1
    logits = max(1, padding * sum(len(history) - 1 for history in histories))
    share = min(1.0, MOST_LOGITS / 10 / logits)  # of the histories an epoch: ten states to choose from, however many
    epochs = min(settings.epochs, round(MOST_LOGITS / (share * logits)))
    best, best_epoch, weights = -1.0, 0, {}
    with tqdm(range(1, epochs + 1), desc=progress, unit="epoch", disable=not progress, leave=False) as bar:
        for epoch in bar:
            network.train()
            parts = chunks(histories, settings.length, generator)
            parts = [parts[i] for i in generator.permutation(len(parts))[: math.ceil(share * len(parts))]]
            of_similar_length = batches([len(part) - 1 for part in parts], settings.batch_size)
            for number in generator.permutation(len(of_similar_length)):
                batch = [parts[i] for i in of_similar_length[number]]
                items = pad_sequence(batch, batch_first=True, padding_value=padding).to(distributed.device())
                inputs, targets = items[:, :-1], items[:, 1:]
                real = targets != padding
                cross_entropy(item_logits(network, network(inputs)[real]), targets[real]).backward()
                optimizer.step()
                optimizer.zero_grad()
            network.eval()
            value = validate()
            if math.isnan(value):
                raise ValueError(f"{progress}: its scores are no numbers after epoch {epoch}")
            bar.set_postfix_str(f"validation {value:.4f}")
            if value > best:
                best, best_epoch = value, epoch
                weights = {name: tensor.cpu().clone() for name, tensor in network.state_dict().items()}
            elif epoch - best_epoch >= settings.patience:
                break
    if progress:
        tqdm.write(f"{progress}: {best:.4f} on validation after epoch {best_epoch}, the best of {epoch}")
    if best_epoch == epochs < settings.epochs:
        warnings.warn(f"{progress}: still improving after {epochs} epochs, the limit for so much data", stacklevel=2)
    return weights


def chunks(histories: Sequence[tuple[int, ...]], length: int, generator: np.random.Generator) -> list[Tensor]:
    """Histories in chunks of at most `length` + 1 items; each starts with the item that the one before ends with, so
    that every item but a history's first is a target once. Where a longer history is cut is drawn at each call."""
    result = []
    for history in histories:
        first = length - int(generator.integers(length)) if len(history) > length + 1 else length
        starts = [0, *range(first, len(history) - 1, length)]
        ends = [start + 1 for start in starts[1:]] + [len(history)]
        result += [torch.tensor(history[start:end]) for start, end in zip(starts, ends) if end - start > 1]
    return result
