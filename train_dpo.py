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
python train_dpo.py settings.yaml --seed 3             settings from a file; an option after it wins
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hanorec import distributed
from hanorec.data.dataset import open_dataset, split_examples
from hanorec.errors import exit_on_user_error
from hanorec.evaluation.ranking import validate
from hanorec.hardness import item_neighbours, pair_hardness
from hanorec.losses import (
    LossOutput,
    RunningResponsiveness,
    hanorec_loss,
    log_ratio_margin,
    perturbed_lora,
    policy_responsiveness,
)
from hanorec.models.backbone import Backbone
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora, lora_options, prepare_for_training
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score, score_all
from hanorec.training.loop import MicroBatch, Run
from hanorec.training.optimization import adamw, clip_gradients, cosine_learning_rate, seed_everything, total_steps
from hanorec.training.options import DPOOptions, cache_folder, example_options, fill_defaults, parse
from hanorec.training.pairs import PreferencePairs, chosen_and_rejected
from hanorec.training.runs import check_output, load_sft, open_run, save_model


def main() -> None:
    options = parse(DPOOptions)
    check_output(options)
    seed_everything(options.seed)
    reference, sft_config = load_sft(options.sft, dtype=options.dtype)  # π_ref, frozen
    fill_defaults(options, sft_config)
    data, cache = open_dataset(options.data), cache_folder(options)
    images = CatalogImages(reference, data.catalog.images, frozen=True, cache=cache, pixels=options.image_pixels)
    prompts = Prompts(reference, images, data.catalog.titles, options.task, list_candidates=options.list_candidates)

    # The pairs, their hardness λ and log π_ref of their responses: computed once a run.
    similarities, neighbours = item_neighbours(reference, images, data.catalog, options.neighbours, cache=cache)
    draws = math.ceil(options.epochs) if options.fresh_negatives else 1  # draws of negatives: one an epoch, or one
    examples = split_examples(
        data,
        "train",
        every=options.windows == "every",
        users=options.train_users,
        rejected=options.rejected * draws,
        negatives=options.negatives,
        neighbours=neighbours.numpy(),
        **example_options(options),
    )
    held_out = split_examples(data, "val", users=options.validate_users, **example_options(options))
    x = [prompts.prompt(example) for example in examples]
    y = [[prompts.chosen(example), *prompts.rejected(example)] for example in examples]  # y_w, then every y_l
    reference_logps = score_all(reference, images, x, y, forward_tokens=options.forward_tokens, cache=cache)
    hardness = pair_hardness(similarities, examples, temperature=options.temperature)  # λ, Eqs. 5, 6
    if options.loss == "dpo":
        hardness = torch.ones_like(hardness)
    pairs = PreferencePairs(x, y, reference_logps, hardness)
    pairs_of_epoch = [pairs.of_epoch(epoch, options.rejected) for epoch in range(draws)]

    # The policy π_θ: the reference's weights with a fresh adapter on top. The reference is not needed any more.
    policy = add_lora(reference, **lora_options(options))
    prepare_for_training(policy, options)
    optimizer = adamw(policy.model, options.weight_decay)
    scaler = torch.amp.GradScaler(policy.device.type, enabled=policy.compute == torch.float16)  # else it does nothing
    running = RunningResponsiveness() if options.recipe == "calibrated" else None
    logit_noise = options.noise_std if options.noise == "logits" else 0.0
    lora_noise = options.noise_std if options.noise == "lora" else 0.0
    total = total_steps(len(examples), options)
    open_run(options, "dpo")
    lengths = [prompts.length(example, answers[: 1 + options.rejected]) for example, answers in zip(examples, y)]
    with Run(options, policy.model, optimizer, scaler, total=total, running=running) as run:
        for batch in run.batches([example.user for example in examples], lengths):
            learning_rate = cosine_learning_rate(run.step, total, options.learning_rate, options.warmup)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

            pairs, micro_batches = pairs_of_epoch[run.epoch % draws], run.micro_batches(batch)
            own = pairs[[i for micro in micro_batches for i in micro.indices]]  # this rank's share of the batch
            weights = pair_weights(micro_batches, options.rejected).to(policy.device)
            hardness = own.hardness.flatten().to(policy.device)  # λ
            with perturbed_lora(policy.model, lora_noise, generator=run.generator()):  # NoDO on the LoRA weights
                # log π_θ(y_w|x) and log π_θ(y_l|x), with NoDO on the logits; then log π_ref of the same
                logps = policy_logps(policy, images, pairs, micro_batches, run, noise_std=logit_noise)
                run.require_finite("log π_θ", logps)
                table = (*chosen_and_rejected(logps), *chosen_and_rejected(own.reference_logps.to(policy.device)))
                if options.loss == "dpo":
                    eta = torch.ones(())
                else:
                    gaps = options.beta * log_ratio_margin(*table)[weights > 0]  # R = β₀ Δ, Eq. 7
                    gaps = distributed.all_gather(gaps)  # of the whole batch
                    eta = running(gaps) if running else policy_responsiveness(gaps)  # η, Eq. 8
                output = hanorec_loss(*table, hardness, beta=options.beta, responsiveness=eta)  # Eqs. 11, 12
                loss = (output.losses * weights).sum()  # this rank's share of the mean over the batch's pairs
                scaler.scale(loss).backward()

            distributed.all_reduce_gradients(policy.model)
            scaler.unscale_(optimizer)
            grad_norm = clip_gradients(policy.model, options.max_grad_norm, must_be_finite=not scaler.is_enabled())
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if run.should_log():
                values = summary(output, hardness, weights > 0)
                run.log(values | {"grad_norm": grad_norm, "learning_rate": learning_rate})
            if run.should_validate():
                run.keep_if_best(*validate(policy, prompts, held_out, options.forward_tokens))
        run.finish(partial(save_model, policy, merge=options.merge))


