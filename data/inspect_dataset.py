#!/usr/bin/env python3
"""Look at a dataset before anything is trained on it: what is in it, what will hurt, and what to run next.

In flows a dataset folder (docs/data.md). Out flow a table of counts, a warning for everything that will hurt, a picture
of six users' histories and targets, and the commands to run next, with options that suit these rows and titles. Their
minutes are made of a few optimizer steps that are timed on this machine.

    python data/inspect_dataset.py DIR
    python data/inspect_dataset.py DIR --preview users.png
"""

from __future__ import annotations

import argparse
import io
import re
import shlex
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from hanorec import files
from hanorec.data.dataset import Dataset, check_skipped, check_test_rows, draw_windows, open_dataset, read_split
from hanorec.data.examples import HISTORY, Example, groups
from hanorec.data.interactions import UserHistory, Window
from hanorec.data.interactions import windows as cut_windows
from hanorec.data.untrusted import load_image
from hanorec.errors import DataError, exit_on_user_error, shown
from hanorec.models.backbone import Backbone, load_backbone
from hanorec.models.encoding import process_image
from hanorec.models.images import CatalogImages
from hanorec.models.lora import freeze_vision, prepare_for_training
from hanorec.models.prompts import QUESTIONS, Prompts
from hanorec.models.scoring import score
from hanorec.training.optimization import adamw

SPLITS = ("train", "val", "test")
MOST_IMAGES = 10_000  # that are opened; of more, so many are drawn
MOST_TOKENS = 1.5  # of a word, before a vocabulary is fitted
MOST_COLD, MOST_WHOLE_TITLES = 0.02, 30_000  # share of the targets, and items, where a title may be one token
FITTED_WORDS = 4096  # that a vocabulary of 6,144 tokens adds to the shipped one, about
LONGEST_HISTORY, MOST_EPOCHS = 20, 8  # of what experiments/real_data has measured; more of either did not help
TARGETS_IN_ALL = 200_000  # that SFT reads in all of its epochs
MOST_USERS = 5_000  # from which DPO learns, and which are ranked
TIMED_STEPS = 5
PREVIEW_USERS = 6
FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Zen Hei", "Microsoft YaHei", "PingFang SC")


class Advice(NamedTuple):
    """Options that suit a dataset. vocabulary: whether the tiny backbone gets a token for each title ("whole titles"),
    gets one for most of their words ("words"), or stays as it is ("")."""

    vocabulary: str
    history: int
    batch_size: int
    epochs: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="DIR", help="dataset folder, see docs/data.md")
    parser.add_argument("--preview", type=Path, metavar="FILE", help="picture to write (default: preview.png in DIR)")
    args = parser.parse_args()
    data = open_dataset(args.folder)
    rows = {split: read_split(data, split) for split in SPLITS}
    check_test_rows(data, "next", history=None, candidates=20)
    backbone = load_backbone("tiny")
    tokens = np.array([len(backbone.title_tokens(title)) for title in data.catalog.titles])
    for name, fact in facts_of(data, rows, tokens).items():
        print(f"{name:18}{shown(fact)}")
    history = history_for(rows["train"])
    windows = {split: windows_of(data, split, rows[split], history) for split in SPLITS}
    advice = advise(data, rows, len(windows["train"]), tokens)
    warn(data, rows, len(windows["train"]))
    preview = args.preview or args.folder / "preview.png"
    try:
        files.replace_bytes(preview, draw_preview(data, rows["test"]))
        print(f"{'preview':18}{shown(str(preview))}")
    except OSError as error:
        warnings.warn(f"{preview}: cannot be written ({error.strerror}); --preview takes another place", stacklevel=1)
    add_vocabulary(backbone, data, advice.vocabulary)
    minutes = "stops as the last warning says"
    if prompts_fit(backbone, data, [window for split in SPLITS for window in windows[split]]):
        least = sft_minutes(backbone, data, windows["train"], advice)
        minutes = f"takes some {max(1, least):.0f} min on this machine as busy as it is now"
    print(f"\nTo run next. SFT {minutes}:\n")
    print("\n".join(commands(data, advice)))


# what is in it


