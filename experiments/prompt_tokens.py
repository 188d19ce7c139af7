#!/usr/bin/env python3
"""What do the tokens that every prompt has cost a language model that is as small as SASRec?

    python experiments/prompt_tokens.py --data DIR

Between an item of the history and the next one stand a line's end, a question and the start of an answer. From SASRec
to such a prompt in steps, on the same training rows, with the same loss and training: Llama's layers in place of
SASRec's; rows in other orders (`--reorder 4`); then so many question tokens behind each item, which see the items up to
it and themselves, as nested windows have them, and line ends between items. Measured on validation users (histories of
20 items, after the best epoch, on one thread). The result of a step and a seed is kept in
experiments/results/prompt_tokens.json, and an interrupted run goes on where it was. Writes prompt_tokens.md beside it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sasrec_size import measured, run_steps
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from hanorec.data.dataset import Dataset, open_dataset
from hanorec.errors import exit_on_user_error
from hanorec.evaluation.recommenders import Settings

STEPS: dict[str, dict] = {
    "Llama's layers, predicting at an item": {},
    "rows in other orders": dict(reorder=4),
    "and 1 question token": dict(reorder=4, question=1),
    "and 2 question tokens, and a line's end before each item": dict(reorder=4, question=2, line_ends=True),
    "and 4 question tokens, and a line's end before each item": dict(reorder=4, question=4, line_ends=True),
}


class Prompted(nn.Module):
    """Llama's layers over item numbers, with the tokens of a prompt around them.

    question: how many tokens stand behind an item before the next one is predicted (0: at the item). line_ends: whether
    one stands before each item.
    """

    def __init__(self, items: int, settings: Settings, question: int = 0, line_ends: bool = False):
        super().__init__()
        self.length, self.question, self.line_ends = settings.length, question, line_ends
        self.layers = LlamaModel(
            LlamaConfig(
                vocab_size=1, hidden_size=settings.width, intermediate_size=2 * settings.width, num_attention_heads=2,
                num_hidden_layers=settings.layers, head_dim=settings.width // 2,
            )
        )  # fmt: skip
        self.items = nn.Embedding(items + 1, settings.width)  # the last one pads
        self.fixed = nn.Embedding(1 + question, settings.width)  # a line's end, and the question
        for embedding in (self.items, self.fixed):
            nn.init.normal_(embedding.weight, std=0.02)
        self.dropout = nn.Dropout(settings.dropout)
        for layer in self.layers.layers:
            for block in (layer.self_attn, layer.mlp):
                block.register_forward_hook(lambda _, inputs, output: self.dropped(output))

    def dropped(self, output):
        return (self.dropout(output[0]), *output[1:]) if isinstance(output, tuple) else self.dropout(output)

    def forward(self, items: Tensor) -> Tensor:
        """What is expected after each item, [B, T, width], from items [B, T]: a trunk of all items, and behind it a
        branch with the question for each."""
        batch, length = items.shape
        width, step = self.items.embedding_dim, 1 + self.line_ends
        trunk = self.items(items)[:, :, None]
        if self.line_ends:
            trunk = torch.cat([self.fixed.weight[:1].expand(batch, length, 1, width), trunk], dim=2)
        branches = self.fixed.weight[1:].expand(batch, length, self.question, width)
        embedded = torch.cat([trunk.flatten(1, 2), branches.flatten(1, 2)], dim=1)
        position, mask = places(length, step, self.question)
        hidden = self.layers(
            inputs_embeds=self.dropout(embedded),
            attention_mask=mask.expand(batch, 1, -1, -1),
            position_ids=position[None],
        ).last_hidden_state
        if self.question:
            return hidden[:, step * length :][:, self.question - 1 :: self.question]
        return hidden[:, step - 1 : step * length : step]


def places(length: int, step: int, question: int) -> tuple[Tensor, Tensor]:
    """Positions [S] and what is added to the attention, [S, S], of a trunk of `length` · `step` tokens and a branch of
    `question` tokens behind each `step` of it."""
    trunk, ends = torch.arange(length * step), step * torch.arange(1, length + 1)
    owner = torch.cat([torch.full_like(trunk, -1), torch.arange(length).repeat_interleave(question)])
    seen = torch.cat([trunk + 1, ends.repeat_interleave(question)])  # tokens of the trunk
    position = torch.cat([trunk, (ends[:, None] + torch.arange(question)).flatten()])
    number = torch.arange(len(position))
    of_trunk = (number < len(trunk)) & (number < seen[:, None])
    of_own = (owner >= 0) & (owner == owner[:, None]) & (number <= number[:, None])
    return position, torch.zeros(len(position), len(position)).masked_fill(~(of_trunk | of_own), float("-inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="dataset folder, see data/README.md")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(args.data)
    run_steps("prompt_tokens", STEPS, args.seeds, lambda seed, step: measure(data, seed, **step))


def measure(data: Dataset, seed: int, reorder: int = 0, **tokens) -> dict:
    """As `measured`, of Llama's layers with the tokens of a prompt."""
    settings = Settings(length=20, epochs=60, reorder=reorder)
    torch.manual_seed(seed)
    return measured(data, seed, Prompted(len(data.catalog), settings, **tokens), settings)


if __name__ == "__main__":
    with exit_on_user_error():
        main()
