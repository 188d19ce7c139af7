"""Recommenders that know an item by its number alone: SASRec, GRU4Rec and item co-occurrence.

In: the training rows that a model learns from, too, and the validation rows that choose the best epoch. Out: a scorer,
which takes an `Example` and returns a score for each of its candidates. Titles and images are never looked at. So an
item that occurs in no training row has the embedding of its random start, pushed away from every training history.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from hanorec import distributed
from hanorec.cache import cached, content_fingerprint
from hanorec.data.batching import batches
from hanorec.data.dataset import Dataset, split_examples
from hanorec.data.examples import HISTORY, Example
from hanorec.evaluation.measures import point_measures
from hanorec.evaluation.ranking import FullCatalog, answer_with_scorer

Scorer = Callable[[Example], np.ndarray]

VALIDATION_USERS = 1000  # most rows of val.tsv that choose the best epoch
MOST_LOGITS = 1e10  # in a training: some minutes of one CPU thread


@dataclass(frozen=True)
class Settings:
    """Size and training of a network, chosen on the validation users of MovieLens-100K."""

    width: int = 64
    layers: int = 2
    dropout: float = 0.3
    length: int = 50  # most items that are read; of a longer history the newest
    batch_size: int = 1024  # items an optimizer step, padding included
    learning_rate: float = 2e-3
    epochs: int = 200
    patience: int = 10  # epochs without a better one after which training ends


class SASRec(nn.Module):
    """Causal self-attention over items with learned positions (Kang & McAuley, arXiv 1808.09781)."""

    def __init__(self, items: int, settings: Settings):
        super().__init__()
        self.length = settings.length
        self.items = nn.Embedding(items + 1, settings.width)  # the last one pads
        self.positions = nn.Embedding(settings.length, settings.width)
        layer = nn.TransformerEncoderLayer(
            settings.width, 2, settings.width, settings.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        norm = nn.LayerNorm(settings.width)
        self.layers = nn.TransformerEncoder(layer, settings.layers, norm, enable_nested_tensor=False)
        self.dropout = nn.Dropout(settings.dropout)
        for embedding in (self.items, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, items: Tensor) -> Tensor:
        """What is expected after each item, [B, T, width], from items [B, T]. Nothing sees the padding at the end."""
        length = items.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=items.device)
        embedded = self.dropout(embed(self.items, items) + self.positions.weight[:length])
        return self.layers(embedded, mask, is_causal=True)


class GRU4Rec(nn.Module):
    """A recurrent network over items (Hidasi et al., arXiv 1511.06939), with the loss and output of SASRec."""

    def __init__(self, items: int, settings: Settings):
        super().__init__()
        self.length = settings.length
        self.items = nn.Embedding(items + 1, settings.width)  # the last one pads
        self.gru = nn.GRU(settings.width, settings.width, settings.layers, batch_first=True)
        self.dropout = nn.Dropout(settings.dropout)
        nn.init.normal_(self.items.weight, std=0.02)

    def forward(self, items: Tensor) -> Tensor:
        """As `SASRec.forward`."""
        return self.dropout(self.gru(self.dropout(embed(self.items, items)))[0])


def embed(table: nn.Embedding, items: Tensor) -> Tensor:
    """Embeddings times √width, as in the code of SASRec's authors: they are small for the output."""
    return table.embedding_dim**0.5 * table(items)


Network = SASRec | GRU4Rec
NETWORKS: dict[str, tuple[type[Network], Settings]] = {
    "SASRec": (SASRec, Settings()),
    "GRU4Rec": (GRU4Rec, Settings(layers=1)),
}


def train_network(
    name: str,
    data: Dataset,
    drawn: Mapping[str, Any],
    full_catalog: FullCatalog | None = None,
    *,
    seed: int = 2025,
    settings: Settings | None = None,
    cache: Path | None = None,
) -> Network:
    """A network of `NETWORKS`, trained on the training rows, after its best epoch; kept in the folder `cache`.

    The best epoch has the highest NDCG@10 on rows of `val.tsv`, at most 1000, for the task next, with history and
    candidates as in the evaluation. drawn: how these are drawn, as arguments of `split_examples`. seed: of weights,
    chunks and dropout. Errors: DataError where `val.tsv` cannot be used.
    """
    history = drawn.get("history") or HISTORY[drawn["task"]]
    drawn = {**drawn, "task": "next", "history": history}
    kind, usual = NETWORKS[name]
    settings = settings or usual
    device = distributed.device()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        network = kind(len(data.catalog), settings).to(device)

        def make() -> dict[str, Tensor]:
            examples = split_examples(data, "val", users=VALIDATION_USERS, **drawn)

            def validate() -> float:
                answers = answer_with_scorer(network_scorer(network, examples), examples, "next", full_catalog)
                return point_measures("next", answers, examples)["NDCG@10"]

            rows = [row.items for row in data.train]
            return fit(network, rows, validate, settings, np.random.default_rng(seed), progress=name)

        tables = [value for value in drawn.values() if isinstance(value, np.ndarray)]  # `repr` would shorten them
        plain = sorted((name, value) for name, value in drawn.items() if not isinstance(value, np.ndarray))
        conditions = repr((settings, seed, plain, full_catalog is None))
        files = [data.folder / f"{split}.tsv" for split in ("train", "val")]
        fingerprint = content_fingerprint(conditions, *tables, *data.catalog.items, *files)
        network.load_state_dict(cached(cache, name.lower(), fingerprint, make))
    return network.eval()


