"""Networks over items: SASRec and GRU4Rec.

In: the items of a history, [B, T]. Out: what is expected after each of them, [B, T, width], as logits over all items;
and with `network_scorer` the log-probability of each candidate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils.rnn import pad_sequence

from hanorec import distributed
from hanorec.data.examples import Example
from hanorec.recommenders.counts import Scorer

HISTORIES_PER_FORWARD = 256


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
        """What is expected after each item, [B, T, width], from items [B, T]. Nothing sees the padding at the end."""
        return self.dropout(self.gru(self.dropout(embed(self.items, items)))[0])


def embed(table: nn.Embedding, items: Tensor) -> Tensor:
    """Embeddings times √width, as in the code of SASRec's authors: they are small for the output."""
    return table.embedding_dim**0.5 * table(items)


Network = SASRec | GRU4Rec
NETWORKS: dict[str, tuple[type[Network], Settings]] = {
    "SASRec": (SASRec, Settings()),
    "GRU4Rec": (GRU4Rec, Settings(layers=1)),
}


def item_logits(network: Network, hidden: Tensor) -> Tensor:
    """[N, items] from what a network expects, [N, width]: the input embeddings are the output's, too."""
    return linear(hidden, network.items.weight[:-1])


@torch.no_grad()
def network_scorer(network: Network, examples: Sequence[Example]) -> Scorer:
    """Scores log p(candidate | history) over all items. The histories of `examples`, which it is for, are read here."""
    padding, device = len(network.items.weight) - 1, distributed.device()
    histories = sorted({example.history for example in examples}, key=len)
    states: dict[tuple[int, ...], tuple[np.ndarray, float]] = {}
    for start in range(0, len(histories), HISTORIES_PER_FORWARD):
        batch = histories[start : start + HISTORIES_PER_FORWARD]
        newest = [torch.tensor(history[-network.length :]) for history in batch]
        items = pad_sequence(newest, batch_first=True, padding_value=padding).to(device)
        hidden = network(items)[torch.arange(len(newest)), torch.tensor([len(each) - 1 for each in newest])]
        total = item_logits(network, hidden).logsumexp(dim=1)
        states |= zip(batch, zip(hidden.cpu().double().numpy(), total.tolist()))
    weights = network.items.weight.cpu().double().numpy()

    def score(example: Example) -> np.ndarray:
        hidden, total = states[example.history]
        return weights[list(example.candidates)] @ hidden - total

    return score
