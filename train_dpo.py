#!/usr/bin/env python3
"""Stage 2: HaNoRec, preference optimization with hardness-aware reweighting and noise (arXiv 2511.18740).

λ of every pair from its items' neighbourhoods                                     Eqs. 5, 6
log π_ref of every response, once, by the SFT model
for each batch of (prompt x, chosen y_w, rejected y_l):
    log π_θ(y_w | x), log π_θ(y_l | x) under noise                                  NoDO
    Δ = difference of the log-ratios,  R = β₀ Δ                                     Eq. 7
    η from the batch's R,  β = β₀ · η · λ                                           Eqs. 8, 11
    minimise  −log σ(β Δ)                                                           Eq. 12

python train_dpo.py                                    HaNoRec on top of runs/sft
python train_dpo.py --loss dpo --output runs/dpo       plain DPO
python train_dpo.py settings.yaml
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hanorec.backbone import add_lora
from hanorec.cache import weights_fingerprint
from hanorec.dataset import open_dataset, split_examples
from hanorec.hardness import item_neighbours, pair_hardness
from hanorec.losses import LossOutput, hanorec_loss, log_ratio_margin, perturbed_lora, policy_responsiveness
from hanorec.options import DPOOptions, cache_folder, complete, example_options, parse
from hanorec.preference_losses import RunningResponsiveness
from hanorec.prompts import Prompts
from hanorec.scoring import score
from hanorec.session import encoder_for, load_sft, reference_logps, save_model, validation
from hanorec.training import (
    Run,
    check_output,
    clear_errors,
    cosine_schedule,
    open_run,
    optimizer_for,
    seed_everything,
    total_steps,
)


def main() -> None:
    options = parse(DPOOptions)
    check_output(options)
    seed_everything(options.seed)
    backbone, sft = load_sft(options.sft, dtype=options.dtype)
    complete(options, sft)
    options.reference = weights_fingerprint(backbone.model.state_dict())
    data, cache = open_dataset(options.data), cache_folder(options)
    encoder = encoder_for(backbone, data.catalog, frozen=True, cache=cache)
    prompts = Prompts(encoder, data.catalog.titles, options.task, list_candidates=options.list_candidates)

    similarities, neighbours = item_neighbours(encoder, data.catalog, options.neighbours, options.reference, cache)
    parts = math.ceil(options.epochs) if options.fresh_negatives else 1  # of the rejected items: one an epoch, or all
    examples = split_examples(
        data,
        "train",
        every=options.windows == "every",
        users=options.train_users,
        rejected=options.rejected * parts,
        negatives=options.negatives,
        neighbours=neighbours.numpy(),
        **example_options(options),
    )
    held_out = split_examples(data, "val", users=options.validate_users, **example_options(options))
    hardness = pair_hardness(similarities, examples, temperature=options.temperature)  # λ, [examples, pairs]
    responses = [[prompts.chosen(example), *prompts.rejected(example)] for example in examples]
    reference = reference_logps(  # [examples, 1 + pairs], the SFT model's
        prompts, examples, responses, options.reference, forward_tokens=options.forward_tokens, cache=cache
    )

    # The reference is the SFT model, adapter off; the policy is the same model with a fresh adapter.
    backbone.model = add_lora(
        backbone.model, rank=options.lora_rank, alpha=options.lora_alpha, dropout=options.lora_dropout
    )
    model = backbone.model.train()
    total = total_steps(len(examples), options)
    optimizer = optimizer_for(model, options.learning_rate, options.weight_decay)
    schedule = cosine_schedule(optimizer, total, options.warmup)
    if options.loss == "dpo":  # λ = η = 1
        hardness, responsiveness = torch.ones_like(hardness), lambda gaps: 1.0
    else:
        responsiveness = policy_responsiveness if options.recipe == "paper" else RunningResponsiveness()
    open_run(options, "dpo")
    epochs = split_by_epoch(parts, responses, reference, hardness)
    lengths = [prompts.length(example, answers) for example, answers in zip(examples, epochs[0][0])]
    with Run(options, model, optimizer, schedule, total=total, running=responsiveness) as run:
        for batch in run.steps([example.user for example in examples], lengths):
            responses, reference, hardness = epochs[run.epoch % parts]
            optimizer.zero_grad()
            outputs = []
            for part in run.parts(batch):
                with policy_noise(model, options, run.generator) as logit_noise:
                    asked = [prompts.prompt(examples[i]) for i in part]
                    answers = [responses[i] for i in part]
                    policy = score(encoder, asked, answers, noise_std=logit_noise, generator=run.generator)
                    logps = by_pair(policy, reference[part].to(policy.device))
                    gaps = options.beta * log_ratio_margin(*logps)
                    weight = hardness[part].flatten().to(policy.device)
                    output = hanorec_loss(*logps, weight, beta=options.beta, responsiveness=responsiveness(gaps))
                    (output.loss * len(part) / len(batch)).backward()
                outputs.append(output)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm, error_if_nonfinite=True)
            optimizer.step()
            schedule.step()
            run.log(**summary(outputs, hardness[batch]), gradient_norm=norm, learning_rate=schedule.get_last_lr()[0])
            run.consider(lambda: validation(prompts, held_out, options.forward_tokens))
        run.finish(lambda folder: save_model(backbone, folder))


def split_by_epoch(
    parts: int, responses: list, reference: Tensor, hardness: Tensor
) -> list[tuple[list, Tensor, Tensor]]:
    """`parts` times the responses, their reference log-probabilities and their pairs' hardness, each with its own share
    of the rejected responses: with fresh negatives an epoch has one to itself, and all are scored once."""
    size = hardness.shape[1] // parts
    found = []
    for first in range(0, size * parts, size):
        pairs = slice(first, first + size)
        answers = [[chosen, *rejected[pairs]] for chosen, *rejected in responses]
        found.append((answers, torch.cat([reference[:, :1], reference[:, 1:][:, pairs]], dim=1), hardness[:, pairs]))
    return found


@contextmanager
def policy_noise(model, options: DPOOptions, generator: torch.Generator) -> Iterator[float]:
    """NoDO for one policy forward and backward: perturbs the LoRA weights, or says how much noise logits get."""
    with perturbed_lora(model, options.noise_std if options.noise == "lora" else 0.0, generator=generator):
        yield options.noise_std if options.noise == "logits" else 0.0


def by_pair(policy: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Policy chosen, policy rejected, reference chosen, reference rejected: [pairs] each, from [examples, 1 + pairs]
    tables whose first column is the chosen response. A chosen response stands beside each of its rejected ones."""
    policy = policy.view_as(reference)
    columns = [(table[:, :1].expand_as(table[:, 1:]), table[:, 1:]) for table in (policy, reference)]
    return tuple(column.flatten() for pair in columns for column in pair)


def summary(outputs: list[LossOutput], hardness: Tensor) -> dict[str, float]:
    """A step's line of the log. margin: β Δ, the difference of the rewards, in nats."""
    beta, chosen, rejected, losses = (
        torch.cat([getattr(o, name).detach() for o in outputs])
        for name in ("beta", "chosen_rewards", "rejected_rewards", "losses")
    )
    return {
        "loss": losses.mean(),
        "margin": (chosen - rejected).mean(),
        "accuracy": (chosen > rejected).float().mean(),
        "chosen_reward": chosen.mean(),
        "rejected_reward": rejected.mean(),
        "beta_mean": beta.mean(),
        "beta_min": beta.min(),
        "beta_max": beta.max(),
        "hardness_mean": hardness.mean(),
        "hardness_std": hardness.std(correction=0),
        "responsiveness": torch.stack([o.responsiveness for o in outputs]).mean(),
    }


if __name__ == "__main__":
    with clear_errors():
        main()
