#!/usr/bin/env python3
"""One side of the benchmark in a process of its own: this project's way, or the plain way, on one backbone.

Reads `run K` from standard input, does K steps (or ranks K users) and answers with a line of JSON: pairs or users,
seconds, where the seconds went, losses, memory. The plain way is what a training script does without this project's
shortcuts: each response with its own prompt in a right-padded batch, images opened, resized and encoded in every
forward, logits of all tokens, the reference by a forward of its own with the adapter off.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from hanorec.data.batching import batches, epoch_order
from hanorec.data.catalog import load_image
from hanorec.data.dataset import open_dataset, split_examples
from hanorec.hardness import embed_items, nearest, pair_hardness
from hanorec.losses import hanorec_loss, response_logps
from hanorec.models import scoring
from hanorec.models.backbone import load_backbone
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora, freeze_vision
from hanorec.models.packing import Packed, pack
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score
from hanorec.training.optimization import adamw, clip_gradients
from hanorec.training.pairs import chosen_and_rejected

BETA, NOISE, LEARNING_RATE, WEIGHT_DECAY = 0.1, 0.1, 1e-4, 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=("ours", "plain"), required=True)
    parser.add_argument("--work", choices=("sft", "dpo", "hanorec", "rank"), required=True)
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--pairs", type=int, required=True, help="how many different prompts")
    parser.add_argument(
        "--exact", action="store_true", help="no noise and no dropout, and report the log-probabilities"
    )
    parser.add_argument("--profile", action="store_true", help="instead: where the time of a step goes, by operation")
    args = parser.parse_args()
    torch.manual_seed(0)
    state = set_up(args)
    work = rank if args.work == "rank" else train
    if args.profile:
        return print(profile(state, work))
    for parameter in state.policy.model.parameters():
        parameter.sum()  # weights are mapped from their file: in memory, they belong to what is held before a step
    base = memory("VmRSS")
    say(ready=True, **state.facts)
    for line in sys.stdin:
        if not line.startswith("run"):
            break
        state.spent = {"model": 0.0, "data": 0.0, "flops": 0.0}
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        begun = time.perf_counter()
        done, state.exact = 0, []
        for _ in range(int(line.split()[1])):
            batch = state.batches[state.turn % len(state.batches)]
            state.turn += 1
            work(state, batch)
            done += len(batch)
        seconds = time.perf_counter() - begun
        say(done=done, seconds=seconds, spent=state.spent, logps=state.exact, base_mib=base, peak_mib=memory("VmHWM"),
            gemm=matrix_product_rate())  # fmt: skip


def profile(state: SimpleNamespace, work: Callable) -> str:
    """Shares of a step's time: matrix products (thin ones have a size of at most 16: LoRA's), attention, rest."""
    state.spent = {"model": 0.0, "data": 0.0, "flops": 0.0}
    for batch in state.batches[:3]:  # touches memory, pages weights in
        work(state, batch)
    with torch.profiler.profile(record_shapes=True) as recorded:
        for batch in state.batches[:2]:
            work(state, batch)
    groups: dict[str, float] = {}
    for event in recorded.key_averages(group_by_input_shape=True):
        kind = "all else"
        if event.key in ("aten::mm", "aten::addmm", "aten::bmm"):
            sizes = [size for shape in event.input_shapes for size in shape]
            kind = "thin matrix products" if min(sizes) <= 16 else "matrix products"
        elif "attention" in event.key:
            kind = "attention"
        elif "_Dropped" in event.key or event.key in ("aten::random_", "aten::index_fill_"):
            kind = "dropout"
        groups[kind] = groups.get(kind, 0.0) + event.self_cpu_time_total
    total = sum(groups.values())
    return "\n".join(f"{time / total:6.1%}  {kind}" for kind, time in sorted(groups.items(), key=lambda pair: -pair[1]))


def say(**values) -> None:
    print(json.dumps(values), flush=True)


def memory(name: str) -> float:
    """MiB of this process, from Linux's own books."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def matrix_product_rate(size: int = 2048) -> float:
    """FLOP/s of a large float32 matrix product, the best of five."""
    a, b, best = torch.randn(size, size), torch.randn(size, size), 0.0
    for _ in range(5):
        begun = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best


