#!/usr/bin/env python3
"""Makes the tiny backbone, pretrained on drawn and captioned images, in 14 minutes on two cores.

The method assumes a pretrained vision-language model. No public one is small enough to train in minutes on a
laptop, so this script makes one of 2.8 million parameters. What it learns is what a public model knows before
it meets a recommender: to say what an image looks like, which topic a title's words belong to, what several
pictures share, and to find and copy a line of a list. Every image is drawn anew, every title is a random word
and name, and nothing of the toy catalogue (its items, its users, their choices) is used.

First the vision tower alone learns to point at the word for what it sees, as contrastive pretraining would teach
it; then the whole model learns from captions, from copying, and from lists that grow longer.

    python tools/pretrain_tiny.py                   makes src/hanorec/models/tiny_backbone, which ships
    python tools/pretrain_tiny.py --output DIR --minutes 1
"""

from __future__ import annotations

import argparse
import json
import math
import pydoc_data.topics
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from hanorec.data.toy import NAMES, STYLES, THEMES, draw
from hanorec.errors import exit_on_user_error
from hanorec.files import check_new_folder
from hanorec.models import tiny
from hanorec.models.backbone import Backbone, load_backbone
from hanorec.models.images import CatalogImages
from hanorec.models.packing import Prompt
from hanorec.models.prompts import HISTORY, QUESTIONS
from hanorec.models.scoring import score
from hanorec.training.bounds import LARGEST_SEED, BoundedOption

DESCRIBE = "What is it?"
SHARED = "What do most of them share?"
MATCH = "Which of these fits them best?"
REPEAT = "Repeat this list."
CAPTION, SHARE, FIT, COPY = range(4)  # the tasks
OTHER_TEXT = [*QUESTIONS.values(), "an item", "Yes", "No", "\n", *(f" ({year})" for year in range(1900, 2030))]


def vocabulary_texts() -> list[str]:
    """What the tokenizer is learnt from: the words above, often, and English prose (Python's own manual)."""
    sentences = [HISTORY, DESCRIBE, SHARED, MATCH, REPEAT, *OTHER_TEXT, "User:", "Assistant:"]
    titles = [f"{word} {name}" for word, name in zip(sum(THEMES.values(), ()) * len(NAMES), NAMES)]
    captions = [f"{style}, {theme} {style}" for style in STYLES for theme in THEMES]
    return (sentences + titles + captions) * 200 + list(pydoc_data.topics.topics.values())


class Captions:
    """Random examples: images by number in a pool that is drawn anew, words, an instruction, an answer."""

    def __init__(self, backbone: Backbone, images: CatalogImages, styles: list[str], rng: np.random.Generator):
        self.backbone, self.images, self.rng = backbone, images, rng
        self.by_style = {style: [i for i, s in enumerate(styles) if s == style] for style in STYLES}
        self.tokens = {}

    def ids(self, text: str) -> list[int]:
        if text not in self.tokens:
            self.tokens[text] = self.backbone.tokens(text)
        return self.tokens[text]

    def title(self, theme: str) -> str:
        return f"{self.rng.choice(THEMES[theme])} {self.rng.choice(NAMES)}"

    def batch(self, size: int, spent: float) -> tuple[int, list[tuple[Prompt, list[list[int]]]]]:
        """Examples of one task, history length and list length, so that little is padding. Captions and copying
        come first; lists grow while `spent`, the share of the time gone, passes one half."""
        early = spent < 0.3
        task = int(self.rng.choice(4, p=[0.15, 0.1, 0.05, 0.7] if early else [0.05, 0.1, 0.75, 0.1]))
        number = int(self.rng.integers(1, 4 if early else 7))
        lines = int(self.rng.integers(3, 6 + round(14 * min(1, 2 * spent))))
        return task, [self.example(task, number, lines) for _ in range(size)]

    def example(self, task: int, number: int, lines: int) -> tuple[Prompt, list[list[int]]]:
        rng, backbone = self.rng, self.backbone
        if task == COPY:
            titles = [
                token
                for _ in range(lines)
                for token in self.ids("\n") + self.ids(self.title(str(rng.choice(list(THEMES)))))
            ]
            prompt = Prompt(backbone.prefix + self.ids(REPEAT) + titles + backbone.separator, [])
            return prompt, [titles[1:] + backbone.suffix]
        favourite = str(rng.choice(STYLES)), str(rng.choice(list(THEMES)))
        styles = [favourite[0] if rng.random() < 0.6 else str(rng.choice(STYLES)) for _ in range(number)]
        themes = [favourite[1] if rng.random() < 0.6 else str(rng.choice(list(THEMES))) for _ in range(number)]
        style = max(STYLES, key=lambda s: (styles.count(s), s == favourite[0]))
        theme = max(THEMES, key=lambda t: (themes.count(t), t == favourite[1]))
        images = [int(rng.choice(self.by_style[s])) for s in styles]
        ids = backbone.prefix + self.ids(HISTORY)
        for image, topic in zip(images, themes):
            ids = ids + self.ids("\n") + self.images.placeholders(image) + self.ids(self.title(topic))
        if task == CAPTION:  # of the last
            question, answer = self.ids("\n" + DESCRIBE), f"{styles[-1]}, {themes[-1]}"
        elif task == SHARE:
            question, answer = self.ids("\n" + SHARED), f"{style}, {theme}"
        else:  # a list of described titles, one of which fits both look and topic
            cells = [(s, t) for s in STYLES for t in THEMES if (s, t) != (style, theme)]
            picked = rng.choice(len(cells), lines, replace=False)
            described = [(style, theme), *(cells[p] for p in picked)]
            titles = [self.title(t) for _, t in described]
            answer, told = titles[0], rng.random() < 0.9
            question = self.ids("\n" + MATCH)
            for k in rng.permutation(len(described)):
                look = f" {described[k][0]}" if told else ""
                question = question + self.ids("\n") + self.ids(titles[k]) + self.ids(look)
        prompt = Prompt(ids + question + backbone.separator, images)
        return prompt, [self.ids(answer) + backbone.suffix]


