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

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hanorec import distributed
from hanorec.cache import weights_fingerprint
from hanorec.data.dataset import Dataset, open_dataset
from hanorec.data.examples import Example, groups, listed_negatives
from hanorec.errors import exit_on_user_error
from hanorec.evaluation.ranking import validate
from hanorec.hardness import embed_modalities, item_neighbours, pair_hardness
from hanorec.losses import LossOutput, log_ratio_margin, perturbed_lora, policy_responsiveness
from hanorec.models.backbone import Backbone
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora, lora_options, prepare_for_training
from hanorec.models.prompts import Prompts, windows_for
from hanorec.models.scoring import score, score_all
from hanorec.randomness import seed_everything
from hanorec.related.neighbourhoods import refine
from hanorec.related.policy_negatives import check_pool, policy_negatives
from hanorec.training.inputs import open_examples, validation_examples
from hanorec.training.loop import MicroBatch, Run
from hanorec.training.objective import choose_objective, takes
from hanorec.training.optimization import adamw, clip_gradients, cosine_learning_rate, rows_per_step, total_steps
from hanorec.training.options import (
    DPOOptions,
    cache_folder,
    draws_of_negatives,
    fill_defaults,
    parse,
)
from hanorec.training.pairs import PreferencePairs, chosen_and_rejected
from hanorec.training.runs import check_output, load_sft, open_run, save_model


def main() -> None:
    options = parse(DPOOptions)
    check_output(options)
    seed_everything(options.seed)
    reference, sft_config = load_sft(  # π_ref, frozen
        options.sft, dtype=options.dtype, views=options.image_views, remote_code=options.remote_code
    )
    fill_defaults(options, sft_config)
    data, cache = open_dataset(options.data), cache_folder(options)
    descriptions = data.descriptions(options.item_view)
    images = CatalogImages(reference, data.catalog.images, frozen=True, cache=cache, pixels=options.image_pixels)
    prompts = Prompts(
        reference,
        images,
        data.catalog.titles,
        options.task,
        list_candidates=options.list_candidates,
        protocol=options.protocol,
        item_view=options.item_view,
        descriptions=descriptions,
    )

    # The pairs, their hardness λ and log π_ref of their responses: computed once a run.
    kept = dict(weights=weights_fingerprint(reference.model.state_dict()), cache=cache)  # for later runs, too
    similarities, neighbours = neighbourhood(reference, images, data, options, **kept)
    windows = windows_for(reference.layout, options.windows)
    draws = draws_of_negatives(options)
    drawn = dict(windows=windows, users=options.train_users, seed=options.seed)
    if options.negatives.startswith("policy"):
        examples = examples_from_policy(reference, prompts, data, options, options.rejected * draws, drawn, **kept)
    else:
        near = listed_negatives(data.folder, data.catalog) if options.negatives == "listed" else neighbours.numpy()
        drawn |= dict(rejected=options.rejected * draws, negatives=options.negatives, neighbours=near)
        examples = open_examples(data, "train", options, **drawn)
    held_out = validation_examples(data, options, seed=options.seed, users=options.validate_users)
    rows = groups(examples, nested=windows == "nested")  # the examples that one prompt x asks for
    x = [prompts.nested(row) for row in rows]
    y = [[title for e in row for title in (prompts.chosen(e), *prompts.rejected(e))] for row in rows]  # y_w, every y_l
    reference_logps = score_all(reference, images, x, y, forward_tokens=options.forward_tokens, **kept)
    hardness = pair_hardness(similarities, examples, temperature=options.temperature)  # λ, Eqs. 5, 6
    if options.hardness == "off" or not takes(options.loss, "hardness"):
        hardness = torch.ones_like(hardness)
    pairs = PreferencePairs(x, y, reference_logps.view(len(examples), -1), hardness)
    pairs_of_epoch = [pairs.of_epoch(epoch, options.rejected) for epoch in range(draws)]

    # The policy π_θ: the reference's weights with a fresh adapter on top. The reference is not needed any more.
    policy = add_lora(reference, **lora_options(options))
    del reference
    prepare_for_training(policy, options)
    optimizer = adamw(policy.model, options.weight_decay)
    scaler = torch.amp.GradScaler(policy.device.type, enabled=policy.compute == torch.float16)  # else it does nothing
    objective, running = choose_objective(options)  # running: what it keeps from batch to batch, if anything
    logit_noise = options.noise_std if options.noise == "logits" else 0.0
    lora_noise = options.noise_std if options.noise == "lora" else 0.0
    size = rows_per_step(rows, options)
    total = total_steps(len(rows), size, options)
    open_run(options, "dpo", data.folder)
    lengths = [prompts.length(prompt, responses) for prompt, responses in zip(x, pairs_of_epoch[0].responses)]
    with Run(options, policy.model, optimizer, scaler, total=total, running=running) as run:
        if run.step == 0:  # the policy is still the SFT model
            run.start_from(*validate(policy, prompts, held_out, options.forward_tokens))
        for batch in run.batches([row[0].user for row in rows], lengths, size):
            learning_rate = cosine_learning_rate(run.step, total, options.learning_rate, options.warmup)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

            epoch_pairs, micro_batches = pairs_of_epoch[run.epoch % draws], run.micro_batches(batch)
            with perturbed_lora(policy.model, lora_noise, generator=run.generator()):  # NoDO on the LoRA weights
                # log π_θ(y_w|x) and log π_θ(y_l|x), with NoDO on the logits, of this rank's share of the batch
                own_logps = policy_logps(policy, images, epoch_pairs, micro_batches, run, noise_std=logit_noise)
                run.require_finite("log π_θ", own_logps)
                logps, reference_logps, tokens, hardness = whole_batch(own_logps, epoch_pairs, micro_batches)
                if takes(options.loss, "responsiveness"):  # HaNoRec
                    pair_logps = (*chosen_and_rejected(logps), *chosen_and_rejected(reference_logps))
                    gaps = options.beta * log_ratio_margin(*pair_logps)  # R = β₀ Δ, Eq. 7
                    eta = running(gaps) if running else policy_responsiveness(gaps)  # η, Eq. 8, over the whole batch
                    extra = {"responsiveness": 1.0 if options.responsiveness == "off" else eta}
                else:
                    extra = {"generator": run.generator()} if takes(options.loss, "generator") else {}
                # By default losses.hanorec_loss: β = β₀ η λ of every pair, Eq. 11, and −log σ(β Δ), Eq. 12
                output = objective(logps, reference_logps, lengths=tokens, hardness=hardness, **extra)
                sft_loss = -(logps[:, 0] / tokens[:, 0]).mean()  # nats a token
                loss = output.loss + options.sft_weight * sft_loss
                loss = loss + 0.0 * own_logps.sum()  # all ranks go backward, also one without a share of the batch
                scaler.scale(loss).backward()

            distributed.all_reduce_gradients(policy.model)
            scaler.unscale_(optimizer)
            grad_norm = clip_gradients(policy.model, options.max_grad_norm, must_be_finite=not scaler.is_enabled())
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if run.should_log():
                values = summary(output, options.beta, logps, tokens, hardness)
                run.log(values | {"grad_norm": grad_norm, "learning_rate": learning_rate})
            if run.should_validate():
                run.keep_if_best(*validate(policy, prompts, held_out, options.forward_tokens))
        run.finish(partial(save_model, policy, merge=options.merge))