def facts_of(data: Dataset, rows: Mapping[str, Sequence[UserHistory]], tokens: np.ndarray) -> dict[str, str]:
    """The lines of the table, by name. tokens [items]: of each title, in the tiny backbone's vocabulary."""
    catalog = data.catalog
    longest: dict[str, int] = {}  # a user's longest row, which holds the others if the splits are leave-one-out
    for row in (row for split in rows.values() for row in split):
        longest[row.user] = max(longest.get(row.user, 0), len(row.items))
    lengths = [len(row.items) for row in rows["train"]]
    least, half, most, longest_row = np.percentile(lengths, [0, 50, 90, 100]).astype(int)
    words = [len(title.split()) for title in catalog.titles]
    by_words, by_tokens = int(np.argmax(words)), int(np.argmax(tokens))
    repeated = len(catalog) - len(set(catalog.titles))
    cold = [f"{cold_targets(data, rows[split]):,} of {len(rows[split]):,} in {split}.tsv" for split in SPLITS[1:]]
    return {
        "users": f"{len(longest):,}: {', '.join(f'{len(rows[split]):,} in {split}.tsv' for split in SPLITS)}",
        "items": f"{len(catalog):,}, {len(catalog) - len(data.warm):,} of them in no row of train.tsv",
        "interactions": f"{sum(longest.values()):,}, {sum(lengths):,} of them in train.tsv",
        "rows of train.tsv": f"{least} to {longest_row:,} items; half have at most {half}, and 90 % at most {most}",
        "cold targets": f"{', '.join(cold)} (in no row of train.tsv)",
        "images": images_of(data),
        "titles": f"{repeated:,} repeat another item's, {speechless(data):,} have no letter",
        "longest titles": f"{words[by_words]:,} words (item {catalog.items[by_words]}), "
        f"{tokens[by_tokens]:,} tokens of the tiny backbone (item {catalog.items[by_tokens]})",
    }


def cold_targets(data: Dataset, rows: Sequence[UserHistory]) -> int:
    """How many rows end with an item that no training row has."""
    return sum(data.counts[row.items[-1]] == 0 for row in rows)


def speechless(data: Dataset) -> int:
    """How many titles have no letter of any alphabet."""
    return sum(not any(map(str.isalpha, title)) for title in data.catalog.titles)


def images_of(data: Dataset) -> str:
    """How many items have an image, how many of these cannot be read, and how large they are; a warning names each
    that cannot be read."""
    paths = [path for path in data.catalog.images if path is not None]
    fact = f"{len(paths):,} of {len(data.catalog):,} items have one"
    if len(paths) > MOST_IMAGES:
        paths = [paths[k] for k in np.random.default_rng(0).choice(len(paths), MOST_IMAGES, replace=False)]
    bar = tqdm(paths, desc="images", unit="image", leave=False)
    sizes = [image.size for path in bar if (image := load_image(path)) is not None]
    if paths:
        fact += f"; {len(paths) - len(sizes):,} of {len(paths):,} that were opened cannot be read"
    if sizes:
        width, height = np.median(sizes, axis=0).astype(int)
        fact += f"; {width} x {height} pixels (medians)"
    return fact


# what will hurt


def warn(data: Dataset, rows: Mapping[str, Sequence[UserHistory]], targets: int) -> None:
    """Warn of what will hurt, beside what reading the files has warned of. targets: of all training windows."""

    def say(share: float, most: float, text: str) -> None:
        if share > most:
            warnings.warn(f"{share:.0%} of {text}", stacklevel=2)

    items, held_out = len(data.catalog), [*rows["val"], *rows["test"]]
    short = sum(len(row.items) < 3 for row in rows["train"]) / len(rows["train"])
    say(cold_targets(data, held_out) / len(held_out), 0.1, "targets are cold: only title and image can find them")
    say(data.catalog.images.count(None) / items, 0.5, "items have no image: most is learnt from titles alone")
    say(speechless(data) / items, 0.1, "titles have no letter: they tell a language model little")
    say(short, 0.5, "rows of train.tsv have one or two items: there is little history to learn from")
    if targets < 5000:
        warnings.warn(f"{targets:,} training targets are few: SFT will know them by heart", stacklevel=1)


