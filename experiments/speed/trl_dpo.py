"""A third side of the benchmark: TRL's DPOTrainer on the same pairs and the same checkpoint.

`benchmark.py` and `nested.py` start it with an interpreter that has `trl` and `datasets`, which this project does not
need. Built the ordinary way, with LoRA on the linear layers of the language model and its dropout on, as on this
project's side; gradient checkpointing, which TRL turns on, is off: it costs time.

On a device without Triton kernels, TRL's fused head computes the logits of every position, prompt and padding included,
in chunks. --head-cut makes it score response positions alone, as it does where it has the kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from itertools import count
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from experiments.speed.turns import serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="JSON: content, chosen and rejected of each pair")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--head-cut", action="store_true")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")  # libraries print where they like: their words go to standard error
    os.dup2(2, 1)
    try:
        import trl.trainer.utils
    except ImportError:
        sys.exit("error: --trl-python needs an interpreter that has trl and datasets")
    if args.head_cut:
        trl.trainer.utils._use_triton = lambda device: True  # here it only decides which positions are scored
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(args, json.loads(args.pairs.read_text()), folder)
        trainer.create_optimizer()
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1  # which `train` would set
        loader = trainer.get_train_dataloader()
        batches = (batch for _ in count() for batch in loader)  # images are opened and processed anew every time

        def run(steps: int) -> dict:
            losses = []
            for _ in range(steps):
                losses.append(trainer.training_step(trainer.model, next(batches)).item())
                torch.nn.utils.clip_grad_norm_([p for p in trainer.model.parameters() if p.requires_grad], 1.0)
                trainer.optimizer.step()
                trainer.optimizer.zero_grad()
            return {"done": steps * args.batch_size, "losses": losses}

        serve(run, {}, answers)


def trainer_for(args: argparse.Namespace, rows: list[dict], folder: str):
    from datasets import Dataset, Image, Sequence
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    def messages(role: str, content: list[dict]) -> list[dict]:
        return [{"role": role, "content": content}]

    def text(words: str) -> list[dict]:
        return [{"type": "text", "text": words}]

    table = {
        "images": [[part["path"] for part in row["content"] if part["type"] == "image"] for row in rows],
        "prompt": [
            messages("user", [{"type": p["type"], "text": p.get("text")} for p in row["content"]]) for row in rows
        ],
        "chosen": [messages("assistant", text(row["chosen"])) for row in rows],
        "rejected": [messages("assistant", text(row["rejected"])) for row in rows],
    }
    data = Dataset.from_dict(table).cast_column("images", Sequence(Image()))
    model = AutoModelForImageTextToText.from_pretrained(args.checkpoint, dtype=torch.float32)
    inside = [
        name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear) and "text_model" in name
    ]
    config = DPOConfig(
        output_dir=folder, per_device_train_batch_size=args.batch_size, beta=0.1, learning_rate=1e-4, max_length=None,
        gradient_checkpointing=False, use_cpu=True, bf16=False, report_to=[], save_strategy="no", max_steps=10_000,
        dataloader_num_workers=0, disable_dropout=False,
    )  # fmt: skip
    lora = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05, target_modules=inside)
    processor = AutoProcessor.from_pretrained(args.checkpoint)
    return DPOTrainer(model=model, args=config, train_dataset=data, processing_class=processor, peft_config=lora)


if __name__ == "__main__":
    main()