def set_up(args: argparse.Namespace) -> SimpleNamespace:
    """Everything that is done once. Its costs are in `facts`: seconds an image, seconds a pair of reference."""
    data = open_dataset(args.data)
    split = "test" if args.work == "rank" else "train"
    examples = split_examples(data, split, "next", users=args.pairs)
    used = {item for example in examples for item in example.history}
    files = [path if item in used else None for item, path in enumerate(data.catalog.images)]
    backbone = load_backbone(args.backbone, dtype="float32", device=torch.device("cpu"))
    full = args.work == "sft" and args.backbone == "tiny"  # as train_sft.py does
    if full:
        freeze_vision(backbone)
    begun = time.perf_counter()
    images = CatalogImages(backbone, files, frozen=args.side == "ours", progress=False)
    facts = {"seconds_an_image": (time.perf_counter() - begun) / len(used), "parameters": backbone.num_parameters}
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=True)
    if args.work == "rank":
        responses = [[prompts.name([item]) for item in example.candidates] for example in examples]
    else:
        responses = [[prompts.chosen(e), *(() if args.work == "sft" else prompts.rejected(e))] for e in examples]
    state = SimpleNamespace(
        args=args, data=data, examples=examples, policy=backbone, images=images, prompts=prompts,
        responses=responses, turn=0, facts=facts, spent={}, reference_logps=None, optimizer=None,
    )  # fmt: skip
    lengths = [prompts.length(prompts.prompt(e), answers) for e, answers in zip(examples, responses)]
    facts["tokens_a_response"] = sum(
        len(prompts.prompt(e).ids) + len(answer) for e, answers in zip(examples, responses) for answer in answers
    ) / sum(map(len, responses))
    if args.work == "rank":  # the plain way: a user's candidates are a batch
        state.batches = [[i] for i in range(len(examples))] if args.side == "plain" else batches(lengths, 8192)
        return state
    state.batches = epoch_order(lengths, args.batch_size, seed=0, epoch=0)
    if args.work != "sft":
        similarities, _ = (
            nearest(embed_items(backbone, images, data.catalog.titles), 10) if args.side == "ours" else (None, None)
        )
        hardness = pair_hardness(similarities, examples) if similarities is not None else torch.ones(len(examples), 1)
        state.hardness = hardness.flatten() if args.work == "hanorec" and not args.exact else torch.ones(len(examples))
        if args.side == "ours":
            state.reference_logps, facts["seconds_a_reference"] = score_reference(state)
    if not full:
        state.policy = add_lora(backbone, dropout=0.0 if args.exact else 0.05)
        if args.side == "plain" and not args.exact:  # PEFT's dropout as it comes
            for layer in state.policy.model.modules():
                for name in getattr(layer, "lora_dropout", {}):
                    layer.lora_dropout[name] = torch.nn.Dropout(0.05)
    state.policy.model.train()
    state.optimizer = adamw(state.policy.model, WEIGHT_DECAY)
    for group in state.optimizer.param_groups:
        group["lr"] = LEARNING_RATE
    return state


@torch.no_grad()
def score_reference(state) -> tuple[torch.Tensor, float]:
    begun = time.perf_counter()
    table = torch.empty(len(state.examples), 2)
    for batch in state.batches:
        prompts = [state.prompts.prompt(state.examples[i]) for i in batch]
        logps = score(state.policy, state.images, prompts, [state.responses[i] for i in batch])
        table[batch] = logps.view(-1, 2)
    return table, (time.perf_counter() - begun) / len(state.examples)


