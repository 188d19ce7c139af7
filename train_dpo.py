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

import torch
from torch import Tensor

from hanorec import distributed
from hanorec.cache import weights_fingerprint
from hanorec.data.dataset import open_dataset, split_examples
from hanorec.errors import exit_on_user_error
from hanorec.hardness import item_neighbours, pair_hardness
from hanorec.losses import LossOutput, hanorec_loss, log_ratio_margin, perturbed_lora, policy_responsiveness
from hanorec.models.lora import add_lora, lora_options, ready_to_train
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score
from hanorec.preference_losses import RunningResponsiveness
from hanorec.training.loop import Run, cosine_schedule, optimizer_for, seed_everything, total_steps
from hanorec.training.options import DPOOptions, cache_folder, complete, example_options, parse
from hanorec.training.runs import check_output, open_run
from hanorec.training.session import encoder_for, load_sft, reference_logps, save_model, validation


def main() -> None:
    options = parse(DPOOptions)
    check_output(options)
    seed_everything(options.seed)
    backbone, sft = load_sft(options.sft, dtype=options.dtype)
    complete(options, sft)
    options.reference = weights_fingerprint(backbone.model.state_dict())
    data, cache = open_dataset(options.data), cache_folder(options)
    encoder = encoder_for(backbone, data.catalog, frozen=True, cache=cache, pixels=options.image_pixels)
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
    backbone.model = add_lora(backbone.model, **lora_options(options))
    model = ready_to_train(backbone.model, options)
    total = total_steps(len(examples), options)
    optimizer = optimizer_for(model, options.learning_rate, options.weight_decay)
    schedule = cosine_schedule(optimizer, total, options.warmup)
    if options.loss == "dpo":  # λ = η = 1
        hardness, responsiveness = torch.ones_like(hardness), lambda gaps: 1.0
    else:
        responsiveness = policy_responsiveness if options.recipe == "paper" else RunningResponsiveness()
    open_run(options, "dpo")
    lora_noise = options.noise_std if options.noise == "lora" else 0.0
    epochs = split_by_epoch(parts, responses, reference, hardness)
    lengths = [prompts.length(example, answers) for example, answers in zip(examples, epochs[0][0])]
    running = dict(running=responsiveness, compute=backbone.compute)
    with Run(options, model, optimizer, schedule, total=total, **running) as run:

        def log_probabilities(part: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            """log π_θ under noise and log π_ref of a part's pairs; asked again in the same step, the same again."""
            run.seed(part)
            policy = score(
                encoder,
                [prompts.prompt(examples[i]) for i in part],
                [responses[i] for i in part],
                noise_std=options.noise_std if options.noise == "logits" else 0.0,
                generators=[run.generator(i) for i in part],
            )
            return by_pair(policy, reference[part].to(policy.device))

        for batch in run.steps([example.user for example in examples], lengths):
            responses, reference, hardness = epochs[run.epoch % parts]
            own, outputs, eta = run.parts(batch), [], None
            with perturbed_lora(model, lora_noise, generator=run.generator()):
                if len(own) != 1:  # Eq. 8 is over the whole batch: where that takes several forwards, look ahead
                    with torch.no_grad():
                        margins = [(log_ratio_margin(*log_probabilities(part)), share) for part, share in own]
                    eta = responsiveness(options.beta * everyones(margins))
                for part, share in own:
                    logps = log_probabilities(part)
                    if eta is None:
                        eta = responsiveness(options.beta * everyones([(log_ratio_margin(*logps), share)]))
                    weight = hardness[part].flatten().to(logps[0].device)
                    output = hanorec_loss(*logps, weight, beta=options.beta, responsiveness=eta)
                    run.backward(output.loss * share)
                    outputs += [output] if share else []
            numbers = summary(outputs, hardness[batch])
            run.log(**numbers, gradient_norm=run.update(), learning_rate=schedule.get_last_lr()[0])
            run.consider(lambda: validation(prompts, held_out, options.forward_tokens))
        run.finish(lambda folder, weights: save_model(backbone, folder, weights, merge=options.merge))


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


def everyones(margins: list[tuple[Tensor, float]]) -> Tensor:
    """The margins of all processes' parts, but of those that have no share of the batch."""
    return distributed.all_gather([margin for margin, share in margins if share])


def by_pair(policy: Tensor, reference: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Policy chosen, policy rejected, reference chosen, reference rejected: [pairs] each, from [examples, 1 + pairs]
    tables whose first column is the chosen response. A chosen response stands beside each of its rejected ones."""
    policy = policy.view_as(reference)
    columns = [(table[:, :1].expand_as(table[:, 1:]), table[:, 1:]) for table in (policy, reference)]
    return tuple(column.flatten() for pair in columns for column in pair)


def summary(outputs: list[LossOutput], hardness: Tensor) -> dict[str, float]:
    """A step's line of the log, over all processes' pairs. margin: β Δ, the difference of the rewards, in nats."""
    kept = ("losses", "beta", "chosen_rewards", "rejected_rewards")
    own = [torch.stack([getattr(o, name) for name in kept] + [o.responsiveness.expand_as(o.beta)], 1) for o in outputs]
    losses, beta, chosen, rejected, eta = distributed.all_gather(own, 5).T
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
        "responsiveness": eta[0],
    }


if __name__ == "__main__":
    with exit_on_user_error():
        main()