def windows_of(data: Dataset, split: str, rows: Sequence[UserHistory], history: int) -> list[Window]:
    """The windows that SFT trains on or that are ranked. Errors and warnings: as `check_skipped`."""
    which = "nested" if split == "train" else "last"
    windows, skipped = cut_windows(rows, history=history, which=which)
    check_skipped(data, split, "next", rows, skipped, shortest=2)
    return windows


def prompts_fit(backbone: Backbone, data: Dataset, windows: Sequence[Window]) -> bool:
    """Whether the prompts of all windows fit the backbone's context; a warning says why not. Training would stop at it.

    Only the longest are made: those of most tokens in history and target.
    """
    block = process_image(backbone, Image.new("RGB", (64, 64))).placeholders
    images = SimpleNamespace(placeholders=lambda item: block if data.catalog.images[item] else [])
    prompts = prompts_of(backbone, data, images)
    lengths = np.array([len(title) for title in prompts.titles]) + len(block) + 1
    longest = sorted(windows, key=lambda window: -lengths[[*window.history, *window.targets, *window.targets]].sum())
    try:
        prompts.check(examples_of(longest[:100]))
    except DataError as error:
        warnings.warn(str(error), stacklevel=1)
        return False
    return True


# what suits it


def history_for(rows: Sequence[UserHistory]) -> int:
    """The most items of a history: as many as half of the rows have before their last, within bounds."""
    return min(max(int(np.median([len(row.items) for row in rows])) - 1, HISTORY["next"]), LONGEST_HISTORY)


def advise(data: Dataset, rows: Mapping[str, Sequence[UserHistory]], targets: int, tokens: np.ndarray) -> Advice:
    """Options of the next commands. targets: of all training windows. tokens [items]: of each title.

    A vocabulary is fitted where the titles' words fall into pieces. It has a token for each title where nearly all
    targets occur in training, since what such a token means is learnt there. A step reads two chunks of a row or more.
    """
    held_out = [*rows["val"], *rows["test"]]
    warm = cold_targets(data, held_out) <= MOST_COLD * len(held_out) and len(data.catalog) <= MOST_WHOLE_TITLES
    known = tokens.sum() <= MOST_TOKENS * sum(len(title.split()) for title in data.catalog.titles)
    history = history_for(rows["train"])
    batch_size, epochs = max(16, 2 * history), min(MOST_EPOCHS, TARGETS_IN_ALL / targets)
    epochs = round(epochs) if epochs > 1 else float(f"{epochs:.2g}")
    vocabulary = "" if known else "whole titles" if warm else "words"
    return Advice(vocabulary, history, batch_size, epochs)


def add_vocabulary(backbone: Backbone, data: Dataset, vocabulary: str) -> None:
    """Give the tiny backbone about as many tokens as tools/fit_vocabulary.py does, so that lengths and minutes are
    about those that come of it."""
    titles = data.catalog.titles
    words = Counter(f" {word}" for title in titles for word in title.split())
    tokenizer = backbone.processor.tokenizer
    tokenizer.add_tokens([word for word, _ in words.most_common(FITTED_WORDS)] * bool(vocabulary))
    tokenizer.add_tokens([*dict.fromkeys(titles), *QUESTIONS.values()] * (vocabulary == "whole titles"))
    backbone.model.resize_token_embeddings(len(tokenizer), mean_resizing=False)


def commands(data: Dataset, advice: Advice) -> list[str]:
    """The commands to run next, one a line."""
    folder, name = shlex.quote(shown(str(data.folder))), re.sub(r"[^\w.-]", "-", data.folder.resolve().name)
    sft, hanorec, fitted = f"runs/{name}-sft", f"runs/{name}-hanorec", f"runs/{name}-tiny"
    lines, start, users = [], "", ""
    if (data.folder / "image_urls.csv").is_file() and None in data.catalog.images:
        lines.append(f"python data/fetch_images.py {folder}")
    if advice.vocabulary:
        whole = " --whole-titles" if advice.vocabulary == "whole titles" else ""
        lines.append(f"python tools/fit_vocabulary.py --data {folder} --output {fitted}{whole}")
        start = f" --backbone {fitted}"
    if len(data.train) > MOST_USERS:
        users = f"users {MOST_USERS}"
    options = f"--history {advice.history} --epochs {advice.epochs:g} --batch-size {advice.batch_size}"
    return [
        *lines,
        f"python train_sft.py --data {folder}{start} {options} --output {sft}",
        f"python train_dpo.py --sft {sft}{users and f' --train-{users}'} --output {hanorec}",
        f"python evaluate.py --runs {sft} {hanorec} --split val{users and f' --{users}'} "
        "--baselines popularity co-occurrence",
    ]


