"""How costs grow with the history, the candidates and the catalogue, on the tiny backbone; prints JSON.

`benchmark.py` runs it. Histories and catalogues longer than the toy world's are made of the same images and of titles
of made-up words, so the figures are about time and memory alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch

from experiments.speed.turns import forget_peak, memory
from hanorec.data.batching import epoch_order
from hanorec.data.dataset import Dataset, open_dataset, split_examples
from hanorec.data.examples import Example
from hanorec.data.full_catalog import FullCatalog
from hanorec.evaluation.ranking import answer_with_model
from hanorec.hardness import nearest
from hanorec.losses import hardness_weight, neighbourhood_distance
from hanorec.models.backbone import Backbone, load_backbone
from hanorec.models.images import CatalogImages
from hanorec.models.lora import add_lora
from hanorec.models.prompts import Prompts
from hanorec.models.scoring import score
from tools.backbones import catalogue

HISTORIES = (5, 10, 20, 50)
CANDIDATES = (20, 100, 300, 1000)
CATALOGUES = (1_000, 10_000, 100_000)
WIDTH, NEIGHBOURS, PAIRS = 576, 10, (10_000, 100_000, 1_000_000)  # SmolLM2-135M's width, the paper's K


def main() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    with TemporaryDirectory() as folder:
        data = open_dataset(catalogue(Path(folder) / "toy", "tiny"))
        backbone = load_backbone("tiny", dtype="float32")
        examples = split_examples(data, "test", "next", users=16)
        images = CatalogImages(backbone, data.catalog.images, frozen=True, progress=False)
        growths = [
            hardness_growth(rng),  # first: memory that another measurement has freed would hide what this one needs
            neighbours_growth(),
            padding(data, backbone, images),
            candidates_growth(backbone, images, examples, rng),
            ranking_growth(backbone, data, examples, rng),
            history_growth(backbone, images, data, examples, rng),
        ]
    print(json.dumps(growths))


def growth(title: str, header: list[str], rows: list[list[str]]) -> dict:
    return {"title": title, "header": header, "rows": rows}


def timed(work: Callable[[], object], repeats: int = 3) -> float:
    """Seconds, the median of some runs after one that warms up."""
    seconds = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return median(seconds[1:])


def high_water(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and MiB at most above what the process held before."""
    forget_peak()
    before, begun = memory("VmRSS"), time.perf_counter()
    work()
    return time.perf_counter() - begun, memory("VmHWM") - before


def made_up_titles(number: int, rng: np.random.Generator) -> list[str]:
    syllables = ["ba", "ko", "mi", "ter", "lan", "su", "vor", "ne", "dri", "pol", "ga", "res"]
    words = ["".join(rng.choice(syllables, 2)).capitalize() for _ in range(2000)]
    return [" ".join(words[k] for k in rng.integers(0, len(words), 3)) for _ in range(number)]


def padding(data: Dataset, backbone: Backbone, images: CatalogImages) -> dict:
    """What padding adds to the tokens of SFT's batches of 16 windows."""
    examples = split_examples(data, "train", "next", windows="every")
    prompts = Prompts(backbone, images, data.catalog.titles, "next", list_candidates=False)
    lengths = np.array([prompts.length(prompts.prompt(e), [prompts.chosen(e)]) for e in examples])
    shuffled = np.random.default_rng(0).permutation(len(lengths))
    ways = {
        "shuffled": [shuffled[at : at + 16] for at in range(0, len(shuffled), 16)],
        "similar lengths together": epoch_order(lengths, 16, seed=0, epoch=0),
    }
    rows = [
        [way, f"{sum(len(b) * lengths[b].max() for b in order) / lengths.sum() - 1:.1%}"] for way, order in ways.items()
    ]
    return growth("Padding in batches of 16", ["batches", "padding"], rows)


def history_growth(
    backbone: Backbone, images: CatalogImages, data: Dataset, examples: list[Example], rng: np.random.Generator
) -> dict:
    """A training pair's time with longer and longer histories."""
    policy, titles, rows = add_lora(backbone), data.catalog.titles, []
    policy.model.train()
    prompts = Prompts(policy, images, titles, "next", list_candidates=False)
    for length in HISTORIES:
        longer = [replace(e, history=tuple(rng.integers(0, len(titles), length).tolist())) for e in examples[:8]]
        x = [prompts.prompt(e) for e in longer]
        y = [[prompts.chosen(e), *prompts.rejected(e)] for e in longer]

        def step(x=x, y=y):
            (score(policy, images, x, y).view(-1, 2) @ torch.tensor([-1.0, 1.0])).sum().backward()

        rows.append([str(length), f"{len(x[0].ids)}", f"{1000 * timed(step) / len(x):.1f}"])
    header = ["items of history", "tokens of a prompt", "milliseconds a training pair"]
    return growth("Longer histories (tiny backbone, no candidate list)", header, rows)


