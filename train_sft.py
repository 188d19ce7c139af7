#!/usr/bin/env python3
"""Stage 1: supervised fine-tuning. The model reads a history and learns to name the next item.

for each batch of (prompt x, title y):   minimise  −log π_θ(y | x)

python train_sft.py                       on the embedded toy catalogue, with the tiny backbone
python train_sft.py --data DIR --backbone HuggingFaceTB/SmolVLM-256M-Instruct --output runs/sft
python train_sft.py settings.yaml
"""

from __future__ import annotations

import torch

from hanorec import distributed
from hanorec.data.dataset import open_dataset, split_examples
from hanorec.errors import exit_on_user_error
from hanorec.models.backbone import load_backbone
from hanorec.models.images import vision_trains
from hanorec.models.lora import add_lora, lora_options, ready_to_train
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score
from hanorec.training.loop import Run, cosine_schedule, optimizer_for, seed_everything, total_steps
from hanorec.training.options import SFTOptions, cache_folder, example_options, parse
from hanorec.training.runs import check_output, open_run
from hanorec.training.session import encoder_for, save_model, validation


def main() -> None:
    options = parse(SFTOptions)
    check_output(options)
    seed_everything(options.seed)
    data = open_dataset(options.data)
    examples = split_examples(
        data, "train", every=options.windows == "every", users=options.train_users, **example_options(options)
    )
    held_out = split_examples(data, "val", users=options.validate_users, **example_options(options))
    backbone = load_backbone(
        options.backbone, dtype=options.dtype, views=options.image_views, remote_code=options.remote_code
    )
    if options.lora == "on" or (options.lora == "auto" and backbone.parameters > 20_000_000):
        backbone.model = add_lora(backbone.model, **lora_options(options))
    features = dict(cache=cache_folder(options), pixels=options.image_pixels)
    encoder = encoder_for(backbone, data.catalog, frozen=not vision_trains(backbone.model), **features)
    prompts = Prompts(encoder, data.catalog.titles, options.task, list_candidates=options.list_candidates)

    responses = [[prompts.chosen(example)] for example in examples]

    model = ready_to_train(backbone.model, options)
    total = total_steps(len(examples), options)
    optimizer = optimizer_for(model, options.learning_rate, options.weight_decay)
    schedule = cosine_schedule(optimizer, total, options.warmup)
    open_run(options, "sft")
    with Run(options, model, optimizer, schedule, total=total, compute=backbone.compute) as run:
        lengths = [prompts.length(example, answers) for example, answers in zip(examples, responses)]
        for batch in run.steps([example.user for example in examples], lengths):
            tokens, loss = sum(len(responses[i][0]) for i in batch), torch.zeros((), device=backbone.device)
            for part, share in run.parts(batch):
                run.seed(part)
                asked = [prompts.prompt(examples[i]) for i in part]
                logps = score(encoder, asked, [responses[i] for i in part])
                part_loss = -logps.sum() / tokens * bool(share)  # nats a token, over the whole step
                run.backward(part_loss)
                loss += part_loss.detach()
            distributed.all_reduce_sum([loss])
            run.log(loss=loss, gradient_norm=run.update(), learning_rate=schedule.get_last_lr()[0])
            run.consider(lambda: validation(prompts, held_out, options.forward_tokens))
        run.finish(lambda folder, weights: save_model(backbone, folder, weights, merge=options.merge))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
