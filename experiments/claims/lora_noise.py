"""NoDO's noise, measured: what does it leave of a model's scores, and does it survive gradient checkpointing?

    python -m experiments.claims.lora_noise --backbone DIR --data DIR
    python -m experiments.claims.lora_noise --prompts 2 --draws 1 --study try     a quick look, on the tiny backbone
    python -m experiments.claims.lora_noise --table

First, how the log-probabilities of candidate titles under noise on the weights of a fresh LoRA adapter (rank 8, alpha
32, the language model's linear layers), and under noise on logits, go with the clean ones. Second, how far the
gradients of LoRA weights are from those at the noisy weights where the noise is on around the forward alone, as in the
authors' release, and gradient checkpointing computes the layers again in the backward; and where `perturbed_lora` is
open around forward and backward. Appends a row to experiments/claims/results.jsonl, and writes lora_noise.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from torch import Tensor

from experiments.claims.table import RESULTS
from experiments.common import append_row, read_rows, version
from hanorec.data.dataset import open_dataset, split_examples
from hanorec.data.examples import Example
from hanorec.errors import DataError, exit_on_user_error
from hanorec.evaluation.report import markdown
from hanorec.losses import perturbed_lora
from hanorec.models.backbone import Backbone, load_backbone
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score

NOISES = [*(("LoRA weights", std) for std in (0.01, 0.02, 0.05, 0.1)), ("logits", 0.05), ("logits", 0.1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny", help="a checkpoint folder or hub id (default: the tiny backbone)")
    parser.add_argument("--data", type=Path, help="dataset folder (default: the toy catalogue)")
    parser.add_argument("--prompts", type=int, default=20, help="users whose 20 candidates are scored (default 20)")
    parser.add_argument("--draws", type=int, default=3, help="draws of each noise (default 3)")
    parser.add_argument("--table", action="store_true", help="write the table of the last row, and measure nothing")
    parser.add_argument("--study", default="lora_noise", help="of the row and its table (default lora_noise)")
    args = parser.parse_args()
    if not args.table:
        measured = measure(args.backbone, args.data, args.prompts, args.draws)
        append_row(RESULTS, {"study": args.study, "version": version(), **measured})
    rows = [row for row in read_rows(RESULTS) if row.get("study") == args.study]
    if not rows:
        raise DataError(f"{RESULTS}: holds no row of the study {args.study}")
    RESULTS.with_name(f"{args.study}.md").write_text(page(rows[-1]), encoding="utf-8")
    print(page(rows[-1]))


def measure(backbone: str, folder: Path | None, users: int, draws: int) -> dict:
    """The content of a row."""
    torch.manual_seed(0)
    data = open_dataset(folder)
    examples = split_examples(data, "test", "next", users=users)
    shown = {item for example in examples for item in example.history}
    base = load_backbone(backbone, dtype="float32")
    files = [path if item in shown else None for item, path in enumerate(data.catalog.images)]
    prompts = Prompts(base, CatalogImages(base, files, frozen=True, progress=False), data.catalog.titles, "next")
    return {
        "backbone": Path(backbone).name,
        "parameters": base.num_parameters,
        "prompts": users,
        "candidates": 20,
        "draws": draws,
        "scores": score_changes(add_lora(base, dropout=0.0), prompts, examples, draws),
        "gradients": gradient_differences(),
    }


# what noise leaves of the scores


def score_changes(policy: Backbone, prompts: Prompts, examples: list[Example], draws: int) -> list[dict]:
    """Under each noise: how the candidates' log-probabilities go with the clean ones, a value a draw."""
    clean = candidate_logps(policy, prompts, examples, "", 0.0, 0)
    rows = []
    for where, noise_std in NOISES:
        noisy = [candidate_logps(policy, prompts, examples, where, noise_std, seed) for seed in range(draws)]
        rows.append({
            "adapter": "fresh",
            "noise_on": where,
            "noise_std": noise_std,
            "correlation": [float(np.corrcoef(clean.ravel(), logps.ravel())[0, 1]) for logps in noisy],
            "rank_correlation": [mean(map(rank_correlation, clean, logps)) for logps in noisy],
            "clean_logp": float(clean.mean()),
            "mean_logp": [float(logps.mean()) for logps in noisy],
        })  # fmt: skip
        print(json.dumps(rows[-1]), flush=True)
    return rows