def candidates_growth(
    backbone: Backbone, images: CatalogImages, examples: list[Example], rng: np.random.Generator
) -> dict:
    """A user's time with more and more candidates to rank."""
    titles = made_up_titles(max(*CANDIDATES, len(images.blocks)), rng)
    prompts = Prompts(backbone, images, titles, "next", list_candidates=False)
    rows = []
    for number in CANDIDATES:
        listed = tuple(range(number))
        users = [replace(e, candidates=listed, targets=(0,)) for e in examples[: 16 if number <= 100 else 4]]
        seconds = timed(lambda users=users: answer_with_model(backbone, prompts, users)) / len(users)
        rows.append([str(number), f"{1000 * seconds:.1f}", f"{1e6 * seconds / number:.0f}"])
    header = ["candidates", "milliseconds a user", "microseconds a candidate"]
    return growth("More candidates, each scored (tiny backbone)", header, rows)


def ranking_growth(backbone: Backbone, data: Dataset, examples: list[Example], rng: np.random.Generator) -> dict:
    """A user's time to find the target's rank in the whole catalogue."""
    rows = []
    for size in CATALOGUES:
        files = [*data.catalog.images, *[None] * size][: max(size, len(data.catalog.images))]
        images = CatalogImages(backbone, files, frozen=True, progress=False)
        prompts = Prompts(backbone, images, made_up_titles(len(files), rng), "next", list_candidates=False)
        drawn = rng.integers(size, size=len(examples)).tolist()
        users = [replace(e, targets=(target,), seen=e.seen | {target}) for e, target in zip(examples, drawn)]

        full_catalog = FullCatalog(np.arange(size))

        def rank(users: list[Example], prompts=prompts, full_catalog=full_catalog):
            return answer_with_model(backbone, prompts, users, full_catalog=full_catalog)

        first_seconds, mib = high_water(lambda rank=rank, users=users: rank(users[:1]))
        a_user = (timed(lambda rank=rank, users=users: rank(users), 1) - first_seconds) / (len(users) - 1)
        rows.append([f"{size:,}", f"{1000 * a_user:.0f}", f"{first_seconds:.1f}", f"{mib:.0f}"])
    header = ["catalogue", "milliseconds a user", "seconds for the trie and the first", "MiB"]
    return growth("The whole catalogue, places to 50 exact (tiny backbone, random targets)", header, rows)


def neighbours_growth() -> dict:
    """Time and memory of the K nearest items of every item."""
    rows = []
    for size in CATALOGUES:
        points = torch.nn.functional.normalize(torch.randn(size, WIDTH), dim=1)
        seconds, mib = high_water(lambda points=points: nearest(points, NEIGHBOURS))
        rows.append([f"{size:,}", f"{seconds:.1f}", f"{mib:.0f}", f"{size**2 * 4 / 2**20:,.0f}"])
    header = ["catalogue", "seconds", "MiB at most", "MiB of all similarities, for comparison"]
    return growth(f"{NEIGHBOURS} neighbours of every item (width {WIDTH})", header, rows)


def hardness_growth(rng: np.random.Generator) -> dict:
    """λ of very many pairs."""
    similarities = torch.rand(100_000, NEIGHBOURS).sort(dim=1, descending=True).values
    rows = []
    for pairs in PAIRS:
        chosen, rejected = torch.from_numpy(rng.integers(0, len(similarities), (2, pairs)))

        def weigh(chosen=chosen, rejected=rejected):
            return hardness_weight(neighbourhood_distance(similarities[chosen], similarities[rejected]))

        seconds, mib = high_water(weigh)
        rows.append([f"{pairs:,}", f"{seconds:.2f}", f"{mib:.0f}"])
    return growth("Hardness of pairs", ["pairs", "seconds", "MiB at most"], rows)


if __name__ == "__main__":
    main()