def policy_logps(
    policy: Backbone,
    images: CatalogImages,
    pairs: PreferencePairs,
    micro_batches: list[MicroBatch],
    run: Run,
    *,
    noise_std: float,
) -> Tensor:
    """log π_θ of all responses of the micro-batches, [n, 1 + R], under NoDO on the logits where `noise_std` > 0.

    A batch that takes several forwards keeps none of their activations: the backward computes each forward again, with
    the same dropout and noise, since both are functions of seed, step and example. So the loss is one expression over
    the whole batch, as in the paper, and memory is that of one micro-batch.
    """

    def forward(indices: list[int]) -> Tensor:
        run.seed(indices)
        own, generators = pairs[indices], [run.generator(i) for i in indices]
        logps = score(policy, images, own.prompts, own.responses, noise_std=noise_std, generators=generators)
        return logps.view(len(indices), -1)

    if len(micro_batches) == 1:
        return forward(micro_batches[0].indices)
    recomputed = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([recomputed(micro.indices) for micro in micro_batches])


def pair_weights(micro_batches: list[MicroBatch], rejected: int) -> Tensor:
    """The weight of each pair in the mean over the batch, [n · R]."""
    weights = torch.tensor([micro.weight for micro in micro_batches for _ in micro.indices])
    return weights.repeat_interleave(rejected) / rejected


def summary(output: LossOutput, hardness: Tensor, counted: Tensor) -> dict[str, Tensor]:
    """A step's line of the log, over the pairs of all ranks. margin: β Δ, the difference of the rewards, in nats."""
    columns = (output.losses, output.beta, output.chosen_rewards, output.rejected_rewards, hardness)
    losses, beta, chosen, rejected, hardness = distributed.all_gather(torch.stack(columns, dim=1)[counted]).T
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
        "responsiveness": output.responsiveness,
    }


if __name__ == "__main__":
    with exit_on_user_error():
        main()