def pretrain_vision(
    backbone: Backbone, images: CatalogImages, styles: list[str], minutes: float, rng: np.random.Generator
) -> float:
    """Train vision tower and connector so that an image's mean feature points at the embedding of its style's
    word, among all styles. Drawings are mirrored, turned and recoloured. Returns the last accuracies' mean."""
    model = backbone.model
    pixels = torch.cat([content["pixel_values"] for content in images.contents])
    labels = torch.tensor([STYLES.index(style) for style in styles])
    words = torch.tensor([[backbone.tokens(text)[0] for text in (style, f" {style}")] for style in STYLES])
    parameters = [*model.model.vision_model.parameters(), *model.model.connector.parameters()]
    table = model.get_input_embeddings().weight
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.05)
    begun, accuracy = time.time(), 0.0
    while (spent := (time.time() - begun) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, 50 * spent) * (0.05 + 0.95 * (1 + math.cos(math.pi * spent)) / 2)
        chosen = torch.from_numpy(rng.integers(0, len(labels), 96))
        view = pixels[chosen][:, :, rng.permutation(3)]
        view = view.flip(-1) if rng.random() < 0.5 else view
        view = view.transpose(-1, -2) if rng.random() < 0.5 else view
        view = -view if rng.random() < 0.5 else view
        features = torch.stack([f.mean(dim=0) for f in model.get_image_features(view, return_dict=True).pooler_output])
        targets = torch.nn.functional.normalize(table[words].mean(dim=1).detach(), dim=-1)
        logits = features @ targets.T
        loss = torch.nn.functional.cross_entropy(logits, labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        accuracy += 0.02 * ((logits.argmax(dim=1) == labels[chosen]).float().mean().item() - accuracy)
    return accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=tiny.PRETRAINED, help="where the checkpoint goes (default: the package)"
    )
    number = partial(parser.add_argument, action=BoundedOption)
    text = "how long to train; the schedule follows the clock (default 14, on two cores)"
    number("--minutes", type=float, default=14, above=0, help=text)
    number("--batch-size", type=int, default=24, least=1, help="examples a step (default 24)")
    number("--learning-rate", type=float, default=1.5e-3, least=0, help="peak of the cosine schedule (default 1.5e-3)")
    number("--pool", type=int, default=1200, least=len(STYLES), help="drawings kept at a time (default 1200)")
    number("--seed", type=int, default=7, least=0, most=LARGEST_SEED)
    args = parser.parse_args()

    check_new_folder(args.output)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    tiny.save_tiny(args.output, vocabulary_texts())
    backbone = load_backbone(str(args.output), dtype="float32")
    model = backbone.model.train()
    styles = [STYLES[i % len(STYLES)] for i in range(5 * args.pool)]
    images = CatalogImages(backbone, [draw(style, rng) for style in styles], progress=False)
    accuracy = pretrain_vision(backbone, images, styles, 0.15 * args.minutes, rng)
    tqdm.write(f"vision tower: names the style of {accuracy:.1%} of its drawings")
    model.model.vision_model.requires_grad_(False)  # from here on the language model learns what it means
    model.model.connector.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=args.learning_rate, weight_decay=0.05, betas=(0.9, 0.98)
    )
    begun, step, captions, average, seconds = time.time(), 0, None, [10.0] * 4, 0.85 * 60 * args.minutes
    bar = tqdm(total=round(seconds), unit="s")
    while (spent := (time.time() - begun) / seconds) < 1:
        if step % 400 == 0:  # fresh drawings
            styles = [STYLES[i % len(STYLES)] for i in range(args.pool)]
            images = CatalogImages(backbone, [draw(style, rng) for style in styles], frozen=True, progress=False)
            captions = Captions(backbone, images, styles, rng)
        warm = min(1, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * spent)) / 2)
        task, batch = captions.batch(args.batch_size, spent)
        prompts, answers = zip(*batch)
        loss = -score(backbone, images, prompts, answers).mean()
        loss = loss / (len(answers[0][0]) if task == COPY else 1)  # a long copy weighs as much as a title
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        average[task] += 0.05 * (loss.item() - average[task])
        bar.n = round(time.time() - begun)
        bar.set_postfix(step=step, losses=" ".join(f"{value:.3f}" for value in average))
    bar.close()

    model.half().save_pretrained(args.output)  # half the bytes; loading turns it into float32 again
    facts = dict(steps=step, batch_size=args.batch_size, minutes=args.minutes, seed=args.seed, losses=average)
    (args.output / "pretraining.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(f"{step} steps; saved in {args.output}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
