"""What preference training learns from the release's top-3 pairs, where the chosen list has more quotation marks.

    python train_sft.py --protocol release --task top3 --output runs/top3
    python train_dpo.py --sft runs/top3 --max-steps 20 --output runs/top3-hanorec
    python -m experiments.release.release_quotes --sft runs/top3 --dpo runs/top3-hanorec

Mean log-probabilities of three responses to the same prompts, before and after: the chosen and the rejected one as they
stand in a pair, and the chosen list written as the rejected one is, without the outer quotation marks. Writes
release_quotes.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from hanorec.data.dataset import open_dataset
from hanorec.evaluation.report import markdown
from hanorec.models.scoring import score_all
from hanorec.training.inputs import open_examples, open_prompts
from hanorec.training.runs import load_run

RESPONSES = ("chosen", "rejected", "chosen, written as the rejected one")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sft", type=Path, default=Path("runs/top3"), help="SFT run of the release's protocol")
    parser.add_argument("--dpo", type=Path, default=Path("runs/top3-hanorec"), help="DPO run on top of it")
    parser.add_argument("--users", type=int, default=100, help="test users")
    args = parser.parse_args()
    before, after = (logps(run, args.users).mean(dim=0).tolist() for run in (args.sft, args.dpo))
    rows = [[name, f"{a:.1f}", f"{b:.1f}", f"{b - a:.1f}"] for name, a, b in zip(RESPONSES, before, after)]
    table = markdown(["log-probability of a response, nats", "SFT", "after DPO", "change"], rows)
    Path(__file__).with_suffix(".md").write_text(table + "\n", encoding="utf-8")
    print(table)


def logps(run: Path, users: int) -> Tensor:
    """log π of the `RESPONSES` to the run's test prompts, [users, 3]."""
    backbone, sft = load_run(run)
    data = open_dataset(sft.data)
    prompts = open_prompts(backbone, data, sft)
    examples = open_examples(data, "test", sft, seed=sft.seed, users=users)
    responses = [
        [prompts.chosen(e), *prompts.rejected(e), *prompts.rejected(replace(e, rejected=(e.targets,)))]
        for e in examples
    ]
    x = [prompts.prompt(example) for example in examples]
    return score_all(backbone, prompts.images, x, responses, weights="").view(-1, len(RESPONSES))


if __name__ == "__main__":
    main()
