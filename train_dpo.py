#!/usr/bin/env python3
"""Stage 2: HaNoRec, preference optimization with hardness-aware reweighting and noise (arXiv 2511.18740).

                                                          equation      function
δ and λ of every pair, from its items' neighbourhoods     Eqs. 5, 6     losses.neighbourhood_distance, hardness_weight
log π_ref of every response, once, by the SFT model                     models.scoring.score_all
for each batch of (prompt x, chosen y_w, rejected y_l):
    log π_θ(y_w | x), log π_θ(y_l | x) under noise        NoDO          losses.perturbed_logits, perturbed_lora
    Δ = difference of the log-ratios,  R = β₀ Δ           Eq. 7         losses.log_ratio_margin, reward_gaps
    η from the batch's R                                  Eq. 8         losses.policy_responsiveness
    β = β₀ · η · λ                                        Eq. 11        losses.adaptive_beta
    minimise  −log σ(β Δ)                                 Eq. 12        losses.hanorec_loss

python train_dpo.py                                    HaNoRec on top of runs/sft
python train_dpo.py --loss dpo --output runs/dpo       plain DPO
python train_dpo.py settings.yaml --seed 3             settings from a file; an option after it wins
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hanorec import distributed
from hanorec.data.dataset import open_dataset
from hanorec.errors import exit_on_user_error
from hanorec.evaluation.ranking import validate
from hanorec.losses import (
    RunningResponsiveness,
    chosen_and_rejected,
    hanorec_loss,
    perturbed_lora,
    policy_responsiveness,
    reward_gaps,
)
from hanorec.models.backbone import Backbone
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora, prepare_for_training
from hanorec.models.scoring import score
from hanorec.randomness import seed_everything
from hanorec.related.batch_objectives import RunningGaps
from hanorec.related.objectives import WITH_RUNNING_GAPS, related_objective
from hanorec.training.command_line import parse
from hanorec.training.dpo_options import DPOOptions, complete_dpo
from hanorec.training.inputs import open_prompts, validation_examples
from hanorec.training.loop import Run
from hanorec.training.metrics import preference_metrics
from hanorec.training.optimization import (
    adamw,
    clip_gradients,
    cosine_learning_rate,
    grad_scaler,
    set_learning_rate,
)
from hanorec.training.options import cache_folder
from hanorec.training.pairs import PreferencePairs, make_pairs
from hanorec.training.runs import check_output, load_sft, open_run, save_model
from hanorec.training.schedule import MicroBatch, make_schedule


def main() -> None:
    options = parse(DPOOptions)
    check_output(options)
    seed_everything(options.seed)
    trust = {"remote_code": options.remote_code, "changed_run": options.changed_run}
    reference, sft = load_sft(options.sft, dtype=options.dtype, **trust)  # π_ref, frozen, and how it was trained
    complete_dpo(options, sft)
    data = open_dataset(options.data)
    prompts = open_prompts(reference, data, sft, cache=cache_folder(options.cache, options.output))
    held_out = validation_examples(data, sft, seed=options.seed, users=options.validate_users)
    prompts.check(held_out)
    pairs = make_pairs(reference, prompts, data, options, sft)  # x, y_w, y_l; λ, Eqs. 5, 6; log π_ref

    # The policy π_θ: the reference's weights with a fresh adapter on top.
    policy = add_lora(
        reference,
        layers=options.layers,
        rank=options.lora_rank,
        alpha=options.lora_alpha,
        dropout=options.lora_dropout,
    )
    prepare_for_training(policy, gradient_checkpointing=options.gradient_checkpointing)
    optimizer, scaler = adamw(policy.model, options.weight_decay), grad_scaler(policy.device, policy.compute)
    logit_noise = options.noise_std if options.noise == "logits" else 0.0
    lora_noise = options.noise_std if options.noise == "lora" else 0.0
    calibrated = RunningResponsiveness() if options.recipe == "calibrated" else None
    responsiveness = no_responsiveness if options.responsiveness == "off" else calibrated or policy_responsiveness  # η
    margins = RunningGaps() if options.loss in WITH_RUNNING_GAPS else None  # what β-DPO and DAMA have seen so far
    lengths = [prompts.length(prompt, responses) for prompt, responses in zip(pairs.prompts, pairs.responses)]
    schedule = make_schedule(pairs.users, lengths, len(pairs.hardness), options)
    open_run(options, data.folder)
    with Run(options, policy.model, optimizer, scaler, schedule, running=calibrated or margins) as run:
        if run.step == 0:  # the policy is still the SFT model
            run.start_from(*validate(policy, prompts, held_out, options.forward_tokens))
        for numbers in run.batches():
            learning_rate = cosine_learning_rate(run.step, schedule.steps, options.learning_rate, options.warmup)
            set_learning_rate(optimizer, learning_rate)

            ranks = schedule.micro_batches(numbers)  # which rank reads which prompts
            batch = pairs.batch(ranks, run.device)  # log π_ref, lengths and λ of all of them
            with perturbed_lora(policy.model, lora_noise, generator=run.generator()):  # NoDO on the LoRA weights
                # log π_θ(y_w|x) and log π_θ(y_l|x), with NoDO on the logits
                logps = policy_logps(policy, prompts.images, pairs, ranks[distributed.rank()], run, logit_noise)
                if options.loss == "hanorec":
                    log_pi, log_ref = chosen_and_rejected(logps), chosen_and_rejected(batch.reference_logps)
                    gaps = reward_gaps(*log_pi, *log_ref, beta=options.beta)  # R = β₀ Δ of the whole batch, Eq. 7
                    eta = responsiveness(gaps)  # η, Eq. 8
                    hardness = batch.hardness.flatten()  # λ
                    # Eqs. 11, 12; the loss computes Δ again, so that it stands alone
                    output = hanorec_loss(*log_pi, *log_ref, hardness, beta=options.beta, responsiveness=eta)
                else:
                    output = related_objective(
                        options.loss,
                        logps,
                        *batch,
                        beta=options.beta,
                        responsiveness=responsiveness,
                        running=margins,
                        generator=run.generator(),
                    )
                sft_loss = -(logps[:, 0] / batch.lengths[:, 0]).mean()  # nats a token
                scaler.scale(output.loss + options.sft_weight * sft_loss).backward()

            distributed.all_reduce_gradients(policy.model)
            scaler.unscale_(optimizer)
            grad_norm = clip_gradients(policy.model, must_be_finite=not scaler.is_enabled())
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if run.should_log():
                values = preference_metrics(output, options.beta, logps, batch)
                run.log(values | {"grad_norm": grad_norm, "learning_rate": learning_rate})
            if run.should_validate():
                run.keep_if_best(*validate(policy, prompts, held_out, options.forward_tokens))
        run.finish(partial(save_model, policy))


def policy_logps(
    policy: Backbone,
    images: CatalogImages,
    pairs: PreferencePairs,
    micro_batches: list[MicroBatch],
    run: Run,
    noise_std: float,
) -> Tensor:
    """log π_θ of all responses of a batch, [B, 1+R], under NoDO on the logits where `noise_std` > 0.

    This rank reads its own micro-batches; the rows of the others come without a gradient. A share that takes several
    forwards keeps none of their activations: the backward computes each forward again, with the same dropout and noise,
    since both are functions of seed, step and prompt. So the loss is one expression over the whole batch, as in the
    paper, and memory is that of one micro-batch. Errors: NotFiniteError where a log-probability is not finite.
    """

    def forward(indices: list[int]) -> Tensor:
        run.seed(indices)
        x, y = [pairs.prompts[i] for i in indices], [pairs.responses[i] for i in indices]
        generators = [run.generator(i) for i in indices]
        logps = score(policy, images, x, y, noise_std=noise_std, generators=generators)
        return logps.view(-1, pairs.reference_logps.shape[1])

    if len(micro_batches) == 1:
        own = forward(micro_batches[0].indices)
    else:
        again = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        own = torch.cat([again(micro.indices) for micro in micro_batches])
    run.require_finite("log π_θ", own)
    examples = sum(len(pairs.examples[i]) for micro in micro_batches if micro.counts for i in micro.indices)
    # All ranks go backward, also one without a share of the batch.
    return distributed.all_gather_rows(own[:examples]) + 0.0 * own.sum()


def no_responsiveness(reward_gaps: Tensor) -> Tensor:
    """η = 1, where the policy's responsiveness is left out."""
    return reward_gaps.new_ones(())


if __name__ == "__main__":
    with exit_on_user_error():
        main()
