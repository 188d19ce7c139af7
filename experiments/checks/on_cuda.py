#!/usr/bin/env python3
"""What holds on a CUDA GPU: is packed scoring the same there, what does a HaNoRec step cost at published sizes, and
what does running out of memory print?

    python experiments/on_cuda.py                 at most 8 minutes; without a GPU, the float32 equality on the CPU

Equality: log-probabilities of packed responses against the family's own forward over prompt, pixels and one response,
for the small models of tests/families.py. Steps: SmolVLM-256M and Qwen2.5-VL-3B with random weights in bfloat16 and
LoRA of rank 8, without dropout and noise, so that both ways give the same numbers. The plain way gives each response a
prompt of its own, encodes images in every forward, and computes all logits and the reference's forward. Rows: a step
over a whole row, SmolVLM-256M again, by length of the row: nested, with PyTorch's attention under the whole mask and
with FlexAttention, which passes over what no token sees; and each target's window packed by itself. A forward encodes
the images that it shows, six different ones at most. Writes experiments/results/cuda.md; without a GPU it writes
nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from bench_models import catalogue
from bench_worker import flops
from geometry import qwen2_5_vl_3b, smolvlm_256m
from PIL import Image
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from hanorec.data.batching import batches
from hanorec.data.toy import STYLES, draw
from hanorec.evaluation.report import markdown
from hanorec.losses import hanorec_loss
from hanorec.models.backbone import Backbone, load_backbone
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora, prepare_for_training
from hanorec.models.packing import Branch, Prompt
from hanorec.models.scoring import pack_for, score
from hanorec.training.optimization import adamw

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests"))
import families  # noqa: E402

HISTORY, PAIRS, TURNS, SECONDS = 5, 2, 5, 420  # images a prompt; prompts a step; steps of each way; no step after these
ROWS, FLEX = (1000, 2000, 4000), "flex_of_any_mask"  # tokens of a nested row; FlexAttention as transformers knows it
GEOMETRIES: dict[str, Callable] = {"SmolVLM-256M": smolvlm_256m, "Qwen2.5-VL-3B": qwen2_5_vl_3b}
CLOSE = 1e-3  # nats: float32 log-probabilities of one response in two orders of summation
LIMIT = 256 * 2**20  # bytes of GPU memory in which a training step of the tiny backbone is tried
OUT_OF_MEMORY = """import runpy, sys, torch
torch.cuda.set_per_process_memory_fraction(float(sys.argv[1]))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    begun, cuda = time.time(), torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    warnings.simplefilter("ignore")  # of families that cannot be packed: the table says so
    rows = [equality(build, device, half=cuda) for build in (*families.PACKED, *families.PLAIN)]
    header = ["family", "responses", "float32, nats apart"]
    header += ["bfloat16 packed, from float32", "bfloat16 plain, from float32"] * cuda
    text = "Packed scoring against the family's own forward\n\n" + markdown(header, [row for row, _ in rows])
    wrong = [f"packed scoring of {row[0]}" for row, equal in rows if not equal]
    if not cuda:
        print(text + "\n\nThere is no CUDA GPU here: this was the CPU's part, and nothing was written.")
    else:
        measured = []
        for name, build in GEOMETRIES.items():
            if time.time() - begun > SECONDS:
                measured.append([name, "not measured: the time was over", *["–"] * 7])
            else:
                measured.append([name, *steps(build("cuda", torch.bfloat16))])
            gc.collect()  # frees the model before the next one is made
        rate = f"{matrix_product_rate(device) / 1e12:.0f} TFLOP/s"
        text += f"\n\nA HaNoRec step of {PAIRS} pairs, {HISTORY} images of 512 × 512 a prompt, bfloat16, on "
        text += f"{torch.cuda.get_device_name()}, whose product of 8192 × 8192 matrices runs at {rate}\n\n"
        text += markdown(STEP_HEADER, measured)
        text += "\n\nA HaNoRec step over a whole row, SmolVLM-256M, bfloat16\n\n"
        measured = [line for tokens in ROWS for line in long_row(smolvlm_256m("cuda", torch.bfloat16), tokens)]
        text += markdown(ROW_HEADER, measured)
        line, clear = out_of_memory()
        text += f"\n\nA training run that does not fit in memory prints\n\n    {line}"
        made_by = "Made by `python experiments/on_cuda.py`.\n\n"
        (HERE / "results" / "cuda.md").write_text(f"{made_by}{text}\n", encoding="utf-8")
        print(f"{text}\n\n{time.time() - begun:.0f} seconds")
        if not clear:
            wrong.append("what running out of memory prints is not one line that says what to do")
    if wrong:
        sys.exit(f"not as it should be: {', '.join(wrong)}")