def sft_minutes(backbone: Backbone, data: Dataset, windows: Sequence[Window], advice: Advice) -> float:
    """What SFT takes on this machine: images are encoded and a few steps made for rows that are drawn at random."""
    drawn = draw_windows(list(windows), (TIMED_STEPS + 1) * advice.batch_size, nested=True, seed=0)
    chunks = sorted(groups(examples_of(drawn), nested=True), key=len)  # as in batches of similar lengths
    needed = {item for chunk in chunks for example in chunk for item in example.history}
    paths = [path if item in needed else None for item, path in enumerate(data.catalog.images)]
    start = time.perf_counter()
    images = CatalogImages(backbone, paths, frozen=True, progress=False)
    an_image = (time.perf_counter() - start) / max(1, len(paths) - paths.count(None))
    freeze_vision(backbone)
    prepare_for_training(backbone)
    optimizer, prompts, seconds = adamw(backbone.model, 0.01), prompts_of(backbone, data, images), []
    size = max(1, round(advice.batch_size * len(chunks) / len(drawn)))
    for step in (chunks[at : at + size] for at in range(0, len(chunks), size)):
        start = time.perf_counter()
        x, y = [prompts.nested(chunk) for chunk in step], [prompts.answers_of(chunk) for chunk in step]
        score(backbone, images, x, y).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    an_image *= sum(path is not None for path in data.catalog.images)
    steps = advice.epochs * len(windows) * len(chunks) / len(drawn) / size
    return (steps * float(np.mean(seconds[1:] or seconds)) + an_image) / 60


def prompts_of(backbone: Backbone, data: Dataset, images) -> Prompts:
    """Prompts as `train_sft.py` writes them by default."""
    catalog = data.catalog
    return Prompts(backbone, images, catalog.titles, "next", list_candidates=False, items=catalog.items)


def examples_of(windows: Sequence[Window]) -> list[Example]:
    """Examples without candidates besides the target."""
    return [Example(each.user, each.history, each.targets, each.targets, ()) for each in windows]


# how it looks


def draw_preview(data: Dataset, rows: Sequence[UserHistory]) -> bytes:
    """Some users' last items and their target, as pictures with titles: a PNG file."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.font_manager import fontManager

    plt.rcParams["font.family"] = [name for name in FONTS if name in fontManager.get_font_names()]
    columns = HISTORY["next"] + 1
    drawn = np.random.default_rng(0).choice(len(rows), min(PREVIEW_USERS, len(rows)), replace=False)
    figure, grid = plt.subplots(len(drawn), columns, figsize=(2 * columns, 2.6 * len(drawn)), squeeze=False)
    for row, line in zip((rows[k] for k in np.sort(drawn)), grid):
        for axes in line:
            axes.axis("off")
        user, where = f"user {shown(row.user)[:20]}", line[0].transAxes
        line[0].text(-0.1, 0.5, user, transform=where, rotation=90, va="center", fontsize=8, parse_math=False)
        items = row.items[-columns:]
        for place, (item, axes) in enumerate(zip(items, line[-len(items) :])):
            path = data.catalog.images[item]
            image = load_image(path) if path else None
            axes.imshow(image if image is not None else np.full((3, 3, 3), 225, dtype=np.uint8))
            title = "\n".join(textwrap.wrap(shown(data.catalog.titles[item]), 22, max_lines=3, placeholder=" …"))
            if image is None:
                axes.text(1, 1, "no image", ha="center", va="center", fontsize=8, color="0.4")
            weight = "bold" if place == len(items) - 1 else "normal"
            axes.set_title(title, fontsize=8, fontweight=weight, parse_math=False)
    figure.suptitle(shown(f"{data.folder}: what users chose, oldest first, and in bold what came next"), fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that no font here has
        figure.savefig(buffer, format="png", dpi=80)
    plt.close(figure)
    return buffer.getvalue()


if __name__ == "__main__":
    with exit_on_user_error():
        main()
