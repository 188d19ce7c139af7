#!/usr/bin/env python3
"""What does SASRec lose when it becomes as large as the tiny backbone's language model?

    python experiments/sasrec_size.py --data DIR

SFT of the tiny backbone stays behind SASRec, and one is four layers of width 192 where the other is two of width 64. So
SASRec is made larger in steps, on the same training rows and with the same loss, and measured on validation users
(histories of 20 items, after its best epoch, on one thread). The result of a step and a seed is kept in
experiments/results/sasrec_size.json, and an interrupted run goes on where it was. Writes sasrec_size.md beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hanorec.data.dataset import Dataset, open_dataset, split_examples
from hanorec.errors import exit_on_user_error
from hanorec.evaluation.measures import point_measures
from hanorec.evaluation.ranking import answer_with_scorer
from hanorec.evaluation.recommenders import SASRec, Settings, fit, network_scorer
from hanorec.evaluation.report import markdown

RESULTS = Path(__file__).resolve().parent / "results"
WIDE = dict(layers=4, width=192, heads=6, feedforward=512)  # as the language model of models/tiny.py
STEPS: dict[str, dict] = {
    "SASRec: 2 layers of width 64": {},
    "4 layers": dict(layers=4),
    "4 layers of width 192, 512 inside, 6 heads": WIDE,
    "and embeddings that are small at the input": WIDE | dict(scaled=False),
}


class Sized(SASRec):
    """SASRec with heads and feed-forward layers of any size. scaled: whether embeddings are taken times √width."""

    def __init__(self, items: int, settings: Settings, heads: int = 2, feedforward: int = 0, scaled: bool = True):
        super().__init__(items, settings)
        self.scaled, width = scaled, settings.width
        layer = nn.TransformerEncoderLayer(
            width, heads, feedforward or width, settings.dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, settings.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        if not scaled:
            for embedding in (self.items, self.positions):
                nn.init.normal_(embedding.weight, std=0.04)  # the language model's

    def forward(self, items: Tensor) -> Tensor:
        """As `SASRec.forward`."""
        if self.scaled:
            return super().forward(items)
        length = items.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, device=items.device)
        return self.layers(self.dropout(self.items(items) + self.positions.weight[:length]), mask, is_causal=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="dataset folder, see data/README.md")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(args.data)
    run_steps("sasrec_size", STEPS, args.seeds, lambda seed, size: measure(data, seed, **size))


def run_steps(name: str, steps: dict[str, dict], seeds: Sequence[int], measure: Callable[[int, dict], dict]) -> None:
    """Measure every step with every seed, unless experiments/results/<name>.json has it, and write <name>.md."""
    path = RESULTS / f"{name}.json"
    cells = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for seed in seeds:
        for step, changes in steps.items():
            key = f"{step}, seed {seed}"
            if key not in cells:
                cells[key] = measure(seed, changes)
                path.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
            print(f"{key}: {cells[key]['NDCG@10']:.4f}", flush=True)
    table = table_of(steps, cells)
    path.with_suffix(".md").write_text(f"Made by `python experiments/{name}.py`.\n\n{table}\n", encoding="utf-8")
    print(table)


def table_of(steps: Iterable[str], cells: dict[str, dict]) -> str:
    """A row for each step: mean [least, most] over the seeds that there are."""
    rows = []
    for name in steps:
        own = [cell for key, cell in cells.items() if key.rsplit(", seed", 1)[0] == name]
        values, seconds = ([cell[what] for cell in own] for what in ("NDCG@10", "seconds"))
        spread = f" [{min(values):.3f}, {max(values):.3f}]" if len(values) > 1 else ""
        epochs = ", ".join(str(cell["epoch"]) for cell in own)
        rows.append([name, str(len(own)), f"{np.mean(values):.3f}{spread}", epochs, f"{np.mean(seconds):.0f}"])
    return markdown(["network", "seeds", "NDCG@10", "best epoch", "CPU s"], rows)


def measure(data: Dataset, seed: int, layers: int = 2, width: int = 64, **more) -> dict:
    """As `measured`, of SASRec in another size."""
    settings = replace(Settings(), layers=layers, width=width)
    torch.manual_seed(seed)
    return measured(data, seed, Sized(len(data.catalog), settings, **more), settings)


def measured(data: Dataset, seed: int, network: nn.Module, settings: Settings) -> dict:
    """NDCG@10 on the validation users after the best epoch, that epoch, and the CPU seconds of the training."""
    examples = split_examples(data, "val", "next", history=20, candidates=20, seed=2025)
    values, begun = [], time.process_time()

    def validate() -> float:
        answers = answer_with_scorer(network_scorer(network, examples), examples, "next")
        values.append(point_measures("next", answers, examples)["NDCG@10"])
        return values[-1]

    fit(network, [row.items for row in data.train], validate, settings, np.random.default_rng(seed))
    seconds = round(time.process_time() - begun, 1)
    return {"NDCG@10": max(values), "epoch": int(np.argmax(values)) + 1, "seconds": seconds}


if __name__ == "__main__":
    with exit_on_user_error():
        main()