def equality(build: Callable, device: torch.device, half: bool) -> tuple[list[str], bool]:
    """A family's row, and whether its packed scores are the plain ones: in float32 to `CLOSE`; in bfloat16 (if `half`)
    as near to float32 as the plain forward is in bfloat16, to a factor of two."""
    pictures = [draw(style, np.random.default_rng(0)) for style in STYLES[:2]]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        families.save(build, Path(folder))
        for dtype in ("float32", "bfloat16") if half else ("float32",):
            backbone = load_backbone(folder, dtype=dtype, device=device)
            torch.set_float32_matmul_precision("highest")  # no TF32, whose rounding would hide a difference
            ids, inputs = families.asked_plainly(backbone, pictures, "Comet IMAGE then IMAGE which?")
            responses = [backbone.tokens(text) for text in ("Tide of", "Tide of the", "the other one")]
            images = CatalogImages(backbone, pictures, frozen=True, progress=False)
            packed = score(backbone, images, [Prompt(ids, [0, 1])], [responses])
            found[dtype] = packed, families.plain_logps(backbone, ids, inputs, responses)
    packed, exact = found["float32"]
    apart = (packed - exact).abs().max().item()
    cells, equal = (
        [build.__name__, "one forward each" if backbone.layout.why_unpacked else "packed", f"{apart:.0e}"],
        apart < CLOSE,
    )
    if half:
        ours, plain = ((logps.float() - exact).abs().max().item() for logps in found["bfloat16"])
        cells += [f"{ours:.3f}", f"{plain:.3f}"]
        equal = equal and ours < 2 * plain + 0.05
    return cells, equal


STEP_HEADER = [
    "backbone", "tokens of a prompt", "ours, ms a pair", "plain, ms a pair", "plain takes", "peak, ours", "peak, plain",
    "of matrix product", "log-probs differ by",
]  # fmt: skip