def fit(
    network: Network,
    rows: Sequence[tuple[int, ...]],
    validate: Callable[[], float],
    settings: Settings,
    generator: np.random.Generator,
    progress: str = "",
) -> dict[str, Tensor]:
    """Train a network to name every next item of the rows: full softmax and cross-entropy, which makes SASRec strong
    (Klenitskiy & Vasilev, arXiv 2309.07602). Returns its weights after the epoch with the highest `validate()`.

    Where many rows and items would take more than `MOST_LOGITS`, there are fewer epochs, of a random part of the rows.
    """
    optimizer = torch.optim.Adam(network.parameters(), settings.learning_rate, betas=(0.9, 0.98))
    padding = len(network.items.weight) - 1
    logits = max(1, padding * sum(len(row) - 1 for row in rows))
    share = min(1.0, MOST_LOGITS / 10 / logits)  # of the rows an epoch: ten states to choose from, however many rows
    epochs = min(settings.epochs, round(MOST_LOGITS / (share * logits)))
    best, best_epoch, weights = -1.0, 0, {}
    with tqdm(range(1, epochs + 1), desc=progress, unit="epoch", disable=not progress, leave=False) as bar:
        for epoch in bar:
            network.train()
            parts = chunks(rows, settings.length, generator)
            parts = [parts[i] for i in generator.permutation(len(parts))[: math.ceil(share * len(parts))]]
            of_similar_length = batches([len(part) - 1 for part in parts], settings.batch_size)
            for number in generator.permutation(len(of_similar_length)):
                batch = [parts[i] for i in of_similar_length[number]]
                read = pad_sequence(batch, batch_first=True, padding_value=padding).to(distributed.device())
                inputs, targets = read[:, :-1], read[:, 1:]
                real = targets != padding
                cross_entropy(item_logits(network, network(inputs)[real]), targets[real]).backward()
                optimizer.step()
                optimizer.zero_grad()
            network.eval()
            value = validate()
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


def chunks(rows: Sequence[tuple[int, ...]], length: int, generator: np.random.Generator) -> list[Tensor]:
    """Rows in chunks of at most `length` + 1 items; each starts with the item that the one before ends with, so that
    every item but a row's first is a target once. Where a longer row is cut is drawn anew at each call."""
    result = []
    for row in rows:
        first = length - int(generator.integers(length)) if len(row) > length + 1 else length
        starts = [0, *range(first, len(row) - 1, length)]
        ends = [start + 1 for start in starts[1:]] + [len(row)]
        result += [torch.tensor(row[start:end]) for start, end in zip(starts, ends) if end - start > 1]
    return result


def item_logits(network: Network, hidden: Tensor) -> Tensor:
    """[N, items] from what a network expects, [N, width]: the input embeddings are the output's, too."""
    return linear(hidden, network.items.weight[:-1])


@torch.no_grad()
def network_scorer(network: Network, examples: Sequence[Example]) -> Scorer:
    """Scores log p(candidate | history) over all items. The histories of `examples`, which it is for, are read here."""
    padding, device = len(network.items.weight) - 1, distributed.device()
    histories = sorted({example.history for example in examples}, key=len)
    states: dict[tuple[int, ...], tuple[np.ndarray, float]] = {}
    for start in range(0, len(histories), 256):
        batch = histories[start : start + 256]
        items = [torch.tensor(history[-network.length :]) for history in batch]
        read = pad_sequence(items, batch_first=True, padding_value=padding).to(device)
        hidden = network(read)[torch.arange(len(items)), torch.tensor([len(each) - 1 for each in items])]
        total = item_logits(network, hidden).logsumexp(dim=1)
        states |= zip(batch, zip(hidden.cpu().double().numpy(), total.tolist()))
    weights = network.items.weight.cpu().double().numpy()

    def score(example: Example) -> np.ndarray:
        hidden, total = states[example.history]
        return weights[list(example.candidates)] @ hidden - total

    return score


def co_occurrence_scorer(rows: Sequence[tuple[int, ...]], items: int) -> Scorer:
    """Scores Σ_h cosine(candidate, h) / age(h) over the history, where the newest item has the age 1.

    The cosine is between two items' columns of the table of rows and items: (rows with both) / √(rows with one · rows
    with the other). Of the weightings tried, it ranks best on the validation users of MovieLens-100K.
    """
    pairs = sorted({(number, item) for number, row in enumerate(rows) for item in row})
    row, item = np.array(pairs).T
    norm = np.sqrt(np.bincount(item, minlength=items).clip(min=1))

    def score(example: Example) -> np.ndarray:
        history, candidates = list(example.history), list(example.candidates)
        age = np.arange(len(history), 0, -1)
        weights = np.bincount(history, 1 / (age * norm[history]), minlength=items)
        shared = np.bincount(row, weights[item])  # [rows] what each row has of the history
        return np.bincount(item, shared[row], minlength=items)[candidates] / norm[candidates]

    return score
