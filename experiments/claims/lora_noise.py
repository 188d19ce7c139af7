#!/usr/bin/env python3
"""NoDO's noise, measured: what does it leave of a model's scores, and does it survive gradient checkpointing?

    python experiments/lora_noise.py --backbone DIR --data DIR
    python experiments/lora_noise.py --prompts 2 --draws 1 --steps 0      a quick look, on the tiny backbone

First, how the log-probabilities of candidate titles under noise on LoRA weights (rank 8, alpha 32, the language model's
linear layers) and under noise on logits go with the clean ones; the adapter is fresh (A random, B zero) or trained for
a few steps. Second, how far the gradients of LoRA weights are from those at the noisy weights where the noise is on
around the forward alone, as in the authors' release, and the layers are computed again in the backward (reentrant
gradient checkpointing); and where `perturbed_lora` is open around forward and backward.
Writes experiments/results/lora_noise.json and .md.
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

from hanorec.data.dataset import open_dataset, split_examples
from hanorec.data.examples import Example
from hanorec.evaluation.report import markdown
from hanorec.losses import perturbed_lora
from hanorec.models.backbone import Backbone, load_backbone
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score
from hanorec.training.optimization import adamw

HERE = Path(__file__).resolve().parent
LORA_NOISE = (0.01, 0.02, 0.05, 0.1)
LOGIT_NOISE = (0.05, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="tiny", help="a checkpoint folder or hub id (default: the tiny backbone)")
    parser.add_argument("--data", type=Path, help="dataset folder (default: the toy catalogue)")
    parser.add_argument("--prompts", type=int, default=20, help="users whose 20 candidates are scored (default 20)")
    parser.add_argument("--draws", type=int, default=3, help="draws of each noise (default 3)")
    parser.add_argument("--steps", type=int, default=10, help="SFT steps of the trained adapter; 0: leave it out")
    parser.add_argument("--name", default="lora_noise", help="of the result files (default lora_noise)")
    args = parser.parse_args()
    torch.manual_seed(0)
    data = open_dataset(args.data)
    test = split_examples(data, "test", "next", users=args.prompts)
    train = split_examples(data, "train", "next", users=max(1, 4 * args.steps))
    shown = {item for example in test + train for item in example.history}
    files = [path if item in shown else None for item, path in enumerate(data.catalog.images)]
    base = load_backbone(args.backbone, dtype="float32")
    images = CatalogImages(base, files, frozen=True, progress=False)
    prompts = Prompts(base, images, data.catalog.titles, "next")

    policy = add_lora(base, dropout=0.0)
    rows = score_changes(policy, "fresh", prompts, test, args.draws)
    if args.steps:
        train_steps(policy, prompts, train, args.steps)
        rows += score_changes(policy, f"{args.steps} steps", prompts, test, args.draws)
    gradients = gradient_differences()
    result = {
        "backbone": Path(args.backbone).name,
        "parameters": base.num_parameters,
        "prompts": args.prompts,
        "candidates": 20,
        "draws": args.draws,
        "scores": rows,
        "gradients": gradients,
    }
    write(result, args.name)


# what noise leaves of the scores


def score_changes(policy: Backbone, adapter: str, prompts: Prompts, examples: list[Example], draws: int) -> list[dict]:
    """Under each noise: how the candidates' log-probabilities go with the clean ones, a value a draw."""
    clean = candidate_logps(policy, prompts, examples)
    print(f"{adapter} adapter, no noise: mean log-probability {clean.mean():.2f}", flush=True)
    rows = []
    for where, noise_std in [*(("LoRA weights", s) for s in LORA_NOISE), *(("logits", s) for s in LOGIT_NOISE)]:
        noisy = [candidate_logps(policy, prompts, examples, where, noise_std, seed) for seed in range(draws)]
        rows.append({
            "adapter": adapter,
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
    policy: Backbone, prompts: Prompts, examples: list[Example], where: str = "", noise_std: float = 0.0, seed: int = 0
) -> np.ndarray:
    """log π of every candidate's title, [prompts, candidates]; noise on the weights is one draw for all of them."""
    policy.model.eval()
    generator = torch.Generator().manual_seed(seed)
    logps = []
    with perturbed_lora(policy.model, noise_std if where == "LoRA weights" else 0.0, generator=generator):
        for example in examples:
            titles = [prompts.name([item]) for item in example.candidates]
            noise = {"noise_std": noise_std if where == "logits" else 0.0, "generators": [generator]}
            logps.append(score(policy, prompts.images, [prompts.prompt(example)], [titles], **noise))
    return torch.stack(logps).cpu().numpy()


def rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's ρ, without ties."""
    return float(np.corrcoef(x.argsort().argsort(), y.argsort().argsort())[0, 1])


def train_steps(policy: Backbone, prompts: Prompts, examples: list[Example], steps: int) -> None:
    """SFT on four examples a step."""
    policy.model.train()
    optimizer = adamw(policy.model, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    for step in range(steps):
        batch = examples[4 * step : 4 * step + 4]
        chosen = [[prompts.chosen(example)] for example in batch]
        logps = score(policy, prompts.images, [prompts.prompt(example) for example in batch], chosen)
        (-logps.sum() / sum(len(answer) for (answer,) in chosen)).backward()
        optimizer.step()
        optimizer.zero_grad()


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

    def add_noise() -> None:
        for weight, epsilon in zip(weights, noise):
            weight.data.add_(epsilon)

    def take_noise_away() -> None:
        for weight, before in zip(weights, clean):
            weight.data.copy_(before)

    def at_clean_weights() -> None:
        loss().backward()

    def in_place_around_both() -> None:
        add_noise()
        loss().backward()
        take_noise_away()

    def in_place_around_forward() -> None:
        add_noise()
        value = loss()
        take_noise_away()
        value.backward()

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

    at_clean, rows = gradient(at_clean_weights), []
    for way, work, exact in (
        ("around the forward alone", in_place_around_forward, in_place_around_both),
        ("`perturbed_lora`, around forward and backward", in_context, in_context),
    ):
        at_noisy = gradient(exact)
        for checkpointing in ("reentrant", "not reentrant"):
            found = gradient(work, checkpointing)
            rows.append({"noise": way, "checkpointing": checkpointing, "from_noisy": distance(found, at_noisy),
                         "from_clean": distance(found, at_clean)})  # fmt: skip
    return rows


def write(result: dict, name: str) -> None:
    def of(values: list[float]) -> str:
        return f"{mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]"

    rows = [
        [r["noise_on"], r["adapter"], str(r["noise_std"]), of(r["correlation"]), of(r["rank_correlation"]),
         f"{r['clean_logp']:.1f}", f"{mean(r['mean_logp']):.1f}"]
        for r in result["scores"]
    ]  # fmt: skip
    header = ["noise on", "adapter", "σ", "correlation", "rank correlation in a prompt", "mean log π, clean", "noisy"]
    title = (
        f"Log-probabilities of {result['prompts']} × {result['candidates']} candidate titles under noise against the "
        f"clean ones: LoRA rank 8, alpha 32 on a backbone of {result['parameters'] / 1e6:.0f} M parameters; "
        f"mean [least, most] over {result['draws']} draws"
    )
    text = f"{title}\n\n{markdown(header, rows)}\n\n"
    text += "LoRA gradients under gradient checkpointing, tiny backbone, σ 0.05: relative distance from\n\n"
    rows = [
        [g["noise"], g["checkpointing"], f"{g['from_noisy']:.1e}", f"{g['from_clean']:.1e}"]
        for g in result["gradients"]
    ]
    header = ["noise", "checkpointing", "those at the noisy weights", "those at the clean weights"]
    text += markdown(header, rows) + "\n"
    folder = HERE / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
