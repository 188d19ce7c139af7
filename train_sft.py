#!/usr/bin/env python3
"""Stage 1: supervised fine-tuning. The model reads a history and learns to name the next item.

for each batch of (prompt x, title y):   minimise  −log π_θ(y | x)

python train_sft.py                       on the embedded toy catalogue, with the tiny backbone
python train_sft.py --data DIR --backbone HuggingFaceTB/SmolVLM-256M-Instruct --output runs/sft
python train_sft.py --backbone runs/sft --output runs/sft-more       goes on from the model of an SFT run
python train_sft.py settings.yaml --seed 3             settings from a file; an option after it wins
"""

from __future__ import annotations

from functools import partial

import torch

from hanorec import distributed
from hanorec.data.dataset import open_dataset
from hanorec.data.examples import groups
from hanorec.errors import exit_on_user_error
from hanorec.evaluation.ranking import validate
from hanorec.memory import no_collection
from hanorec.models.encoding import vision_trains
from hanorec.models.lora import add_lora, freeze_vision, prepare_for_training
from hanorec.models.prompts import check_name_history, windows_for
from hanorec.models.scoring import score
from hanorec.randomness import seed_everything
from hanorec.training.command_line import parse
from hanorec.training.inputs import open_examples, open_prompts, validation_examples
from hanorec.training.loop import Run
from hanorec.training.optimization import (
    adamw,
    clip_gradients,
    cosine_learning_rate,
    grad_scaler,
    set_learning_rate,
)
from hanorec.training.options import SFTOptions, cache_folder, complete_sft, lora_trains
from hanorec.training.runs import check_output, load_start, open_run, save_model
from hanorec.training.schedule import make_schedule


def main() -> None:
    options = parse(SFTOptions)
    complete_sft(options)
    check_output(options)
    seed_everything(options.seed)
    data = open_dataset(options.data)
    policy = load_start(
        options.backbone,
        dtype=options.dtype,
        views=options.image_views,
        remote_code=options.remote_code,
        changed_run=options.changed_run,
    )
    windows = windows_for(policy.layout, options.windows)
    if options.name_history:
        check_name_history(policy.layout, options.protocol, options.item_view)
    drawn = {"windows": windows} if options.list_candidates else {"windows": windows, "candidates": 1, "rejected": 0}
    examples = open_examples(data, "train", options, seed=options.seed, users=options.train_users, **drawn)
    held_out = validation_examples(data, options, seed=options.seed, users=options.validate_users)
    if lora_trains(options, policy.num_parameters):
        policy = add_lora(
            policy,
            layers=options.layers,
            rank=options.lora_rank,
            alpha=options.lora_alpha,
            dropout=options.lora_dropout,
        )
    elif options.layers == "language":
        freeze_vision(policy)
    cache, frozen = cache_folder(options.cache, options.output), not vision_trains(policy.model)
    prompts = open_prompts(policy, data, options, cache=cache, frozen=frozen)
    prompts.check(held_out)
    per_prompt = groups(examples, nested=windows == "nested")  # what a prompt asks for: a title, or each of a history
    with no_collection():
        x = [prompts.nested(group, name_history=options.name_history) for group in per_prompt]
        y = [prompts.answers_of(group, name_history=options.name_history) for group in per_prompt]

    prepare_for_training(policy, gradient_checkpointing=options.gradient_checkpointing)
    optimizer, scaler = adamw(policy.model, options.weight_decay), grad_scaler(policy.device, policy.compute)
    lengths = [prompts.length(prompt, titles) for prompt, titles in zip(x, y)]
    schedule = make_schedule([group[0].user for group in per_prompt], lengths, len(examples), options)
    open_run(options, data.folder)
    with Run(options, policy.model, optimizer, scaler, schedule) as run:
        for batch in run.batches():
            learning_rate = cosine_learning_rate(run.step, schedule.steps, options.learning_rate, options.warmup)
            set_learning_rate(optimizer, learning_rate)

            tokens = sum(len(title) for i in batch for title in y[i])
            loss = torch.zeros((), device=policy.device)
            for indices, counts in schedule.micro_batches(batch)[distributed.rank()]:  # this rank's share of the batch
                run.seed(indices)
                logps = score(policy, prompts.images, [x[i] for i in indices], [y[i] for i in indices])  # log π_θ(y|x)
                micro_loss = -logps.sum() / tokens * counts  # nats a token, over the whole batch
                scaler.scale(micro_loss).backward()
                loss += micro_loss.detach()
            run.require_finite("loss", loss)

            distributed.all_reduce_gradients(policy.model)
            scaler.unscale_(optimizer)
            grad_norm = clip_gradients(policy.model, must_be_finite=not scaler.is_enabled())
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if run.should_log():
                distributed.all_reduce_sum([loss])
                run.log({"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate})
            if run.should_validate():
                run.keep_if_best(*validate(policy, prompts, held_out, options.forward_tokens))
        run.finish(partial(save_model, policy))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
