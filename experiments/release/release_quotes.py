#!/usr/bin/env python3
"""What preference training learns from the release's top-3 pairs, where the chosen list has more quotation marks.

    python train_sft.py --protocol release --task top3 --output runs/top3
    python train_dpo.py --sft runs/top3 --max-steps 20 --output runs/top3-hanorec
    python experiments/release_quotes.py --sft runs/top3 --dpo runs/top3-hanorec

Mean log-probabilities of three responses to the same prompts, before and after: the chosen and the rejected one as they
stand in a pair, and the chosen list written as the rejected one is, without the outer quotation marks. Writes
experiments/results/<name>.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from hanorec.cache import weights_fingerprint
from hanorec.data.dataset import open_dataset
from hanorec.evaluation.report import markdown
from hanorec.models.images import CatalogImages
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score_all
from hanorec.related.release import release_split
from hanorec.training.runs import load_run

RESPONSES = ("chosen", "rejected", "chosen, written as the rejected one")
RESULTS = Path(__file__).resolve().parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft", type=Path, default=Path("runs/top3"), help="SFT run of the release's protocol")
    parser.add_argument("--dpo", type=Path, default=Path("runs/top3-hanorec"), help="DPO run on top of it")
    parser.add_argument("--users", type=int, default=100, help="test users")
    parser.add_argument("--name", default="release_quotes", help="of the results file")
    args = parser.parse_args()
    before, after = (logps(run, args.users).mean(dim=0).tolist() for run in (args.sft, args.dpo))
    rows = [[name, f"{a:.1f}", f"{b:.1f}", f"{b - a:.1f}"] for name, a, b in zip(RESPONSES, before, after)]
    table = markdown(["log-probability of a response, nats", "SFT", "after DPO", "change"], rows)
    print(table)
    (RESULTS / f"{args.name}.md").write_text(table + "\n", encoding="utf-8")


def logps(run: Path, users: int) -> Tensor:
    """log π of the `RESPONSES` to the run's test prompts, [users, 3]."""
    backbone, config = load_run(run)
    data = open_dataset(config["data"])
    images = CatalogImages(backbone, data.catalog.images, frozen=True, pixels=config["image_pixels"], progress=False)
    prompts = Prompts(backbone, images, data.catalog.titles, "top3", protocol="release")
    examples = release_split(data, "test", "top3", users=users)
    responses = [
        [prompts.chosen(e), *prompts.rejected(e), *prompts.rejected(replace(e, rejected=(e.targets,)))]
        for e in examples
    ]
    weights = weights_fingerprint(backbone.model.state_dict())
    return score_all(backbone, images, [prompts.prompt(e) for e in examples], responses, weights=weights)


if __name__ == "__main__":
    main()