def neighbourhood(
    reference: Backbone, images: CatalogImages, data: Dataset, options: DPOOptions, **kept
) -> tuple[Tensor, Tensor]:
    """S_i of Eq. 5, and the items whose similarities these are, [items, K] each; refined where the options say so."""
    similarities, neighbours = item_neighbours(reference, images, data.catalog, options.neighbours, **kept)
    if options.neighbourhood == "embeddings":
        return similarities, neighbours
    rows, threshold = [sequence.items for sequence in data.train], options.neighbour_threshold
    similarities, neighbours, changes = refine(similarities, neighbours, rows, threshold=threshold)
    if distributed.is_main_process():
        print(changes)
    return similarities, neighbours


def examples_from_policy(
    reference: Backbone, prompts: Prompts, data: Dataset, options: DPOOptions, rejected: int, drawn: dict, **kept
) -> list[Example]:
    """Examples whose rejected items are drawn from a random pool by the reference's own probabilities."""
    check_pool(options.negative_pool, rejected, len(data.warm))
    pools = open_examples(data, "train", options, rejected=options.negative_pool, **drawn)
    with_modality = options.negatives == "policy-modality"
    return policy_negatives(
        reference,
        prompts,
        pools,
        rejected,
        candidates=options.candidates,
        temperature=options.negative_temperature,
        modalities=embed_modalities(reference, prompts.images, data.catalog.titles) if with_modality else None,
        modality_weight=options.negative_modality_weight,
        forward_tokens=options.forward_tokens,
        seed=options.seed,
        **kept,
    )


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
        return logps.view(own.reference_logps.shape)

    if len(micro_batches) == 1:
        return forward(micro_batches[0].indices)
    recomputed = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
    return torch.cat([recomputed(micro.indices) for micro in micro_batches])


def whole_batch(
    own_logps: Tensor, pairs: PreferencePairs, micro_batches: list[MicroBatch]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The tables of all ranks' examples: log π_θ, log π_ref and tokens of the responses, [B, 1 + R], and λ, [B, R]. In
    the first, this rank's own rows carry a gradient; a prompt of weight 0 is left out."""
    indices = [i for micro in micro_batches for i in micro.indices if micro.weight > 0]
    own = pairs[indices]
    tokens = torch.tensor([len(response) for responses in own.responses for response in responses])
    tables = (own.reference_logps, tokens.reshape(own.reference_logps.shape), own.hardness)
    on_device = [table.to(own_logps.device, own_logps.dtype) for table in tables]
    return tuple(map(distributed.all_gather_rows, (own_logps[: len(own.reference_logps)], *on_device)))


def summary(output: LossOutput, beta: float, logps: Tensor, tokens: Tensor, hardness: Tensor) -> dict[str, Tensor]:
    """A step's line of the log. margin: the difference of the rewards, in nats (for HaNoRec β Δ). chosen_logp and
    rejected_logp: log π_θ of a response, in nats, and in nats a token. adapted: the share of pairs whose β differs from
    β₀ by more than 5 %."""
    rewards = {"chosen_reward": output.chosen_rewards, "rejected_reward": output.rejected_rewards}
    per_token = logps / tokens
    return {
        "loss": output.loss,
        "margin": (output.chosen_rewards - output.rejected_rewards).mean(),
        "accuracy": (output.chosen_rewards > output.rejected_rewards).float().mean(),
        **{name: values.mean() for name, values in rewards.items()},
        "chosen_logp": logps[:, 0].mean(),
        "rejected_logp": logps[:, 1:].mean(),
        "chosen_logp_per_token": per_token[:, 0].mean(),
        "rejected_logp_per_token": per_token[:, 1:].mean(),
        "beta_mean": output.beta.mean(),
        "beta_min": output.beta.min(),
        "beta_max": output.beta.max(),
        "adapted": ((output.beta / beta - 1).abs() > 0.05).float().mean(),
        "hardness_mean": hardness.mean(),
        "hardness_std": hardness.std(correction=0),
        "responsiveness": output.responsiveness,
    }


if __name__ == "__main__":
    with exit_on_user_error():
        main()