@contextmanager
def spent_on(state, part: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    state.spent[part] += time.perf_counter() - begun


def train(state, batch: list[int]) -> None:
    """One optimizer step on a batch."""
    args = state.args
    noise = NOISE if args.work == "hanorec" and not args.exact else 0.0
    logps = (ours if args.side == "ours" else plain)(state, batch, noise)
    if args.exact:
        state.exact.append(logps.tolist())
    if args.work == "sft":
        loss = -logps.sum() / sum(len(state.responses[i][0]) for i in batch)
    else:
        kept = state.reference_logps
        reference_logps = kept[batch] if kept is not None else plain_reference(state, batch)
        table = (*chosen_and_rejected(logps.view(-1, 2)), *chosen_and_rejected(reference_logps))
        responsiveness = None if args.work == "hanorec" else 1.0
        loss = hanorec_loss(*table, state.hardness[batch], beta=BETA, responsiveness=responsiveness).loss
    with spent_on(state, "model"):
        loss.backward()
    clip_gradients(state.policy.model, 1.0)
    state.optimizer.step()
    state.optimizer.zero_grad()


def ours(state, batch: list[int], noise: float) -> torch.Tensor:
    """Log-probabilities of the batch's responses, packed. Adds up the operations that the model needs."""
    with spent_on(state, "data"):
        prompts = [state.prompts.prompt(state.examples[i]) for i in batch]
        responses = [state.responses[i] for i in batch]
    packing = []

    def timed_pack(*arguments, **named):
        begun = time.perf_counter()
        packed = pack(*arguments, **named)
        packing.append(time.perf_counter() - begun)
        state.spent["flops"] += flops(state.policy.model, packed)
        return packed

    scoring.pack = timed_pack
    with spent_on(state, "model"):
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


def plain(state, batch: list[int], noise: float) -> torch.Tensor:
    """The same log-probabilities, each response with its own prompt, right-padded, and images from their files."""
    with spent_on(state, "data"):
        inputs, labels = plain_inputs(state, batch)
    with spent_on(state, "model"):
        logits = state.policy.model(**inputs, use_cache=False).logits
        return response_logps(logits[:, :-1], labels[:, 1:], noise_std=noise)


def plain_inputs(state, batch: list[int]) -> tuple[dict, torch.Tensor]:
    sequences, images = [], []
    for i in batch:
        prompt = state.prompts.prompt(state.examples[i])
        for answer in state.responses[i]:
            sequences.append((prompt.ids, answer))
            images.append([load_image(state.data.catalog.images[item]) for item in prompt.images])
    longest = max(len(ids) + len(answer) for ids, answer in sequences)
    input_ids = torch.full((len(sequences), longest), state.policy.pad)
    labels, mask = torch.full_like(input_ids, -100), torch.zeros_like(input_ids)
    for row, (ids, answer) in enumerate(sequences):
        input_ids[row, : len(ids) + len(answer)] = torch.tensor([*ids, *answer])
        labels[row, len(ids) : len(ids) + len(answer)] = torch.tensor(answer)
        mask[row, : len(ids) + len(answer)] = 1
    pixels = state.policy.processor.image_processor(images=images, return_tensors="pt")
    wanted = ("pixel_values", "pixel_attention_mask")
    return {"input_ids": input_ids, "attention_mask": mask, **{k: pixels[k] for k in wanted if k in pixels}}, labels


@torch.no_grad()
def plain_reference(state, batch: list[int]) -> torch.Tensor:
    with state.policy.model.disable_adapter():
        state.policy.model.eval()
        logps = plain(state, batch, 0.0)
        state.policy.model.train()
    return logps.view(-1, 2)


@torch.no_grad()
def rank(state, batch: list[int]) -> None:
    """Score every candidate of a batch of users."""
    (ours if state.args.side == "ours" else plain)(state, batch, 0.0)


if __name__ == "__main__":
    main()
