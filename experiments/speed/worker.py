"""One side of the benchmark in a process of its own: this project's way, or the plain way, on one backbone.

`benchmark.py` starts it and asks for steps, or for users to rank. The plain way is what a training script does without
this project's shortcuts: each response with its own prompt in a right-padded batch, images opened, resized and encoded
in every forward, logits of all tokens, the reference by a forward of its own with the adapter off.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor

from experiments.speed.turns import serve
from hanorec.data.batching import batches, epoch_order
from hanorec.data.catalog import Catalog
from hanorec.data.dataset import open_dataset, split_examples
from hanorec.data.examples import Example
from hanorec.data.untrusted import load_image
from hanorec.hardness import embed_items, nearest, pair_hardness
from hanorec.losses import hanorec_loss, response_logps
from hanorec.models import scoring
from hanorec.models.backbone import load_backbone
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora, freeze_vision
from hanorec.models.packing import Packed, pack
from hanorec.models.prompts import HISTORY, QUESTIONS, Prompts
from hanorec.models.scoring import score
from hanorec.training.optimization import adamw, clip_gradients

BETA, NOISE, LEARNING_RATE, WEIGHT_DECAY = 0.1, 0.1, 1e-4, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=("ours", "plain"), required=True)
    parser.add_argument("--work", choices=("sft", "dpo", "hanorec", "rank"), required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--pairs", type=int, required=True, help="how many different prompts")
    parser.add_argument("--exact", action="store_true", help="no noise and no dropout")
    state = set_up(**vars(parser.parse_args()))
    for parameter in state.policy.model.parameters():
        parameter.sum()  # weights are mapped from their file: in memory, they belong to what is held before a step
    serve(lambda steps: run(state, steps), state.facts, after=lambda: {"gemm": matrix_product_rate()})


def run(state: SimpleNamespace, steps: int) -> dict:
    """So many steps: pairs or users done, seconds in the model and in making its inputs, operations and, with --exact,
    log-probabilities."""
    state.spent = {"model": 0.0, "data": 0.0, "flops": 0.0}
    state.logps, done = [], 0
    for _ in range(steps):
        batch = state.batches[state.turn % len(state.batches)]
        state.turn += 1
        done += len(batch)
        (rank if state.work == "rank" else train)(state, batch)
    return {"done": done, "spent": state.spent, "logps": state.logps}


def set_up(
    side: str, work: str, backbone: str, data: Path, batch_size: int, pairs: int, exact: bool = False
) -> SimpleNamespace:
    """Everything that is done once. Its costs are in `facts`: seconds an image, seconds a pair of reference."""
    torch.manual_seed(0)
    opened = open_dataset(data)
    examples = split_examples(opened, "test" if work == "rank" else "train", "next", users=pairs)
    files = shown_images(opened.catalog, examples)
    policy = load_backbone(backbone, dtype="float32", device=torch.device("cpu"))
    full = work == "sft" and backbone == "tiny"  # as train_sft.py does
    if full:
        freeze_vision(policy)
    begun = time.perf_counter()
    images = CatalogImages(policy, files, frozen=side == "ours", progress=False)
    an_image = (time.perf_counter() - begun) / sum(file is not None for file in files)
    prompts = Prompts(policy, images, opened.catalog.titles, "next", list_candidates=True)
    x = [prompts.prompt(example) for example in examples]
    if work == "rank":
        y = [[prompts.name([item]) for item in example.candidates] for example in examples]
    else:
        y = [[prompts.chosen(e), *(() if work == "sft" else prompts.rejected(e))] for e in examples]
    lengths = [prompts.length(prompt, responses) for prompt, responses in zip(x, y)]
    facts = {"seconds_an_image": an_image}
    state = SimpleNamespace(
        side=side, work=work, exact=exact, data=opened, policy=policy, images=images, prompts=x, responses=y, turn=0,
        facts=facts, reference_logps=None, hardness=torch.ones(len(x)),
    )  # fmt: skip
    if work == "rank":  # the plain way: a user's candidates are a batch
        state.batches = [[i] for i in range(len(x))] if side == "plain" else batches(lengths, 8192)
        return state
    state.batches = epoch_order(lengths, batch_size, seed=0, epoch=0)
    if work != "sft" and side == "ours":
        state.reference_logps, facts["seconds_a_reference"] = score_reference(state)
        if work == "hanorec" and not exact:
            similarities, _ = nearest(embed_items(policy, images, opened.catalog.titles), 10)
            state.hardness = pair_hardness(similarities, examples).flatten()
    if not full:
        state.policy = add_lora(policy, dropout=0.0 if exact else 0.05)
        if side == "plain" and not exact:  # PEFT's dropout as it comes
            set_dropout(state.policy.model, torch.nn.Dropout)
    state.policy.model.train()
    state.optimizer = adamw(state.policy.model, WEIGHT_DECAY)
    for group in state.optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    return state


def shown_images(catalog: Catalog, examples: Iterable[Example]) -> list[Path | None]:
    """The catalogue's image files, without those that no history of the examples shows."""
    used = {item for example in examples for item in example.history}
    return [path if item in used else None for item, path in enumerate(catalog.images)]


