"""What holds on a CUDA GPU: is packed scoring the same there, what does a HaNoRec step cost at published sizes, and
what does running out of memory print?

    python -m experiments.checks.on_cuda       at most 8 minutes; without a GPU, the float32 equality on the CPU

Equality: log-probabilities of packed responses against the family's own forward over prompt, pixels and one response,
for the small models of tools/families.py. Steps: SmolVLM-256M and Qwen2.5-VL-3B with random weights in bfloat16 and
LoRA of rank 8, without dropout and noise, so that both ways give the same numbers. The plain way gives each response a
prompt of its own, encodes images in every forward, and computes all logits and the reference's forward. Rows: a step
over a whole row, SmolVLM-256M again, by length of the row: nested, and each target's window packed by itself. A forward
encodes the images that it shows, six different ones at most. Writes cuda.md; without a GPU it writes nothing.
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
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from experiments.common import ROOT, version
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
from tools import families
from tools.backbones import qwen2_5_vl_3b, smolvlm

PAGE = Path(__file__).resolve().with_name("cuda.md")
HISTORY, PAIRS, TURNS = 5, 2, 5  # images a prompt; prompts a step; steps of each way
ROWS = (1000, 2000, 4000)  # tokens of a nested row
CLOSE = 1e-3  # nats: float32 log-probabilities of one response in two orders of summation
LIMIT = 256 * 2**20  # bytes of GPU memory in which a training step of the tiny backbone is tried
OUT_OF_MEMORY = """import runpy, sys, torch
torch.cuda.set_per_process_memory_fraction(float(sys.argv[1]))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")"""
STEP_HEADER = [
    "backbone", "tokens of a prompt", "ours, ms a pair", "plain, ms a pair", "plain takes", "peak, ours", "peak, plain",
    "log-probs differ by",
]  # fmt: skip
ROW_HEADER = ["tokens of the row", "targets", "way", "ms a pair", "peak", "log-probs differ by"]
Forwards = Callable[[], Iterator[tuple[Tensor, Tensor]]]  # log π_θ and log π_ref of pairs [n, 2], forward by forward


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
        small, measured = partial(smolvlm, "SmolVLM-256M"), []
        for name, build in {"SmolVLM-256M": small, "Qwen2.5-VL-3B": qwen2_5_vl_3b}.items():
            measured.append([name, *steps(build("cuda", torch.bfloat16))])
            gc.collect()  # frees the model before the next one is made
        text += f"\n\nA HaNoRec step of {PAIRS} pairs, {HISTORY} images of 512 × 512 a prompt, bfloat16, on "
        text += f"{torch.cuda.get_device_name()}\n\n"
        text += markdown(STEP_HEADER, measured)
        text += "\n\nA HaNoRec step over a whole row, SmolVLM-256M, bfloat16\n\n"
        measured = [line for tokens in ROWS for line in long_row(small("cuda", torch.bfloat16), tokens)]
        text += markdown(ROW_HEADER, measured)
        line, clear = out_of_memory()
        text += f"\n\nA training run that does not fit in memory prints\n\n    {line}"
        made_by = f"Made by `python -m experiments.checks.on_cuda` with version {version()}.\n\n"
        PAGE.write_text(f"{made_by}{text}\n", encoding="utf-8")
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
    how, equal = "one forward each" if backbone.layout.why_unpacked else "packed", apart < CLOSE
    cells = [build.__name__, how, f"{apart:.0e}"]
    if half:
        ours, plain = ((logps.float() - exact).abs().max().item() for logps in found["bfloat16"])
        cells += [f"{ours:.3f}", f"{plain:.3f}"]
        equal = equal and ours < 2 * plain + 0.05
    return cells, equal


def steps(backbone: Backbone, pixels: int = 512, turns: int = TURNS) -> list[str]:
    """A backbone's cells of the table: steps of both ways that take turns, after one of each that does not count.

    backbone: the model, whose adapter is made here. pixels: a side of its images. Where a way runs out of memory, its
    cells say so.
    """
    rng = np.random.default_rng(0)
    letters = ["".join(rng.choice(list("abcdefgh"), 8)) for _ in range(20 + 2 * PAIRS)]  # titles
    text = "\n".join([*(f"IMAGE{title}" for title in letters[:HISTORY]), "Which is next?", *letters[:20]]) + "\n"
    shown = [[Image.fromarray(rng.integers(0, 255, (pixels, pixels, 3), dtype=np.uint8)) for _ in range(HISTORY)]
             for _ in range(PAIRS)]  # fmt: skip
    pairs = [[backbone.tokens(letters[20 + 2 * i]), backbone.tokens(letters[21 + 2 * i])] for i in range(PAIRS)]
    policy = add_lora(backbone, dropout=0.0)  # so that both ways' log-probabilities can be compared
    prepare_for_training(policy)
    optimizer = adamw(policy.model, 0.01)
    images = CatalogImages(policy, sum(shown, []), frozen=True, progress=False)
    ids, _ = families.asked_plainly(policy, shown[0], text)
    prompts = [Prompt(ids, list(range(i * HISTORY, (i + 1) * HISTORY))) for i in range(PAIRS)]
    with torch.no_grad():
        reference_logps = score(policy, images, prompts, pairs).view(-1, 2)  # the fresh adapter changes nothing

    def ours() -> Iterator[tuple[Tensor, Tensor]]:
        yield score(policy, images, prompts, pairs).view(-1, 2), reference_logps

    def plain_logps() -> Tensor:
        asked = (families.asked_plainly(policy, pictures, text) for pictures in shown)
        return torch.stack([families.plain_logps(policy, *each, pair) for each, pair in zip(asked, pairs)])

    def plain() -> Iterator[tuple[Tensor, Tensor]]:
        with torch.no_grad(), policy.model.disable_adapter():
            reference = plain_logps()
        yield plain_logps(), reference

    for name, way in (("ours", ours), ("plain", plain)):
        try:
            step(policy, way, optimizer)
        except torch.OutOfMemoryError:
            return [str(len(ids)), f"out of memory ({name})", *["–"] * 5]
        for group in optimizer.param_groups:
            group["lr"] = 0.0  # from here on the weights stay, and with them what is compared
    both = [(step(policy, ours, optimizer), step(policy, plain, optimizer)) for _ in range(turns)]
    mine, theirs = (statistics.median(each[way][0] for each in both) for way in (0, 1))
    ratios = [b[0] / a[0] for a, b in both]
    differ = max((a[2] - b[2]).abs().max().item() for a, b in both)
    return [
        str(len(ids)), f"{1000 * mine / PAIRS:.1f}", f"{1000 * theirs / PAIRS:.1f}",
        f"{statistics.median(ratios):.1f}× [{min(ratios):.1f}, {max(ratios):.1f}]",
        *(f"{max(each[way][1] for each in both) / 2**20:.0f} MiB" for way in (0, 1)),
        f"{differ:.0e}",
    ]  # fmt: skip