@torch.no_grad()
def candidate_logps(
    policy: Backbone, prompts: Prompts, examples: list[Example], where: str, noise_std: float, seed: int
) -> np.ndarray:
    """log π of every candidate's title, [prompts, candidates]; noise on the weights is one draw for all of them."""
    policy.model.eval()
    generator = torch.Generator().manual_seed(seed)
    logps = []
    with perturbed_lora(policy.model, noise_std if where == "LoRA weights" else 0.0, generator=generator):
        for example in examples:
            titles = [prompts.name([item]) for item in example.candidates]
            std = noise_std if where == "logits" else 0.0
            x = [prompts.prompt(example)]
            logps.append(score(policy, prompts.images, x, [titles], noise_std=std, generators=[generator]))
    return torch.stack(logps).cpu().numpy()


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's ρ, without ties."""
    return float(np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1])


# whether noise survives gradient checkpointing


def gradient_differences(noise_std: float = 0.05) -> list[dict]:
    """How far a loss's LoRA gradients g are from g*, those at the noisy weights without checkpointing, and from those
    at the clean weights: ‖g − g*‖ / ‖g*‖, on the tiny backbone, a fresh adapter and one text."""
    torch.manual_seed(0)
    policy = add_lora(load_backbone("tiny", dtype="float32"), dropout=0.0)
    model = policy.model.train()
    model.enable_input_require_grads()  # a reentrant checkpoint has no gradient unless its input has one
    weights = [p for p in model.parameters() if p.requires_grad]
    clean = [p.detach().clone() for p in weights]
    noise = [noise_std * torch.randn_like(p) for p in weights]
    ids = torch.tensor([policy.tokens("The user chose, oldest first: which of these is next?")])

    def loss() -> Tensor:
        return model(input_ids=ids, labels=ids, use_cache=False).loss

    def set_noise(on: bool) -> None:
        for weight, before, epsilon in zip(weights, clean, noise):
            weight.data.copy_(before + epsilon if on else before)

    def around_forward_alone() -> None:
        set_noise(True)
        value = loss()
        set_noise(False)
        value.backward()

    def around_both() -> None:
        set_noise(True)
        loss().backward()
        set_noise(False)

    def in_context() -> None:
        with perturbed_lora(model, noise_std, generator=torch.Generator().manual_seed(0)):
            loss().backward()

    def gradient(work: Callable[[], None], checkpointing: str = "off") -> Tensor:
        if checkpointing != "off":
            model.activation_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        work()
        if checkpointing != "off":
            model.activation_checkpointing_disable()
        flat = torch.cat([p.grad.flatten() for p in weights])
        model.zero_grad()
        return flat

    def distance(one: Tensor, other: Tensor) -> float:
        return float((one - other).norm() / other.norm())

    at_clean, rows = gradient(lambda: loss().backward()), []
    for way, work, exact in (
        ("around the forward alone", around_forward_alone, around_both),
        ("`perturbed_lora`, around forward and backward", in_context, in_context),
    ):
        at_noisy = gradient(exact)
        for checkpointing in ("reentrant", "not reentrant"):
            found = gradient(work, checkpointing)
            rows.append({"noise": way, "checkpointing": checkpointing, "from_noisy": distance(found, at_noisy),
                         "from_clean": distance(found, at_clean)})  # fmt: skip
    return rows


def page(row: dict) -> str:
    """Both tables in Markdown."""

    def of(values: list[float]) -> str:
        return f"{mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"

    scores = [
        [r["noise_on"], r["adapter"], str(r["noise_std"]), of(r["correlation"]), of(r["rank_correlation"]),
         f"{r['clean_logp']:.1f}", f"{mean(r['mean_logp']):.1f}"]
        for r in row["scores"]
    ]  # fmt: skip
    gradients = [
        [g["noise"], g["checkpointing"], f"{g['from_noisy']:.1e}", f"{g['from_clean']:.1e}"] for g in row["gradients"]
    ]
    title = (
        f"Log-probabilities of {row['prompts']} × {row['candidates']} candidate titles under noise against the clean "
        f"ones: LoRA rank 8, alpha 32 on a backbone of {row['parameters'] / 1e6:.0f} M parameters; mean [least, most] "
        f"over {row['draws']} draws"
    )
    header = ["noise on", "adapter", "σ", "correlation", "rank correlation in a prompt", "mean log π, clean", "noisy"]
    second = ["noise", "checkpointing", "those at the noisy weights", "those at the clean weights"]
    return (
        f"{title}\n\n{markdown(header, scores)}\n\n"
        "LoRA gradients under gradient checkpointing, tiny backbone, σ 0.05: relative distance from\n\n"
        f"{markdown(second, gradients)}\n"
    )


if __name__ == "__main__":
    with exit_on_user_error():
        main()
