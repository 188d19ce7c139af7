#!/usr/bin/env python3
"""Makes a SmolVLM whose language model is as small as SASRec, two layers of width 64, in seconds.

    python tools/small_backbone.py --like runs/tiny-ml-100k --output runs/small-ml-100k
    python train_sft.py --data DIR --backbone runs/small-ml-100k --item-view title --windows nested --history 20 ...

Vocabulary and processor are those of another checkpoint of the SmolVLM family. All weights are random (seed 0). With
--bare there is no chat format and no token that ends an answer: fewer tokens are the same in every prompt, and a title
alone is the answer.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoProcessor, SmolVLMConfig, SmolVLMForConditionalGeneration

from hanorec.errors import DataError, exit_on_user_error
from hanorec.files import check_new_folder
from hanorec.models.checkpoint import check_checkpoint

SIZE = dict(
    hidden_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=32,
    intermediate_size=128, initializer_range=0.02,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--like", type=Path, required=True, metavar="DIR", help="checkpoint with the vocabulary")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the new checkpoint")
    parser.add_argument("--bare", action="store_true", help="without a chat format and without a token that ends")
    args = parser.parse_args()
    if args.output.exists():
        raise DataError(f"{args.output}: exists already")
    check_new_folder(args.output)
    check_checkpoint(args.like)
    config = SmolVLMConfig.from_pretrained(args.like)
    for name, value in SIZE.items():
        setattr(config.text_config, name, value)
    torch.manual_seed(0)
    model = SmolVLMForConditionalGeneration(config)
    model.save_pretrained(args.output)
    processor = AutoProcessor.from_pretrained(args.like)
    if args.bare:
        processor.chat_template = processor.tokenizer.chat_template = processor.tokenizer.eos_token = None
    processor.save_pretrained(args.output)
    layers = sum(weight.numel() for name, weight in model.named_parameters() if "text_model.layers" in name)
    print(f"made {args.output}: {layers:,} weights in the language model's layers")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