def set_dropout(model: torch.nn.Module, kind: type[torch.nn.Module]) -> None:
    """Give every LoRA layer another dropout of 0.05, which is on."""
    for layer in model.modules():
        for name in getattr(layer, "lora_dropout", {}):
            layer.lora_dropout[name] = kind(0.05).train()


@torch.no_grad()
def score_reference(state: SimpleNamespace) -> tuple[Tensor, float]:
    begun = time.perf_counter()
    table = torch.empty(len(state.prompts), 2)
    for batch in state.batches:
        prompts, responses = [state.prompts[i] for i in batch], [state.responses[i] for i in batch]
        table[batch] = score(state.policy, state.images, prompts, responses).view(-1, 2)
    return table, (time.perf_counter() - begun) / len(state.prompts)


@contextmanager
def spent_on(state: SimpleNamespace, part: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    state.spent[part] += time.perf_counter() - begun


def train(state: SimpleNamespace, batch: list[int]) -> None:
    """One optimizer step on a batch."""
    noise = NOISE if state.work == "hanorec" and not state.exact else 0.0
    logps = (ours if state.side == "ours" else plain)(state, batch, noise)
    if state.exact:
        state.logps.append(logps.tolist())
    if state.work == "sft":
        loss = -logps.sum() / sum(len(state.responses[i][0]) for i in batch)
    else:
        known = state.reference_logps
        reference = known[batch] if known is not None else plain_reference(state, batch)
        eta = None if state.work == "hanorec" else 1.0
        pairs = (*logps.view(-1, 2).T, *reference.T)
        loss = hanorec_loss(*pairs, state.hardness[batch], beta=BETA, responsiveness=eta).loss
    with spent_on(state, "model"):
        loss.backward()
    clip_gradients(state.policy.model, 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad()


def ours(state: SimpleNamespace, batch: list[int], noise: float) -> Tensor:
    """Log-probabilities of the batch's responses, packed. Adds up the operations that the model needs."""
    packing = []

    def timed_pack(*arguments, **named):
        begun = time.perf_counter()
        packed = pack(*arguments, **named)
        packing.append(time.perf_counter() - begun)
        state.spent["flops"] += flops(state.policy.model, packed)
        return packed

    prompts, responses = [state.prompts[i] for i in batch], [state.responses[i] for i in batch]
    with spent_on(state, "model"), patch.object(scoring, "pack", timed_pack):
        logps = score(state.policy, state.images, prompts, responses, noise_std=noise)
    state.spent["data"] += sum(packing)
    state.spent["model"] -= sum(packing)
    return logps


def flops(model: torch.nn.Module, packed: Packed) -> float:
    """Of a forward and backward of the language model: 2 an element of a frozen matrix and token forward and 2 for
    the input's gradient; 2 + 2 + 2 for one that trains; attention over visible keys alone; the head where a token
    is predicted. Padding does not count, nor does what is computed twice or in vain."""
    text = model.config.get_text_config()
    language = re.compile(r"(text_model|language_model)\.(?!embed).")
    inner = [(n, p) for n, p in model.named_parameters() if language.search(n) and p.ndim == 2]
    a_token = sum((6 if p.requires_grad else 4) * p.numel() for _, p in inner)
    tokens = int((packed.attention_mask[:, 0].sum(-1) > 1).sum()) + len(packed.attention_mask)
    attention = 12 * text.hidden_size * text.num_hidden_layers * int(packed.attention_mask.sum())
    return tokens * a_token + attention + len(packed.labels) * 4 * text.vocab_size * text.hidden_size


def matrix_product_rate(size: int = 2048) -> float:
    """FLOP/s of a large float32 matrix product, the best of five."""
    a, b, best = torch.randn(size, size), torch.randn(size, size), 0.0
    for _ in range(5):
        begun = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best


def plain(state: SimpleNamespace, batch: list[int], noise: float) -> Tensor:
    """The same log-probabilities, each response with its own prompt, right-padded, and images from their files."""
    with spent_on(state, "data"):
        inputs, labels = plain_inputs(state, batch)
    with spent_on(state, "model"):
        logits = state.policy.model(**inputs, use_cache=False).logits
        return response_logps(logits[:, :-1], labels[:, 1:], noise_std=noise)


def plain_inputs(state: SimpleNamespace, batch: list[int]) -> tuple[dict, Tensor]:
    sequences = [(state.prompts[i], response) for i in batch for response in state.responses[i]]
    files = state.data.catalog.images
    images = [[load_image(files[item]) for item in prompt.image_items] for prompt, _ in sequences]
    longest = max(len(prompt.ids) + len(response) for prompt, response in sequences)
    input_ids = torch.full((len(sequences), longest), state.policy.pad)
    labels, mask = torch.full_like(input_ids, -100), torch.zeros_like(input_ids)
    for row, (prompt, response) in enumerate(sequences):
        begin, end = len(prompt.ids), len(prompt.ids) + len(response)
        input_ids[row, :end] = torch.tensor([*prompt.ids, *response])
        labels[row, begin:end] = torch.tensor(response)
        mask[row, :end] = 1
    pixels = state.policy.processor.image_processor(images=images, return_tensors="pt")
    wanted = ("pixel_values", "pixel_attention_mask")
    return {"input_ids": input_ids, "attention_mask": mask, **{k: pixels[k] for k in wanted if k in pixels}}, labels


@torch.no_grad()
def plain_reference(state: SimpleNamespace, batch: list[int]) -> Tensor:
    with state.policy.model.disable_adapter():
        state.policy.model.eval()
        logps = plain(state, batch, 0.0)
        state.policy.model.train()
    return logps.view(-1, 2)


@torch.no_grad()
def rank(state: SimpleNamespace, batch: list[int]) -> None:
    """Score every candidate of a batch of users."""
    (ours if state.side == "ours" else plain)(state, batch, 0.0)


def write_pairs(catalog: Catalog, examples: Iterable[Example], path: Path, *, list_candidates: bool) -> None:
    """Write pairs as `trl_dpo.py` reads them: the same prompts as `Prompts` makes."""
    titles, rows = catalog.titles, []
    for example in examples:
        content, text = [], HISTORY
        for item in example.history:
            text += "\n"
            image = catalog.images[item]
            if image is not None:
                content += [{"type": "text", "text": text}, {"type": "image", "path": str(image.resolve())}]
                text = ""
            text += titles[item]
        listed = [titles[item] for item in example.candidates] if list_candidates else []
        text += "\n" + "\n".join([QUESTIONS["next", list_candidates], *listed])
        content.append({"type": "text", "text": text})
        chosen, rejected = titles[example.targets[0]], titles[example.rejected[0][0]]
        rows.append({"content": content, "chosen": chosen, "rejected": rejected})
    path.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
