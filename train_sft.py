#!/usr/bin/env python3
"""Stage 1: supervised fine-tuning. The model reads a history and learns to name the next item.

for each batch of (prompt x, title y):   minimise  −log π_θ(y | x)

python train_sft.py                       on the embedded toy catalogue, with the tiny backbone
python train_sft.py --data DIR --backbone HuggingFaceTB/SmolVLM-256M-Instruct --output runs/sft
python train_sft.py settings.yaml
"""

from __future__ import annotations

import torch

from hanorec.backbone import add_lora, load_backbone
from hanorec.dataset import open_dataset, split_examples
from hanorec.images import vision_trains
from hanorec.options import SFTOptions, cache_folder, example_options, parse
from hanorec.prompts import Prompts
from hanorec.scoring import score
from hanorec.session import encoder_for, save_model, validation
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
    options = parse(SFTOptions)
    check_output(options)
    seed_everything(options.seed)
    data = open_dataset(options.data)
    examples = split_examples(
        data, "train", every=options.windows == "every", users=options.train_users, **example_options(options)
    )
    held_out = split_examples(data, "val", users=options.validate_users, **example_options(options))
    backbone = load_backbone(options.backbone, dtype=options.dtype)
    if options.lora == "on" or (options.lora == "auto" and backbone.parameters > 20_000_000):
        backbone.model = add_lora(
            backbone.model, rank=options.lora_rank, alpha=options.lora_alpha, dropout=options.lora_dropout
        )
    elif options.dtype == "auto":
        backbone.model.float()  # weights that train themselves need the precision
    encoder = encoder_for(backbone, data.catalog, frozen=not vision_trains(backbone.model), cache=cache_folder(options))
    prompts = Prompts(encoder, data.catalog.titles, options.task, list_candidates=options.list_candidates)

    responses = [[prompts.chosen(example)] for example in examples]

    model = backbone.model.train()
    total = total_steps(len(examples), options)
    optimizer = optimizer_for(model, options.learning_rate, options.weight_decay)
    schedule = cosine_schedule(optimizer, total, options.warmup)
    open_run(options, "sft")
    with Run(options, model, optimizer, schedule, total=total) as run:
        lengths = [prompts.length(example, answers) for example, answers in zip(examples, responses)]
        for batch in run.steps([example.user for example in examples], lengths):
            optimizer.zero_grad()
            tokens, loss = sum(len(responses[i][0]) for i in batch), 0.0
            for part in run.parts(batch):
                asked = [prompts.prompt(examples[i]) for i in part]
                logps = score(encoder, asked, [responses[i] for i in part])
                part_loss = -logps.sum() / tokens  # nats a token, over the whole step
                part_loss.backward()
                loss += part_loss.item()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), options.max_grad_norm, error_if_nonfinite=True)
            optimizer.step()
            schedule.step()
            run.log(loss=loss, gradient_norm=norm, learning_rate=schedule.get_last_lr()[0])
            run.consider(lambda: validation(prompts, held_out, options.forward_tokens))
        run.finish(lambda folder: save_model(backbone, folder))


if __name__ == "__main__":
    with clear_errors():
        main()
