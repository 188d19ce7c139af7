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
from hanorec.models.images import CatalogImages, vision_trains
from hanorec.models.lora import add_lora, freeze_vision, lora_options, prepare_for_training
from hanorec.models.prompts import Prompts, check_name_history, windows_for
from hanorec.models.scoring import score
from hanorec.randomness import seed_everything
from hanorec.training.inputs import open_examples, validation_examples
from hanorec.training.loop import Run
from hanorec.training.optimization import adamw, clip_gradients, cosine_learning_rate, rows_per_step, total_steps
from hanorec.training.options import (
    STANDARD,
    SFTOptions,
    apply_protocol,
    cache_folder,
    check_lora_options,
    parse,
)
from hanorec.training.runs import check_output, load_start, open_run, save_model


def main() -> None:
    options = parse(SFTOptions)
    apply_protocol(options, options.protocol, STANDARD)
    check_output(options)
    seed_everything(options.seed)
    data = open_dataset(options.data)
    descriptions = data.descriptions(options.item_view)
    policy = load_start(
        options.backbone, dtype=options.dtype, views=options.image_views, remote_code=options.remote_code
    )
    windows = windows_for(policy.layout, options.windows)
    if options.name_history:
        check_name_history(policy.layout, options.protocol, options.item_view)
    drawn = {} if options.list_candidates else {"candidates": 1, "rejected": 0}
    examples = open_examples(
        data, "train", options, seed=options.seed, users=options.train_users, windows=windows, **drawn
    )
    held_out = validation_examples(data, options, seed=options.seed, users=options.validate_users)
    lora = options.lora == "on" or (options.lora == "auto" and policy.num_parameters > 20_000_000)
    check_lora_options(options, lora)
    if lora:
        policy = add_lora(policy, **lora_options(options))
    elif not options.train_vision:
        freeze_vision(policy)
    images = CatalogImages(
        policy,
        data.catalog.images,
        frozen=not vision_trains(policy.model),
        cache=cache_folder(options),
        pixels=options.image_pixels,
    )
    prompts = Prompts(
        policy,
        images,
        data.catalog.titles,
        options.task,
        list_candidates=options.list_candidates,
        protocol=options.protocol,
        item_view=options.item_view,
        descriptions=descriptions,
    )
    rows = groups(examples, nested=windows == "nested")  # what one prompt x asks for: a title, or each one of a row
    x = [prompts.nested(row, name_history=options.name_history) for row in rows]
    y = [prompts.answers_of(row, name_history=options.name_history) for row in rows]

    prepare_for_training(policy, options)
    optimizer = adamw(policy.model, options.weight_decay)
    scaler = torch.amp.GradScaler(policy.device.type, enabled=policy.compute == torch.float16)  # else it does nothing
    size = rows_per_step(rows, options)
    total = total_steps(len(rows), size, options)
    open_run(options, "sft", data.folder)
    lengths = [prompts.length(prompt, responses) for prompt, responses in zip(x, y)]
    with Run(options, policy.model, optimizer, scaler, total=total) as run:
        for batch in run.batches([row[0].user for row in rows], lengths, size):
            learning_rate = cosine_learning_rate(run.step, total, options.learning_rate, options.warmup)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate

            tokens = sum(len(response) for i in batch for response in y[i])
            loss = torch.zeros((), device=policy.device)
            for indices, weight in run.micro_batches(batch):  # this rank's share of the batch
                run.seed(indices)
                logps = score(policy, images, [x[i] for i in indices], [y[i] for i in indices])  # log π_θ(y|x)
                micro_loss = -logps.sum() / tokens * (weight > 0)  # nats a token, over the whole batch
                scaler.scale(micro_loss).backward()
                loss += micro_loss.detach()
            run.require_finite("loss", loss)

            distributed.all_reduce_gradients(policy.model)
            scaler.unscale_(optimizer)
            grad_norm = clip_gradients(policy.model, options.max_grad_norm, must_be_finite=not scaler.is_enabled())
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if run.should_log():
                distributed.all_reduce_sum([loss])
                run.log({"loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate})
            if run.should_validate():
                run.keep_if_best(*validate(policy, prompts, held_out, options.forward_tokens))
        run.finish(partial(save_model, policy, merge=options.merge))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