def long_row(backbone: Backbone, tokens: int, turns: int = TURNS) -> list[list[str]]:
    """The table's lines of a row of about so many tokens: behind each item a pair of chosen and rejected title.

    backbone: the model, whose adapter is made here.
    """
    policy, rng = add_lora(backbone, dropout=0.0), np.random.default_rng(0)
    images = CatalogImages(policy, [draw(style, np.random.default_rng(0)) for style in STYLES], progress=False)
    opening, question = policy.tokens("Which is next?"), policy.tokens("Next:")
    ids, ends, shown, pairs = list(opening), [], [], []
    while len(ids) + len(ends) * (len(question) + 9) < tokens:
        title = "".join(rng.choice(list("abcdefgh"), 8))
        chosen, rejected = policy.tokens(title + "c"), policy.tokens(title + "r")
        item = len(ends) % len(STYLES)
        ids = ids + images.placeholders(item) + chosen
        shown, ends, pairs = [*shown, item], [*ends, len(ids)], [*pairs, [chosen, rejected]]
    nested = Prompt(ids, shown, tuple(Branch(end, question) for end in ends))
    windows = [Prompt(ids[:end] + question, shown[: n + 1]) for n, end in enumerate(ends)]
    groups = batches([window.length for window in windows], 8192)

    def read(prompts: list[Prompt], responses: list[list[list[int]]]) -> tuple[Tensor, Tensor]:
        logps = score(policy, images, prompts, responses).view(-1, 2)
        return logps, logps.detach()

    def of_row() -> Iterator[tuple[Tensor, Tensor]]:
        yield read([nested], [sum(pairs, [])])

    def of_windows() -> Iterator[tuple[Tensor, Tensor]]:
        for group in groups:
            yield read([windows[i] for i in group], [pairs[i] for i in group])

    length = pack_for(policy, images, [nested], [sum(pairs, [])]).input_ids.shape[1]
    order = torch.tensor(sum(groups, [])).argsort()
    both = [(step(policy, of_row), step(policy, of_windows)) for _ in range(turns + 1)][1:]
    differ = (both[0][0][2] - both[0][1][2][order]).abs().max().item()
    lines = []
    for name, measured in zip(("nested", "windows one by one"), zip(*both)):
        milliseconds = 1000 * statistics.median(seconds for seconds, *_ in measured) / len(ends)
        most = max(bytes for _, bytes, _ in measured) / 2**20
        lines.append([str(length), str(len(ends)), name, f"{milliseconds:.1f}", f"{most:.0f} MiB", f"{differ:.0e}"])
    return lines


def step(
    policy: Backbone, forwards: Forwards, optimizer: torch.optim.Optimizer | None = None
) -> tuple[float, float, Tensor]:
    """Seconds, bytes of GPU memory at most (0 on a CPU), and log-probabilities of a step."""
    device, found = policy.device, []
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    begun = time.perf_counter()
    for logps, reference in forwards():
        hardness = torch.ones(len(logps), device=device)
        hanorec_loss(*logps.T, *reference.T, hardness, responsiveness=1.0).loss.backward()
        found.append(logps.detach())
    if optimizer:
        optimizer.step()
    policy.model.zero_grad()
    synchronize(device)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0.0
    return time.perf_counter() - begun, peak, torch.cat(found)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def out_of_memory() -> tuple[str, bool]:
    """What train_sft.py prints last where a step needs more than `LIMIT`, and whether that says what to do, without a
    traceback before it."""
    fraction = LIMIT / torch.cuda.get_device_properties(0).total_memory
    with tempfile.TemporaryDirectory() as folder:
        options = f"--output {folder}/run --batch-size 256 --forward-tokens 999999".split()
        command = [sys.executable, "-c", OUT_OF_MEMORY, str(fraction), str(ROOT / "train_sft.py"), *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "nothing"
    named = all(remedy in last for remedy in ("forward tokens", "gradient checkpointing"))
    return last, done.returncode == 3 and named and "Traceback" not in done.stderr


if __name__ == "__main__":
    main()