def steps(backbone: Backbone, pixels: int = 512, turns: int = TURNS) -> list[str]:
    """A backbone's cells of the table: steps of both ways that take turns, after one of each that does not count.

    backbone: the model, whose adapter is made here. pixels: a side of its images. Where a way runs out of memory, its
    cells say so.
    """
    device, rng = backbone.device, np.random.default_rng(0)
    letters = ["".join(rng.choice(list("abcdefgh"), 8)) for _ in range(20 + 2 * PAIRS)]  # titles
    text = "\n".join([*(f"IMAGE{title}" for title in letters[:HISTORY]), "Which is next?", *letters[:20]]) + "\n"
    shown = [[Image.fromarray(rng.integers(0, 255, (pixels, pixels, 3), dtype=np.uint8)) for _ in range(HISTORY)]
             for _ in range(PAIRS)]  # fmt: skip
    pairs = [[backbone.tokens(letters[20 + 2 * i]), backbone.tokens(letters[21 + 2 * i])] for i in range(PAIRS)]
    policy = add_lora(backbone, dropout=0.0)  # so that both ways' log-probabilities can be compared
    prepare_for_training(policy, SimpleNamespace(gradient_checkpointing=False))
    optimizer = adamw(policy.model, 0.01)
    images = CatalogImages(policy, sum(shown, []), frozen=True, progress=False)
    ids, _ = families.asked_plainly(policy, shown[0], text)
    prompts = [Prompt(ids, list(range(i * HISTORY, (i + 1) * HISTORY))) for i in range(PAIRS)]
    with torch.no_grad():
        reference_logps = score(policy, images, prompts, pairs).view(-1, 2)  # the fresh adapter changes nothing

    def ours() -> tuple[Tensor, Tensor]:
        return score(policy, images, prompts, pairs).view(-1, 2), reference_logps

    def plain() -> tuple[Tensor, Tensor]:
        def logps() -> Tensor:
            asked = (families.asked_plainly(policy, pictures, text) for pictures in shown)
            return torch.stack([families.plain_logps(policy, *each, pair) for each, pair in zip(asked, pairs)])

        with torch.no_grad(), policy.model.disable_adapter():
            reference = logps()
        return logps(), reference

    def step(way: Callable) -> tuple[float, float, Tensor]:
        """Seconds, bytes at most, and log-probabilities of a step."""
        synchronize(device)
        begun = time.perf_counter()
        logps, reference = way()
        loss = hanorec_loss(*logps.T, *reference.T, torch.ones(PAIRS, device=device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(device)
        return time.perf_counter() - begun, peak(device), logps.detach()

    first = {}
    for name, way in (("ours", ours), ("plain", plain)):
        try:
            first[name] = step(way)
        except torch.OutOfMemoryError:
            return [str(len(ids)), f"out of memory ({name})", *["–"] * 6]
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # from here on the weights stay, and with them what is compared
    both = [(step(ours), step(plain)) for _ in range(turns)]
    mine, theirs = (statistics.median(each[way][0] for each in both) for way in (0, 1))
    ratios = [b[0] / a[0] for a, b in both]
    work = flops(policy.model, pack_for(policy, images, prompts, pairs))
    differ = max((a[2] - b[2]).abs().max().item() for a, b in both)
    return [
        str(len(ids)), f"{1000 * mine / PAIRS:.1f}", f"{1000 * theirs / PAIRS:.1f}",
        f"{statistics.median(ratios):.1f}× [{min(ratios):.1f}, {max(ratios):.1f}]",
        *(f"{max(each[way][1] for each in both) / 2**20:.0f} MiB" for way in (0, 1)),
        f"{work / mine / matrix_product_rate(device, backbone.compute):.0%}", f"{differ:.0e}",
    ]  # fmt: skip


ROW_HEADER = ["tokens of the row", "targets", "way", "ms a pair", "peak", "log-probs differ by"]


def long_row(backbone: Backbone, tokens: int, turns: int = TURNS, flex: bool = True) -> list[list[str]]:
    """The table's lines of a row of about so many tokens: behind each item a pair of chosen and rejected title.

    backbone: the model, whose adapter is made here. flex: with FlexAttention too, which trains on a GPU alone.
    """
    device = backbone.device
    policy = add_lora(backbone, dropout=0.0)  # so that log-probabilities can be compared
    images = CatalogImages(policy, [draw(style, np.random.default_rng(0)) for style in STYLES], progress=False)
    opening, question = policy.tokens("Which is next?"), policy.tokens("Next:")
    ids, ends, shown, pairs = list(opening), [], [], []
    for title in titles():
        chosen, rejected = policy.tokens(title + "c"), policy.tokens(title + "r")
        item = len(ends) % len(STYLES)
        ids = ids + images.placeholders(item) + chosen
        shown, ends, pairs = [*shown, item], [*ends, len(ids)], [*pairs, [chosen, rejected]]
        if len(ids) + len(ends) * (len(question) + len(chosen)) > tokens:
            break
    nested = Prompt(ids, shown, tuple(Branch(end, question) for end in ends))
    windows = [Prompt(ids[:end] + question, shown[: n + 1]) for n, end in enumerate(ends)]
    groups = batches([window.length for window in windows], 8192)

    def of_row() -> Iterator[Tensor]:
        yield score(policy, images, [nested], [sum(pairs, [])]).view(-1, 2)

    def of_windows() -> Iterator[Tensor]:
        for group in groups:
            yield score(policy, images, [windows[i] for i in group], [pairs[i] for i in group]).view(-1, 2)

    def step(forwards: Callable[[], Iterator[Tensor]]) -> tuple[float, float, Tensor]:
        """Seconds, bytes at most, and log-probabilities of a step."""
        peak(device)
        synchronize(device)
        begun, found = time.perf_counter(), []
        for logps in forwards():
            reference = logps.detach()
            loss = hanorec_loss(*logps.T, *reference.T, torch.ones(len(logps), device=device), responsiveness=1.0).loss
            loss.backward()
            found.append(reference)
        policy.model.zero_grad()
        synchronize(device)
        return time.perf_counter() - begun, peak(device), torch.cat(found)

    in_turn = torch.arange(len(ends))
    ways = {"nested, whole mask": ("sdpa", of_row, in_turn), "nested, FlexAttention": (FLEX, of_row, in_turn)}
    ways["windows one by one"] = "sdpa", of_windows, torch.tensor(sum(groups, [])).argsort()
    if not flex:
        del ways["nested, FlexAttention"]
    length = pack_for(policy, images, [nested], [sum(pairs, [])]).input_ids.shape[1]
    lines, first = [], None
    for name, (attention, forwards, order) in ways.items():
        policy.model.set_attn_implementation({"text_config": attention})
        measured = [step(forwards) for _ in range(turns + 1)][1:]
        logps = measured[0][2][order]
        first = logps if first is None else first
        milliseconds = 1000 * statistics.median(seconds for seconds, *_ in measured) / len(ends)
        most = max(bytes for _, bytes, _ in measured) / 2**20
        differ = (logps - first).abs().max().item()
        lines.append([str(length), str(len(ends)), name, f"{milliseconds:.1f}", f"{most:.0f} MiB", f"{differ:.0e}"])
    return lines


def titles() -> Iterator[str]:
    """Endless titles of eight letters."""
    rng = np.random.default_rng(0)
    while True:
        yield "".join(rng.choice(list("abcdefgh"), 8))


def attend(_, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float, **__) -> tuple:
    """FlexAttention under any mask of transformers': the blocks that no token sees are passed over."""
    if BLOCKS.get("of") is not attention_mask:  # all layers of a forward have one mask
        visible = attention_mask[:, 0] == 0

        def seen(batch: Tensor, _: Tensor, row: Tensor, column: Tensor) -> Tensor:
            return visible[batch, row, column]

        B, L, device = len(query), query.shape[2], query.device
        BLOCKS.update(of=attention_mask, blocks=create_block_mask(seen, B, None, L, key.shape[2], device))
    out = COMPILED(query, key, value, block_mask=BLOCKS["blocks"], scale=scaling, enable_gqa=True)
    return out.transpose(1, 2), None


BLOCKS: dict = {}
COMPILED = torch.compile(flex_attention, dynamic=False)
AttentionInterface.register(FLEX, attend)
AttentionMaskInterface.register(FLEX, sdpa_mask)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(device: torch.device) -> float:
    """Bytes of GPU memory at most since the last call; 0 elsewhere."""
    if device.type != "cuda":
        return 0.0
    most = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return most


def matrix_product_rate(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> float:
    """FLOP/s of a large matrix product, the best of ten."""
    size, best = (8192 if device.type == "cuda" else 512), 0.0
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(10):
        synchronize(device)
        begun = time.perf_counter()
        a @ b
        synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - begun))
    return best


def out_of_memory() -> tuple[str, bool]:
    """What train_sft.py prints last where a step needs more than `LIMIT`, and whether that says what to do, without a
    traceback before it."""
    fraction = LIMIT / torch.cuda.get_device_properties(0).total_memory
    with tempfile.TemporaryDirectory() as folder:
        data = catalogue(Path(folder) / "toy", 64)
        options = f"--data {data} --output {folder}/run --batch-size 256 --forward-tokens 999999".split()
        command = [sys.executable, "-c", OUT_OF_MEMORY, str(fraction), str(HERE.parent / "train_sft.py"), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "nothing"
    named = all(option in last for option in ("--forward-tokens", "--gradient-checkpointing"))
    return last, done.returncode == 2 and named and "Traceback" not in done.stderr


if __name__ == "__main__":
    main()
